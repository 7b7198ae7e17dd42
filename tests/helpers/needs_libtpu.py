"""Marks tests that compile for TPUs: skipped where the compiler is not installed."""

import pytest

from ehrwear_jax.training import compile_only


def _is_installed():
    try:
        compile_only.tpu_library()
    except FileNotFoundError:
        return False
    return True


needs_libtpu = pytest.mark.skipif(
    not _is_installed(), reason="libtpu, the TPU compiler, is not installed (launch/setup_env.sh)"
)
