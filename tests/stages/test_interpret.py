"""The interpret stage on networks with random weights: what it writes, that it agrees with its parts, and resumes."""

import json

import cohort
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import small_run
from joint_rows import rows_of
from sklearn.metrics import roc_auc_score

from ehrwear_jax.interpret import ledger, retrieval
from ehrwear_jax.models.joint import interpretation
from ehrwear_jax.report import explained, export, html_page, mechanism_figures, page, result_records
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.table_model import Row
from ehrwear_jax.stages import (
    embed,
    interpret,
    interpret_ledger,
    interpret_people,
    interpret_posterior,
    prepare,
    report_inputs,
)
from ehrwear_jax.stages.loaded_run import LoadedRun
from ehrwear_jax.training import embedding, pretrain, sharding

MODELS = ("joint", "ehr_only")
POSTERIOR = {"network": {"posterior": "normal"},
             "weights": {"latent_kl": (0.0, 1.0, 10), "event_likelihood": (1.0, 1.0, 0)}}  # of the second


def unknown_variables(folder, model):
    """Stands for `embedding.read_variables`; there is no checkpoint, and `with_random_variables` fills them."""
    del folder, model
    return {}, 1


def with_random_variables(model, store, variables, where, devices=None):
    """Stands for `embedding.assemble`: no training, weights far from zero."""
    del where, devices
    examples = model.module.examples(store.view(None), model.config, model.seed, train=False)
    task = pretrain.make_task(model, examples.spec, sharding.make_mesh(jax.local_devices()[:1]))
    shapes, collections = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = tree.unflatten([jnp.asarray(rng.normal(0.05, 0.3, x.shape), x.dtype) for x in leaves])
    variables.update({"params": params, "collections": dict(collections)})
    return examples, task.network


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "read_variables", unknown_variables)
        patch.setattr(embedding, "assemble", with_random_variables)
        patch.setattr(ledger, "LEAST_ROWS", 4)  # a small cohort
        yield patch


@pytest.fixture(scope="module")
def done(tmp_path_factory, patched):
    """(config, plan) after the stage."""
    root = tmp_path_factory.mktemp("interpret")
    cohort.write_cohort(root / "raw", small_run.N_SUBJECTS, wear_days=40)
    cohort.write_labels(root / "labels", small_run.N_SUBJECTS)
    config = small_run.small_config(root)
    for name in {"wear_only", "late_fusion", *small_run.TABLES}:
        del config.models[name]
    config.models.ehr_only.update(POSTERIOR)
    config.prepare.window_hours = 24  # a context of 16 windows reaches back into the periods that are occluded
    config.embed.trajectories = 0
    config.interpret.update(
        {"enabled": True, "individuals": True, "drug_prefixes": ("DX//E11",), "histories_days": (30.0,), "people": 2,
         "event_prefixes": ("HOSPITAL_ADMISSION", "DX//E11"),
         "gradient_steps": 8, "dropout_samples": 3, "n_permutations": 20}
    )  # fmt: skip
    plan = small_run.plan_of(config, root / "run")
    prepare.run(plan)
    embed.run(plan)
    assert interpret.missing(plan) == sorted(MODELS)
    interpret.run(plan)
    assert interpret.missing(plan) == []
    return config, plan


@pytest.fixture(scope="module")
def run(done):
    """One LoadedRun for all tests: what it compiles is compiled once."""
    return LoadedRun(done[1])


def folder_of(done, model="joint"):
    return interpret.artifact(done[1], model).folder


def load(done, name, model="joint"):
    return json.loads((folder_of(done, model) / f"{name}.json").read_text())


def of_all(done, name):
    return [record for model in MODELS for record in load(done, name, model)]


pytestmark = pytest.mark.slow


def test_robustness_holds_every_model_and_perturbation_and_clean_is_the_probes(done, run):
    records = of_all(done, "robustness")
    names = [
        "clean",
        "last 30 days",
        "no wearable",
        "no EHR",
        "SNR 6 dB lower",
        "SNR of -6 dB",
        "50% of the signal missing",
    ]
    assert {(r["model"], r["perturbation"]) for r in records} == {(m, name) for m in MODELS for name in names}
    for name in MODELS:
        p = run.probe(name).predict_proba(run.held_latents(name))
        auroc = roc_auc_score(run.held["boolean_value"].to_numpy(), p)
        (clean,) = [r for r in records if (r["model"], r["perturbation"], r["metric"]) == (name, "clean", "auroc")]
        assert clean["value"] == pytest.approx(auroc) and clean["change"] == 0 and clean["n"] == run.held.height
    moved = {(r["model"], r["perturbation"]) for r in records if r["change"]}
    assert ("ehr_only", "no wearable") not in moved and ("ehr_only", "SNR 6 dB lower") not in moved
    assert ("joint", "no EHR") in moved and ("ehr_only", "no EHR") in moved
    flags = pl.read_parquet(folder_of(done) / "flags.parquet")
    assert flags.equals(pl.read_parquet(folder_of(done, "ehr_only") / "flags.parquet"))
    assert flags.height == run.held.height and 0 <= flags["wear_days"].min() < 40 <= flags["wear_days"].max() <= 41


