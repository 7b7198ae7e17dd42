"""Inputs of a report, small and made of fixed numbers and fixed seeds."""

import numpy as np

from ehrwear_jax.report.build import ReportInputs, Trajectory

TASKS = ("hospitalization_90d", "hospitalization_365d")
ROWS = {"joint": 0.81, "ehr_only": 0.78, "gradient_boosting": 0.8, "oracle": 0.86}


def record(row="joint", task=TASKS[0], metric="auroc", value=0.8123, lo=0.7904, hi=0.8331, **changes):
    base = {"dataset": "simulated", "n": 1000, "n_positive": 120, "seed": 0}
    names = {"row": row, "task": task, "metric": metric}
    return base | names | {"value": value, "lo": lo, "hi": hi} | changes


def results():
    out = []
    for shift, task in enumerate(TASKS):
        for row, value in ROWS.items():
            value += 0.01 * shift
            out.append(record(row, task, "auroc", value, value - 0.03, value + 0.03))
            out.append(record(row, task, "auprc", value / 2, value / 2 - 0.04, value / 2 + 0.04))
            out.append(record(row, task, "brier", 0.1 + shift, None, None))
        comparison = "joint - gradient_boosting"
        out.append(record(comparison, task, "auroc_difference", 0.01, -0.004, 0.024))
        out.append(record(comparison, task, "auroc_difference_p", 0.17, None, None))
    out.append(record("joint", "mortality", "c_index", 0.77, 0.75, 0.79, n=2000, n_positive=211))
    out.append(record("cox_table", "mortality", "c_index", 0.74, 0.72, 0.76, n=2000, n_positive=211))
    return out


def predictions():
    rng = np.random.default_rng(0)
    y = (np.arange(400) % 5 == 0).astype(float)
    out = {}
    for task in TASKS:
        out[task] = {row: (y, rng.beta(2 + 2 * y, 6)) for row in ("joint", "oracle")}
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
