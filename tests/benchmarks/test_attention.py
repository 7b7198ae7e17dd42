"""The benchmark runs, and its plain formula is the op's."""

import json

import numpy as np
from kernel_attention_suite import assert_close

from ehrwear_jax.benchmarks import attention as bench


def test_rows_compute_the_same():
    case = bench.Case(2, 24, 2, 16, "float32", 3, 2)
    inputs = bench.make_inputs(case)
    passes = {n: bench.compile_passes(case, n) for n in ("plain", "reference", "xla")}
    want = {which: f(*inputs) for which, f in passes["plain"].items()}
    for name in ("reference", "xla"):
        np.testing.assert_allclose(passes[name]["forward"](*inputs), want["forward"], atol=1e-5)
        for n, x in passes[name]["forward_backward"](*inputs).items():
            assert_close(n, x, np.asarray(want["forward_backward"][n], np.float64), 1e-4)


def test_prints_a_table_and_writes_one_flat_mapping(tmp_path, capsys):
    path = tmp_path / "bench.json"
    bench.main(["--shapes=1x32x1x16,1x64x1x16", "--repeats=1", "--implementations=xla,reference", f"--json={path}"])
    results = json.loads(path.read_text())
    assert all(isinstance(x, float | int) for x in results.values())
    for metric in ("ms", "tflops", "temporary_mib", "ratio_to_plain", "ratio_to_unbiased"):
        assert results[f"xla/1x64x1x16/forward_backward_{metric}"] > 0
    assert "plain/1x32x1x16/forward_ms" in results
    printed = capsys.readouterr().out
    assert "reference/1x64x1x16/forward_backward" in printed and "ratio_to_plain" in printed


def test_options_are_numbers_or_tilings():
    assert bench.parsed_options("") == {}
    assert bench.parsed_options("block_q=128,query=64:64:4") == {"block_q": 128, "query": (64, 64, 4)}


def test_memory_tokens_set_the_slowest_rate():
    case = bench.Case(1, 512, 2, 16, "float32", 3, 2, skip_tolerance=1e-3, memory_tokens=50)
    learned, rest = bench.make_inputs(case)
    age = 50 * np.mean(np.diff(rest["time"][0]))
    kernel = np.asarray(learned["beta"] * np.exp(-learned["gamma"] * age)).sum(1) / np.asarray(learned["beta"]).sum(1)
    assert np.all(kernel < 2e-3) and np.all(kernel > 1e-5)