def test_perturbed_latents_differ_only_where_the_modality_is_given(done, run):
    given = interpret.configured_perturbations(run.config.interpret, 0, run.store.scales)
    clean = run.held_latents("joint")
    wear = pl.read_parquet(folder_of(done) / "flags.parquet")["wear_days"].to_numpy() > 0
    changed = run.held_latents("joint", "no wearable", given["no wearable"][1])
    np.testing.assert_allclose(changed[~wear], clean[~wear], atol=1e-5)
    assert (np.abs(changed[wear] - clean[wear]).max(1) > 1e-4).all() and wear.any()
    nothing = run.held_latents("ehr_only", "no EHR", given["no EHR"][1])
    assert np.ptp(nothing, axis=0).max() < 1e-5  # nothing is left, so all latents are alike


def test_the_ledger_tells_what_each_model_holds_of_the_features(done):
    """Rows are the prediction times of the split at which a feature is known."""
    _, plan = done
    records = of_all(done, "ledger")
    assert {r["model"] for r in records} == set(MODELS)
    keys = embed.prediction_times(plan, plan.config.folds[0][0])
    held = keys.filter(pl.col("split") == "held_out").height
    assert all(0 < r["n"] <= held and r["n_train"] > 0 for r in records)
    assert {"count", "days_since"} <= {r["statistic"] for r in records if r["modality"] == "ehr"}
    assert {"mean", "trend"} & {r["statistic"] for r in records if r["modality"] == "wear"}
    assert all(r["value"] <= 1.0 for r in records)


@pytest.mark.parametrize(("name", "want"), [
    ("ehr__LAB//a__b__mean_365d", ("ehr", "LAB//a__b", "mean", "365d")),
    ("ehr__LAB//na__last", ("ehr", "LAB//na", "last", "")),
    ("ehr__LAB//na__slope_all", ("ehr", "LAB//na", "slope", "all")),
    ("ehr__LAB//na__days_since", ("ehr", "LAB//na", "days_since", "")),
    ("ehr__LAB//na__mean_1.5h", ("ehr", "LAB//na", "mean", "1.5h")),
    ("ehr__n_events_30d", ("ehr", "", "n_events", "30d")),
    ("ehr__age_years", ("ehr", "", "age_years", "")),
    ("ehr__static__SEX//F", ("ehr", "SEX//F", "flag", "")),
    ("ehr__static__BMI__value", ("ehr", "BMI", "value", "")),
    ("wear__heart_rate__mean_7d", ("wear", "heart_rate", "mean", "7d")),
])  # fmt: skip
def test_names_of_features_are_taken_apart(name, want):
    assert tuple(interpret_ledger.split_name(name).values()) == want


def test_geometry_names_every_measure(done):
    records = of_all(done, "geometry")
    for name in MODELS:
        mine = {r["measure"]: r for r in records if r["model"] == name}
        assert {"effective_rank", "mmd2_adjacent", "mmd2_adjacent_mean", "mmd2_class", "lipschitz_per_day"} <= set(mine)
        assert 1 <= mine["effective_rank"]["value"] <= 8
        tried = done[0].interpret.n_permutations + 1  # the classes as they are stand for one of the permutations
        assert mine["mmd2_class"]["p_value"] * tried == pytest.approx(round(mine["mmd2_class"]["p_value"] * tried))
        assert 1 / tried <= mine["mmd2_class"]["p_value"] <= 1
        assert mine["lipschitz_per_day"]["lo"] <= mine["lipschitz_per_day"]["value"] <= mine["lipschitz_per_day"]["hi"]
    assert all(r["slice"] < -1 for r in records if r["measure"] == "mmd2_adjacent")


def test_draws_of_a_posterior_are_judged_and_a_point_has_none(done, run):
    assert load(done, "posterior") == []
    found = {(r["measure"], r["level"]): r for r in load(done, "posterior", "ehr_only")}
    assert {r["model"] for r in found.values()} == {"ehr_only"}
    total = found["expected_entropy", None]["value"] + found["mutual_information", None]["value"]
    assert found["predictive_entropy", None]["value"] == pytest.approx(total)
    assert found["mutual_information", None]["value"] > 0, "draws of z differ, dropout is off"
    assert found["mutual_information", None]["n"] == run.held.height
    for measure in interpret_posterior.MEASURES:
        r = found[f"{measure}_of_errors", None]
        assert -1 <= r["value"] <= 1 and r["lo"] <= r["value"] <= r["hi"]
    coverage = [found["code_coverage", level]["value"] for level in (0.5, 0.8, 0.95)]
    assert coverage == sorted(coverage)
    loaded = run.network("ehr_only")
    config, held = interpretation.masked(loaded.model.config), run.store.view("held_out")
    rows = rows_of(loaded.model.module.examples(held, config, run.config.data.seed, train=False), 1)
    n_hidden = sum((row["masked_position"] >= 0).sum() for row in rows)
    assert found["code_coverage", 0.5]["n"] == n_hidden > 10, "each row once"
    assert all(0 < found[f"code_total_variation{of}", None]["value"] < 1.001 for of in ("", "_floor"))
    assert not any(measure.startswith("signal") for measure, _ in found), "it is given no signal"


