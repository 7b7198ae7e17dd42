"""Names the platform that implementations are chosen for: this machine's, or that of a compilation for another one."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """Its name: cpu, gpu or tpu."""
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """While it lasts, what is traced is for the platform `name`, whether or not this machine has one."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)
