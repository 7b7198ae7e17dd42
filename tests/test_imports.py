"""Imports go one way: what each folder of the package may import, and which library may be used where."""

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ehrwear_jax

PACKAGE = Path(ehrwear_jax.__file__).parent
STDLIB = set(sys.stdlib_module_names)


@dataclass(frozen=True)
class Layer:
    """What the modules of a folder may import.

    internal: folders or modules of the package (its own folder included).
    external: top-level libraries beside the standard library; None allows any that is not in
      `banned`, ANYWHERE_BANNED or ONLY_IN.
    """

    name: str
    internal: frozenset[str]
    external: frozenset[str] | None = None
    banned: frozenset[str] = frozenset()


def _layer(name: str, internal: str, *, external: str | None = None, banned: str = "") -> Layer:
    only = None if external is None else frozenset(external.split())
    return Layer(name, frozenset(internal.split()), only, frozenset(banned.split()))


# The package itself: it names the public API for type checkers, and imports it when it is used.
PUBLIC_API = _layer("", "ops inference", external="")

ACCELERATOR = "jax jaxlib flax optax chex orbax"

# The parts of the package, from the ground up. The first entry whose name is the module or one of its parents decides.
LAYERS = (
    # A run can be looked at from anywhere: neither needs jax.
    _layer("runtime.status", "runtime.checkpoint_manifest runtime.files runtime.goodput runtime.run_dir", external=""),
    _layer("runtime.compare", "runtime.files runtime.run_dir", external=""),
    _layer("runtime.run_dir", "runtime.files runtime.exit_codes", external=""),
    _layer("runtime.checkpoint_manifest", "runtime.files", external=""),
    _layer("runtime.goodput", "runtime.files", external=""),
    _layer("runtime.watchdog", "runtime.exit_codes", external=""),
    _layer("runtime.files", "", external=""),
    _layer("runtime.exit_codes", "", external=""),
    _layer("runtime", "runtime"),
    # Options are read where no accelerator is. config.families finds the options of a family by the family's name.
    _layer("config", "config", external="ml_collections"),
    # runtime.files: the standard library's files, written whole or not at all.
    _layer("data", "data config.data config.labels config.options config.segment_spec runtime.files",
           banned=ACCELERATOR),
    _layer("ops", "ops", external="jax jaxlib numpy"),
    _layer("evals", "evals", external="jax joblib numpy optax polars scipy sklearn threadpoolctl tqdm"),
    # No family knows another one.
    _layer("models.joint.config", "config.options config.data", external=""),
    # what its paper says of it is set beside options of any kind
    _layer("models.joint.published", "models.joint.config config.bases config.data config.options config.training",
           external=""),
    _layer("models.joint", "models.joint models.layers models.family models.objective models.row_packing "
           "models.vocabulary data config.data config.training",
           external="flax jax numpy polars"),
    _layer("models.tabular.config", "config.options", external=""),
    _layer("models.tabular", "models.tabular data", banned=ACCELERATOR),
    _layer("models.late_fusion.config", "config.options", external=""),
    _layer("models.late_fusion", "models.late_fusion", external="numpy"),
    _layer("models.stacked", "config.options", external=""),
    _layer("models.motor.config", "config.options", external=""),
    _layer("models.motor", "models.motor models.layers models.family models.objective models.packed_contexts "
           "models.vocabulary data config.data", external="flax jax numpy"),
    _layer("models.cehr_bert.config", "config.options", external=""),
    _layer("models.cehr_bert", "models.cehr_bert models.layers models.family models.objective models.packed_contexts "
           "models.vocabulary data config.data", external="flax jax numpy"),
    _layer("models.context_clues.config", "config.options", external=""),
    _layer("models.context_clues", "models.context_clues models.layers models.family models.objective "
           "models.packed_contexts models.vocabulary data config.data", external="flax jax numpy"),
    _layer("models.himae.config", "config.options config.data config.segment_spec", external=""),
    _layer("models.himae", "models.himae models.segment_examples models.layers models.family models.objective data "
           "config.data", external="flax jax numpy"),
    _layer("models.papagei.config", "config.options config.data config.segment_spec", external=""),
    _layer("models.papagei", "models.papagei models.segment_examples models.layers models.family models.objective data "
           "config.data", external="flax jax numpy scipy"),
    _layer("models.motif_distance.config", "config.options config.data config.segment_spec", external=""),
    _layer("models.motif_distance", "models.motif_distance models.segment_examples models.layers models.family "
           "models.objective data config.data", external="flax jax numpy"),
    _layer("models.pulse_ppg.config", "config.options config.data config.segment_spec", external=""),
    _layer("models.pulse_ppg", "models.pulse_ppg models.segment_examples models.layers models.family "
           "models.objective data config.data", external="flax jax numpy"),
    _layer("models.segment_examples", "data config.data config.segment_spec models.family", external="numpy polars"),
    _layer("models.layers", "models.layers ops", external="flax jax numpy"),
    _layer("models.vocabulary", "data", external="numpy polars"),
    _layer("models.row_packing", "", external="numpy"),
    _layer("models.packed_contexts", "models.family models.row_packing data", external="numpy"),
    _layer("models", "models.family models.layers", external="flax jax numpy"),
    # The loop takes any family, and names none.
    _layer("training", "training models.family models.layers models.registry ops data config evals runtime"),
    _layer("interpret", "interpret models.layers ops evals", external="flax jax numpy"),
    _layer("report", "report", external="jinja2 matplotlib numpy sklearn"),
    # Models that are fitted per task, and not pretrained, are named in stages.predictors and evaluate_fit.
    _layer("stages", "stages config data training evals interpret report models.family models.late_fusion "
           "models.tabular runtime"),
    # What users hold, on top of everything; it names no family.
    _layer("inference", "inference stages config data training evals interpret models.family models.registry runtime"),
    _layer("benchmarks", "benchmarks evals data models.family models.joint ops config stages training inference "
           "runtime.compile_cache"),
    _layer("main", "stages config runtime.distributed runtime.compile_cache"),
    _layer("", ""),
)  # fmt: skip

