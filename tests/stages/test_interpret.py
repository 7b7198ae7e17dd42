"""The interpret stage on networks with random weights: what it writes, that it agrees with its parts, and resumes."""

import json

import cohort
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import small_run
from sklearn.metrics import roc_auc_score

from ehrwear_jax import config as config_lib
from ehrwear_jax.interpret import retrieval
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.report import explained, export, page
from ehrwear_jax.report import mechanism_figures as mechanisms
from ehrwear_jax.report import result_records as records
from ehrwear_jax.report.report_data import Evidence
from ehrwear_jax.report.table_model import Row
from ehrwear_jax.stages import interpret, interpret_people, marks, model, prepare, report_evidence
from ehrwear_jax.stages.loaded_run import Study
from ehrwear_jax.training import train

ROWS = ("joint", "ehr_only")


def random_params(config, workdir, fold, row):
    """Stands for `model.restored`: no training, weights far from zero."""
    patients = model._patients(config, workdir, fold, row)
    network = train.make_model(patients, config_lib.model_options(config))
    example = batch_lib.empty_batch(patients.batch_shape(), 1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return patients, tree.unflatten([jnp.asarray(rng.normal(0.05, 0.3, x.shape), x.dtype) for x in leaves])


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "restored", random_params)
        yield patch


@pytest.fixture(scope="module")
def done(tmp_path_factory, patched):
    """(config, workdir) after the stage."""
    root = tmp_path_factory.mktemp("interpret")
    cohort.write_cohort(root / "raw", small_run.N_SUBJECTS, wear_days=40)
    cohort.write_labels(root / "labels", small_run.N_SUBJECTS)
    config, workdir = small_run.small_config(root), root / "run"
    config.rows = {row: config.rows[row] for row in ROWS}
    config.evaluate.late_fusion = ()
    config.prepare.window_hours = 24  # a context of 16 windows reaches back into the periods that are occluded
    config.embed.trajectories = 0
    config.interpret.update(
        {"enabled": True, "individuals": True, "drug_prefixes": ("DX//E11",), "histories_days": (30.0,), "people": 2,
         "event_prefixes": ("HOSPITAL_ADMISSION", "DX//E11"),
         "gradient_steps": 8, "dropout_samples": 3, "n_permutations": 20}
    )  # fmt: skip
    workdir.mkdir()
    prepare.run(config, workdir)
    model.embed(config, workdir)
    (workdir / "interpret").mkdir()
    interpret.run(config, workdir)
    return config, workdir


def load(done, name):
    return json.loads((done[1] / "interpret" / f"{name}.json").read_text())


pytestmark = pytest.mark.slow


def test_robustness_holds_every_row_and_condition_and_clean_is_the_probes(done):
    records = load(done, "robustness")
    names = [
        "clean",
        "last 30 days",
        "no wearable",
        "no EHR",
        "SNR 6 dB lower",
        "SNR of -6 dB",
        "50% of the signal missing",
    ]
    assert {(r["row"], r["condition"]) for r in records} == {(row, name) for row in ROWS for name in names}
    study = Study(*done)
    for row in ROWS:
        p = study.probes[row].predict_proba(study.held_latents(row))
        auroc = roc_auc_score(study.held["boolean_value"].to_numpy(), p)
        (clean,) = [r for r in records if (r["row"], r["condition"], r["metric"]) == (row, "clean", "auroc")]
        assert clean["value"] == pytest.approx(auroc) and clean["change"] == 0 and clean["n"] == study.held.height
    moved = {(r["row"], r["condition"]) for r in records if r["change"]}
    assert ("ehr_only", "no wearable") not in moved and ("ehr_only", "SNR 6 dB lower") not in moved
    assert ("joint", "no EHR") in moved and ("ehr_only", "no EHR") in moved
    flags = pl.read_parquet(done[1] / "interpret" / "flags.parquet")
    assert flags.height == study.held.height and 0 <= flags["wear_days"].min() < 40 <= flags["wear_days"].max() <= 41


def test_changed_reads_differ_only_where_the_stream_is_seen(done):
    study = Study(*done)
    given = interpret.degradations(study.config.interpret, 0, study.store.scales)
    clean = study.held_latents("joint")
    wear = pl.read_parquet(done[1] / "interpret" / "flags.parquet")["wear_days"].to_numpy() > 0
    changed = study.held_latents("joint", "no wearable", given["no wearable"][1])
    np.testing.assert_allclose(changed[~wear], clean[~wear], atol=1e-5)
    assert (np.abs(changed[wear] - clean[wear]).max(1) > 1e-4).all() and wear.any()
    nothing = study.held_latents("ehr_only", "no EHR", given["no EHR"][1])
    assert np.ptp(nothing, axis=0).max() < 1e-5  # nothing is left, so all reads are alike


def test_geometry_names_every_measure(done):
    records = load(done, "geometry")
    for row in ROWS:
        mine = {r["measure"]: r for r in records if r["row"] == row}
        assert {"effective_rank", "mmd2_adjacent", "mmd2_adjacent_mean", "mmd2_class", "lipschitz_per_day"} <= set(mine)
        assert 1 <= mine["effective_rank"]["value"] <= 8 and 0 < mine["mmd2_class"]["p_value"] <= 1
        assert mine["lipschitz_per_day"]["lo"] <= mine["lipschitz_per_day"]["value"] <= mine["lipschitz_per_day"]["hi"]
    assert all(r["slice"] < -1 for r in records if r["measure"] == "mmd2_adjacent")


