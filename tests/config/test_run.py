"""The configuration covers every option, keeps what is set, and what cannot run is said in a sentence."""

import dataclasses
import json
import runpy
import subprocess
import sys

import ml_collections
import pytest
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import options, reference
from ehrwear_jax.config.run import RunConfig
from ehrwear_jax.models.joint import terms
from ehrwear_jax.models.joint.config import WEIGHTS, Config, ContextConfig


def load(name, variant=""):
    return runpy.run_path(str(REPO / "configs" / name))["get_config"](variant)


def set_option(config, key, value):
    *parts, name = key.split(".")
    target = config
    for part in parts:
        target = target[part]
    target[name] = value


def test_every_option_can_be_set_and_is_documented():
    config, seen = config_lib.base(), set()
    for option in reference.entries():
        assert option.text.strip(), f"{option.name} has no documentation"
        assert option.name not in seen
        seen.add(option.name)
        value = config
        for part in option.name.split("."):
            value = value[part]
        if not option.is_part and option.name not in ("models", "prepare.workers", "joint.weights"):
            plain = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
            assert plain == option.default, option.name
    assert len(seen) > 200 and {"train.steps", "joint.network.width", "prepare.channels"} <= seen


def test_options_in_dicts_of_the_config_are_documented_too():
    found = {title: list(reference.entries(cls)) for title, cls in reference.further().items()}
    assert len(found) == 11 and all(option.text for entries in found.values() for option in entries)
    text = reference.markdown()
    for title, entries in found.items():
        section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        assert all(f"- `{option.name}` = `{option.default!r}`: {option.text}\n" in section + "\n" for option in entries)


def test_the_reference_names_every_option():
    text = reference.markdown()
    for option in reference.entries():
        assert (f"## {option.name}\n" if option.is_part else f"- `{option.name}` = `{option.default!r}`") in text
    printed = subprocess.run(
        [sys.executable, "-c", "import runpy, sys; runpy.run_module('ehrwear_jax.config', run_name='__main__');"
         "assert 'jax' not in sys.modules and 'polars' not in sys.modules"],
        capture_output=True, text=True, cwd=REPO,
    )  # fmt: skip
    assert printed.stdout == text, printed.stderr


def test_every_loss_term_has_a_weight():
    every = Config(
        context=ContextConfig(pairs=4),
        network=dataclasses.replace(Config().network, posterior="normal", raw_width=8),
        weights=dict.fromkeys(WEIGHTS, (1.0, 1.0, 0)),
    )
    sizes = {"value_codes": 4, "channels": 2, "raw_samples": 750}
    facts = dataclasses.make_dataclass("Facts", ["modalities", *sizes])(("ehr", "wear"), **sizes)
    assert [t.name for t in terms.active(every, facts)] == list(WEIGHTS)


def test_parsing_keeps_defaults_and_changes(tmp_path):
    config = config_lib.base()
    run = config_lib.parse(config)
    assert run.prepare == dataclasses.replace(config_lib.RunConfig().prepare, workers=0), "the program uses every core"
    plain = config_lib.RunConfig()
    assert dataclasses.replace(run, prepare=plain.prepare, models={}, joint={}) == plain
    config.seeds = (3, 4)
    config.joint.context.queries = 5
    config.train.stop_after = 7
    config.joint.weights.wear_to_ehr = (0.5, 2.0, 9)
    config.joint.context.update({"tokens": 100, "context_tokens": 90, "windows": 50})
    run = config_lib.parse(config)
    assert run.seeds == (3, 4) and run.train_config("joint").stop_after == 7
    ehr_only, wear_only = run.model_config("ehr_only"), run.model_config("wear_only")
    assert ehr_only.modalities == ("ehr",) and ehr_only.context.queries == 5 and ehr_only.context.tokens == 100
    room = (wear_only.context.tokens, wear_only.context.context_tokens, wear_only.context.windows)
    assert room == (50, 50, 50), "no row is longer than what can fill it"
    assert ehr_only.weights["wear_to_ehr"] == (0.5, 2.0, 9) and ehr_only.weights["ehr_masked"] == (1.0, 1.0, 0)
    hash(ehr_only)  # frozen all through
    (tmp_path / "config.json").write_text(run.to_json())
    assert config_lib.read(tmp_path / "config.json") == run


