"""Files of the package that are no Python are installed with it."""

import ast
import fnmatch

from repo import REPO


def package_data():
    """{package: patterns} of setup.py."""
    tree = ast.parse((REPO / "setup.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"]
    return next(ast.literal_eval(k.value) for k in calls[0].keywords if k.arg == "package_data")


def test_every_data_file_is_installed():
    shipped = [f"{package.replace('.', '/')}/{glob}" for package, globs in package_data().items() for glob in globs]
    skipped = ("*.py", "*.pyc", "*/__pycache__/*")
    paths = [str(p.relative_to(REPO)) for p in (REPO / "ehrwear_jax").rglob("*") if p.is_file()]
    found = [p for p in paths if not any(fnmatch.fnmatch(p, glob) for glob in skipped)]
    assert "ehrwear_jax/data/prepare/clinical_ranges.csv" in found
    assert [p for p in found if not any(fnmatch.fnmatch(p, glob) for glob in shipped)] == []
