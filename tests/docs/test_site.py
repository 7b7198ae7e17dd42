"""The site builds without a warning, and the commands and code on its pages do what they say."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run
from absl import flags
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax import main
from ehrwear_jax.evals import classification
from ehrwear_jax.stages import runner
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

PAGES = ("README.md", *sorted(str(p.relative_to(REPO)) for p in (REPO / "docs").glob("*.md")))


def blocks(page, language):
    """Code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (REPO / page).read_text(), re.DOTALL)


def whole_lines(block):
    """Lines of a block, those that quotes go on in together."""
    waiting = ""
    for line in block.splitlines():
        waiting += line
        try:
            shlex.split(waiting, comments=True)
        except ValueError:
            waiting += "\n"
            continue
        yield waiting
        waiting = ""
    assert not waiting, f"a quote does not end: {waiting}"


def commands(page):
    """Arguments of `python` in the shell blocks of a page, without comments and settings of the environment."""
    for block in blocks(page, "bash"):
        for line in whole_lines(block.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            if "python" in words:
                yield words[words.index("python") + 1 :]


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]
OF_MAIN = [words[2:] for _, words in COMMANDS if words[:2] == ["-m", "ehrwear_jax.main"]]


def test_readme_is_short():
    assert len((REPO / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page, words", COMMANDS, ids=[f"{p}:{' '.join(w)[:60]}" for p, w in COMMANDS])
def test_every_command_starts_a_program_that_is_there(page, words):
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words[1]
    elif words[0] == "-c":
        compile(words[1], page, "exec")
    else:
        assert (REPO / words[0]).is_file() or words[0].endswith(".py"), words[0]


@pytest.mark.parametrize("words", OF_MAIN, ids=[" ".join(w)[:70] for w in OF_MAIN])
def test_the_flags_and_the_config_of_every_run_are_accepted(words, monkeypatch):
    """All but what is missing here: the folders that the page names."""
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "argv", ["main", *words])  # where the flags of a config's fields are looked for
    values = flags.FlagValues()
    for name in ("workdir", "stages", "processes", "verify", "debug", "learning_rates"):
        values[name] = flags.FLAGS[name]
    holder = main.config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    if any(word.startswith("--config=configs/own.py:MEDS") for word in words):
        # it looks at the folder
        with pytest.raises(flags.IllegalFlagValueError, match="there is no MEDS dataset in MEDS"):
            values(["main", *words])
        return
    values(["main", *words])
    config = config_lib.parse(holder.value)
    if {"--stages=describe", "--stages=compile"} & set(words):
        return  # they need no data
    try:
        config_lib.check(config)
    except FileNotFoundError as error:
        assert re.search(r"there is no (folder|table) \w+$", str(error))


def test_the_batch_of_the_page_goes_from_disk_to_its_loss(tmp_path, capsys):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    run = tmp_path / "run"
    runner.run(config_lib.parse(config), run, ("prepare",))
    plan = Plan(config_lib.parse(config), Workdir(run))
    (code,) = blocks("docs/one_batch.md", "python")
    named = {"RUN/records/NAME": plan.records.folder, "RUN/fit/NAME": plan.fit("all").folder, "RUN/": f"{run}/"}
    for name, folder in named.items():
        assert name in code
        code = code.replace(name, str(folder) + ("/" if name == "RUN/" and not str(folder).endswith("/") else ""))
    found: dict = {}
    exec(compile(code, "one_batch.md", "exec"), found)
    assert np.isfinite(found["loss"]) and found["loss"] == found["metrics"]["loss/total"]
    assert found["z_BxQxD"].ndim == 3 and "kv_range int32" in capsys.readouterr().out


def test_the_code_of_the_evaluation_page_gives_records():
    rng = np.random.default_rng(0)
    y_N, patient_N = rng.integers(0, 2, 300), np.repeat(np.arange(100), 3)
    found = {"y_N": y_N, "p_N": rng.random(300), "other_N": rng.random(300), "patient_N": patient_N,
             "risk_N": rng.normal(size=300), "days_N": rng.integers(1, 900, 300), "event_N": y_N}  # fmt: skip
    (code,) = blocks("docs/evaluation.md", "python")
    exec(compile(code, "evaluation.md", "exec"), found)
    auroc = [r for r in found["records"] if r["model"] == "a" and r["metric"] == "auroc"]
    assert auroc[0]["value"] == pytest.approx(float(classification.auroc(y_N, found["p_N"])))
    assert {r["metric"] for r in found["records"]} >= {"auroc", "c_index"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs the extra docs: mkdocs-material and mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPO, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {p.stem for p in (REPO / "docs").glob("*.md")} - {"index"}
    assert pages <= {Path(p).parent.name for p in map(str, tmp_path.glob("*/index.html"))}
    assert "kernel_attention" in (tmp_path / "api" / "index.html").read_text()
