"""Functions, parameter lists and files keep to their bounds; tests/structure.py prints what does not."""

import ast
import sys

from repo import REPO

sys.path.insert(0, str(REPO / "tests"))
import structure


def test_few_functions_are_long_or_wide():
    assert len(structure.long_functions()) <= 5, structure.long_functions()
    assert len(structure.wide_functions()) <= 5, structure.wide_functions()


def test_files_are_short():
    assert {path for path, n in structure.long_files() if n > 440} == set()
    assert len(structure.long_files()) <= 3, structure.long_files()


def test_what_is_too_long_or_too_wide_is_found(tmp_path):
    names = ", ".join("abcdefg")
    (tmp_path / "ops").mkdir()
    (tmp_path / "x.py").write_text(
        f"class A:\n    def wide(self, {names}, *, h): ...\n    def narrow(self, {names}): ...\n"
        + "def long():\n" + "    pass\n" * structure.MAX_LINES
    )  # fmt: skip
    (tmp_path / "ops" / "y.py").write_text(f"def wide({names}, h): ...\n" + "\n" * structure.MAX_FILE)
    assert [f[1] for f in structure.wide_functions(tmp_path)] == ["wide"]
    assert [f[1] for f in structure.long_functions(tmp_path)] == ["long"]
    assert structure.long_files(tmp_path) == [("ops/y.py", structure.MAX_FILE + 1)]


def test_files_that_run_are_those_whose_functions_are_called():
    from ehrwear_jax.runtime import files

    assert structure.files_run(lambda: files.digest("x")) == ["runtime/files.py"]
    assert structure.files_run(lambda: None) == []


def test_docstrings_of_modules_begin_with_a_verb():
    """What a module does, in the third person: "Reads ...", "Computes ..."."""
    found = {}
    for path in structure.PACKAGE.rglob("*.py"):
        if text := path.read_text(encoding="utf-8"):
            found[str(path)] = ((ast.get_docstring(ast.parse(text)) or "").split() or [""])[0].rstrip(",:")
    assert len(found) > 200
    assert {path: word for path, word in found.items() if not (word[:1].isupper() and word.endswith("s"))} == {}
