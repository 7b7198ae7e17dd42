"""Records made by hand, for tests of what is done to them."""

import numpy as np

from ehrwear_jax.data.store import NO_BIRTH, Record, Scales

QUARTER_DAY_US = 21_600_000_000
CHANNELS = ("heart_rate", "activity", "skin_temperature")


def make_record(
    time_us, codes, window_end_us, window=None, *, static=(), birth_us=NO_BIRTH, end_us=None, segments=None, steps=6
):
    """A Record without values, texts and derived features; windows of 6 h of noise in two channels by default."""
    if window is None:
        window = np.random.default_rng(0).normal(size=(len(window_end_us), steps, 2))
    times, ends = (np.asarray(x, np.int64) for x in (time_us, window_end_us))
    everything = [*times.tolist(), *ends.tolist()]
    return Record(
        static_code_S=np.array(static, np.int32),
        static_value_S=np.full(len(static), np.nan, np.float32),
        static_text_S=np.full(len(static), -1, np.int32),
        code_K=np.array(codes, np.int32),
        value_K=np.full(len(codes), np.nan, np.float32),
        text_K=np.full(len(codes), -1, np.int32),
        time_K=times,
        window_end_M=ends,
        window_MxLxC=np.asarray(window, np.float32),
        derived_MxX=np.zeros((len(ends), 0), np.float32),
        birth_us=birth_us,
        first_us=min(everything, default=NO_BIRTH),
        end_us=max(everything, default=NO_BIRTH) if end_us is None else end_us,
        died=False,
        channels=CHANNELS[: np.shape(window)[2]],
        window_us=QUARTER_DAY_US,
        segments=segments or {},
    )


def make_scales(n_channels=2, log=(), mean=0.0, std=1.0):
    """Scales of n_channels, those of `log` logarithmic."""
    is_log = np.isin(np.arange(n_channels), log)
    return Scales(is_log, np.full(n_channels, mean, np.float32), np.full(n_channels, std, np.float32))
