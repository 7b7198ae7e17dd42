"""The notebook and its script hold the same cells, and the script runs on a finished run."""

import json
import runpy

import pytest
import small_run
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.stages import runner

SCRIPT = REPO / "colabs" / "explore_latents.py"


def make_notebook():
    return runpy.run_path(str(REPO / "colabs" / "make_notebook.py"))


def test_notebook_and_script_hold_the_same_cells():
    tools, saved = make_notebook(), json.loads(SCRIPT.with_suffix(".ipynb").read_text())
    assert saved == tools["notebook"](SCRIPT.read_text())
    code = [c for c in saved["cells"] if c["cell_type"] == "code"]
    assert len(code) >= 5 and not any(c["outputs"] for c in code)
    for cell in code:
        compile("".join(cell["source"]), "cell", "exec")


def test_cells_of_a_script():
    text = '"""not a cell"""\n# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1  # %% no mark\n\n\n# %%\ny = 2\n'
    found = make_notebook()["cells"](text)
    assert found == [("markdown", "# Title\n\ntext"), ("code", "x = 1  # %% no mark"), ("code", "y = 2")]


def run_script(monkeypatch, **named):
    for name in ("MODEL", "PEOPLE"):
        monkeypatch.delenv(f"EHRWEAR_{name}", raising=False)
    for name, value in named.items():
        monkeypatch.setenv(f"EHRWEAR_{name.upper()}", str(value))
    monkeypatch.setenv("MPLBACKEND", "agg")
    return runpy.run_path(str(SCRIPT))


@pytest.mark.slow
def test_the_script_runs_on_a_small_run(tmp_path, monkeypatch, capsys):
    small_run.write_inputs(tmp_path)
    config = small_run.one_model(small_run.small_config(tmp_path), "joint")
    runner.run(config_lib.parse(config), tmp_path / "run", ["prepare", "pretrain", "embed"])
    risks = run_script(monkeypatch, model=tmp_path / "run", people=tmp_path / "raw")["counterfactuals"]
    assert set(risks) == {"as recorded", "without ATC//", "no wearable", "heart_rate + 1 SD"}
    assert all(0 < r < 1 for r in risks.values())
    assert risks["without ATC//"] == pytest.approx(risks["as recorded"])  # the cohort has no such codes
    assert risks["heart_rate + 1 SD"] != risks["as recorded"] != risks["no wearable"]
    assert "change +0.000" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_runs_without_a_run_on_somebody_of_whom_it_has_something_to_show(monkeypatch):
    """The bundle that comes with the package, and people who are simulated: each change changes the risk."""
    found = run_script(monkeypatch)
    assert found["recent"] > 0 and found["is_drug"](found["person"].code_K).any()
    risks = found["counterfactuals"]
    assert len(set(risks.values())) == len(risks) == 4
