"""Your own data: a MEDS folder, with or without wearables and labels, and a model sized by how many people there are.

    python -m ehrwear_jax.main --config=configs/own.py:MEDS
    python -m ehrwear_jax.main --config=configs/own.py:MEDS,wearable=WEARABLE,labels=LABELS,paper

Looks at the data first. Below 1,500 people the networks and the steps are those of tiny.py, below 20,000 of small.py,
else of full.py:extended, which wants accelerators; a code is frequent when 1% of the people have it, at least 5 and at
most 100. A folder `wearable` or `labels` beside MEDS is taken where none is named. All channels that the wearable
declares are read. Without wearables there is one network, of the EHR, and no late fusion. Without labels, those are
made that the codes allow, of admissions and of death. `paper` and other variants of the size's file follow after a
comma. --stages=print_config says what is chosen, as the run's config.json does; flags override it.
"""

import runpy
from pathlib import Path

import polars as pl

SIZES = ((1_500, "tiny"), (20_000, "small"), (float("inf"), "full"))  # people below which a file's sizes are taken
FREQUENT, FEWEST, MOST = 0.01, 5, 100  # share of people that have a frequent code, and limits of their number
# what codes of admissions and discharges start with, before "//", in MEDS extracts that people have
ADMISSIONS = ("HOSPITAL_ADMISSION", "ADMISSION", "Visit/IP", "Visit/ERIP")
DISCHARGES = ("HOSPITAL_DISCHARGE", "DISCHARGE")
DEATH = "MEDS_DEATH"
COUNTED = ("count", "counts", "steps", "step", "mg")  # units of channels whose logarithm is taken
TABLES = ("gradient_boosting_ehr", "gradient_boosting_wear")  # of one modality
WEAR_MODELS = ("joint", "wear_only", "wear_only_static", "late_fusion", *TABLES)


def _folders(argument):
    """(MEDS, wearable or None, labels or None, [variants]) of "MEDS,wearable=DIR,labels=DIR,paper"."""
    parts = [p for p in argument.split(",") if p]
    if not parts:
        raise ValueError("configs/own.py takes the folder of a MEDS dataset: --config=configs/own.py:MEDS")
    meds = Path(parts[0])
    if not (meds / "data").is_dir():
        raise ValueError(f"configs/own.py: there is no MEDS dataset in {meds}: it has no folder data")
    named = dict(p.split("=", 1) for p in parts[1:] if "=" in p)
    if unknown := sorted(set(named) - {"wearable", "labels"}):
        raise ValueError(f"configs/own.py has no {unknown[0]}=; there are wearable= and labels=")
    found = {}
    for name in ("wearable", "labels"):
        folder = Path(named.get(name, meds.parent / name))
        if name in named and not folder.is_dir():
            raise ValueError(f"configs/own.py: {name}={folder}: there is no such folder")
        found[name] = folder if folder.is_dir() else None
    return meds, found["wearable"], found["labels"], [p for p in parts[1:] if "=" not in p]


def _name(meds):
    """What a dataset is called: as its folder, or the one above."""
    folder = meds.resolve()
    return folder.parent.name if folder.name.lower() in ("meds", "data") else folder.name


def _look(meds):
    """(number of people, codes) of a MEDS dataset."""
    files = sorted((meds / "data").rglob("*.parquet"))
    if not files:
        raise ValueError(f"configs/own.py: {meds}/data holds no parquet files")
    rows = pl.scan_parquet(files)
    people = rows.select(pl.col("subject_id").n_unique()).collect().item()
    return people, rows.select(pl.col("code").unique()).collect()["code"].drop_nulls().to_list()


def _tasks(config, labels, codes):
    """Names of the tasks: of label tables, else of what the codes allow, which is set in config.labels."""
    if labels:
        found = [p for p in labels.iterdir() if p.is_dir() or p.suffix == ".parquet"]
        names = sorted({p.name.removesuffix(".parquet") for p in found})
        if not names:
            raise ValueError(f"configs/own.py: {labels} holds no tables <task>.parquet")
        return names
    begins = {c.split("//")[0] for c in codes}
    admissions, discharges = (tuple(c for c in some if c in begins) for some in (ADMISSIONS, DISCHARGES))
    config.labels.update({"admission_codes": admissions, "discharge_codes": discharges, "death": DEATH in begins})
    config.labels.diagnosis_groups = {}
    tasks = [f"hospitalization_{h}d" for h in (90, 365)] * bool(admissions)
    tasks += ["death_365d", "time_to_death"] * (DEATH in begins)
    if not tasks:
        raise ValueError(
            "configs/own.py: no code of an admission or a death, of which labels could be made: name a folder of "
            "tables with labels=, or codes in config.labels of a config of your own"
        )
    return tasks


def get_config(variant=""):
    meds, wearable, labels, others = _folders(variant)
    people, codes = _look(meds)
    size = next(name for below, name in SIZES if people < below)
    sized = runpy.run_path(str(Path(__file__).with_name(f"{size}.py")))
    bases = [] if {"paper", "extended"} & set(others) else ["extended"]
    config = sized["get_config"]("+".join([*bases, *others]))
    config.name = "-".join(["own", size, *others])
    config.data.update({"source": "meds", "meds_dir": str(meds)})
    config.data.labels_dir = str(labels) if labels else ""
    config.prepare.min_subjects = int(min(max(people * FREQUENT, FEWEST), MOST))
    config.prepare.min_values = min(config.prepare.min_values, 10 * config.prepare.min_subjects)
    config.labels.physiology.measures = ()
    if wearable:
        declared = pl.read_parquet(wearable / "metadata" / "channels.parquet")
        config.data.wearable_dir = str(wearable)
        config.prepare.channels = tuple(declared["channel"])
        config.prepare.log_channels = tuple(declared.filter(pl.col("unit").is_in(COUNTED))["channel"])
        known = {*declared["channel"], "auto"}  # of the size's file, which is for channels of its own
        config.prepare.summaries = tuple(s for s in config.prepare.summaries if s.split(":")[0] in known)
    else:
        config.prepare.update({"channels": (), "log_channels": (), "summaries": ()})
        for name in WEAR_MODELS:
            if name in config.models:
                del config.models[name]
    main = "joint" if wearable else "ehr_only"
    tasks = _tasks(config, labels, codes)
    config.evaluate.update({"tasks": tuple(tasks), "reference_model": main, "label_models": ()})
    config.interpret.models = tuple(name for name in config.interpret.models if name in config.models)
    config.report.update({"title": f"{_name(meds)}: {people:,} people", "reliability_task": ""})
    return config
