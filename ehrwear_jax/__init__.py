"""Learns continuous-time representations of linked EHR events and wearable signals, in JAX.

The names of the public API are imported when they are first used: `import ehrwear_jax` itself imports no library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ehrwear_jax.inference.trained_model import load
    from ehrwear_jax.ops.kernel_attention import kernel_attention

# Name -> module that defines it.
_MODULES = {
    "kernel_attention": "ehrwear_jax.ops.kernel_attention",
    "load": "ehrwear_jax.inference.trained_model",
}

__all__ = ["kernel_attention", "load"]


def __getattr__(name: str) -> Any:
    """Imports a name of the public API (PEP 562), once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
