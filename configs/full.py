"""The paper's model (sections 3.2 to 3.5, appendix A.4) on linked EHR and wearable data; :extended is ours.

    python -m ehrwear_jax.main --config=configs/full.py --config.data.meds_dir=MEDS --config.data.wearable_dir=WEARABLE

Without a variant it is the paper's model: the six losses of section 3.3, nothing between a token and attention but its
encoding of time, 32 contexts a device, probes by Adam, five seeds. full.py:extended adds what
ehrwear_jax.config.bases.ADDITIONS lists (next and later codes, recall of codes and signal, predictions at every
distinct time, numeric values, decayed counts, length and gaps of the record, a learned query, z_loss), 8 rows a device,
probes solved exactly, and one seed. Ablations are of the base that is named: full.py:r8 of the paper's,
full.py:extended+r8 of ours.

Variants, several of them joined by "+" or ",": 220m has 14 backbone layers; ppg also gives the model raw windows of
30 s of a channel `ppg`, band-passed at 0.5-3.5 Hz and without artefacts (appendix A.2); cohort applies the inclusion
criteria of appendix A.2, relaxed with a month of EHR and three days of wear, at every prediction time and, for
pretraining, at a date that you give (--config.cohort.cutoff=2019-01-01, where records of training people then end; or
--config.cohort.pretraining=everybody); layers=N and seq=N (tokens of a row, half of them for the EHR and half for
windows) trim the model to the compute at hand, e.g. configs/full.py:layers=4,seq=512; ehrwear_jax.config.VARIANTS has
the ablations of Table 4 and appendix A.6; motor, clmbr, cehr_bert, behrt, med_bert, context_clues, context_clues_mamba,
himae, papagei, papagei_views and pulse_ppg add a model of another paper, as published, beside it (--config.only runs it
alone), those of pulse waves on segments of four minutes of a channel `ppg`; h100, a100, v5e, v6e, v5p set rows, memory
and mesh for an accelerator, of which h100 alone was measured, see HARDWARE. Needs accelerators: 500,000 steps of 32
rows a device. What that takes:

    python -m ehrwear_jax.main --config=configs/full.py --stages=describe
    python -m ehrwear_jax.main --config=configs/full.py --stages=compile --config.compile.topology=v5e:16x16

The first prints 351,871,070 parameters (220m: 223,273,310; extended: 377,478,860) with an assumed vocabulary of
32,768 tokens, and each number of A.4 beside the one here.

Signals are prepared as in appendix A.2, each step where the data have the channel: artefacts of heart and breathing
rates are taken out, three axes of raw acceleration (NAME_x, NAME_y, NAME_z) become the channels enmo and arm_angle, the
model is given the quality of what it sees, and gaps of up to ten minutes are filled for the scale alone. Beside level
and spread, the model predicts the activity's entropy, sleep by the arm's angle and, with raw PPG, an electrocardiogram
or intervals between beats, heart rate variability. Data without counts or a heart rate need their own channels, such as
--config.prepare.channels="('heart_rate',)" --config.prepare.summaries="('auto',)".

The paper leaves open how parameters start: residual_init and embedding_scale (see their options) are for training at
this size. The extended base's peak rate is the paper's 1e-4 at 256 rows and goes with the root of their number
(train.rate_rows; 0, and in the paper's: 1e-4 for any).

The signal is changed as in appendix A.3, and contexts end with sampled patient-days (section 3.5). Which codes are
administrative, and which events of interest, is named differently in every dataset: set
--config.joint.context.administrative_codes and --config.joint.context.interest_codes to tuples of code prefixes.
"""

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import families

