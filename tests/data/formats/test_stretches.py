"""When samples begin and end, and which values are plausible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data.formats import stretches


@settings(max_examples=50, deadline=None)
@given(rate=st.sampled_from([1 / 60, 1.0, 25.0, 30.0, 128.0]), n=st.integers(1, 100_000), start=st.integers(0, 2**55))
def test_sample_times_do_not_drift(rate, n, start):
    """The last sample begins within half a microsecond of (n - 1) / rate after the first, and ends where n do."""
    edges = stretches.sample_edges(start, rate, n)
    assert edges.shape == (n + 1,) and edges.dtype == np.int64 and edges[0] == start
    for i in (n - 1, n):
        assert abs(edges[i] - start - i / rate * 1e6) <= 0.5 + 1e-6 * n


def test_a_channel_without_limits_has_infinite_ones():
    limits = {"hr": (30.0, 220.0)}
    assert stretches.channel_limits(limits, "hr") == (30.0, 220.0)
    assert stretches.channel_limits(limits, "ppg") == (-np.inf, np.inf)


def test_a_stretch_may_lack_a_device():
    assert stretches.Stretch(0, 1.0, "hr", np.zeros(1)).device is None
    with pytest.raises(TypeError):
        stretches.Stretch(0, 1.0, "hr")
