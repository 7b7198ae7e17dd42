"""A bundle of a small trained run, and new data made of the run's own by what may differ elsewhere."""

import shutil
from pathlib import Path

import polars as pl
import small_run

from ehrwear_jax.config import parse
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.inference import write_bundle
from ehrwear_jax.stages import predictors, runner, tasks
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

GLUCOSE, MMOL = "LAB//glucose", 18.016  # mg/dL in one mmol/L


_EHR = {"width": 8, "n_layers": 1, "n_heads": 2, "mlp_width": 16, "tokens": 48, "context_tokens": 40, "sites": 8}
MODELS = {
    "context_clues": _EHR | {"n_kv_heads": 1, "static_tokens": 4},
    "motor": _EHR | {"attention_window": 16, "features": 4, "pairs": 64, "tasks": 8, "time_bins": 2, "task_width": 4},
    "cehr_bert": _EHR | {"attention_dropout": 0.0, "visits": 16, "visit_mlp_width": 8},
}


def run(root: Path, model: str) -> Plan:
    """A trained and embedded run of one network below root, whose predictions are there too."""
    small_run.write_inputs(root)
    describe(root / "raw" / "meds", {GLUCOSE: "mg/dL"}, {GLUCOSE: ["LOINC/2345-7"]})
    config = small_run.one_model(small_run.small_config(root), model)
    config.train.update({"steps": 2, "warmup_steps": 1, "validate_batches": 0})
    config.embed.trajectories = 0
    if model in MODELS:
        config.models[model] = {"family": model} | MODELS[model]
    plan = Plan(parse(config), Workdir(root / "run"))
    runner.run(plan.config, plan.workdir.root, ("prepare", "pretrain", "embed"))
    for name in plan.config.evaluate.tasks:
        predictors.predict(plan, tasks.read(plan, name), only=[model])
    return plan


def bundle(plan: Plan, folder: Path, half: bool = False) -> Path:
    """A bundle of a run's network."""
    return write_bundle.write(plan, write_bundle.chosen(plan), folder, half)


def describe(meds_dir: Path, units: dict[str, str], parents: dict[str, list[str]]) -> None:
    """Gives codes of a MEDS data set units and parents."""
    path = meds_dir / "metadata" / "codes.parquet"
    table = meds.read_codes(meds_dir)
    new = [c for c in {**units, **parents} if c not in set(table["code"])]
    rows = {"code": new, "description": [None] * len(new), "parent_codes": [None] * len(new)}
    table = pl.concat([table, pl.DataFrame(rows, table.schema)])
    above = [parents.get(c, p) for c, p in table.select("code", "parent_codes").iter_rows()]
    unit = [units.get(c) for c in table["code"]]
    table.with_columns(
        parent_codes=pl.Series(above, dtype=pl.List(pl.String)), unit=pl.Series(unit, dtype=pl.String)
    ).write_parquet(path)


def elsewhere(raw: Path, target: Path) -> Path:
    """The same people as another hospital writes them: glucose in mmol/L, the heart rate in Hz, one channel less,
    other splits, every DX//E11 as a new code below DX, and every second admission as one that nobody knows."""
    shutil.copytree(raw, target)
    for path in meds.list_shards(target / "meds"):
        rows, code = pl.read_parquet(path), pl.col("code")
        second = (code == "HOSPITAL_ADMISSION//INPATIENT") & (pl.int_range(pl.len()) % 2 == 0)
        value = pl.when(code == GLUCOSE).then(pl.col("numeric_value") / MMOL).otherwise("numeric_value")
        renamed = (
            pl.when(code == "DX//E11").then(pl.lit("DX//E11.9")).when(second).then(pl.lit("ZZ//1")).otherwise(code)
        )
        rows.with_columns(numeric_value=value.cast(pl.Float32), code=renamed).write_parquet(path)
    describe(target / "meds", {GLUCOSE: "mmol/L"}, {"DX//E11.9": ["DX//E11"]})
    channels = wearable.read_channels(target / "wearable").filter(pl.col("channel") == "heart_rate")
    in_hz = channels.with_columns(pl.col("valid_min", "valid_max") / 60, unit=pl.lit("Hz"))
    wearable.write_channels(target / "wearable", in_hz)
    for path in wearable.list_shards(target / "wearable"):
        rows = pl.read_parquet(path).filter(pl.col("channel") == "heart_rate")
        rows = rows.with_columns(pl.col("values").list.eval(pl.element() / 60), unit=pl.lit("Hz"))
        wearable.write_shard(path, rows.with_columns(pl.col("values").cast(pl.List(pl.Float32))), in_hz)
    return target
