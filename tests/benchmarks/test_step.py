"""The benchmark times steps on the rows of a folder of records, with the vocabulary that it is asked for."""

import numpy as np
import pytest

from ehrwear_jax import config as config_lib
from ehrwear_jax.benchmarks import data_examples, rows, step
from ehrwear_jax.training.pretrain import Model


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    data_examples.write_cohort(folder, "ehr", 6)
    return {"records": folder / "records", "fit": folder / "fit"}


def small_config():
    config = config_lib.base()
    config.models = {"joint": {"family": "joint"}}
    config.evaluate.reference_model = "joint"
    config.joint.context.update({"tokens": 48, "windows": 16, "context_tokens": 40, "queries": 8, "events": 8,
                                 "patch_steps": 60, "future_windows": 2, "future_codes": 5})  # fmt: skip
    config.joint.network.update({"width": 8, "n_layers": 1, "n_heads": 2, "mlp_width": 16, "token_width": 8,
                                 "time_features": 8, "wear_width": 8, "wear_layers": 1, "wear_heads": 2,
                                 "source_width": 4})  # fmt: skip
    config.train.update({"batch_size": 8, "warmup_steps": 2})
    return config_lib.parse(config)


def test_rows_are_those_of_training_with_any_vocabulary(prepared):
    model = Model(**small_config().model("joint", 0))
    examples, spec = rows.examples(**prepared, model=model)
    _, larger = rows.examples(**prepared, model=model, vocabulary=50_000)
    assert spec.facts.vocabulary < larger.facts.vocabulary == 50_000 and larger.fields.keys() == spec.fields.keys()
    found = rows.batches(examples, 2, 3)
    for k, batch in enumerate(found):
        spec.check(batch, 2)
        row = {name: array[0] for name, array in spec.empty(1).items()}
        examples.fill(row, 2 * k + 1)
        assert all(np.array_equal(batch[name][1], row[name], equal_nan=True) for name in row)
    assert len(found) == 3


def test_filled_slots_are_counted_among_those_that_are_encoded():
    """Of 8 slots a row, a batch encodes as many parts as its fullest row needs."""
    fullest, none = np.full((2, 8), -1), np.full((2, 8), -1)
    fullest[0, :3], fullest[1, :1] = (0, 2, 4), 0
    made = [{"window_position": fullest}, {"window_position": none}]
    assert rows.slots_filled(made, 4) == 4 / (2 * 4)
    assert rows.slots_filled(made, 2) == 4 / (2 * 4)
    assert rows.slots_filled(made, 1) == 4 / 32
    assert rows.slots_filled(made[1:], 4) == 0


@pytest.mark.slow
def test_steps_are_timed(prepared):
    config = small_config()
    found = step.measure(config, "joint", **prepared, timing=step.Timing(steps=3, warmup=1), vocabulary=5_000)
    want = {"rows", "step_ms", "compile_s", "tokens_per_second", "filled", "temporary_gib", "loss"}
    assert want <= found.keys() and all(np.isfinite(x) and x > 0 for x in found.values())
    assert found["slowest_step_ms"] >= found["step_ms"] and found["filled"] <= 1 and found["rows"] == 8
    assert found["parameters"] > 5_000 * config.model_config("joint").network.width
