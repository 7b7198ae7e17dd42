"""The paper's model is the paper's and no more, ours says what it adds, and ablations are of one named base."""

import runpy

import pytest
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import bases, options
from ehrwear_jax.config.variants import TABLES, chosen_base
from ehrwear_jax.models.joint import published, terms
from ehrwear_jax.models.joint.batch import Facts
from ehrwear_jax.models.joint.config import WEIGHTS, Config
from ehrwear_jax.training import compile_only
from ehrwear_jax.training.pretrain import Model

FACTS = Facts(modalities=("ehr", "wear"), vocabulary=40, steps=24, channels=2, derived=1, future_codes=8,
              history_tokens=8, n_horizons=4, future_rates=(0.1,) * 32, value_codes=4)  # fmt: skip
# of sections 3.3 and 3.5: what an attention reader of the paper counts
SIX = {"ehr_masked", "wear_masked", "future_signal", "wear_to_ehr", "ehr_to_wear", "contrast"}
NETWORK_CONFIGS = ("full.py", "tiny.py", "small.py", "paper.py", "nafld.py", "nhanes.py", "physionet2012.py")


def load(name, variant=""):
    return runpy.run_path(str(REPO / "configs" / name))["get_config"](variant)


def model(config, name="joint"):
    return config_lib.parse(config).model_config(name)


def loss_names(config):
    return {t.name for t in terms.active(config, FACTS)}


@pytest.mark.parametrize("file", NETWORK_CONFIGS)
def test_every_config_has_the_papers_model(file):
    paper = model(load(file, "paper"), "ehr_only" if file == "nafld.py" else "joint")
    assert bases.added(options.as_dict(paper)) == []
    assert loss_names(paper) == SIX | {"content_norm"}
    assert not paper.network.stream and not paper.network.count_width and not paper.network.value_channel
    assert load(file, "paper").name == f"{file.removesuffix('.py')}-paper"


@pytest.mark.parametrize("addition", bases.ADDITIONS, ids=lambda a: min(a.absent))
def test_each_addition_is_told_where_any_of_its_options_is_on(addition):
    on = {"weights": (1.0, 1.0, 0), "network": {"count_width": 4, "value_features": 2, "cycles_days": (1.0,),
          "query": "learned"}, "context": {"queries_behind": 0.1}}  # fmt: skip
    for option in addition.absent:
        config = load("tiny.py", "paper")
        part, _, key = option.rpartition(".")
        target = config.joint[part] if part else config.joint
        other = 1e-4 if key == "z_loss" else True
        target[key] = on["weights"] if part == "weights" else on.get(part, {}).get(key, other)
        assert bases.added(options.as_dict(model(config))) == [addition.what], option


def test_the_full_config_is_the_paper_number_by_number():
    config = config_lib.parse(load("full.py"))
    rows = published.published(config.model_config("joint"), config.train_config("joint"), config.prepare)
    # the one reading of docs/reading_the_paper.md that is a number of A.4
    assert [x for x in rows if x.paper != x.here] == [("wearable encoder: windows", "30 s", "6 h of 1 min")]
    assert len(rows) >= 25
    assert published.additions(config.model_config("joint")) == []
    assert (config.seeds, config.evaluate.probe, config.evaluate.n_resamples) == ((0, 1, 2, 3, 4), "adam", 5000)
    assert config.train.rows_per_device == 32 and config.train.accumulate > 1
    assert set(published.TERMS) == SIX | {"content_norm"} and not set(published.TERMS) - set(WEIGHTS)


def test_a_number_that_differs_is_told():
    config = load("full.py")
    config.joint.network.n_heads = 8
    config.joint.weights.wear_to_ehr = (0.2, 1.0, 10)
    config.train.steps = 7
    config = config_lib.parse(config)
    rows = published.published(config.model_config("joint"), config.train_config("joint"), config.prepare)
    assert {x.what: x.here for x in rows if x.paper != x.here} == {
        "backbone: heads": "8", "steps": "7", "loss: wearable to EHR": "0.2 to 1 over 10 steps",
        "wearable encoder: windows": "6 h of 1 min"}  # fmt: skip


