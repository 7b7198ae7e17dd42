"""NHANES 2003-2006: one examination and a week of wear, followed for mortality; out-of-fold over five folds.

    python -m ehrwear_jax.main --config=configs/nhanes.py --config.data.source_dir=DIR

DIR holds the joined tables described in ehrwear_jax/data/nhanes.py. C-index of all-cause mortality.
"""

from ehrwear_jax import config as config_lib


def get_config(variant=""):
    if variant:
        raise ValueError(f"configs/nhanes.py has no variant {variant!r}")
    config = config_lib.base()
    config.name = "nhanes"
    config.data.update({"source": "nhanes", "n_folds": 5})
    config.evaluate.update({"tasks": ("all_cause_mortality",)})
    config.report.update({"title": "NHANES 2003-2006: all-cause mortality"})
    return config
