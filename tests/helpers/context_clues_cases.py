"""Small cases of ContextClues: a config of either backbone."""

from ehrwear_jax.models.context_clues.config import Config

SMALL = {"width": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "mlp_width": 16, "state": 3, "tokens": 48,
         "context_tokens": 20, "static_tokens": 2, "sites": 12, "loss_chunk": 32, "scan_chunk": 16}  # fmt: skip


def config_of(backbone="llama", **options):
    """A Config of SMALL sizes."""
    return Config(**SMALL | {"backbone": backbone, "tied_head": backbone == "mamba"} | options)
