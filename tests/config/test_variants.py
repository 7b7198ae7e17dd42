"""Each file of configs/ gives a whole config, and a variant changes in it what it is called after."""

import runpy

import pytest
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.config.variants import options_of
from ehrwear_jax.models.joint.config import WEIGHTS
from ehrwear_jax.stages import dry_run


def load(name, variant=""):
    return runpy.run_path(str(REPO / "configs" / name))["get_config"](variant)


def base_of(file):
    """The base of a config file without a variant."""
    return "paper" if file == "full.py" else "extended"


@pytest.mark.parametrize(
    "name, variant",
    [
        ("full.py", ""),
        ("full.py", "220m"),
        ("full.py", "220m+relaxed"),
        ("full.py", "elbo+no_contrast"),
        ("full.py", "layers=4,seq=512"),
        ("full.py", "h100+r8"),
        ("full.py", "v5e"),
        ("full.py", "motor+clmbr+cehr_bert+behrt+med_bert+context_clues+context_clues_mamba"),
        ("full.py", "himae+papagei+papagei_views+pulse_ppg"),
        ("full.py", "extended"),
        ("full.py", "extended+h100+r8"),
        ("small.py", ""),
        ("small.py", "paper"),
        ("tiny.py", ""),
        ("tiny.py", "contrast+detached"),
        ("tiny.py", "paper+extended"),
        ("tiny.py", "motor+himae+papagei"),
        ("nafld.py", ""),
        ("nhanes.py", ""),
        ("nhanes.py", "transfer"),
        ("nhanes.py", "cdc"),
        ("nhanes.py", "cdc+smirnova"),
        ("physionet2012.py", ""),
        ("physionet2012.py", "b+vitals"),
        ("physionet2012.py", "tables"),
    ],
)
def test_each_experiment_file_gives_a_whole_config(name, variant, tmp_path):
    config = load(name, variant)
    named = variant.replace(",", "+").replace("=", "").split("+") if variant else []
    base = [] if {"paper", "extended"} & set(named) or not set(named) & set(config_lib.VARIANTS) else [base_of(name)]
    assert config.name == "-".join([name.removesuffix(".py"), *base, *named]), "ablations say of what"
    assert set(config) == set(config_lib.base()) and config.evaluate.tasks
    run = config_lib.parse(config)
    for model in (m for m in run.networks if run.family(m) == "joint"):
        assert set(run.model_config(model).weights) == set(WEIGHTS)
        train = run.train_config(model)
        assert 0 < train.warmup_steps < train.steps
    missing = {"tiny.py": None, "small.py": None, "full.py": "meds_dir"}.get(name, "source_dir")
    if missing is not None:
        with pytest.raises(ValueError, match=rf"^no data: set --config\.data\.{missing} to "):
            config_lib.check(run)
        config.data[missing] = str(tmp_path)
    if "relaxed" in variant:
        config.cohort.cutoff = "2019-01-01"
    config_lib.check(config_lib.parse(config))


@pytest.mark.parametrize("variant, days", [("cohort", 365.0), ("relaxed", 30.0), ("cohort+220m", 365.0)])
def test_the_papers_criteria_need_a_date_for_pretraining_and_none_to_be_described(variant, days, tmp_path, capsys):
    config = load("full.py", variant)
    assert config.cohort.min_ehr_days == days and config.cohort.max_age_years == 89.0 and not config.cohort.cutoff
    config.data.meds_dir = str(tmp_path)
    with pytest.raises(ValueError, match=r"set --config\.cohort\.cutoff to a date"):
        config_lib.check(config_lib.parse(config))
    dry_run.describe(config_lib.parse(config))
    assert "parameters" in capsys.readouterr().out
    for key, value in (("cutoff", "2019-01-01"), ("pretraining", "everybody")):
        config = load("full.py", variant)
        config.data.meds_dir = str(tmp_path)
        config.cohort[key] = value
        config_lib.check(config_lib.parse(config))


def test_the_papers_augmentation_is_on_in_the_full_config_and_off_elsewhere():
    full = config_lib.parse(load("full.py")).model_config("joint").context
    assert full.augments_signal and full.time_warp == 0.05 and full.patient_days == 1.0
    assert (full.ehr_mask, full.wear_mask, full.wear_mask_kind) == (0.15, 0.25, "contiguous")
    assert full.masked_contexts == 1.0
    for name in ("tiny.py", "nafld.py", "nhanes.py"):
        run = config_lib.parse(load(name))
        other = run.model_config(run.networks[0]).context
        assert not other.augments_signal and not other.patient_days and not other.drop_ehr and not other.drop_wear


