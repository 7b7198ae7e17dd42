"""What docs/use_a_trained_model.md shows works as it stands there."""

import re
import shlex

import bundle_people
import pytest
from repo import REPO

from ehrwear_jax.inference import bundle, predict

PAGE = (REPO / "docs" / "use_a_trained_model.md").read_text()
COMMANDS = {"ehrwear_jax.inference.bundle": bundle.main, "ehrwear_jax.inference.predict": predict.main}


def blocks(language):
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_python_block_answers(tmp_path, monkeypatch, capsys):
    bundle_people.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    names = {}
    exec(block, names)
    assert names["z"].height == names["risk"].height == 3 and "3 people" in capsys.readouterr().out


def test_every_path_on_the_page_is_there():
    paths = set(re.findall(r"(?:ehrwear_jax|configs)/[\w/.-]*\w", PAGE))
    assert len(paths) >= 3 and not [p for p in paths if not (REPO / p).exists()]


def test_the_commands_have_the_flags_that_are_shown(capsys):
    lines = [shlex.split(line) for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    shown = [(name, line[3:]) for line in lines for name in COMMANDS if line[2] == name]
    assert len(shown) == 4
    for name, arguments in shown:
        with pytest.raises(SystemExit):
            COMMANDS[name](["--help"])
        told = capsys.readouterr().out
        assert all(a.partition("=")[0] in told for a in arguments if a.startswith("--"))
