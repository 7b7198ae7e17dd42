"""Recipes of docs/where_to_touch.md work as they are written, and what the pages name exists."""

import importlib
import re
import subprocess
import sys
from datetime import datetime, timedelta

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.sources import csv_source
from ehrwear_jax.evals import builders
from ehrwear_jax.evals.estimates import Resampling, estimate
from ehrwear_jax.evals.protocol import TaskSpec
from ehrwear_jax.evals.weighting import evaluate, kept_rows, merge, ratio
from ehrwear_jax.ops.kernel_attention import ExponentialMixture, kernel_attention
from ehrwear_jax.report import result_records
from ehrwear_jax.stages import evaluate_score, runner
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

PAGES = ("docs/where_to_touch.md", "docs/reading_the_paper.md", "docs/nhanes.md", "CONTRIBUTING.md", "README.md")
FOLDERS = ("ehrwear_jax", "tests", "configs", "launch", "colabs", "docs", "integrations", ".ci", ".github")

# ------------------------------------------------------------------------------------------------- names on the pages


def words(page):
    """What stands in code style on a page: single words between backticks, and words of code blocks."""
    text = (REPO / page).read_text()
    blocks = "".join(re.findall(r"```.*?```", text, re.DOTALL))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return {w.rstrip(".,;:)") for w in (*inline, *blocks.split()) for w in w.split()}


def is_path(word):
    return word.split("/")[0] in FOLDERS and "/" in word and not re.search(r"[<>*={}]", word)


def is_module(name):
    """Without importing it: some define flags."""
    return REPO.joinpath(*name.split(".")).is_dir() or REPO.joinpath(*name.split(".")).with_suffix(".py").is_file()


def resolves(name):
    """Whether a dotted name is a module of the repository, or something in one."""
    if is_module(name):
        return True
    module, _, attribute = name.rpartition(".")
    return is_module(module) and hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_on_the_page_is_there(page):
    paths = {w.split(":")[0] for w in words(page) if is_path(w)}
    assert len(paths) >= 5 and sorted(p for p in paths if not (REPO / p).exists()) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_dotted_name_on_the_page_is_there(page):
    names = {w.split("(")[0] for w in words(page) if re.fullmatch(r"ehrwear_jax(\.\w+)+(\(.*)?", w)}
    assert names and sorted(n for n in names if not resolves(n)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_option_on_the_page_is_there(page):
    printed = subprocess.run(
        [sys.executable, "-m", "ehrwear_jax.config"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"^(?:## |- `)([a-z_.]+)", printed, re.MULTILINE))
    found = {m for w in words(page) for m in re.findall(r"(?<![\w./])(?:--)?config\.([a-z][\w.]*)", w)}
    free = ("models.", "prepare.segments.", "joint.weights.", "labels.diagnosis_groups.")  # names of the user's own
    files = ("py", "json")
    names = {n.rstrip(".").removesuffix(".update") for n in found if n not in files and not n.startswith(free)}
    assert names and sorted(names - known) == []


def test_a_page_that_names_what_is_not_there_is_found():
    known = "ehrwear_jax.evals.regression.Regression"
    assert resolves(known) and not resolves(known + "s") and not resolves(known.replace("evals", "eval"))
    assert is_path("ehrwear_jax/evals/nothing.py") and not is_path("ehrwear_jax/models/<name>/") and not is_path("a/b")


# ------------------------------------------------------------------------------------------------- a dataset

DAYS = 40


def build(source, destination):
    """An adapter as the page wants it: a CSV of visits becomes MEDS, wearable tables and labels."""
    visits = pl.read_csv(source / "visits.csv")
    first = datetime(2020, 1, 1)
    when = pl.lit(first).cast(pl.Datetime("us")) + pl.duration(hours=pl.col("hour"))
    events = visits.select(
        pl.col("person").alias("subject_id"), when.alias("time"), ("LAB//" + pl.col("test")).alias("code"),
        pl.col("result").cast(pl.Float32).alias("numeric_value"),
    )  # fmt: skip
    people = events["subject_id"].unique().sort()
    codes = pl.DataFrame({"code": ["LAB//glucose", "LAB//hdl"], "description": "", "parent_codes": [[], []]},
                         {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)})  # fmt: skip
    splits = pl.DataFrame({"subject_id": people, "split": csv_source.hashed_splits(people.to_numpy(), seed=0)})
    meds.write_dataset(destination, events, meds.Metadata("clinic", "1", codes, splits))
    channels = {"channel": ["heart_rate"], "unit": ["bpm"], "valid_min": [25.0], "valid_max": [230.0]}
    wearable.write_channels(destination / "wearable", pl.DataFrame(channels))
    stretches = {
        "subject_id": people,
        "start_time": pl.Series([first] * len(people), dtype=pl.Datetime("us")),
        "sample_rate_hz": [1 / 60] * len(people),
        "channel": ["heart_rate"] * len(people),
        "values": pl.Series([[50.0 + i % 40] * 720 for i in people], dtype=pl.List(pl.Float32)),
        "unit": ["bpm"] * len(people),
        "device": ["watch"] * len(people),
    }
    wearable.write_shard(destination / "wearable" / "0.parquet", pl.DataFrame(stretches))
    at = pl.Series([first + timedelta(days=DAYS)] * len(people), dtype=pl.Datetime("us"))
    labels = pl.DataFrame({"subject_id": people, "prediction_time": at, "float_value": people.cast(pl.Float32)})
    meds.write_labels(destination / "labels" / "score.parquet", labels)


