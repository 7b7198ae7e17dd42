"""What every test runs under: a CPU split into eight devices, strict broadcasting, bounded threads.

Nothing that reads these settings may be imported above them.
"""

import getpass
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Workers share the cores; each would otherwise start a thread per core in every library.
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    for library in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "POLARS_MAX"):
        os.environ.setdefault(f"{library}_THREADS", str(threads))

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile more than they compute: unoptimised machine code and plain fusions take a quarter of the time.
# An unknown flag ends the process: the second one is for versions in which it was tried.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"ehrwear_jax-{getpass.getuser()}", "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest
from absl import flags
from hypothesis import settings
from repo import REPO

# Set here and not in the environment: a program that a test starts has its own devices.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Worker processes of grain and anything else that reads absl flags work outside absl.app.
flags.FLAGS.mark_as_parsed()

# The first example of a property pays for compilation, and a failure should be the same every time.
settings.register_profile("ehrwear_jax", deadline=None, derandomize=True)
settings.load_profile("ehrwear_jax")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data(name)`: the folder or file `name` of the public data sets, else the test skips.

    They are looked for in $EHRWEAR_SHARED_DATA, by default `../shared/data` beside the repository.
    """
    root = Path(os.environ.get("EHRWEAR_SHARED_DATA") or REPO.parent / "shared" / "data")

    def locate(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"public data {name!r} not found at {path}; set EHRWEAR_SHARED_DATA")
        return path

    return locate