def test_retrieval_uncertainty_and_kernels(done):
    found = load(done, "retrieval")
    assert {(r["source"], r["direction"], r["k"]) for r in found} == {
        ("latents", d, k) for d in ("ehr_to_wear", "wear_to_ehr") for k in (1, 10)
    }
    assert all(0 <= r["value"] <= 1 and r["chance"] == min(1, r["k"] / r["n"]) for r in found)
    saved = np.load(folder_of(done) / "uncertainty.npz")
    assert saved["p_SxN"].shape == (3, len(saved["y_N"])) and (saved["p_SxN"].std(0) > 0).mean() > 0.5
    entropies = {r["measure"]: r["value"] for r in load(done, "uncertainty") if r["group"] == "all"}
    total = entropies["expected_entropy"] + entropies["mutual_information"]
    assert entropies["predictive_entropy"] == pytest.approx(total) and entropies["mutual_information"] > 0
    for model in MODELS:
        kernel = np.load(folder_of(done, model) / "kernels.npz")["kernel"]
        assert kernel.shape == (1, 2, 120) and (np.diff(kernel) <= 1e-6).all()
        assert np.shape(load(done, "kernels", model)["half_life_days"]) == (1, 2)
    # what is of the reference model alone
    assert not any((folder_of(done, "ehr_only") / f"{part}.json").exists() for part in report_inputs.OF_REFERENCE)


def test_mechanisms_and_people(done):
    found = load(done, "mechanisms")
    jump, drift, precursors = found["jump"], found["drift"], found["precursors"]
    for part in (jump["event"], jump["pseudo_event"], drift):
        assert all(lo <= mean <= hi for lo, mean, hi in zip(part["lo"], part["mean"], part["hi"], strict=True))
        assert min(part["n"]) >= 2 and max(part["mean"]) > 0 and 0 <= part["first_share"] <= 1
    assert drift["channel"] == "heart_rate" and drift["offset_days"] == [1, 3, 7, 14]
    names = {f"{c}, {p}" for c in ("heart_rate", "activity") for p in ("30 to 7 days", "53 to 30 days (control)")}
    assert set(precursors) == names and precursors["activity, 30 to 7 days"]["mean"] > 0
    starts = []
    for prefix in ("LAB//glucose", "LAB//hdl", "DX//I10", "HOSPITAL_ADMISSION"):  # few begin while a device is worn
        config = done[0].copy_and_resolve_references()
        config.interpret.drug_prefixes = (prefix,)
        other = LoadedRun(small_run.plan_of(config, done[1].workdir.root))
        starts.append(interpret_people._drug_start(other, "joint"))
    starts = [s for s in starts if s is not None]
    assert starts and all(s["channel"] == "heart_rate" and len(s["mean"]) == len(s["edge_days"]) - 1 for s in starts)
    people = load(done, "people")
    arrays = np.load(folder_of(done) / "people.npz")
    assert len(people) == 2
    for i, person in enumerate(people):
        days = [t["days"] for t in person["tokens"]]
        assert max(days) <= 0 and days == sorted(days)
        assert arrays[f"attention_{i}"].shape == (1, 2, len(days))
        np.testing.assert_allclose(arrays[f"attention_{i}"].sum(-1), 1.0, atol=1e-5)
        assert sum(t["rollout"] for t in person["tokens"]) == pytest.approx(0.5, abs=1e-4)  # one layer
        wear = sum(t["gradient"] for t in person["tokens"] if t["label"] == "wearable window")
        assert wear == pytest.approx(float(arrays[f"wear_{i}"].sum()), abs=1e-4)
        assert set(person["counterfactuals"]) == {"without DX//E11", "heart_rate raised by 1 SD"}
        assert person["groups"].keys() >= {"LAB", "DX", "HOSPITAL_ADMISSION", "GENDER"} and person["groups"]["GENDER"]