# ICD-10 categories of the paper's two groups of first diagnoses, in the spellings of codes that datasets use
GROUPS = {
    "cardiovascular": ("I20", "I21", "I22", "I24", "I25", "I48", "I50", "I60", "I61", "I63", "I64"),
    "metabolic": ("E10", "E11", "E13", "E14", "E66", "E78"),
}
SPELLINGS = ("ICD10CM/", "ICD10//", "DIAGNOSIS//ICD//10//")
# What is to fit an accelerator's memory: rows of a device, in so many parts one after another; what is kept of the
# backbone for the backward pass; layers in a step of the scan; devices that share one copy of parameters and optimiser
# state (6 GB), which are neighbours on the mesh, and the copies lie across. Dropping attention weights costs the fused
# kernels a sixth on GPUs: stochastic depth and dropout of activations regularise there. Measured: h100 (README). The
# others are reckoned from sizes of memory.
HARDWARE = {
    "h100": {"rows": 16, "accumulate": 1, "remat": "products", "unroll": 8, "fsdp": 1, "attention_dropout": 0.0},
    "a100": {"rows": 16, "accumulate": 1, "remat": "products", "unroll": 8, "fsdp": 1, "attention_dropout": 0.0},
    "v5e": {"rows": 8, "accumulate": 2, "remat": "products", "unroll": 1, "fsdp": 16, "attention_dropout": 0.1},
    "v6e": {"rows": 8, "accumulate": 1, "remat": "products", "unroll": 1, "fsdp": 16, "attention_dropout": 0.1},
    "v5p": {"rows": 16, "accumulate": 1, "remat": "products", "unroll": 1, "fsdp": 4, "attention_dropout": 0.1},
}
# Raw pulse waves (A.2), at a rate that holds two harmonics of the fastest pulse
PPG = {"channels": ("ppg",), "rate_hz": 25.0, "seconds": 30.0, "filter": "bandpass:0.5-3.5", "reject": True}
RATE_ROWS = 256  # rows of 2,048 tokens, half a million, for which the paper's rate of 1e-4 is taken to be
DEFAULT = "paper"  # base, see ehrwear_jax/config/bases.py
PAPER_ROWS = 32  # of a replica
LAYERS_220M = 14
BASELINES = config_lib.published()
# raw pulse waves of four minutes for baselines that read them at 50 to 125 Hz, in pieces of their own length
WAVES = {"channels": ("ppg",), "rate_hz": 125.0, "seconds": 240.0, "filter": "bandpass:0.5-12", "reject": True}
OWN = ("220m", "cohort", "relaxed", "ppg", *HARDWARE, *BASELINES)
SIZES = ("layers", "seq")


def _parse(argument):
    """ "220m+layers=4,seq=512" -> (["220m"], {"layers": 4, "seq": 512})."""
    parts = [p for p in argument.replace(",", "+").split("+") if p]
    sizes = dict(p.split("=", 1) for p in parts if p.split("=")[0] in SIZES and "=" in p)
    for name, number in sizes.items():
        if not number.isdigit() or not int(number):
            raise ValueError(f"configs/full.py: {name} is {number!r}, it must be a number above 0")
    others = "+".join(p for p in parts if p.split("=")[0] not in sizes)
    return config_lib.variants(others, "full.py", (*OWN, *(f"{s}=N" for s in SIZES))), {
        name: int(number) for name, number in sizes.items()
    }


