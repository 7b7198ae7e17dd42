"""UK Biobank: hospital, primary care and death records and a week of accelerometry, from the files as they come.

    python -m ehrwear_jax.main --config=configs/ukb.py:week --config.data.source_dir=DIR

docs/uk_biobank.md says which files DIR holds. Without a variant the cohort is that of appendix A.2: a year of EHR, 14
days of wear, 18 to 89 years. UK Biobank recorded seven days of each person, so nobody meets it: `week` asks for three
of them, as its own field of good wear does, and leaves the rest as it is. Criteria are judged at every prediction time;
everybody in training is pretrained on (--config.cohort.pretraining=eligible with --config.cohort.cutoff=2018-01-01 has
them judged there too). The model is that of full.py, and needs accelerators; `small` and `tiny` are those of small.py
and tiny.py. `gp` follows people while they are registered with a practice that sends records, and only they. Further
variants, joined by "+", are those of ehrwear_jax.config.VARIANTS.
"""

import runpy
from pathlib import Path

from ehrwear_jax import config as config_lib

SIZES = {"small": "small.py", "tiny": "tiny.py"}
HORIZONS = (30, 90, 180, 365)
ONSETS = {"cardiovascular": ("ICD10//I",), "metabolic": ("ICD10//E",)}


def get_config(variant=""):
    names = config_lib.variants(variant, "ukb.py", (*SIZES, "week", "gp"))
    size = next((n for n in names if n in SIZES), "")
    others = "+".join(n for n in names if n not in (*SIZES, "week", "gp"))
    sized = runpy.run_path(str(Path(__file__).with_name(SIZES.get(size, "full.py"))))
    config = sized["get_config"](others)
    config.name = "-".join(["ukb", *names])
    config.data.update({"source": "ukb", "ukb_followup": "primary_care" if "gp" in names else "hospital"})
    config.prepare.update(
        {
            "channels": ("acceleration", "acceleration_week", "days_worn"),
            "log_channels": ("acceleration", "acceleration_week"),
            # what UK Biobank imputed is missing already
            "non_wear": (),
            "summaries": (),
            "implied_parents": True,
        }
    )
    config.cohort.update(
        {
            "pretraining": "everybody",
            "min_ehr_days": 365.0,
            "min_wear_days": 3 if "week" in names else 14,
            "min_age_years": 18.0,
            "max_age_years": 89.0,
        }
    )
    config.labels.physiology.measures = ()
    config.labels.death = True
    config.labels.diagnosis_groups.update(ONSETS)
    tasks = [f"hospitalization_{h}d" for h in HORIZONS]
    config.evaluate.tasks = (*tasks, *(f"onset_{group}_365d" for group in ONSETS), "time_to_hospitalization")
    config.report.update({"title": "UK Biobank", "reliability_task": "hospitalization_365d"})
    return config