def test_the_report_draws_what_the_stage_left(done):
    found = ReportData(**report_inputs._interpreted(done[1]), individuals=True)
    assert found.not_interpreted == "" and len(found.explained) == 2 and len(found.kernels) == 2
    shown = page.Page("", "", (mechanism_figures.mechanisms(found), explained.explained(found)))
    drawn = html_page.to_html_page(shown)
    for identifier in ("mechjump", "mechdrift", "mechpre0", "why1-t", "why2-c", "att1-0", "att2-0"):
        assert f'id="{identifier}-' in drawn, identifier
    people = load(done, "people")
    tables = {t.name: t for t in export.named_tables(shown)}
    for i, person in enumerate(people, 1):
        cells = dict(r.cells[::2] for r in tables[f"prediction{i}"].rows if isinstance(r, Row))
        for name, value in person["counterfactuals"].items():
            if abs(value) >= explained.SMALL:
                assert cells[name.replace("_", " ")] == result_records.format_number(value, signed=True)
    jump = next(r for r in tables["mechanisms_jump_drift"].rows if r.cells[0] == "Around the event")
    assert jump.cells[2].startswith(result_records.format_number(load(done, "mechanisms")["jump"]["event"]["mean"][0]))


def test_nothing_names_a_person_and_a_second_run_computes_what_is_missing(done):
    _, plan = done
    folder, other = folder_of(done), folder_of(done, "ehr_only")
    parts = [p for f in (folder, other) for p in f.glob("*.json") if p.name != "artifact.json"]
    assert len(parts) == 14 and not any("subject" in p.read_text() for p in parts)
    before, times, others = small_run.contents(folder), small_run.written_at(folder), small_run.written_at(other)
    small_run.interrupted(interpret.artifact(plan, "joint"), "kernels.json", "uncertainty.json")
    assert interpret.missing(plan) == ["joint"]
    interpret.run(plan)
    assert interpret.missing(plan) == []
    for partial in folder.glob("*.partial"):
        partial.unlink()
    after = small_run.written_at(folder)
    assert times.keys() == after.keys() and small_run.written_at(other) == others
    written = {"kernels.json", "kernels.npz", "uncertainty.json", "uncertainty.npz"}
    assert {n for n in times if times[n] != after[n]} == written | {"artifact.json"}
    # the dropout of each member is a function of the seed
    assert small_run.contents(folder) == before


def test_other_options_are_another_interpretation_and_the_first_stays(done, patched):
    config, plan = done
    before = {m: (small_run.contents(folder_of(done, m)), small_run.written_at(folder_of(done, m))) for m in MODELS}
    config = config.copy_and_resolve_references()
    config.interpret.update({"histories_days": (), "slices": 0, "dropout_samples": 0, "people": 0, "noise_db": 3.0})
    other = small_run.plan_of(config, plan.workdir.root)
    assert interpret.missing(other) == sorted(MODELS)
    with patched.context() as patch:
        patch.setattr(interpret, "parts", lambda *_: {"robustness": lambda *_: []})
        interpret.run(other)
    assert interpret.missing(other) == interpret.missing(plan) == []
    for m in MODELS:
        assert interpret.artifact(other, m).folder != folder_of(done, m)
        assert before[m] == (small_run.contents(folder_of(done, m)), small_run.written_at(folder_of(done, m)))


def test_without_permission_nobody_is_explained_and_disabled_is_off(done, tmp_path):
    config, plan = done
    config = config.copy_and_resolve_references()
    config.interpret.individuals = False
    hidden = LoadedRun(small_run.plan_of(config, plan.workdir.root))
    assert interpret_people.people(hidden, "joint", tmp_path) == [] and not list(tmp_path.iterdir())
    config.interpret.enabled = False
    off = small_run.plan_of(config, plan.workdir.root)
    before = small_run.written_at(plan.workdir.root)
    assert interpret.missing(off) == []
    interpret.run(off)
    assert small_run.written_at(plan.workdir.root) == before


def test_projected_pairs_are_one_per_patient():
    """A stand-in for a network with projections; the real pairs come with the contrastive term."""
    rng = np.random.default_rng(0)
    unit = retrieval.unit_rows(rng.normal(size=(6, 3))).astype(np.float32)
    patient = np.array([[4, 4, -1], [7, 9, -1]])
    units = unit[:3], unit[3:]
    batches = [{"pair_patient": p[None], "unit": u[None]} for p, u in zip(patient, units, strict=True)]
    ehr, wear, who = interpretation.projected_pairs(Projecting(), {}, batches)
    assert who.tolist() == [4, 7, 9]
    np.testing.assert_array_equal(ehr, unit[[0, 3, 4]])
    np.testing.assert_array_equal(wear, ehr)
    assert interpretation.projected_pairs(Projecting(), {}, [{"unit": unit[None]}]) is None, "no pairs"


class Projecting:
    """What `apply` gives of a network with the contrastive term: the units of the batch."""

    def apply(self, variables, batch):
        return {"contrast": {"ehr": batch["unit"], "wear": batch["unit"]}}
