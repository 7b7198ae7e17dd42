"""Which result of a stage is valid: fingerprints of its settings and inputs, and of the stages before it."""

import json
from pathlib import Path

from ehrwear_jax import config as config_lib
from ehrwear_jax.runtime import files
from ehrwear_jax.runtime.files import digest
from ehrwear_jax.training import train

ORDER = ("prepare", "pretrain", "embed", "evaluate", "interpret", "report")
# The report is whole without it, and says that it has not been run.
OPTIONAL = "interpret"
# Which parts of the config each stage reads ("a.b": one value of a part); a change elsewhere leaves its result valid.
READS = {
    "prepare": ("seed", "data", "simulate", "labels", "prepare", "cohort"),
    "pretrain": ("seed", "context", "model", "train", "rows"),
    "embed": ("context", "model", "rows", "embed", "evaluate.tasks", "evaluate.reference_model"),
    "evaluate": ("name", "seed", "evaluate", "finetune", "rows"),
    "interpret": ("name", "seed", "interpret", "evaluate", "report.reliability_task", "rows"),
    "report": ("name", "seed", "report", "evaluate"),
}
# Settings that change how a result is reached but not the result.
NOT_RESULTS = {"train": train.NOT_RESULTS, "prepare": ("scheduler", "workers", "worker_memory_gb")}
INPUTS = ("meds_dir", "wearable_dir", "labels_dir", "source_dir")


def digest_files(folder):
    """SHA-256 over the names and contents of all files below a folder."""
    return digest(list(files.digests(folder).items()))


def settings(config, stage):
    """The part of the config that decides the stage's result."""
    out = {}
    for key in READS[stage]:
        part, _, name = key.partition(".")
        value = config[part][name] if name else config[part]
        value = value.to_dict() if hasattr(value, "to_dict") else value
        if isinstance(value, dict):
            value = {
                k: v
                for k, v in value.items()
                if k not in NOT_RESULTS.get(key, ()) and not (key == "data" and k in INPUTS)
            }
        out[key] = value
    if stage == "prepare" and config.data.source != "synthetic":
        out.pop("simulate")
    return out


def fingerprints(config, inputs_now, not_interpreted=""):
    """{stage: fingerprint}, each with those of the stages before it.

    Args:
      inputs_now: what `inputs` returns.
      not_interpreted: what `interpret_fault` returns; the report then says so, and shows nothing of that stage.
    """
    out, before = {}, ""
    for stage in ORDER:
        given = {"prepare": inputs_now, "report": _saved(config)}.get(stage, {})
        if stage == "report" and not_interpreted:
            before, given = out["evaluate"], given | {OPTIONAL: not_interpreted}
        before = out[stage] = _fingerprint(config, stage, given, before)
    return out


def _fingerprint(config, stage, given, before):
    return digest([stage, settings(config, stage), given, before])


def _saved(config):
    """{setting: SHA-256 of its files} of the saved predictions that the report is of."""
    return {k: digest_files(config.report[k]) for k in ("predictions_dir", "tuning_dir") if config.report[k]}


def inputs(config):
    """{input: SHA-256 of its files}."""
    found = {k: digest_files(config.data[k]) for k in INPUTS if config.data[k]}
    return found | {str(path): digest(Path(path).read_bytes().hex()) for path in config_lib.user_tables(config)}


def read_mark(folder):
    """What stage.json says: {"fingerprint", "done", "seconds"}, or {}."""
    path = folder / "stage.json"
    return json.loads(path.read_text()) if path.exists() else {}


def fault(mark, fingerprint):
    """What is wrong with a stage's result, as the end of a sentence; "": it is the wanted one."""
    if not mark:
        return "has not been run"
    if mark.get("fingerprint") != fingerprint:
        return "is out of date (config or input changed)"
    return "" if mark.get("done") else "is not finished"


def write_mark(folder, **values):
    files.write_whole(folder / "stage.json", json.dumps(values, default=str))


def interpret_fault(config, workdir):
    """Why the result of the interpret stage is not one of this config and of the evaluation that is there; "": it is.

    Looks at the mark of the evaluate stage, which is current where a report is made, and not at the inputs again.
    """
    before = read_mark(Path(workdir) / "evaluate").get("fingerprint", "")
    return fault(read_mark(Path(workdir) / OPTIONAL), _fingerprint(config, OPTIONAL, {}, before))