@pytest.mark.parametrize("file", ["full.py", "tiny.py"])
@pytest.mark.parametrize("variant", config_lib.VARIANTS)
def test_a_variant_sets_its_options_and_nothing_else_but_the_name(file, variant, tmp_path):
    plain, changed = load(file), load(file, variant)
    assert changed.name == f"{plain.name}-{base_of(file)}-{variant}"
    changed.name = plain.name
    for option, value in options_of(variant, base_of(file)).items():
        part, _, key = option.rpartition(".")
        before, after = plain, changed
        for step in part.split("."):
            before, after = before[step], after[step]
        if part == "joint.weights":
            value = (*value[:2], min(value[2], plain.train.steps // 10))
        assert after[key] == value
        after[key] = before[key]
    assert changed.to_dict() == plain.to_dict()
    runnable = load(file, variant)
    runnable.data.meds_dir = str(tmp_path) if runnable.data.source == "meds" else ""
    config_lib.check(config_lib.parse(runnable))


def test_the_ablations_of_the_paper_are_what_they_are_called():
    variants = ("", "no_cross_modal", "no_wear_to_ehr", "half_masked", "r8", "elbo")
    full = {v: config_lib.parse(load("full.py", v)).model_config("joint") for v in variants}
    off = (0.0, 0.0, 0)
    weights = {v: c.weights for v, c in full.items()}
    assert weights[""]["wear_to_ehr"] == (0.2, 1.0, 50_000) and weights[""]["ehr_to_wear"] == (0.1, 0.1, 0)
    assert weights["no_cross_modal"]["wear_to_ehr"] == weights["no_cross_modal"]["ehr_to_wear"] == off
    assert full["no_cross_modal"].context.pairs == 0 and weights["no_cross_modal"]["contrast"] == off
    assert weights["no_wear_to_ehr"]["ehr_to_wear"] == (0.1, 0.1, 0)
    assert full[""].context.wear_mask == 0.25 and full["half_masked"].context.wear_mask == 0.5
    assert full[""].network.n_components == 4 and full["r8"].network.n_components == 8
    assert full["elbo"].network.posterior == "normal" and weights["elbo"]["latent_kl"] == (0.0, 1.0, 50_000)
    assert weights["elbo"]["event_likelihood"] == weights["elbo"]["signal_likelihood"] == (1.0, 1.0, 0)
    assert weights["elbo"]["ehr_masked"] == weights["elbo"]["wear_masked"] == off, "the bound has them"
    assert weights["elbo"]["contrast"] == weights[""]["contrast"], "no likelihood: beside the bound"
    sde = config_lib.parse(load("full.py", "latent_sde")).model_config("joint")
    assert sde.network.posterior == "sde" and sde.weights == weights["elbo"], "section 7: the same bound"
    assert full[""].context.pairs == 8 and weights[""]["contrast"][1] == 0.05, "the regulariser has a small weight"
    assert load("tiny.py", "elbo").joint.weights.latent_kl == (0.0, 1.0, 25), "ramps fit a short run"


def test_the_full_config_is_appendix_a4_and_can_be_trimmed():
    full = config_lib.parse(load("full.py")).model_config("joint").network
    backbone = (full.n_layers, full.width, full.mlp_width, full.n_heads, full.kernel, full.n_components, full.dropout)
    assert backbone == (24, 1024, 4096, 16, "mixture", 4, 0.1)
    assert (full.wear_layers, full.wear_width, full.token_width, full.time_features) == (6, 512, 512, 128)
    assert load("full.py", "220m").joint.network.n_layers == 14
    trimmed = config_lib.parse(load("full.py", "220m,layers=4,seq=512")).model_config("joint")
    assert (trimmed.network.n_layers, trimmed.network.width) == (4, 1024)
    context = trimmed.context
    assert (context.tokens, context.context_tokens, context.windows, context.queries) == (256, 256, 256, 16)
    refused = {"layers=0": "layers is '0', it must be a number above 0", "seq=long": "seq is 'long', it must",
               "width=8": "has no variant 'width=8'"}  # fmt: skip
    for variant, sentence in refused.items():
        with pytest.raises(ValueError, match=sentence):
            load("full.py", variant)


@pytest.mark.parametrize("name", ["h100", "a100", "v5e", "v6e", "v5p"])
def test_a_machine_sets_how_the_full_config_is_computed_and_not_what(name):
    """The same model but for dropout inside the attention kernels, which GPUs do without."""
    plain, fitted = load("full.py"), load("full.py", name)
    assert fitted.mesh.data == -1 and fitted.train.rows_per_device % fitted.train.accumulate == 0
    is_gpu = name in ("h100", "a100")
    assert fitted.joint.network.attention_dropout == (0.0 if is_gpu else 0.1)
    assert fitted.joint.network.stochastic_depth == 0.1
    for part, keys in (("mesh", ("data", "fsdp")), ("train", ("rows_per_device", "accumulate"))):
        fitted[part].update({key: plain[part][key] for key in keys})
    for key in ("remat", "unroll", "attention_dropout"):
        fitted.joint.network[key] = plain.joint.network[key]
    fitted.name = plain.name
    assert fitted.to_dict() == plain.to_dict()


# own.py takes a folder of data, see test_own.py
@pytest.mark.parametrize("name", sorted({p.name for p in (REPO / "configs").glob("*.py")} - {"own.py"}))
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match=f"configs/{name} has no variant 'big'"):
        load(name, "big")
