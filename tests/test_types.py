"""Public functions say what they take and return, and the type checker sees when that is not so."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from repo import REPO

import ehrwear_jax

PACKAGE = Path(ehrwear_jax.__file__).parent


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name.startswith("__")


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """(name, definition, whether its first argument is the object or class) of public functions and methods."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            yield node.name, node, False
        elif isinstance(node, ast.ClassDef) and _is_public(node.name):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(inner.name):
                    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in inner.decorator_list)
                    yield f"{node.name}.{inner.name}", inner, not static


def _unannotated(function: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> list[str]:
    """Parameters without annotation, and "return"."""
    given = function.args
    named = [*given.posonlyargs, *given.args][1 if bound else 0 :]
    named += [*given.kwonlyargs, *(x for x in (given.vararg, given.kwarg) if x is not None)]
    return [x.arg for x in named if x.annotation is None] + (["return"] if function.returns is None else [])


def find_unannotated(package: Path) -> dict[str, list[str]]:
    """{module, relative to the package: ["function: what has no annotation"]}."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        for name, function, bound in _public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            if missing := _unannotated(function, bound):
                found.setdefault(module, []).append(f"{name}: {', '.join(missing)}")
    return found


def test_public_functions_are_annotated():
    assert find_unannotated(PACKAGE) == {}


def test_the_type_checker_skips_no_module():
    """Nor a class of errors: where a line has to be excused, it says so itself, with the error's code."""
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert settings["files"] == ["ehrwear_jax"] and settings["check_untyped_defs"]
    assert not settings.keys() & {"overrides", "exclude", "disable_error_code", "ignore_errors"}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("def f(x: int, *, y: str) -> None: ...", []),
        ("def f(x: int): ...", ["f: return"]),
        ("def f(x, *more, y=1, **rest) -> None: ...", ["f: x, y, more, rest"]),
        ("async def f(x) -> None: ...", ["f: x"]),
        ("class A:\n    def f(self, x: int) -> int: ...", []),
        ("class A:\n    def __init__(self, x): ...", ["A.__init__: x, return"]),
        ("class A:\n    @staticmethod\n    def f(x) -> int: ...", ["A.f: x"]),
        ("class A:\n    @classmethod\n    def f(cls) -> int: ...", []),
        ("def _f(x): ...\nclass _A:\n    def f(self, x): ...\nclass A:\n    def _f(self, x): ...", []),
    ],
)
def test_a_planted_function_is_judged(tmp_path, text, want):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.py").write_text(text + "\n")
    assert find_unannotated(tmp_path).get("folder.x", []) == want


def test_the_type_checker_finds_a_planted_error(tmp_path):
    """With the configuration of launch/test.sh: in annotated functions, and in the bodies of those that are not."""
    (tmp_path / "planted.py").write_text(
        "from ehrwear_jax.runtime import files\n\n"
        "def annotated() -> int:\n    return files.digest('x')\n\n"
        "def not_annotated():\n    files.write_text('x', text=3)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(REPO / "pyproject.toml"), "--cache-dir",
               str(tmp_path / "cache"), str(tmp_path / "planted.py")]  # fmt: skip
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    errors = [line.split("error: ")[1] for line in done.stdout.splitlines() if "planted.py" in line]
    assert done.returncode == 1 and len(errors) == 2, done.stdout + done.stderr
    assert errors[0].startswith('Incompatible return value type (got "str", expected "int")')
    assert errors[1].startswith('Argument "text" to "write_text" has incompatible type "int"; expected "str"')
