"""The paper's comparison on a simulated cohort: every model, ablation, seed and table, as one command.

    python -m ehrwear_jax.main --config=configs/paper.py:quick --stages=study --processes=2

Pretrains the paper's model (base paper), its two one-modality members, the paper's six baselines (MOTOR, CEHR-BERT and
ContextClues of the EHR; PaPaGei, Pulse-PPG and HiMAE of the pulse wave), the five ablations of Table 4 and the seven of
appendix A.6, each with every seed, beside tabular models and late fusion: of the joint model's own two members
(late_fusion), of the EHR model and the wearable one that predict a task's tuning people best (best_fusion), and of what
all single ones predict (stacked). It reports on one page: forecasting (Table 1), physiology (2), survival (3),
ablations (4 and A.6), prevalence (5), confusion matrices (6), effect sizes (7) and subgroups (8 and 9). It can be ended
at any time and goes on where it was. A further model, seed or task trains only itself;
--config.only="('joint','ehr_only','motor','best_fusion')" runs a part.

| variant | people | steps | seeds | sized for, and not timed yet |
| :--- | ---: | ---: | ---: | :--- |
| quick | 600 | 60 | 1 | a quarter of an hour on two idle cores: whether everything runs |
| demo | 1,400 | 400 | 1 | two hours on two idle cores |
| (none) | 12,000 | 1,200 | 5 | 110 trainings of 3 to 5 million parameters: GPUs, --processes=<number of GPUs> |

Every model is trained on the same people, for as many steps. How many rows and tokens a step has is the config of each
family; the report's table of models says what each was given, its parameters and its operations. Rates are those of the
config files until they are chosen on tuning people, of three for each model, by

    python -m ehrwear_jax.main --config=configs/paper.py:demo --learning_rates=0.333,1,3 --config.only="$COMPARED"

with COMPARED="('joint','ehr_only','wear_only','motor','cehr_bert','context_clues','himae','papagei','pulse_ppg',
'motif_distance')", which prints the flags that say so, of the ablations too. Networks of quick and demo are those of
tiny.py, whose docstring says what can be expected of them: an ablation is told from the model only where its interval
over people and its spread over seeds say so, which neither has people enough
for. The others are those of small.py. Further variants, joined by "+": extended (ours in the place of the paper's
model), and the cohorts redundant and noise.
"""

import runpy
from pathlib import Path

from ehrwear_jax import config as config_lib

SIZES = {"quick": "tiny.py", "demo": "tiny.py"}
HORIZONS = (30, 90, 180, 365)
ONSETS = {"cardiovascular": ("ICD10//I",), "metabolic": ("ICD10//E",)}
EHR, WEARABLE = ("ehr_only", "motor", "cehr_bert", "context_clues"), ("wear_only", "himae", "papagei", "pulse_ppg")
# as many parameters as the others have; tiny.py has smaller ones, to show that they run
AS_LARGE = {"himae": {"widths": (16, 32, 64, 64)}, "papagei": {"width": 48}}
PHYSIOLOGY = ("sleep_efficiency", "hrv_rmssd", "activity_regularity")


def get_config(variant=""):
    names = config_lib.variants(variant, "paper.py", (*SIZES, *config_lib.SIMULATED))
    size = next((n for n in names if n in SIZES), "")
    base = config_lib.chosen_base(names, "paper")
    others = [base, *(n for n in names if n not in (*SIZES, base)), "table4", "a6"]
    others += [*EHR[1:], *WEARABLE[1:]]
    sized = runpy.run_path(str(Path(__file__).with_name(SIZES.get(size, "small.py"))))
    config = sized["get_config"]("+".join(dict.fromkeys(others)))
    config.name = "-".join(["paper", *names])
    config.seeds = (0,) if size else (0, 1, 2, 3, 4)
    if "wear_only_static" in config.models:
        del config.models["wear_only_static"]
    for name, options in AS_LARGE.items() if size else ():
        config.models[name].update(options)
    config.models.best_fusion = {"family": "late_fusion", "groups": (EHR, WEARABLE)}
    config.models.stacked = {"family": "stacked", "members": (*EHR, *WEARABLE)}
    tasks = [f"hospitalization_{h}d" for h in HORIZONS]
    tasks += [f"onset_{group}_365d" for group in ONSETS] + ["time_to_hospitalization"]
    config.labels.diagnosis_groups.update(ONSETS)
    config.labels.physiology.update({"measures": PHYSIOLOGY, "hrv_channel": "ppg", "hrv_kind": "pulse"})
    config.simulate.update({"ppg_stretches": 12})  # more than one a day on most days
    config.evaluate.tasks = (*tasks, *(f"{measure}_7d" for measure in PHYSIOLOGY))
    config.evaluate.n_resamples = 1000 if size else 5000
    config.evaluate.encounter_prefixes = ("PROC//CPT4//99213", "HOSPITAL_ADMISSION")
    # ablations are compared by their predictions; what they hold is looked into in the models of Table 1
    config.interpret.models = ("joint", "ehr_only", "wear_only", "late_fusion")
    config.report.update({"title": "The paper's comparison, simulated cohort"})
    if size == "quick":
        config.simulate.n_subjects = 600
        config.train.update({"steps": 60, "warmup_steps": 6, "validate_every": 60, "checkpoint_every": 30})
        config.evaluate.update({"n_resamples": 200, "label_draws": 1})
    elif size == "demo":
        config.train.update({"steps": 400, "warmup_steps": 40, "validate_every": 200, "checkpoint_every": 100})
    config.joint.weights.wear_to_ehr = (0.2, 1.0, config.train.steps // 10)
    return config
