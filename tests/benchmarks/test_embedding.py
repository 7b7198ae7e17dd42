"""The benchmark of embedding: the numbers are there and add up."""

import json

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.benchmarks import embedding


@pytest.mark.slow
def test_small(tmp_path, capsys):
    flags = [str(tmp_path), "--people=40,80", "--times=1,8", "--apart", f"--json={tmp_path / 'found.json'}"]
    assert embedding.main(flags) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    apart, found = [one for one in found if one["apart"]], [one for one in found if not one["apart"]]
    for some in (found, apart):
        assert [(one["people"], one["times"]) for one in some] == [(40, 1), (80, 1), (40, 8), (80, 8)]
    assert apart[1]["rows"] == found[1]["rows"] and apart[3]["rows"] > 1.5 * found[3]["rows"]
    assert all(0.2 < one["tokens_filled"] <= 1 and one["processor_seconds"] > 0 for one in found)
    assert found[3]["rows"] < 8 * found[1]["rows"], "times of a person share a context"
    written = pl.read_parquet(tmp_path / "z-80-8-0" / "*.parquet")
    assert written.height == 640 and not written.select("subject_id", "prediction_time").is_duplicated().any()
    alone = pl.read_parquet(tmp_path / "z-80-8-apart-0" / "*.parquet")
    z, z_alone = (
        np.array(table.sort("subject_id", "prediction_time")["embedding"].to_list()) for table in (written, alone)
    )
    np.testing.assert_allclose(z, z_alone, atol=2e-5)
    seen = pl.read_parquet(tmp_path / "z-80-8-0" / "tokens_seen" / "*.parquet")
    assert seen.height == 640 and seen["events"].sum() > 0
    linear, shared = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert linear[3] == shared[2] == "1.00" and float(shared[-1]) > 1