# External modules, by dotted prefix, that only some modules may import.
ONLY_IN = {
    "orbax": {"runtime.checkpoint"},
    # programs that are started with a config file
    "absl.flags": {"main", "benchmarks.encoder", "benchmarks.loader_scaling", "benchmarks.step", "stages.worker"},
    "ml_collections": {
        "main", "config.base", "config.time_scale", "config.variants", "benchmarks.encoder", "benchmarks.step"
    },
    "jax._src": {"runtime.distributed"},
}
# clu needs TensorFlow; scikit-survival is GPL; lifelines and statsmodels are oracles of the tests;
# linen is the module system, never both.
ANYWHERE_BANNED = {
    "torch", "tensorflow", "clu", "sksurv", "lifelines", "statsmodels", "flax.nnx", "pytest",
}  # fmt: skip
NEVER_IMPORTED = {"configs", "launch", "main"}


def _is_under(module: str, prefixes) -> bool:
    return any(module == p or module.startswith(p + ".") for p in prefixes)


def _imports(path: Path, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) for each import, at any depth; `from a import b` yields `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = node.level - (1 if is_package else 0)
                base = ".".join(filter(None, [*parts[: len(parts) - up], base]))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in {"import_module", "__import__"} and node.args:
                argument = node.args[0]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def find_violations(package: Path) -> list[str]:
    """One sentence per import in `package` that breaks a rule; layers are relative to `package`."""
    root = package.name
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = list(path.relative_to(package).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        own = ".".join(parts[:-1] if is_package else parts)
        layer = next(x for x in LAYERS if not x.name or _is_under(own, [x.name])) if own else PUBLIC_API
        for line, name in _imports(path, f"{root}.{own}" if own else root, is_package):
            where = f"{path.relative_to(package.parent)}:{line}"
            if _is_under(name, NEVER_IMPORTED):
                found.append(f"{where}: nobody imports {name}")
            elif _is_under(name, [root]):
                target = name.removeprefix(root).removeprefix(".")
                if _is_under(target, NEVER_IMPORTED) or not _is_under(target, layer.internal):
                    found.append(f"{where}: {own or root} may not import {target or root}")
            else:
                # the first reason is enough
                found += [f"{where}: {reason}" for reason in itertools.islice(_external_faults(own, layer, name), 1)]
    return found


def _external_faults(own: str, layer: Layer, name: str) -> Iterator[str]:
    top = name.split(".")[0]
    if _is_under(name, ANYWHERE_BANNED):
        yield f"no module may import {name}"
    private = any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    if private and not _is_under(name, ONLY_IN):
        yield f"no module may import {name}, which is private"
    for library, owners in ONLY_IN.items():
        if _is_under(name, [library]) and not _is_under(own, owners):
            yield f"only {', '.join(sorted(owners))} may import {library}"
    if top in layer.banned:
        yield f"{layer.name} may not import {top}"
    if layer.external is not None and top not in layer.external | STDLIB:
        yield f"{layer.name} may import only {', '.join(sorted(layer.external))}, not {top}"


def test_package_follows_the_layers():
    assert find_violations(PACKAGE) == []


def test_no_name_of_a_file_in_two_folders():
    """A name says where a thing is.

    Model families mirror each other; options, a stage and a benchmark are called like what they set, run and time.
    """
    homes = {}
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).parent
        mirrors = folder.parts[:1] == ("models",) and folder.name != "layers"
        mirrors |= folder.parts[:1] in {("benchmarks",), ("config",), ("stages",)}
        if not path.stem.startswith("__") and not mirrors:
            homes.setdefault(path.stem, []).append(str(folder))
    assert {name: folders for name, folders in homes.items() if len(folders) > 1} == {}


def test_every_module_has_a_layer():
    """A new folder is given its layer here before it imports anything."""
    known = {layer.name.split(".")[0] for layer in LAYERS}
    modules = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" and p.stem != "__init__"}
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert modules | packages <= known


def _loads_jax(modules: list[str]) -> bool:
    """Whether importing these loads jax, be it through another library."""
    program = f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() in {"True", "False"}, done.stdout + done.stderr
    return done.stdout.strip() == "True"


def _modules(folder: str) -> list[str]:
    found = [".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in sorted(PACKAGE.glob(folder))]
    return [m.removesuffix(".__init__") for m in found if not m.endswith("__main__")]


def test_data_loads_no_accelerator():
    """Each worker process of prepare would pay for it in memory and seconds."""
    modules = _modules("data/**/*.py")
    assert len(modules) > 40 and not _loads_jax(modules)


def test_options_load_no_accelerator():
    """Neither those of a run nor those of each family, which are found by its name."""
    modules = [*_modules("config/*.py"), *_modules("models/*/config.py")]
    assert "ehrwear_jax.config" in modules and "ehrwear_jax.models.joint.config" in modules and not _loads_jax(modules)
    assert _loads_jax(["ehrwear_jax.models.joint.network"])


def _loaded_by(module: str) -> set[str]:
    """Top-level names of all modules that importing one loads."""
    program = f"import sys, {module}; print(sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert not done.returncode, done.stderr
    return set(ast.literal_eval(done.stdout))


def test_the_stages_load_what_draws_fits_and_feeds_only_when_it_does():
    """A start that finds everything done answers before these would be loaded."""
    loaded = _loaded_by("ehrwear_jax.stages.runner")
    assert "jax" in loaded
    assert not {"sklearn", "matplotlib", "grain", "pandas", "orbax", "tensorboardX"} & loaded


def test_the_command_itself_loads_flags_and_options_only():
    """Neither --help nor a worker process, which imports it too, pays for what the stages need."""
    loaded = _loaded_by("ehrwear_jax.main")
    assert "absl" in loaded and not {"jax", "jaxlib", "numpy", "scipy", "polars", "pyarrow"} & loaded


def _plant(tmp_path: Path, file: str, line: str) -> list[str]:
    path = tmp_path / "pkg" / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    return find_violations(tmp_path / "pkg")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/store.py", "import jax.numpy as jnp"),
        ("data/store.py", "import chex"),
        ("data/store.py", "from pkg.models.joint import batch"),
        ("data/store.py", "from pkg.config import run"),
        ("config/run.py", "import jax"),
        ("config/run.py", "import ml_collections"),
        ("config/run.py", "from pkg.models.joint import config"),
        ("models/joint/config.py", "import numpy as np"),
        ("models/joint/config.py", "from pkg.models.joint import batch"),
        ("models/tabular/features.py", "from pkg.models.joint import vocabulary"),
        ("models/tabular/features.py", "import jax"),
        ("models/layers/dense.py", "from pkg.models import family"),
        ("models/family.py", "from pkg.models.joint import family"),
        ("interpret/attention.py", "from pkg.models.joint import network"),
        ("training/loop.py", "from pkg.models.joint import family"),
        ("stages/embed.py", "from pkg.models.joint import family"),
        ("data/signals/grid.py", "from flax import linen"),
        ("data/signals/grid.py", "def f():\n    import jax"),
        ("data/signals/grid.py", "from pkg import training"),
        ("data/signals/grid.py", "from ...training import loop"),
        ("data/__init__.py", "from .. import evals"),
        ("ops/kernel_attention/api.py", "import flax"),
        ("ops/kernel_attention/api.py", "from pkg.models import heads"),
        ("ops/kernel_attention/api.py", "from ...models import heads"),
        ("models/joint/heads.py", "from pkg.training import train"),
        ("models/joint/heads.py", "import importlib\nimportlib.import_module('pkg.training')"),
        ("training/schedules.py", "from pkg import stages"),
        ("training/sharding.py", "from pkg import report"),
        ("evals/metrics.py", "from pkg.models import joint"),
        ("evals/metrics.py", "from pkg import stages"),
        ("evals/metrics.py", "import configs.tiny"),
        ("interpret/attention.py", "from pkg import training"),
        ("report/build.py", "import jax"),
        ("report/build.py", "from pkg.evals import metrics"),
        ("report/build.py", "from pkg import main"),
        ("stages/runner.py", "from pkg import main"),
        ("stages/runner.py", "from absl import flags"),
        ("main.py", "from pkg import data"),
        ("training/train.py", "from pkg import stages"),
        ("training/train.py", "import ml_collections"),
        ("runtime/files.py", "import numpy"),
        ("runtime/supervision.py", "from ..training import train"),
        ("main.py", "import configs"),
        ("training/train.py", "from orbax import checkpoint"),
        ("training/train.py", "import orbax.checkpoint as ocp"),
        ("training/train.py", "from clu import metrics"),
        ("evals/metrics.py", "import torch.nn"),
        ("evals/metrics.py", "from sksurv import metrics"),
        ("models/heads.py", "from flax import nnx"),
        ("models/heads.py", "import ml_collections"),
        ("training/train.py", "from jax._src import core"),
        ("ops/kernel_attention/api.py", "import jax._src.pallas"),
        ("evals/metrics.py", "from scipy.optimize import _lbfgsb_py"),
        ("data/store.py", "from pkg.runtime import checkpoint_manifest"),
        ("unknown.py", "from pkg import data"),
        ("__init__.py", "import jax"),
        ("__init__.py", "from pkg.training import train"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, line):
    violations = _plant(tmp_path, file, line)
    assert len(violations) == 1
    assert violations[0].startswith(f"pkg/{file}:")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/store.py", "import grain\nimport numpy as np\nfrom .formats.meds import read_shard"),
        ("ops/kernel_attention/api.py", "import jax\nfrom .reference import attend"),
        ("models/joint/heads.py", "from flax import linen\nfrom pkg.models.layers import dense"),
        ("models/layers/mesh_ops.py", "import jax\nfrom pkg.ops.kernel_attention import api"),
        ("models/joint/examples.py", "from pkg.data import store"),
        ("data/formats/parquet.py", "from __future__ import annotations\nfrom pkg.runtime import files"),
        ("runtime/checkpoint.py", "import orbax.checkpoint as ocp"),
        ("runtime/distributed.py", "def f():\n    from jax._src import distributed"),
        ("training/train.py", "from absl import logging\nfrom pkg import data\nfrom pkg.models import registry"),
        ("config/base.py", "import ml_collections\nfrom pkg.config import families"),
        ("models/joint/config.py", "import dataclasses\nfrom pkg.config import options"),
        ("interpret/attention.py", "from pkg.models.layers import transformer"),
        ("stages/runner.py", "from pkg import config, training"),
        ("main.py", "from absl import app, flags\nfrom pkg import stages"),
        ("report/build.py", "import json\nimport matplotlib.figure\nfrom . import page"),
        ("__init__.py", "import importlib\nfrom pkg.ops.kernel_attention import kernel_attention"),
    ],
)
def test_an_allowed_import_is_not_reported(tmp_path, file, line):
    assert _plant(tmp_path, file, line) == []