def test_what_is_not_said_of_a_part_is_what_the_field_that_holds_it_says():
    """And not what the part's class says; the reference prints the same."""

    @dataclasses.dataclass(frozen=True)
    class Part:
        a: int = 1
        b: int = 1

    whole = dataclasses.make_dataclass("Whole", [("part", Part, Part(b=2))], frozen=True)
    assert options.build(whole, {"part": {"a": 3}}).part == Part(3, 2) and options.build(whole, {}).part == Part(1, 2)
    assert options.build(whole, {"part": {}}).part == Part(1, 2) and options.build(Part, {"a": 3}) == Part(3, 1)
    with pytest.raises(ValueError, match=r"config.part.a is 'x'; it must be a whole number"):
        options.build(whole, {"part": {"a": "x"}})


def test_a_model_differs_from_its_family_in_what_its_entry_says():
    config = config_lib.base()
    config.models.r1 = {"family": "joint", "network": {"n_components": 1}, "train": {"steps": 7, "warmup_steps": 2}}
    run = config_lib.parse(config)
    assert run.model_config("r1").network.n_components == 1 and run.model_config("joint").network.n_components == 4
    assert run.train_config("r1").steps == 7 and run.train_config("joint").steps == 500_000
    assert dataclasses.replace(run.model_config("r1").network, n_components=4) == run.model_config("joint").network
    assert run.networks == sorted(["joint", "ehr_only", "wear_only", "r1"])
    config.models.r1 = {"family": "joint", "network": {"components": 1}}
    with pytest.raises(ValueError, match="config.models.r1.network has no 'components'; it has adapter_width"):
        config_lib.parse(config).model_config("r1")
    config.models.r1 = {"family": "nowhere"}
    with pytest.raises(ValueError, match="there is no model family 'nowhere'"):
        config_lib.parse(config).model_config("r1")


def test_a_run_can_be_about_some_of_the_models():
    config = config_lib.base()
    config.only = ("linear_table", "joint")
    config.evaluate.label_models = ("joint", "gradient_boosting")
    run = config_lib.parse(config)
    assert run.evaluate.label_models == ("joint",)
    assert list(run.models) == ["joint", "linear_table"] and run.networks == ["joint"]
    assert config_lib.parse(json.loads(run.to_json())).models == run.models
    config_lib.check(dataclasses.replace(run, data=dataclasses.replace(run.data, source="synthetic")))
    config.evaluate.label_models = ()
    for only, said in ((("joint", "linear"), "config.only names 'linear', which is not in"),
                       (("joint", "late_fusion"), "config.models.late_fusion names 'ehr_only'")):  # fmt: skip
        config.only = only
        with pytest.raises(ValueError, match=said):
            run = config_lib.parse(config)
            config_lib.check(dataclasses.replace(run, data=dataclasses.replace(run.data, source="synthetic")))


def test_folds():
    config = config_lib.base()
    assert config_lib.parse(config).folds == [("all", None)]
    config.data.n_folds = 3
    assert config_lib.parse(config).folds == [("fold0", 0), ("fold1", 1), ("fold2", 2)]


def test_a_config_refuses_a_key_that_it_does_not_have():
    config = config_lib.base()
    assert isinstance(config, ml_collections.ConfigDict) and config.is_locked
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        config.train.stepps = 3
    with pytest.raises(KeyError, match='Did you mean "steps"'):
        config.train.update({"stepps": 3})
    config.models.joint_again = {"family": "joint"}  # models are the user's to name
    assert config_lib.parse(config).model_config("joint_again").modalities == ("ehr", "wear")
    with pytest.raises(ValueError, match="config has no 'rows'; it has cohort"):
        config_lib.parse(config.to_dict() | {"rows": {}})