def test_raw_windows_are_told():
    config = config_lib.parse(load("full.py", "ppg"))
    rows = published.published(config.model_config("joint"), config.train_config("joint"), config.prepare)
    assert {x.what: x.here for x in rows}["wearable encoder: windows"] == "6 h of 1 min, 30 s of raw signal in them"


@pytest.mark.parametrize("variant, low, high", [("220m", 220e6 * 0.98, 220e6 * 1.02), ("", 345e6, 355e6)])
def test_the_number_of_parameters(variant, low, high):
    config = config_lib.parse(load("full.py", variant))
    joint = Model(**config.model("joint", 0))
    spec, _ = compile_only.assumed(joint, config.prepare, config.compile.vocabulary)
    assert low <= sum(compile_only.parameters(joint, spec).values()) <= high


def test_ours_says_all_that_it_adds():
    extended = load("full.py", "extended")
    said = published.additions(model(extended))
    assert len(said) == 8 and extended.name == "full-extended" and extended.seeds == (0,)
    whole = published.additions(model(load("physionet2012.py")))
    assert len(whole) == 9 and any("state of values as an input" in x for x in whole)


@pytest.mark.parametrize("name", ["r1", "r8", "single_exponential", "rational_quadratic", "no_time_kernel"])
def test_ablations_of_the_kernel_leave_ours_no_other_decay(name):
    """The decayed counts have as many learned rates as the kernel has exponentials: none where it has none."""
    plain, changed = model(load("tiny.py")), model(load("tiny.py", name))
    learned = changed.network.n_components if changed.network.kernel == "mixture" else 0
    assert plain.network.count_rates == 8 and changed.network.count_rates == learned + 1
    assert model(load("tiny.py", f"paper+{name}")).network.count_width == 0


def test_without_cross_modal_losses_nothing_is_predicted_from_the_other_modality():
    own = {"ehr_masked", "wear_masked", "future_signal", "content_norm"}  # the paper's of one modality
    assert loss_names(model(load("full.py", "no_cross_modal"))) == own
    extended = loss_names(model(load("physionet2012.py", "no_cross_modal")))
    # what rebuilds the record that z has read; nothing of its future but the signal's
    assert extended - own == {"ehr_history", "wear_history", "ehr_values", "wear_values"}


@pytest.mark.parametrize("name", config_lib.VARIANTS)
def test_an_ablation_of_the_paper_adds_nothing(name):
    assert published.additions(model(load("full.py", name))) == []
    assert load("full.py", name).name == f"full-paper-{name}"
    assert load("full.py", f"extended+{name}").name == f"full-extended-{name}"


def test_the_two_models_stand_beside_each_other():
    config = load("tiny.py", "paper+extended")
    assert config.name == "tiny-paper-extended"
    assert published.additions(model(config, "joint_paper")) == []
    assert published.additions(model(config)) == published.additions(model(load("tiny.py")))
    chosen = [chosen_base(names, "paper") for names in (["r1"], ["extended"])]
    assert chosen == ["paper", "extended"]


def test_the_default_config_of_the_family_is_ours():
    assert bases.added(options.as_dict(Config()))


@pytest.mark.parametrize("table, base", [("table4", "paper"), ("table4", "extended"), ("a6", "extended")])
def test_a_table_of_ablations_is_models_each_like_the_config_of_that_variant(table, base):
    together = config_lib.parse(load("tiny.py", f"{base}+{table}"))
    for name in TABLES[table]:
        alone = config_lib.parse(load("tiny.py", f"{base}+{name}"))
        assert together.model_config(name) == alone.model_config("joint"), name
        assert together.train_config(name) == alone.train_config("joint"), name
    assert together.model_config("joint") == config_lib.parse(load("tiny.py", base)).model_config("joint")
    assert len(together.models) == len(config_lib.parse(load("tiny.py", base)).models) + len(TABLES[table])
    assert together.name == f"tiny-{base}-{table}" and load("full.py", table).name == f"full-paper-{table}"


def test_without_a_joint_model_there_are_no_ablations_of_it():
    config = config_lib.base()
    del config.models.joint
    with pytest.raises(ValueError, match="variant 'a6': the config has no joint model"):
        config_lib.apply_variants(config, ["a6"])
