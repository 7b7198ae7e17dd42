"""The benchmark of reading ahead: threads and workers bring the batches of full.py's shape, and are counted."""

import json
import runpy

import pytest
from repo import REPO

from ehrwear_jax.benchmarks import data_examples, loader_scaling


def test_the_shape_is_that_of_the_full_config():
    context = runpy.run_path(str(REPO / "configs" / "full.py"))["get_config"]().joint.context
    for name, value in (data_examples.CONTEXT | loader_scaling.SHAPE).items():
        assert context[name] == value, name


@pytest.mark.slow
def test_threads_and_workers_are_measured(tmp_path, capsys):
    loader_scaling.main(["--threads=1,2", "--workers=1", f"--json={tmp_path / 'found.json'}"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(one["threads"], one["workers"]) for one in found] == [(1, 0), (2, 0), (2, 1)]
    assert all(one["tokens_per_second"] > 100 and one["cores"] > 0 for one in found)
    assert capsys.readouterr().out.splitlines()[1].split()[3] == "1.00"
