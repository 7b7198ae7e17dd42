"""Which terms a model has: of those without weight or modality neither head nor fields nor choices are made."""

import dataclasses

import jax
import pytest
from random_rows import CONFIG, EVERY_TERM, FACTS, model_of, spec_of

from ehrwear_jax.models.joint import cross_terms, ehr_terms, next_value, raw_terms, value_terms, wear_terms
from ehrwear_jax.models.joint import likelihood_terms as likelihoods
from ehrwear_jax.models.joint import person_terms as person
from ehrwear_jax.models.joint.batch import INPUTS, RAW
from ehrwear_jax.models.joint.config import LIKELIHOODS, WEIGHTS
from ehrwear_jax.models.joint.terms import active, target_fields

OFF = (0.0, 0.0, 0)
MODULES = (ehr_terms, value_terms, next_value, wear_terms, raw_terms, cross_terms, likelihoods, person)
TERMS = {t.name: t for module in MODULES for t in module.TERMS}
# {term: parts of the network that are its own, or that it shares with terms that need the same}
OWN = {
    "ehr_masked": (), "future_event": ("term_head_future_event",), "future_codes": ("term_head_future_codes",),
    "ehr_history": ("term_head_ehr_history",), "ehr_values": ("term_head_ehr_values",),
    "next_value": ("term_head_next_value",), "wear_values": ("term_head_wear_values",), "wear_masked": (),
    "wear_history": ("term_head_wear_history",), "raw_masked": ("term_head_raw_masked",),
    "future_signal": (), "wear_to_ehr": ("term_head_wear_to_ehr",), "ehr_to_wear": ("term_head_ehr_to_wear",),
    "contrast": ("term_head_contrast",), "content_norm": (), "latent_kl": (),
    "event_likelihood": (), "signal_likelihood": ("term_head_signal_likelihood",),
    "person": ("term_head_person",),
}  # fmt: skip
SHARED = {"code_head": {"ehr_masked", "future_event", "wear_to_ehr", "event_likelihood"},
          "signal_decoder": {"wear_masked", "future_signal", "signal_likelihood"}}  # fmt: skip


def config_of(terms):
    """The config with these terms only."""
    network = dataclasses.replace(CONFIG.network, posterior="normal" if "latent_kl" in terms else "point")
    terms = set(terms) - (set() if "latent_kl" in terms else set(LIKELIHOODS))  # parts of one bound
    weights = {name: EVERY_TERM[name] if name in terms else OFF for name in WEIGHTS}
    return dataclasses.replace(CONFIG, network=network, weights=weights)


def parts_of(terms, facts=FACTS):
    """Parts of the network that has these terms."""
    spec, network, _ = model_of(config_of(terms), facts)
    return set(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])


def test_every_term_of_the_config_is_defined_once():
    defined = [t.name for module in MODULES for t in module.TERMS]
    assert sorted(defined) == sorted(WEIGHTS) and set(OWN) == set(WEIGHTS)


def test_terms_come_in_the_order_of_the_weights():
    assert [t.name for t in active(CONFIG, FACTS)] == list(WEIGHTS)


@pytest.mark.parametrize("ramp", [(0.0, 1.0, 10), (1.0, 0.0, 10)])
def test_a_term_whose_weight_is_zero_at_one_end_only_is_active(ramp):
    config = dataclasses.replace(CONFIG, weights=EVERY_TERM | {"wear_to_ehr": ramp})
    assert "wear_to_ehr" in [t.name for t in active(config, FACTS)]


@pytest.mark.parametrize("term", WEIGHTS)
def test_a_term_without_weight_has_no_field_of_its_own(term):
    others = config_of(set(WEIGHTS) - {term})
    assert term not in [t.name for t in active(others, FACTS)]
    of_others = {name for t in TERMS.values() if t.name != term for name in target_fields((t(FACTS, CONFIG),))}
    own = TERMS[term].targets.keys() - of_others
    assert spec_of(others).fields.keys() == spec_of().fields.keys() - own
    if term in ("future_codes", "contrast", "future_signal"):
        assert own, "nothing else writes them"


def test_the_network_has_the_heads_of_its_terms_and_no_other():
    """Of all terms, of some with heads of their own or shared ones, and of one that has none."""
    everything = parts_of(WEIGHTS)
    trunk = everything - {part for own in OWN.values() for part in own} - SHARED.keys() - {"posterior"}
    assert {"backbone", "ehr", "wear", "query"} <= trunk
    for terms in ({"future_codes", "wear_to_ehr"}, {"wear_masked", "contrast", "latent_kl"}, {"content_norm"}):
        want = trunk | {part for term in terms for part in OWN[term]}
        want |= {part for part, users in SHARED.items() if users & terms}
        assert parts_of(terms) == want | ({"posterior"} if "latent_kl" in terms else set()), terms
    assert everything == trunk | {p for own in OWN.values() for p in own} | SHARED.keys() | {"posterior"}


@pytest.mark.parametrize("modality", ["ehr", "wear"])
def test_a_term_that_lacks_a_modality_is_left_out(modality):
    facts = dataclasses.replace(FACTS, modalities=(modality,))
    names = {t.name for t in active(CONFIG, facts)}
    assert names == {name for name, t in TERMS.items() if set(t.needs) <= {modality}}
    assert {"content_norm", "latent_kl"} < names and not {"wear_to_ehr", "ehr_to_wear", "contrast"} & names
    assert ("ehr_masked" in names) == (modality == "ehr") and ("wear_masked" in names) == (modality == "wear")


def test_a_term_for_which_the_data_have_nothing_is_left_out():
    names = {t.name for t in active(CONFIG, dataclasses.replace(FACTS, value_codes=0))}
    assert names == set(WEIGHTS) - {"ehr_values", "next_value"}


def test_without_a_term_only_the_inputs_are_left():
    assert spec_of(config_of({"content_norm"})).fields.keys() == INPUTS.keys() | RAW.keys()
