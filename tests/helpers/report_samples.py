"""Inputs of a report, small and made of fixed numbers and fixed seeds."""

import numpy as np

from ehrwear_jax.report.build import ReportInputs, Trajectory
from ehrwear_jax.report.report_data import Explained

TASKS = ("hospitalization_90d", "hospitalization_365d")
MODELS = {"joint": 0.81, "ehr_only": 0.78, "gradient_boosting": 0.8, "oracle": 0.86}


def record(model="joint", task=TASKS[0], metric="auroc", value=0.8123, lo=0.7904, hi=0.8331, **changes):
    base = {"dataset": "simulated", "n": 1000, "n_positive": 120, "seed": 0}
    names = {"model": model, "task": task, "metric": metric}
    return base | names | {"value": value, "lo": lo, "hi": hi} | changes


def results():
    out = []
    for shift, task in enumerate(TASKS):
        for model, value in MODELS.items():
            value += 0.01 * shift
            out.append(record(model, task, "auroc", value, value - 0.03, value + 0.03))
            out.append(record(model, task, "auprc", value / 2, value / 2 - 0.04, value / 2 + 0.04))
            out.append(record(model, task, "brier", 0.1 + shift, None, None))
        comparison = "joint - gradient_boosting"
        out.append(record(comparison, task, "auroc_difference", 0.01, -0.004, 0.024))
        out.append(record(comparison, task, "auroc_difference_p", 0.17, None, None))
    out.append(record("joint", "mortality", "c_index", 0.77, 0.75, 0.79, n=2000, n_positive=211))
    out.append(record("linear_table", "mortality", "c_index", 0.74, 0.72, 0.76, n=2000, n_positive=211))
    return out


def predictions():
    rng = np.random.default_rng(0)
    y = (np.arange(400) % 5 == 0).astype(float)
    out = {}
    for task in TASKS:
        out[task] = {model: (y, rng.beta(2 + 2 * y, 6)) for model in ("joint", "oracle")}
    return out


def trajectory(number=7, with_signal=True, **changes):
    rng = np.random.default_rng(number)
    signal_time = np.arange(100, 140, 1 / 24) if with_signal else None
    heart_rate = 70 + 5 * np.sin(np.arange(960)) if with_signal else None
    fields = {
        "number": number,
        "time_days_N": np.linspace(0, 200, 30),
        "z_NxD": rng.normal(size=(30, 8)).cumsum(axis=0),
        "event_time_E": np.array([0.0, 50.0, 150.0]),
        "event_label_E": ["ICD10//I50", "LOINC//2345-7", "HOSPITAL_ADMISSION//INPATIENT"],
        "signal_time_M": signal_time,
        "signal_MxC": heart_rate[:, None] if with_signal else None,
        "signal_names": ["heart rate (bpm)"],
        "prediction_time": 120.0,
        "outcome": "hospitalized 30 days later",
    }
    return Trajectory(**(fields | changes))


def losses():
    joint = [{"step": s, "loss/total": 5 / s, "loss/ehr_masked": 3 / s, "grad_norm": 1} for s in (1, 2, 4)]
    return {
        "joint": joint,
        "ehr_only": [
            {"step": 1, "loss/total": 4.0, "learning_rate": 1e-3},
            {"step": 1, "validation/loss/total": 4.5},
        ],
    }


def inputs(**changes):
    fields = {
        "title": "Joint model <tiny>",
        "subtitle": "1,000 people & their watches",
        "dataset": "simulated",
        "results": results(),
        "losses": losses(),
        "predictions": predictions(),
        "trajectories": [trajectory(7), trajectory(8, with_signal=False)],
        "cohort": [
            {"step": "simulated", "n": 1010, "dropped": 0, "reason": ""},
            {"step": "followed | long", "n": 1000, "dropped": 10, "reason": "record < 30 days"},
        ],
        "facts": {"config": "configs/tiny.py", "seed": "0"},
        "notes": ["One seed."],
    }
    return ReportInputs(**(fields | changes))


def _profile(days, mean, n, half_width=0.125, **more):
    ends = {"lo": [m - half_width for m in mean], "hi": [m + half_width for m in mean]}
    return {"offset_days": days, "mean": mean, **ends, "n": [n] * len(mean), **more}


def mechanisms(n=31):
    """As interpret/mechanisms.json: a jump, a drift, precursors and a drug that lowers a signal."""
    precursor = {"mean": 0.25, "lo": 0.125, "hi": 0.375, "n": n, "control_seen": 0.75}
    return {
        "jump": {
            "event": _profile([1.0, 7.0, 30.0], [2.5, 2.25, 2.0], n, first_share=0.97, half_days=0.5),
            "pseudo_event": _profile([1.0, 7.0, 30.0], [0.5, 0.625, 0.75], n, first_share=0.41, half_days=3.0),
        },
        "drift": {"channel": "heart_rate", "raised_sd": 1.0,
                  **_profile([1.0, 7.0, 14.0], [0.25, 0.75, 1.5], n - 1, first_share=0.11, half_days=6.5)},
        "precursors": {
            "rmssd, 30 to 7 days": {**precursor, "difference": 0.1875, "difference_lo": 0.0625, "difference_hi": 0.25,
                                    "p_value": 0.0123, "q_value": 0.0336},
            "rmssd, 53 to 30 days (control)": {**precursor, "mean": 0.0625, "lo": 0.0, "hi": 0.1875, "difference": 0.0,
                                               "difference_lo": 0.0, "difference_hi": 0.0, "p_value": None},
        },
        "drug_start": {"channel": "rmssd", "edge_days": [-14.0, -7.0, 0.0, 7.0, 14.0],
                       "mean": [0.0, 0.0, -0.375, -0.625], "lo": [-0.125, -0.125, -0.5, -0.75],
                       "hi": [0.125, 0.125, -0.25, -0.5],
                       "n": [n, n, n, min(n, 3)]},
    }  # fmt: skip


def person(layers=2, heads=3, labels=("ICD10//I50", "LOINC//2345-7//Q4", "ATC//C09AA"), windows=4, seed=0, **changes):
    """As interpret/people.json and people.npz: codes in the year before the prediction time, then wearable windows."""
    rng = np.random.default_rng(seed)
    days = np.concatenate([np.linspace(-300.0, -20.0, len(labels)), np.linspace(-10.0, 0.0, windows)])
    label = [*labels, *["wearable window"] * windows]
    wear = rng.normal(size=(windows, 2)) / 64
    gradient = np.concatenate([rng.normal(size=len(labels)) / 4, wear.sum(1)])
    attention = rng.random((layers, heads, len(days)))
    tokens = [
        {"days": float(d), "label": name, "gradient": float(g), "rollout": float(r)}
        for d, name, g, r in zip(days, label, gradient, rng.dirichlet(np.ones(len(days))), strict=True)
    ]
    fields = {
        "risk": 0.3456, "logit": -0.638, "completeness_gap": 0.0117, "groups": {"ICD10": -0.4321, "GENDER": 0.0},
        "channels": {"heart_rate": 0.0876, "rmssd": None}, "histories": {"last 30 days": -1.234},
        "counterfactuals": {"without ATC": -0.5432, "heart_rate raised by 1 SD": 0.1357}, "tokens": tokens,
        "attention": attention / attention.sum(-1, keepdims=True), "wear": wear, "wear_days": days[len(labels) :],
        "signals": ("heart_rate", "rmssd"),
    }  # fmt: skip
    return Explained(**fields | changes)
