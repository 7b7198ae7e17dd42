"""Small cases of Pulse-PPG and of the motif distance that it needs."""

import functools

import jax
import numpy as np
import segment_cases

from ehrwear_jax.config.segment_spec import SegmentReading
from ehrwear_jax.models.motif_distance import family as motif
from ehrwear_jax.models.pulse_ppg import family as pulse

# 10 s at 12.5 Hz of the waves of segment_cases; three pieces of a segment
SIGNAL = SegmentReading(rate_hz=12.5, seconds=10.0, last=4, per_row=1)


def motif_config(**options):
    """A Config of the motif distance of small sizes."""
    small = {"signal": SIGNAL, "width": 8, "taps": 5, "n_layers": 2, "stride": 5, "hidden_samples": 25}
    return motif.Config(**small | {"dropout": 0.0} | options)


def pulse_config(**options):
    """A Config of Pulse-PPG of small sizes."""
    small = {"signal": SIGNAL, "width": 8, "kernel": 5, "n_blocks": 3, "widen_every": 2, "dropout": 0.0}
    return pulse.Config(**small | options)


def needed_by(batch, seed=3, config=None):
    """{"motif_distance": apply of a network at its start}, for a batch's channels."""
    network = motif.network_lib.MotifNetwork(config or motif_config(), batch["signal"].shape[-1])
    hidden = np.zeros(batch["signal"].shape[:-1], bool)
    variables = jax.jit(network.init)(jax.random.key(seed), dict(batch) | {"hidden": hidden})
    return {"motif_distance": functools.partial(network.apply, jax.device_get(variables))}


batch_of, row_of = segment_cases.batch_of, segment_cases.row_of
