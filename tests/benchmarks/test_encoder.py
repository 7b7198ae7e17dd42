"""The benchmark's rows are rows, and empty slots cost next to nothing where the encoder skips them."""

import numpy as np
import pytest

from ehrwear_jax import config as config_lib
from ehrwear_jax.benchmarks import encoder
from ehrwear_jax.models.joint import family


def small_config(parts):
    config = config_lib.base()
    config.models = {"joint": {"family": "joint"}}
    config.evaluate.reference_model = "joint"
    config.prepare.update({"step_minutes": 5, "channels": ("heart_rate",)})
    config.joint.context.update({"tokens": 256, "windows": 256, "context_tokens": 256, "patch_steps": 6,
                                 "window_parts": parts})  # fmt: skip
    config.joint.network.update({"width": 16, "n_layers": 1, "n_heads": 2, "mlp_width": 16, "token_width": 8,
                                 "time_features": 8, "wear_width": 64, "wear_layers": 2, "wear_heads": 2,
                                 "wear_remat": "full", "source_width": 4, "count_width": 0,
                                 "encoder_dropout": 0.1})  # fmt: skip
    return config_lib.parse(config)


def test_rows_hold_as_many_windows_as_asked_for():
    model = small_config(2).model_config("joint")
    spec, _ = family.assumed(model, small_config(2).prepare, 20)
    for filled in (0.0, 0.5, 1.0):
        batch = encoder.make_batch(spec, 2, filled)
        spec.check(batch, 2)
        slot_BxT = batch["window"]
        assert np.count_nonzero(slot_BxT >= 0) == np.count_nonzero(batch["window_position"] >= 0) == filled * 2 * 256
        assert np.all(np.diff(batch["kv_range"], axis=1) >= 0) and np.all(batch["segment"] > 0)
    assert all(x.shape[1] == 0 for n, x in encoder.without_slots(spec, batch).items() if "W" in spec.fields[n].axes)


@pytest.mark.slow
def test_empty_slots_are_free_where_they_are_skipped():
    """Durations are rough on a machine that does something else beside: the encoder is most of this network's work."""
    timing = encoder.Timing(passes=20, warmup=1)
    skipped = encoder.measure(small_config(2), 2, timing)
    encoded = encoder.measure(small_config(1), 2, timing, whole=False)
    assert all(np.isfinite(x) and x > 0 for x in (*skipped.values(), *encoded.values()))
    assert skipped["network_empty_ms"] - skipped["network_none_ms"] < 0.25 * skipped["encoder_full_ms"]
    assert skipped["encoder_empty_ms"] < 0.2 * skipped["encoder_full_ms"]
    assert encoded["encoder_empty_ms"] > 0.4 * encoded["encoder_full_ms"]