def test_retrieval_uncertainty_and_kernels(done):
    found = load(done, "retrieval")
    assert {(r["source"], r["direction"], r["k"]) for r in found} == {
        ("latents", d, k) for d in ("ehr_to_wear", "wear_to_ehr") for k in (1, 10)
    }
    assert all(0 <= r["value"] <= 1 and r["chance"] == min(1, r["k"] / r["n"]) for r in found)
    saved = np.load(done[1] / "interpret" / "uncertainty.npz")
    assert saved["p_SxN"].shape == (3, len(saved["y_N"])) and (saved["p_SxN"].std(0) > 0).mean() > 0.5
    entropies = {r["measure"]: r["value"] for r in load(done, "uncertainty") if r["group"] == "all"}
    total = entropies["expected_entropy"] + entropies["mutual_information"]
    assert entropies["predictive_entropy"] == pytest.approx(total) and entropies["mutual_information"] > 0
    kernels = np.load(done[1] / "interpret" / "kernels.npz")
    assert kernels["joint"].shape == (1, 2, 120) and (np.diff(kernels["joint"]) <= 1e-6).all()
    assert np.shape(load(done, "kernels")["joint"]["half_life_days"]) == (1, 2)


def test_mechanisms_and_people(done):
    found = load(done, "mechanisms")
    jump, drift, precursors = found["jump"], found["drift"], found["precursors"]
    for part in (jump["event"], jump["pseudo_event"], drift):
        assert all(lo <= mean <= hi for lo, mean, hi in zip(part["lo"], part["mean"], part["hi"], strict=True))
        assert min(part["n"]) >= 2 and max(part["mean"]) > 0 and 0 <= part["first_share"] <= 1
    assert drift["channel"] == "heart_rate" and drift["offset_days"] == [1, 3, 7, 14]
    names = {f"{c}, {p}" for c in ("heart_rate", "activity") for p in ("30 to 7 days", "53 to 30 days (control)")}
    assert set(precursors) == names and precursors["activity, 30 to 7 days"]["mean"] > 0
    assert 0 <= precursors["activity, 30 to 7 days"]["control_seen"] <= 1
    study, starts = Study(*done), []
    for prefix in ("LAB//glucose", "LAB//hdl", "DX//I10", "HOSPITAL_ADMISSION"):  # few begin while a device is worn
        study.config.interpret.drug_prefixes = (prefix,)
        starts.append(interpret_people._drug_start(study))
    study.config.interpret.drug_prefixes = ("DX//E11",)
    starts = [s for s in starts if s is not None]
    assert starts and all(s["channel"] == "heart_rate" and len(s["mean"]) == len(s["edge_days"]) - 1 for s in starts)
    people = load(done, "people")
    arrays = np.load(done[1] / "interpret" / "people.npz")
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


def test_the_report_draws_what_the_stage_left(done, monkeypatch):
    monkeypatch.setattr(marks, "interpret_fault", lambda *_: "")
    found = Evidence(**report_evidence._interpreted(*done), individuals=True)
    assert found.not_interpreted == "" and len(found.explained) == 2 and len(found.kernels) == 2
    shown = page.Page("", "", (mechanisms.mechanisms(found), explained.explained(found)))
    drawn = page.to_html_page(shown)
    for identifier in ("mechjump", "mechdrift", "mechpre0", "why1-t", "why2-c", "att1-0", "att2-0"):
        assert f'id="{identifier}-' in drawn, identifier
    people = load(done, "people")
    tables = {t.name: t for t in export.named_tables(shown)}
    for i, person in enumerate(people, 1):
        cells = dict(r.cells[::2] for r in tables[f"prediction{i}"].rows if isinstance(r, Row))
        for name, value in person["counterfactuals"].items():
            if abs(value) >= explained.SMALL:
                assert cells[name.replace("_", " ")] == records.format_number(value, signed=True)
    jump = next(r for r in tables["mechanisms_jump_drift"].rows if r.cells[0] == "Around the event")
    assert jump.cells[2].startswith(records.format_number(load(done, "mechanisms")["jump"]["event"]["mean"][0]))


def test_nothing_names_a_person_and_a_second_run_computes_what_is_missing(done):
    config, workdir = done
    folder = workdir / "interpret"
    assert not any("subject" in p.read_text() for p in folder.glob("*.json"))
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    for name in ("kernels", "uncertainty"):
        (folder / f"{name}.json").unlink()
    interpret.run(config, workdir)
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    assert before.keys() == after.keys()
    written = {"kernels.json", "kernels.npz", "uncertainty.json", "uncertainty.npz"}
    assert {n for n in before if before[n][0] != after[n][0]} == written
    # the dropout of each member is a function of the seed
    assert all(before[n][1] == after[n][1] for n in written if n.endswith("json"))


def test_without_permission_nobody_is_explained_and_disabled_is_off(done, tmp_path, monkeypatch):
    config, workdir = done
    config = config_lib.read_dict(json.loads(config.to_json_best_effort()))
    config.interpret.individuals = False
    assert interpret_people.people(Study(config, workdir), tmp_path) == [] and not list(tmp_path.iterdir())
    config.interpret.enabled = False
    interpret.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_projected_pairs_are_one_per_patient():
    """A stand-in for a network with projections; the real pairs come with the contrastive term."""
    rng = np.random.default_rng(0)
    unit = retrieval.unit_rows(rng.normal(size=(6, 3)))
    patient = np.array([[4, 4, -1], [7, 9, -1]])
    batches = [{"pair_patient": p[None]} for p in patient]
    outputs = iter([{"pair_ehr": u[None], "pair_wear": u[None]} for u in (unit[:3], unit[3:])])
    ehr, wear, who = interpret_people.collect_pairs(lambda _: next(outputs), batches)
    assert who.tolist() == [4, 7, 9]
    np.testing.assert_array_equal(ehr, unit[[0, 3, 4]])
    np.testing.assert_array_equal(wear, ehr)