def runnable(tmp_path):
    config = config_lib.base()
    config.data.meds_dir = str(tmp_path)
    config.evaluate.tasks = ("a",)
    config_lib.check(config_lib.parse(config))
    return config


def stacked(*members):
    """The entry of a model that stacks others."""
    return {"family": "stacked", "members": members}


@pytest.mark.parametrize(
    "key, value, error, sentence",
    [
        (
            "data.source",
            "omop",
            ValueError,
            "config.data.source is 'omop'; it can be synthetic, meds, nafld, nhanes, nhanes_cdc, physionet2012",
        ),
        ("data.meds_dir", "/no/such", FileNotFoundError, "config.data.meds_dir: there is no folder /no/such"),
        ("data.wearable_dir", "/no/such", FileNotFoundError, "config.data.wearable_dir: there is no folder /no/such"),
        ("data.labels_dir", "/no/such", FileNotFoundError, "config.data.labels_dir: there is no folder /no/such"),
        ("models.late_fusion.members", ("x", "joint"), ValueError, "config.models.late_fusion names 'x', which is not"),
        ("models.linear_table.latents", ("x",), ValueError, "config.models.linear_table names 'x', which is not in ["),
        ("models.late_fusion.members", ("joint",), ValueError, "config.models: late fusion of ('joint',); it takes at"),
        ("models.mix", stacked("x", "joint"), ValueError, "config.models.mix names 'x', which is not in ['age_sex', '"),
        ("models.mix", stacked("mix", "joint"), ValueError, "config.models.mix names 'mix', which is stacked itself: "),
        ("models.mix", stacked("joint"), ValueError, "config.models: predictions of ('joint',) stacked; it takes at l"),
        ("models.mix", stacked("joint", "joint"), ValueError, "config.models: predictions of ('joint', 'joint') stac"),
        ("models.linear_table.latents", ("mix",), ValueError, "config.models.linear_table names 'mix', which is not "),
        ("models.linear_table.estimator", "tree", ValueError, "config.models.estimator is 'tree'; it can be boosting,"),
        ("models.joint.modalities", ("ecg",), ValueError, "config.joint.modalities is ('ecg',); it can hold ehr and w"),
        ("evaluate.reference_model", "x", ValueError, "config.evaluate names the model 'x', which is not in ['age_sex"),
        ("joint.weights.contrast", (0.1, 0.1, 0), ValueError, "config.joint.weights.contrast needs pairs to align: se"),
        ("joint.weights.latent_kl", (0.0, 0.1, 9), ValueError, "config.joint.network.posterior is 'point' and config."),
        ("joint.network.posterior", "normal", ValueError, "config.joint.network.posterior is 'normal' and config.join"),
        ("joint.context.wear_mask_kind", "holes", ValueError, "config.joint.context.wear_mask_kind is 'holes'; it can"),
        ("joint.context.time_warp", 0.5, ValueError, "config.joint.context.time_warp is 0.5; it must lie in [0, 0.1]"),
        ("train.accumulate", 3, ValueError, "config.train.accumulate is 3; it must divide config.train.batch_size, 32"),
        ("train.rows_per_device", 4, ValueError, "config.train.batch_size is 32 and config.train.rows_per_device 4: o"),
        ("train.batch_size", 0, ValueError, "config.train.batch_size is 0 and config.train.rows_per_device 0: one of "),
        ("train.ema_decay", 1.0, ValueError, "config.train.ema_decay is 1.0; it must lie in [0, 1)"),
        ("train.steps", 0, ValueError, "config.train.steps is 0; it must be at least 1"),
        ("train.batch_size", -8, ValueError, "config.train.batch_size is -8; it must be at least 0"),
        ("train.peak_learning_rate", -1e-3, ValueError, "config.train.peak_learning_rate is -0.001; it must be"),
        ("train.clip_norm", 0.0, ValueError, "config.train.clip_norm is 0.0; it must be above 0"),
        ("train.checkpoint_every", 0, ValueError, "config.train.checkpoint_every is 0; it must be at least 1"),
        ("models.joint.train", {"steps": 0}, ValueError, "config.train.steps is 0; it must be at least 1"),
        ("joint.network.n_layers", 0, ValueError, "config.joint.network.n_layers is 0; it must be at least 1"),
        ("joint.context.tokens", -1, ValueError, "config.joint.context.tokens is -1; it must be at least 1"),
        ("finetune.rank", 0, ValueError, "config.finetune.rank is 0; it must be at least 1"),
        ("mesh.data", -2, ValueError, "config.mesh.data is -2; it must be at least -1"),
        ("embed.batch_size", -1, ValueError, "config.embed.batch_size is -1; it must be at least 1"),
        ("evaluate.n_resamples", -5, ValueError, "config.evaluate.n_resamples is -5; it must be at least 0"),
        ("evaluate.label_fractions", (0.1, 2.0), ValueError, "config.evaluate.label_fractions is 2.0; it must lie"),
        ("evaluate.horizons_days", (0.0,), ValueError, "config.evaluate.horizons_days is 0.0; it must be above 0"),
        ("interpret.people", -1, ValueError, "config.interpret.people is -1; it must be at least 0"),
        ("prepare.window_hours", 0, ValueError, "config.prepare.window_hours is 0; it must lie in [1, 24]"),
        ("prepare.step_minutes", 0, ValueError, "config.prepare.step_minutes is 0; it must be at least 1"),
        ("prepare.workers", -1, ValueError, "config.prepare.workers is -1; it must be at least 0"),
        ("labels.per_subject", 0, ValueError, "config.labels.per_subject is 0; it must be at least 1"),
        ("labels.physiology.min_days", 0, ValueError, "config.labels.physiology.min_days is 0; it must be at least 1"),
        ("data.seed", -1, ValueError, "config.data.seed is -1; it must be at least 0"),
        ("seeds", (), ValueError, "config.seeds is empty"),
        ("seeds", (0, -1), ValueError, "config.seeds is -1; it must be at least 0"),
        ("finetune.modes", ("qlora",), ValueError, "config.finetune.modes is 'qlora'; it can be head, lora, adapter, "),
        ("finetune.tasks", ("b",), ValueError, "config.finetune.tasks names 'b', which is not in ['a']"),
        ("finetune.models", ("a",), ValueError, "config.finetune.models names 'a', which is not in ['ehr_only', 'join"),
        ("models.oracle", {"family": "joint"}, ValueError, "config.models: 'oracle' is the name of something else in "),
        ("models.joint_lora", {"family": "joint"}, ValueError, "config.models: 'joint_lora' is the name of something "),
        ("report.reliability_task", "b", ValueError, "config.report.reliability_task is 'b', which is not in config"),
        ("evaluate.probe", "knn", ValueError, "config.evaluate.probe is 'knn'; it can be exact, adam"),
    ],
)
def test_a_config_that_cannot_run_is_refused(tmp_path, key, value, error, sentence):
    config = runnable(tmp_path)
    config.finetune.modes = ("lora",)
    config.models.mix = stacked("joint", "linear_table", "late_fusion")  # itself no error
    config_lib.check(config_lib.parse(config))
    set_option(config, key, value)
    with pytest.raises(error) as caught:
        config_lib.check(config_lib.parse(config))
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_every_number_of_the_parts_says_its_limits():
    """But for those that any number may be, and those whose limits their part checks itself."""
    free = {"config.interpret.noise_db", "config.interpret.raised_sd"}
    free |= {f"config.train.{name}" for name in ("adam_b2", "ema_decay", "gradients_decay")}
    free |= {f"config.prepare.{name}" for name in ("impute_gap_minutes", "atc_level")}
    free |= {"config.labels.physiology.hrv_minutes"}
    parts = {"config": RunConfig(), "config.labels.physiology": RunConfig().labels.physiology}
    names = ("data", "labels", "prepare", "train", "mesh", "compile", "embed", "evaluate", "finetune", "interpret")
    parts |= {f"config.{name}": getattr(RunConfig(), name) for name in names}
    numbers = {f"{where}.{f.name}": f for where, part in parts.items() for f in dataclasses.fields(part)
               if f.type in (int, float, "int", "float")}  # fmt: skip
    assert {name for name, f in numbers.items() if "within" not in f.metadata} == free


