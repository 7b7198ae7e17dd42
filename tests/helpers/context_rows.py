"""Training rows of the joint family with chosen options of the context, for tests of what these change."""

import numpy as np
from joint_rows import examples_of

OPTIONS = {
    "tokens": 64,
    "windows": 32,
    "context_tokens": 40,
    "queries": 8,
    "events": 8,
    "patch_steps": 3,
    "future_windows": 3,
    "future_codes": 6,
}
INPUTS_BUT_SIGNAL = ("token", "value", "modality", "time", "age", "segment", "kv_range", "window", "patch_mask",
                     "window_position", "query_time", "query_age", "query_segment", "query_kv_range")  # fmt: skip


def make_rows(root, augmented=True, modalities=("ehr", "wear"), **options):
    return examples_of(root, OPTIONS | options, augmented=augmented, modalities=modalities)


def hidden_steps(row):
    patches = np.repeat(row["patch_mask"], OPTIONS["patch_steps"], axis=-1)[..., None]
    return (patches | row["channel_mask"][:, None]) & row["observed"]
