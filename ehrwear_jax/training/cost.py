"""What a step costs: parameters by part, model flops of a batch, and the peak of a device."""

import jax
import numpy as np

from ehrwear_jax.models.joint.batch import MODALITY_WEAR

# Dense bfloat16 flops per second by the makers' data sheets; a device's kind begins with one of these names.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device_kind):
    """Flops per second of one device, or None where it is not known (CPUs)."""
    fitting = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def parameters(params):
    """{part: number of parameters} of the parts of MultimodalModel, largest first."""
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def batch_counts(batch):
    """What a batch (numpy) holds beside padding: contexts, tokens, queries, windows, keys that they see in all."""
    seen = sum(np.diff(batch[n], axis=-1).sum(dtype=np.int64) for n in ("kv_range", "query_kv_range"))
    return {
        "contexts": int(batch["segment"].max(axis=1, initial=0).sum()),
        "tokens": int((batch["segment"] > 0).sum()),
        "queries": int((batch["query_segment"] > 0).sum()),
        "windows": int((batch["modality"] == MODALITY_WEAR).sum()),
        "seen": int(seen),
    }


def patient_days(batch):
    """Days, counted from the start of each context of a batch (numpy), that hold a token of it."""
    segment, day = batch["segment"], np.floor(batch["time"])
    begins = np.ones(segment.shape, bool)
    begins[:, 1:] = (segment[:, 1:] != segment[:, :-1]) | (day[:, 1:] != day[:, :-1])
    return int((begins & (segment > 0)).sum())


def model_flops(config, sizes, counts):
    """Flops of forward and backward pass over what a batch holds; what is computed twice counts once.

    6 N T for the backbone's parameters and its tokens and queries, 6 N T for the local encoder's and its patches, and
    the two products of attention over the keys that are seen: 12 width layers per key. Heads and embeddings are left
    out, as is padding.

    Args:
      config: multimodal.ModelConfig. sizes: from `parameters`. counts: from `batch_counts`.
    """
    backbone = 6 * sizes["backbone"] * (counts["tokens"] + counts["queries"])
    patches = counts["windows"] * (config.steps // config.patch_steps) if config.channels else 0
    return float(backbone + 6 * sizes.get("wear", 0) * patches + 12 * config.width * config.n_layers * counts["seen"])
