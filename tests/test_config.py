"""The configuration covers every option, translates without loss, and what cannot run is said in a sentence."""

import dataclasses
import runpy

import ml_collections
import pytest
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.config.data import PrepareConfig, SimulateConfig
from ehrwear_jax.models.joint import losses
from ehrwear_jax.models.joint.examples import ContextConfig
from ehrwear_jax.models.joint.network import ModelConfig
from ehrwear_jax.training.finetune import FinetuneConfig
from ehrwear_jax.training.schedules import Ramp
from ehrwear_jax.training.sharding import MeshConfig
from ehrwear_jax.training.train import TrainConfig


def names(cls):
    return {f.name for f in dataclasses.fields(cls)}


def load(name, variant=""):
    return runpy.run_path(str(REPO / "configs" / name))["get_config"](variant)


@pytest.mark.parametrize(
    "part, cls, elsewhere",
    [
        ("simulate", SimulateConfig, set()),
        ("prepare", PrepareConfig, set()),
        ("context", ContextConfig, {"modalities"}),
        ("model", ModelConfig, set(config_lib._MODEL_FROM_DATA)),
        ("train", TrainConfig, {"seed"}),
        ("mesh", MeshConfig, set()),
        ("finetune", FinetuneConfig, {"mode", "seed"}),
    ],
)
def test_every_option_of_a_dataclass_can_be_set_in_its_part_of_the_config(part, cls, elsewhere):
    added = {"modes", "rows", "tasks"} if part == "finetune" else set()
    assert set(config_lib.base()[part]) == names(cls) - elsewhere | added
    assert elsewhere <= names(cls)


def test_every_loss_term_has_a_weight():
    assert set(config_lib.base().train.weights) == set(losses.TERMS)


def test_the_translation_keeps_defaults_and_changes():
    config = config_lib.base()
    assert config_lib.prepare_config(config) == PrepareConfig(workers=0), "the program uses every core"
    assert config_lib.simulator_config(config) == SimulateConfig()
    config.seed = 3
    config.context.queries = 5
    config.train.stop_after = 7
    config.train.weights.wear_to_ehr = (0.5, 2.0, 9)
    assert config_lib.context_config(config, "ehr_only") == ContextConfig(queries=5, modalities=("ehr",))
    config.context.update({"tokens": 100, "context_tokens": 90, "windows": 50})
    room = {"tokens": 50, "context_tokens": 50, "windows": 50}
    wear_only = ContextConfig(queries=5, modalities=("wear",), **room)
    assert config_lib.context_config(config, "wear_only") == wear_only, "no row is longer than what can fill it"
    assert config_lib.context_config(config, "joint").tokens == 100
    train = config_lib.train_config(config)
    assert (train.seed, train.stop_after, train.steps) == (3, 7, 500_000)
    assert train.weights["wear_to_ehr"] == Ramp(0.5, 2.0, 9)
    config.finetune.rank = 5
    assert config_lib.finetune_config(config, "lora") == FinetuneConfig("lora", rank=5, seed=3)
    hash(config_lib.context_config(config, "joint"))  # frozen all through


def test_folds():
    config = config_lib.base()
    assert config_lib.folds(config) == [("all", None)]
    config.data.n_folds = 3
    assert config_lib.folds(config) == [("fold0", 0), ("fold1", 1), ("fold2", 2)]


@pytest.mark.parametrize(
    "name, variant",
    [
        ("full.py", ""),
        ("full.py", "220m"),
        ("full.py", "220m+relaxed"),
        ("full.py", "elbo+no_contrast"),
        ("full.py", "layers=4,seq=512"),
        ("small.py", ""),
        ("tiny.py", ""),
        ("tiny.py", "contrast+detached"),
        ("nafld.py", ""),
        ("nhanes.py", ""),
    ],
)
def test_each_experiment_file_gives_a_whole_config(name, variant, tmp_path):
    config = load(name, variant)
    named = variant.replace("+", "-").replace(",", "-").replace("=", "")
    assert config.name == name.removesuffix(".py") + (f"-{named}" if named else "")
    assert set(config) == set(config_lib.base()) and config.evaluate.tasks
    for row in config.rows:
        config_lib.context_config(config, row)
    train = config_lib.train_config(config)
    assert set(train.weights) == set(losses.TERMS) and 0 < train.warmup_steps < train.steps
    assert config_lib.mesh_config(config) == MeshConfig(**config.mesh)
    missing = {"tiny.py": None, "small.py": None, "full.py": "meds_dir"}.get(name, "source_dir")
    if missing is not None:
        with pytest.raises(ValueError, match=rf"^no data: set --config\.data\.{missing} to "):
            config_lib.check(config)
        config.data[missing] = str(tmp_path)
    config_lib.check(config)