def write_visits(folder):
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(1, 61), 8)
    test = np.where(rng.random(len(person)) < 0.5, "glucose", "hdl")
    hours = rng.integers(1, DAYS * 24, len(person))
    table = pl.DataFrame({"person": person, "hour": hours, "test": test, "result": rng.normal(100, 9, len(person))})
    folder.mkdir()
    table.write_csv(folder / "visits.csv")
    return table


def test_a_dataset_is_one_script(tmp_path):
    visits = write_visits(tmp_path / "published")
    build(tmp_path / "published", tmp_path / "clinic")
    config = config_lib.base()
    config.data.update({f"{k}_dir": str(tmp_path / "clinic" / k) for k in ("meds", "wearable", "labels")})
    config.prepare.update({"channels": ("heart_rate",), "min_subjects": 2, "min_values": 5, "workers": 1})
    config.evaluate.tasks = ("score",)
    config = config_lib.parse(config)
    runner.run(config, tmp_path / "run", ["prepare"])
    plan = Plan(config, Workdir(tmp_path / "run"))
    store, names = plan.store("all"), ["glucose", "hdl"]
    assert store.index["subject_id"].to_list() == sorted(set(visits["person"]))
    assert set(store.index["split"]) == {"train", "tuning", "held_out"}
    known = [c.removeprefix("LAB//") for c in store.codes["code"].to_list()]
    for i in (0, 17, 59):
        record, mine = store[i], visits.filter(pl.col("person") == i + 1).sort("hour", maintain_order=True)
        assert [known[c] for c in record.code_K] == mine["test"].to_list() and set(known) >= set(names)
        np.testing.assert_allclose(record.value_K, mine["result"].to_numpy(), rtol=1e-6)
        assert np.nanmin(record.window_MxLxC) == np.nanmax(record.window_MxLxC) == 50.0 + (i + 1) % 40
    table = Labels(plan).table("score")
    assert table["float_value"].to_list() == store.index["subject_id"].to_list()


# ------------------------------------------------------------------------------------------------- a metric


class Correlation:
    """{"correlation": [B]}: Pearson's r of a target and its prediction."""

    def __init__(self, y_N, predicted_N, *, factor_N=None):
        self._n = len(y_N)
        self._rows, factor_N = kept_rows(factor_N, self._n)
        x, y = (np.asarray(v, float)[self._rows] for v in (predicted_N, y_N))
        x, y = x - x.mean(), y - y.mean()
        self._sums = factor_N * np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])

    def __call__(self, weight_NxB):
        n, x, y, xx, yy, xy = self._sums @ weight_NxB[self._rows]
        spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
        return {"correlation": ratio(xy - x * y / n, spread)}


def scores(n=80, seed=0):
    """(targets, predictions of two models, group of each row, its level of an attribute)."""
    rng = np.random.default_rng(seed)
    y_N = np.round(rng.normal(size=n), 1)  # with ties
    predictions = {"good": y_N + 0.3 * rng.normal(size=n), "poor": y_N + 2.0 * rng.normal(size=n)}
    return y_N, predictions, np.arange(n) // 2, np.where(np.arange(n) % 4 < 2, "a", "b")