def get_config(variant=""):
    variants, sizes = _parse(variant)
    config = config_lib.base()
    extended = config_lib.chosen_base(variants, DEFAULT) == "extended"
    config.name = "-".join(["full", *(f"{name}{n}" for name, n in sizes.items())])
    config.prepare.update(
        {
            "channels": ("heart_rate", "activity"),
            "log_channels": ("activity", "enmo"),
            "step_minutes": 1,
            "summaries": ("activity:entropy", "auto"),
            "acceleration": ("auto",),
            "artefacts": ("auto",),
            "quality": True,
            "impute_gap_minutes": 10.0,
            "min_subjects": 100,
            "min_values": 1000,
            "implied_parents": True,
            # appendix A.2, with numbers of ours: drugs as classes such as A10B, a measurement an hour
            "ranges_file": "clinical",
            "atc_level": 3,
            "max_per_day": 24,
        }
    )
    config.joint.context.update(
        {
            # half of a row's tokens are for the EHR, half for windows
            "windows": (tokens := sizes.get("seq", 2048)) // 2,
            "tokens": tokens - tokens // 2,
            "context_tokens": tokens - tokens // 2,
            "queries": max(tokens // 32, 1),
            "events": max(tokens // 16, 1),
            # 18 patches a window, of a length that the paper leaves open; the encoder's cost is in proportion
            "patch_steps": 20,
            # people who wear little need half of the slots for windows
            "window_parts": 2,
            "future_codes": 1024,
            "patient_days": 1.0,
            "masked_contexts": 1.0,  # 15% of the codes and 25% of each window
            "time_warp": 0.05,
            "noise": 0.1,
            "channel_dropout": 0.1,
            "pairs": 8,
        }
    )
    config.joint.network.update(
        {
            "dtype": "bfloat16",
            "attention_dropout": 0.1,
            "encoder_dropout": 0.1,
            "stochastic_depth": 0.1,
            "remat": "products",
            "wear_remat": "full",
            "count_width": 128,
            "wear_span_days": 1.0,
            "residual_init": "depth",
            "embedding_scale": 22.6,  # sqrt(token_width)
        }
    )
    config.joint.z_loss = 1e-4  # extended
    for group, categories in GROUPS.items():
        config.labels.diagnosis_groups[group] = tuple(s + c for s in SPELLINGS for c in categories)
    config.joint.network.n_layers = sizes.get("layers", LAYERS_220M if "220m" in variants else 24)
    # parameters and optimiser state over all devices, and rows too: the same config on one GPU and on a pod
    config.mesh.update({"data": 1, "fsdp": -1})
    if "cohort" in variants or "relaxed" in variants:
        config.cohort.update({"min_ehr_days": 365.0, "min_wear_days": 14, "min_age_years": 18.0, "max_age_years": 89.0})
    if "relaxed" in variants:
        config.cohort.update({"min_ehr_days": 30.0, "min_wear_days": 3})
    if "ppg" in variants:
        config.prepare.segments = {"ppg": dict(PPG)}
        config.joint.context.update({"raw_segments": "ppg", "raw_windows": config.joint.context.windows})
        config.joint.network.raw_width = 512  # of a local transformer for 30 s windows (A.4)
        config.joint.weights.raw_masked = (1.0, 1.0, 0)  # 25% of them hidden
    config.joint.weights.contrast = (0.05, 0.05, 0)  # "a small weight" (section 3.3)
    config.joint.weights.content_norm = (0.001, 0.001, 0)
    # 32 patient-days a replica, in parts that fit into 16 GB
    config.train.update({"batch_size": 0, "rows_per_device": PAPER_ROWS, "accumulate": 4})
    if extended:
        config.train.update({"rows_per_device": 8, "accumulate": 2, "rate_rows": RATE_ROWS})
        config.joint.context.every_time = True
    else:
        config.seeds = (0, 1, 2, 3, 4)
        config.evaluate.probe = "adam"
    config.train.update({"log_every": 100, "validate_every": 5000, "checkpoint_every": 1000, "data_threads": 16})
    config.evaluate.update({"tasks": tuple(f"hospitalization_{h}d" for h in (30, 90, 180, 365)), "n_resamples": 5000})
    config.report.update({"title": "Joint EHR and wearable model", "reliability_task": "hospitalization_365d"})
    for name in (v for v in variants if v in BASELINES):
        _add_baseline(config, name)
    for name in HARDWARE.keys() & set(variants):
        _fit(config, HARDWARE[name], extended)
    config_lib.apply_variants(config, variants, DEFAULT)
    return config


def _add_baseline(config, name):
    """A model of another paper as published, with what it reads and needs; it is trained for as many steps."""
    entry = BASELINES[name]
    default = families.config_class(entry["family"])()
    if hasattr(default, "signal"):
        config.prepare.segments["waves"] = dict(WAVES)
        # batches are whole, whatever those of the joint model are cut into
        train = {**entry["train"], "rows_per_device": 0, "accumulate": 1}
        entry = {**entry, "signal": {"segments": "waves"}, "train": train}
    config.models[name] = entry
    for other in getattr(default, "needs", ()):
        _add_baseline(config, other)


def _fit(config, hardware, extended):
    """Options of the machine, and none of the experiment but dropout of attention weights and our base's rows."""
    rows, parts = hardware["rows"], hardware["accumulate"]
    if not extended:
        rows, parts = PAPER_ROWS, PAPER_ROWS * parts // rows
    config.train.update({"rows_per_device": rows, "accumulate": parts})
    config.joint.network.update({name: hardware[name] for name in ("remat", "unroll", "attention_dropout")})
    config.mesh.update({"data": -1, "fsdp": hardware["fsdp"]})