RAW = {"joint.context.raw_segments": "ppg", "joint.context.raw_windows": 84, "joint.network.raw_width": 32}


@pytest.mark.parametrize("left_out", [None, *RAW])
def test_raw_windows_take_the_data_the_room_and_the_encoder(left_out):
    config = load("tiny.py")
    config.prepare.segments.ppg = {"channels": ("ppg",)}
    config.update_from_flattened_dict({k: v for k, v in RAW.items() if k != left_out})
    if left_out is None:
        config_lib.check(config_lib.parse(config))
        config.joint.context.raw_windows = 83
        with pytest.raises(ValueError, match="raw_windows is 83; it must be at least config.joint.context.windows, 84"):
            config_lib.check(config_lib.parse(config))
        config.joint.context.raw_windows = 84
        config.prepare.segments = {"ecg": {"channels": ("ecg",)}}
        with pytest.raises(ValueError, match=r"raw_segments is 'ppg'; config.prepare.segments has \['ecg'\]"):
            config_lib.check(config_lib.parse(config))
        return
    with pytest.raises(ValueError, match=rf"config\.{left_out} is .*: set all three"):
        config_lib.check(config_lib.parse(config))


@dataclasses.dataclass(frozen=True)
class Inner:
    """An inner part."""

    size: int = 1
    """How large."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """A part."""

    rate: float = 0.5
    """How fast, over
    two lines."""
    names: tuple = ()
    """Which."""
    maybe: int | None = None
    """Or not."""
    inner: Inner = Inner()
    """Within."""
    free: dict = dataclasses.field(default_factory=dict)
    """Anything."""


def test_options_are_built_from_nested_values_and_back():
    values = {"rate": 2, "names": ["a", "b"], "maybe": 3, "inner": {"size": 4}, "free": {"x": [1, {"y": [2]}]}}
    built = options.build(Outer, values)
    assert built == Outer(2.0, ("a", "b"), 3, Inner(4), {"x": (1, {"y": (2,)})}) and isinstance(built.rate, float)
    assert options.build(Outer, json.loads(json.dumps(options.as_dict(built)))) == built
    assert options.documentation(Outer) == {
        "rate": "How fast, over two lines.", "names": "Which.", "maybe": "Or not.", "inner": "Within.",
        "free": "Anything.",
    }  # fmt: skip
    assert options.merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}}) == {"a": {"b": 1, "c": 4}, "d": 3}


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"rat": 1}, "config has no 'rat'; it has free, inner, maybe, names, rate"),
        ({"rate": "fast"}, "config.rate is 'fast'; it must be a number"),
        ({"rate": True}, "config.rate is True; it must be a number"),
        ({"inner": {"size": 1.5}}, "config.inner.size is 1.5; it must be a whole number"),
        ({"names": "a"}, "config.names is 'a'; it must be a tuple, as in ('a',)"),
    ],
)
def test_an_option_of_another_type_is_refused_by_its_name(values, sentence):
    with pytest.raises(ValueError) as caught:
        options.build(Outer, values)
    assert str(caught.value) == sentence