def test_a_statistic_of_ones_own_has_intervals_and_differences_without_touching_the_package():
    y_N, predictions, group_N, _ = scores()
    statistics = {m: Correlation(y_N, p_N) for m, p_N in predictions.items()}
    found = estimate(statistics, group_N, Resampling(200, seed=1))
    for m, p_N in predictions.items():
        assert found.values[m]["correlation"] == pytest.approx(np.corrcoef(y_N, p_N)[0, 1])
        weights = np.random.default_rng(2).integers(0, 4, len(y_N))
        repeated = np.corrcoef(np.repeat(y_N, weights), np.repeat(p_N, weights))[0, 1]
        assert evaluate(statistics[m], len(y_N), weights)["correlation"] == pytest.approx(repeated)
    value, delta_B = found.difference("good", "poor", "correlation")
    assert value > 0.2 and delta_B.shape == (200,) and np.quantile(delta_B, 0.025) > 0


def test_a_metric_of_continuous_tasks_is_a_class_and_its_place_in_builders(monkeypatch):
    """Whole cohort, subgroups and the checks of result records take it as they take the others."""

    def continuous(y_N, predictions, before=builders.continuous):
        built = before(y_N, predictions)
        return {
            m: lambda cell_N, m=m, p_N=p_N: merge(built[m](cell_N), Correlation(y_N, p_N, factor_N=cell_N))
            for m, p_N in predictions.items()
        }

    monkeypatch.setattr(builders, "continuous", continuous)
    y_N, predictions, group_N, level_N = scores()
    task = TaskSpec("clinic", "score", reference_model="good", resampling=Resampling(100))
    found = evaluate_score.score_regression(task, predictions, y_N, evaluate_score.Cohort(group_N, {"side": level_N}))
    records = result_records.check_records(found["records"], "clinic")
    mine = {r["model"]: r for r in records if r["metric"] == "correlation"}
    for m, p_N in predictions.items():
        assert mine[m]["value"] == pytest.approx(np.corrcoef(y_N, p_N)[0, 1])
        assert mine[m]["lo"] < mine[m]["value"] < mine[m]["hi"]
    assert {r["metric"] for r in records if r["model"] == "good"} == {"rmse", "mae", "r2", "correlation"}
    assert result_records.metric_of("correlation").label == "Correlation"


# ------------------------------------------------------------------------------------------------- a time kernel


def power_law(scale_days, exponent, n_components=8, shortest_days=0.1, longest_days=3650.0):
    """(1 + d / scale) ** -exponent up to a factor, as a mixture: its Laplace integral by the trapezoid in log gamma."""
    span = jnp.log(jnp.asarray([1.0 / longest_days, 1.0 / shortest_days]))
    log_gamma = jnp.linspace(span[0], span[1], n_components)
    x = jnp.exp(log_gamma) * scale_days
    return ExponentialMixture(beta_HxR=(x**exponent * jnp.exp(-x))[None], gamma_HxR=jnp.exp(log_gamma)[None])


def test_a_completely_monotone_kernel_is_a_mixture_and_needs_no_new_attention():
    kernel, days = power_law(7.0, 1.0), np.geomspace(0.25, 365.0, 50)
    beta_R, gamma_R = np.asarray(kernel.beta_HxR)[0], np.asarray(kernel.gamma_HxR)[0]
    shape = np.exp(-np.outer(days, gamma_R)) @ beta_R * (1 + days / 7.0)
    assert shape.max() / shape.min() < 1.05  # attention takes K up to a factor
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 50, 1, 8)), jnp.float32) for _ in "qkv")
    time = jnp.asarray(np.cumsum(rng.exponential(5.0, (1, 50)), axis=1), jnp.float32)
    visible = jnp.stack([jnp.zeros(50, jnp.int32), jnp.arange(1, 51, dtype=jnp.int32)], -1)[None]
    out = kernel_attention(q, k, v, q_time_BxT=time, k_time_BxS=time, kv_range_BxTx2=visible, kernel=kernel)
    gap = np.maximum(time[0, :, None] - time[0, None], 0)
    logit = np.einsum("td,sd->ts", q[0, :, 0], k[0, :, 0]) * 8**-0.5 - np.log1p(gap / 7.0)
    weight = np.where(np.tril(np.ones((50, 50))), np.exp(logit), 0.0)
    want = weight / weight.sum(1, keepdims=True) @ np.asarray(v[0, :, 0])
    np.testing.assert_allclose(out[0, :, 0], want, atol=0.05)
