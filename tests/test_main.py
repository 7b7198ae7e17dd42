"""The command line: a mistake gives one sentence on stderr, an exit code that is not 0 and no traceback."""

import logging
import os
import subprocess
import sys

import jax
import pytest
from absl import flags
from absl import logging as absl_logging
from absl.testing import flagsaver
from repo import REPO

from ehrwear_jax import main, stages
from ehrwear_jax.stages import runner

TINY = "--config=configs/tiny.py"


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """The repository as working folder; flags, logging and jax settings as they were afterwards."""
    monkeypatch.chdir(REPO)
    root, absl = logging.getLogger(), logging.getLogger("absl")
    before = root.handlers[:], root.level, absl.level, absl_logging.get_absl_handler().formatter
    cache = jax.config.jax_compilation_cache_dir
    yield
    root.handlers[:], level, absl_level, formatter = before
    root.setLevel(level)
    absl.setLevel(absl_level)
    absl_logging.get_absl_handler().setFormatter(formatter)
    jax.config.update("jax_compilation_cache_dir", cache)


def start(*arguments):
    """What `python -m ehrwear_jax.main` does with these arguments."""
    argv = ["main", *arguments]
    flags.FLAGS.unparse_flags()
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
        try:
            main.main(main._parse(argv))
        finally:
            flags.FLAGS.mark_as_parsed()


def command(*arguments):
    """The message that it exits with."""
    with pytest.raises(SystemExit) as stop:
        start(*arguments)
    assert isinstance(stop.value.code, str), "a text gives exit code 1"
    return stop.value.code


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--confg=configs/tiny.py"], "Unknown command line flag 'confg'. Did you mean: config ?"),
        ([], "say which experiment to run, e.g. --config=configs/tiny.py"),
        ([TINY, "prepare"], "unexpected argument 'prepare'"),
        (["--config=configs/none.py"], "there is no config file configs/none.py"),
        (["--config", "configs/none.py"], "there is no config file configs/none.py"),
        (["--config=configs/tiny.py:big"], "configs/tiny.py has no variant 'big'"),
        (
            ["--config=configs/full.py:220"],
            "configs/full.py has no variant '220'; there are 220m, cohort, relaxed, ppg, h100, ",
        ),
        ([TINY, "--config.train.stepps=3"], "the config has no key 'stepps': Did you mean \"steps\""),
        ([TINY, "--config.trin.steps=3"], "the config has no key 'trin': Did you mean \"train\""),
        ([TINY, "--config.train.steps=many"], "flag --config.train.steps=many: invalid literal for int()"),
        ([TINY, "--stages=prepare,trian"], "unknown stage 'trian'; stages are prepare, pretrain, embed, evaluate, int"),
        ([TINY, "--workdir=/dev/null/run"], "cannot write to the workdir /dev/null/run: Not a directory"),
        (["--config=configs/full.py"], "no data: set --config.data.meds_dir to a MEDS dataset"),
        (["--config=configs/full.py", "--config.data.meds_dir=/no"], "config.data.meds_dir: there is no folder /no"),
        (["--config=configs/nafld.py"], "no data: set --config.data.source_dir to the folder with the nafld files"),
        ([TINY, "--config.evaluate.reference_model=x"], "config.evaluate names the model 'x', which is not in"),
    ],
)
def test_a_mistake_gives_one_sentence(tmp_path, arguments, sentence):
    workdir = [] if any(a.startswith("--workdir") for a in arguments) else [f"--workdir={tmp_path}"]
    message = command(*arguments, *workdir)
    assert message.startswith(f"ehrwear_jax: {sentence}"), message
    assert "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize("stage", stages.ORDER[1:])
def test_a_stage_without_the_one_before_it_is_refused(tmp_path, stage):
    message = command(TINY, f"--workdir={tmp_path}", f"--stages={stage}")
    sentence = f"ehrwear_jax: the stage {stage} needs prepare, which has not made raw synthetic, tables synthetic, reco"
    assert message.startswith(sentence) and "\n" not in message
    assert f"for this config and these inputs in {tmp_path}: add it to --stages" in message


def test_an_error_inside_a_config_file_is_said(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(variant=''):\n    return 1 / 0\n")
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    for name, word in (("broken", "division by zero"), ("syntax", "invalid syntax")):
        message = command(f"--config={tmp_path}/{name}.py")
        assert message.startswith("ehrwear_jax: ") and word in message and "\n" not in message


def test_an_error_of_several_lines_becomes_one(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *_: (_ for _ in ()).throw(ValueError("table.parquet:\n  row 3 is bad")))
    assert command(TINY, f"--workdir={tmp_path}") == "ehrwear_jax: table.parquet: row 3 is bad"


def test_what_is_run(tmp_path, monkeypatch):
    """The workdir is runs/<config> by default, all stages run by default, and overrides reach the config."""
    seen = []
    monkeypatch.setattr(runner, "run", lambda *arguments: seen.append(arguments))
    others = [f"--workdir={tmp_path}", "--stages=embed,report", "--verify", "--processes=3"]
    for arguments in (["--config.train.steps=3"], others):
        start(TINY, *arguments)
    (config, workdir, names, verify, alone), (_, other, some, again, beside) = seen
    assert config.train.steps == 3 and str(workdir) == "runs/tiny" and names == list(stages.ORDER) and not verify
    assert other == tmp_path and some == ["embed", "report"] and again and (alone, beside) == (1, 3)


def test_describe_needs_no_data_and_leaves_nothing(tmp_path, capsys):
    start("--config=configs/full.py:layers=2", f"--workdir={tmp_path}/run", "--stages=describe")
    said, _, beside = capsys.readouterr().out.partition("beside the paper")
    lines = said.splitlines()
    parts = {name: int(n.replace(",", "")) for name, n in (line.split() for line in lines[1:])}
    differing = [line.split()[:2] for line in beside.splitlines() if line.endswith("differs")]
    assert differing == [["backbone:", "layers"], ["wearable", "encoder:"]]
    assert beside.endswith("added to it: nothing\n")
    assert lines[0] == (f"full-layers2, joint: {sum(parts.values()):,} parameters with a vocabulary of 32,768 tokens, "
                        "assumed")  # fmt: skip
    # two layers of four products, biases and norms, R = 4 kernels, modality tags; and the last norm
    products = 4 * 1024 * 1024 + 2 * 1024 * 4096 + 1024 * 16 * 16
    assert parts["backbone"] == 2 * (products + 9 * 1024 + 4096 + 256 + 2 * 16 * 4 + 4 * 16 * 16) + 2048
    assert not (tmp_path / "run").exists()


def test_describe_takes_the_largest_network_where_the_reference_model_is_none(capsys):
    start(TINY, "--config.evaluate.reference_model=late_fusion", "--stages=describe")
    assert capsys.readouterr().out.startswith("tiny, joint: ")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="unknown stage"):
        start(TINY, f"--workdir={tmp_path}", "--stages=x", "--debug")
    (tmp_path / "broken.py").write_text("def get_config(variant=''):\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        start(f"--config={tmp_path}/broken.py", "--debug")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config=configs/full.py"], "no data: set --config.data.meds_dir"),
        ([TINY, "--config.train.stepps=3"], "the config has no key 'stepps'"),
    ],
)
def test_a_mistake_in_a_real_process(tmp_path, arguments, sentence):
    done = subprocess.run(
        [sys.executable, "-m", "ehrwear_jax.main", *arguments, f"--workdir={tmp_path}"],
        cwd=REPO, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0 and done.stdout == ""
    assert len(lines) == 1 and lines[0].startswith(f"ehrwear_jax: {sentence}"), done.stderr
