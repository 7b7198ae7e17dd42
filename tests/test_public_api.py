"""The package's public names are there, typed and documented, and cost nothing until they are used."""

import inspect
import json
import subprocess
import sys

import pytest
from repo import REPO

import ehrwear_jax

LOOK = """
import json, sys, time
before, began = set(sys.modules), time.perf_counter()
import ehrwear_jax
seconds, loaded = time.perf_counter() - began, sorted({name.split(".")[0] for name in set(sys.modules) - before})
listed = [name in dir(ehrwear_jax) for name in ehrwear_jax.__all__]
used = ehrwear_jax.kernel_attention
again = used is ehrwear_jax.kernel_attention
print(json.dumps([seconds, loaded, listed, used.__module__, "jax" in sys.modules, again]))
"""


def test_importing_the_package_imports_no_library_and_using_it_does():
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds, loaded, listed, module, jax_is_loaded, same = json.loads(done.stdout)
    assert seconds < 0.2
    assert set(loaded) - sys.stdlib_module_names == {"ehrwear_jax"}
    assert all(listed) and module.startswith("ehrwear_jax.ops.kernel_attention") and jax_is_loaded and same


def test_every_public_name_is_there_and_documented():
    assert ehrwear_jax.__all__ == sorted(ehrwear_jax._MODULES)
    for name in ehrwear_jax.__all__:
        assert inspect.getdoc(getattr(ehrwear_jax, name))
    with pytest.raises(AttributeError, match="'ehrwear_jax' has no attribute 'nothing'"):
        ehrwear_jax.nothing  # noqa: B018 (the access is what is tested)
