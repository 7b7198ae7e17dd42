"""What docs/streaming.md shows works as it stands there."""

import re
import shlex

import pytest
from repo import REPO

from ehrwear_jax.benchmarks import streaming
from ehrwear_jax.inference import serve

PAGE = (REPO / "docs" / "streaming.md").read_text()


@pytest.mark.slow
def test_the_python_block_answers():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert names["z"].shape == (64,) and 0 < names["risk"]["calibrated_risk"] < 1
    assert names["again"].to_bytes() == names["state"].to_bytes()


@pytest.mark.parametrize("module", [serve, streaming])
def test_the_commands_have_the_flags_that_are_shown(module, capsys):
    text = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    words = [w for line in text.splitlines() if module.__name__ in line for w in shlex.split(line, comments=True)]
    shown = [w.partition("=")[0] for w in words if w.startswith("--")]
    with pytest.raises(SystemExit):
        module.main(["--help"])
    told = capsys.readouterr().out
    assert shown and all(flag in told for flag in shown)