def test_the_papers_augmentation_is_on_in_the_full_config_and_off_elsewhere():
    full = config_lib.context_config(load("full.py"), "joint")
    assert full.augments_signal and full.time_warp == 0.05 and full.patient_days == 1.0
    assert (full.ehr_mask, full.wear_mask, full.wear_mask_kind) == (0.15, 0.25, "contiguous")
    assert full.masked_contexts == 1.0
    for name in ("tiny.py", "nafld.py", "nhanes.py"):
        config = load(name)
        other = config_lib.context_config(config, next(iter(config.rows)))
        assert not other.augments_signal and not other.patient_days and not other.drop_ehr and not other.drop_wear


@pytest.mark.parametrize("file", ["full.py", "tiny.py"])
@pytest.mark.parametrize("variant", config_lib.VARIANTS)
def test_a_variant_sets_its_options_and_nothing_else_but_the_name(file, variant, tmp_path):
    plain, changed = load(file), load(file, variant)
    assert changed.name == f"{plain.name}-{variant}"
    changed.name = plain.name
    for option, value in config_lib.VARIANTS[variant].items():
        part, _, key = option.rpartition(".")
        before, after = plain, changed
        for step in part.split("."):
            before, after = before[step], after[step]
        if part == "train.weights":
            value = (*value[:2], min(value[2], plain.train.steps // 10))
        assert after[key] == value
        after[key] = before[key]
    assert changed.to_dict() == plain.to_dict()
    runnable = load(file, variant)
    runnable.data.meds_dir = str(tmp_path)
    config_lib.check(runnable)


def test_the_ablations_of_the_paper_are_what_they_are_called():
    full = {v: load("full.py", v) for v in ("", "no_cross_modal", "no_wear_to_ehr", "half_masked", "r8", "elbo")}
    ramps = {v: config_lib.train_config(c).weights for v, c in full.items()}
    assert ramps[""]["wear_to_ehr"] == Ramp(0.2, 1.0, 50_000) and ramps[""]["ehr_to_wear"] == Ramp(0.1, 0.1)
    assert ramps["no_cross_modal"]["wear_to_ehr"] == ramps["no_cross_modal"]["ehr_to_wear"] == Ramp(0.0, 0.0)
    assert full["no_cross_modal"].context.pairs == 0 and ramps["no_cross_modal"]["contrast"] == Ramp(0.0, 0.0)
    assert ramps["no_wear_to_ehr"]["ehr_to_wear"] == Ramp(0.1, 0.1)
    assert full[""].context.wear_mask == 0.25 and full["half_masked"].context.wear_mask == 0.5
    assert full[""].model.n_components == 4 and full["r8"].model.n_components == 8
    assert full["elbo"].model.posterior == "normal" and ramps["elbo"]["latent_kl"] == Ramp(0.0, 0.01, 50_000)
    assert full[""].context.pairs == 8 and ramps[""]["contrast"].end == 0.05, "the regulariser has a small weight"
    assert load("tiny.py", "elbo").train.weights.latent_kl == (0.0, 0.01, 25), "ramps fit a short run"


def test_the_full_config_is_appendix_a4_and_can_be_trimmed():
    full = load("full.py").model
    backbone = (full.n_layers, full.width, full.mlp_width, full.n_heads, full.kernel, full.n_components, full.dropout)
    assert backbone == (24, 1024, 4096, 16, "mixture", 4, 0.1)
    assert (full.wear_layers, full.wear_width, full.token_width, full.time_features) == (6, 512, 512, 128)
    assert load("full.py", "220m").model.n_layers == 16
    trimmed = load("full.py", "220m,layers=4,seq=512")
    assert (trimmed.model.n_layers, trimmed.model.width) == (4, 1024)
    context = config_lib.context_config(trimmed, "joint")
    assert (context.tokens, context.context_tokens, context.windows, context.queries) == (512, 512, 256, 16)
    refused = {"layers=0": "layers is '0', it must be a number above 0", "seq=long": "seq is 'long', it must",
               "width=8": "has no variant 'width=8'"}  # fmt: skip
    for variant, sentence in refused.items():
        with pytest.raises(ValueError, match=sentence):
            load("full.py", variant)


@pytest.mark.parametrize("name", sorted(p.name for p in (REPO / "configs").glob("*.py")))
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match=f"configs/{name} has no variant 'big'"):
        load(name, "big")


def test_a_config_refuses_a_key_that_it_does_not_have():
    config = config_lib.base()
    assert isinstance(config, ml_collections.ConfigDict) and config.is_locked
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        config.train.stepps = 3
    with pytest.raises(KeyError, match='Did you mean "steps"'):
        config.train.update({"stepps": 3})
    config.rows.joint_again = ("ehr", "wear")  # rows are the user's to name
    assert config_lib.context_config(config, "joint_again").modalities == ("ehr", "wear")


def runnable(tmp_path):
    config = config_lib.base()
    config.data.meds_dir = str(tmp_path)
    config.evaluate.tasks = ("a",)
    config_lib.check(config)
    return config


@pytest.mark.parametrize(
    "key, value, error, sentence",
    [
        ("data.source", "omop", ValueError, "config.data.source is 'omop'; it can be synthetic, meds, nafld, nhanes"),
        ("data.meds_dir", "/no/such", FileNotFoundError, "config.data.meds_dir: there is no folder /no/such"),
        ("data.wearable_dir", "/no/such", FileNotFoundError, "config.data.wearable_dir: there is no folder /no/such"),
        ("data.labels_dir", "/no/such", FileNotFoundError, "config.data.labels_dir: there is no folder /no/such"),
        ("evaluate.late_fusion", ("x", "joint"), ValueError, "config.evaluate names the row 'x', which is not in con"),
        ("evaluate.reference_row", "x", ValueError, "config.evaluate names the row 'x', which is not in config.rows"),
        ("train.weights.contrast", (0.1, 0.1, 0), ValueError, "config.train.weights.contrast needs pairs to align: se"),
        ("train.weights.latent_kl", (0.0, 0.1, 9), ValueError, "config.model.posterior is 'point' and config.train.we"),
        ("model.posterior", "normal", ValueError, "config.model.posterior is 'normal' and config.train.weights.latent"),
        ("train.accumulate", 3, ValueError, "config.train.accumulate is 3; it must divide config.train.batch_size, 32"),
        (
            "train.rows_per_device",
            4,
            ValueError,
            "config.train.batch_size is 32 and config.train.rows_per_device 4: on",
        ),
        ("train.batch_size", 0, ValueError, "config.train.batch_size is 0 and config.train.rows_per_device 0: one of "),
        ("train.ema_decay", 1.0, ValueError, "config.train.ema_decay is 1.0; it must lie in [0, 1)"),
        ("finetune.modes", ("qlora",), ValueError, "config.finetune.modes names 'qlora', which is not in ['adapter',"),
        ("finetune.tasks", ("b",), ValueError, "config.finetune.tasks names 'b', which is not in ['a']"),
        ("finetune.rows", ("a",), ValueError, "config.finetune.rows names 'a', which is not in ['ehr_only', 'joint',"),
        ("report.reliability_task", "b", ValueError, "config.report.reliability_task is 'b', which is not in config"),
    ],
)
def test_a_config_that_cannot_run_is_refused(tmp_path, key, value, error, sentence):
    config = runnable(tmp_path)
    *parts, name = key.split(".")
    target = config
    for part in parts:
        target = target[part]
    target[name] = value
    with pytest.raises(error) as caught:
        config_lib.check(config)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


RAW = {"context.raw_segments": "ppg", "context.raw_windows": 84, "model.raw_width": 32}


@pytest.mark.parametrize("left_out", [None, *RAW])
def test_raw_windows_take_the_segments_the_room_and_the_encoder(left_out):
    config = load("tiny.py")
    config.prepare.segments = {"ppg": {"channels": ("ppg",)}, "slow": {"channels": ("ppg",), "seconds": 1e4}}
    config_lib.check(config)  # segments for another family
    config.update_from_flattened_dict({k: v for k, v in RAW.items() if k != left_out})
    if left_out is not None:
        with pytest.raises(ValueError, match=rf"config\.{left_out} is .*: set all three"):
            config_lib.check(config)
        return
    config_lib.check(config)
    for option, value, said in (
        ("context.raw_windows", 83, "raw_windows is 83; it must be at least config.context.windows, 84"),
        ("context.raw_segments", "ecg", r"raw_segments is 'ecg'; config.prepare.segments has \['ppg', 'slow'\]"),
        ("context.raw_segments", "slow", r"slow.seconds is 10000: .*config\.prepare\.step_minutes"),
    ):
        config.update_from_flattened_dict(RAW | {option: value})
        with pytest.raises(ValueError, match=said):
            config_lib.check(config)
