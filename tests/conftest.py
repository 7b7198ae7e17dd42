"""Sets what every test runs under: a CPU split into eight devices, strict broadcasting, bounded threads and memory.

EHRWEAR_TEST_PLATFORM=cuda runs on a GPU what tests/ops holds for one.

Nothing that reads these settings may be imported above them.
"""

import ctypes
import gc
import getpass
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Workers share the cores; each would otherwise start a thread per core in every library.
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    for library in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "POLARS_MAX"):
        os.environ.setdefault(f"{library}_THREADS", str(threads))

os.environ["JAX_PLATFORMS"] = platform = os.environ.get("EHRWEAR_TEST_PLATFORM", "cpu")
if platform == "cpu":
    # Tests compile more than they compute: unoptimised machine code halves their time, the older way to emit fusions,
    # which later releases do not have, halves it again, and two parts of the code instead of 32 save a quarter.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=2"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
else:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share the device
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"ehrwear_jax-{getpass.getuser()}", "jax"),
)
# Many small programs take longer to compile than few large ones.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import psutil
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

TESTS = Path(__file__).parent

# Compiled programs are kept as long as the process lives, and what is freed of them stays in malloc's hands: without a
# limit a worker that runs a third of the tests holds 5 GB.
GROWTH_BYTES = 1000e6
resident_bytes = [psutil.Process().memory_info().rss]  # after programs were last dropped

# Folders whose files take longest. They come first, so that no worker is left alone with one of them at the end.
LONGEST = ("training", "models", "stages", "ops")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the folders that take longest first; files stay together."""
    order = {folder: place for place, folder in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(TESTS).parts[0], len(order)))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Drops all compiled programs when memory has grown; those still needed are read back from the cache on disk."""
    process = psutil.Process()
    if process.memory_info().rss < resident_bytes[0] + GROWTH_BYTES:
        return
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)
    resident_bytes[0] = process.memory_info().rss


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
