"""Tokens with their ancestors, next events and censoring by hand, and what is fitted on training people alone."""

import dataclasses

import motor_cases
import numpy as np
import pytest
import small_run
from motor_cases import config_of, dictionary, timeline

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.motor import timelines
from ehrwear_jax.models.motor.config import Config


def entries(most, token):
    """Names of the entries of a token."""
    found = dictionary(most)
    at = found.vocabulary.tokens["token"].to_list().index(token)
    return [found.names[e] for e in found.entry_VxA[at] if e != timelines.PAD]


def test_a_token_carries_its_value_its_code_and_the_ancestors_nearest_first():
    assert entries(6, "flu") == ["flu", "lung", "organ"]
    assert entries(2, "flu") == ["flu", "lung"], "the most general is left out first"
    assert entries(6, "lab//Q0") == ["lab//Q0", "lab"]
    assert entries(6, "lab//Q1") == ["lab//Q1", "lab"]


def test_an_ancestor_that_says_nothing_more_has_no_entry():
    """Only gout is below joint: the two always occur together."""
    assert entries(6, "gout") == ["gout", "organ"] and "joint" not in dictionary().names


def test_values_have_entries_of_their_own_code():
    """The original's bins of values are those of all codes together."""
    values = [1.0, 8.0]
    found = timeline([(0, "lab"), (1, "lab")], 10, values=values)
    names = [dictionary().vocabulary.tokens["token"][int(t)] for t in found.token_K]
    assert names == ["lab//Q0", "lab//Q1"]
    assert {n for n in dictionary().names if "//Q" in n} == {"lab//Q0", "lab//Q1"}


def test_of_repeats_on_a_day_the_first_is_a_token_and_all_are_predicted():
    events = [(0.1, "flu"), (0.2, "gout"), (0.3, "flu"), (1.0, "flu")]
    kept, whole = timeline(events, 10), timeline(events, 10, drop_repeats=False)
    np.testing.assert_allclose(kept.time_K / DAY_US, [0.1, 0.2, 1.0])
    np.testing.assert_allclose(whole.time_K / DAY_US, [0.1, 0.2, 0.3, 1.0])
    np.testing.assert_array_equal(kept.group_X, whole.group_X)


def test_places_are_the_last_tokens_of_their_time_that_are_followed_up():
    found = timeline([(0, "flu"), (0, "gout"), (5, "flu"), (9, "asthma")], 9)
    assert found.places().tolist() == [1, 2], "of two at once the last; none at the end of follow-up"


def test_next_events_and_censoring_by_hand():
    """Strictly later, with ancestors; nothing behind the end of follow-up, and none where nothing follows."""
    events = [(0, "flu"), (0, "gout"), (10, "asthma"), (30, "flu"), (50, "gout"), (200, "flu")]
    found, groups = timeline(events, 100), dictionary().groups
    task_G = np.full(len(groups), -1)
    task_G[[groups.index(name) for name in ("flu", "lung", "gout", "lab")]] = range(4)
    want = {
        0: {0: 30.0, 1: 10.0, 2: 50.0},  # flu itself is known; the lung follows with asthma
        10: {0: 20.0, 1: 20.0, 2: 40.0},
        30: {2: 20.0},  # flu at 200 is behind the end
        50: {},
    }
    places = found.places()
    at = (found.time_K[places] // DAY_US).tolist()
    assert at == list(want)
    for n, task_U, day_U in timelines.pairs(found, found.time_K[places], task_G):
        assert dict(zip(task_U.tolist(), day_U.tolist(), strict=True)) == want[at[n]]


def test_next_times_are_those_of_a_search():
    rng = np.random.default_rng(0)
    time_X, group_X = np.sort(rng.integers(0, 30, 50)), rng.integers(0, 7, 50)
    place_N = np.unique(rng.integers(-2, 33, 12))
    group_U, next_NxU = timelines.next_times(group_X, time_X, place_N)
    for n, place in enumerate(place_N):
        for u, group in enumerate(group_U):
            later = time_X[(group_X == group) & (time_X > place)]
            assert next_NxU[n, u] == (later.min() if len(later) else timelines.NEVER)


def test_the_most_informative_codes_are_predicted():
    """By hand, of four people: lung in all, flu in two of them, asthma in one, organ wherever lung or gout is."""
    people = [timeline([(day, code) for day, code in enumerate(codes)], 99)
              for codes in (["flu"], ["flu", "lab"], ["asthma"], ["asthma", "gout"])]  # fmt: skip
    groups = dictionary().groups

    def chosen(**options):
        task_G = timelines.informative(dictionary(), people, config_of(**options))
        return {groups[g]: int(task_G[g]) for g in np.flatnonzero(task_G >= 0)}

    # P(parent) H(P / P(parent)): flu and asthma H(1/2), lab and gout H(1/4), lung and organ nothing
    assert chosen().keys() == {"flu", "asthma", "lab", "gout", "lung", "organ"}
    assert {name for name, k in chosen().items() if k < 2} == {"flu", "asthma"}
    assert {name for name, k in chosen().items() if k in (2, 3)} == {"lab", "gout"}
    assert chosen(tasks=2).keys() == {"flu", "asthma"}
    assert chosen(min_task_share=0.5).keys() == {"flu", "asthma", "lung", "organ"}


def test_pieces_of_time_hold_as_many_events_each():
    days = np.random.default_rng(0).exponential(30.0, 4001)
    begins = timelines.time_bins(days, 4)
    assert begins[0] == 0.0 and len(begins) == 4
    counts = np.histogram(days, [*begins, np.inf])[0]
    assert abs(counts - len(days) / 4).max() < 2
    assert timelines.time_bins(np.full(9, 2.0), 4) == (0.0, 2.0), "equal quantiles are one"


@pytest.fixture(scope="module")
def fitted(people):
    """What is fitted on all places of the training people."""
    return timelines.fit(small_run.store(people, "held_out"), config_of(fit_sites=10_000))


def test_rates_and_ages_are_those_of_training_people_by_a_slow_count(people, fitted):
    store = small_run.store(people, "train")
    found = timelines.People(store, fitted.dictionary, config_of())
    events, days, ages = np.zeros(fitted.facts.tasks), np.zeros(fitted.facts.tasks), []
    for i in range(len(store)):
        person = found[i]
        ages += person.ages(person.time_K, None).sum(-1).tolist()
        for place in person.places():
            now = person.time_K[place]
            for g, task in enumerate(fitted.task_G):
                if task >= 0:
                    later = person.group_time_X[(person.group_X == g) & (person.group_time_X > now)]
                    events[task] += len(later) > 0
                    days[task] += (later.min(initial=person.end_us) - now) / DAY_US
    np.testing.assert_allclose(fitted.facts.rates, events / days, rtol=1e-9)
    np.testing.assert_allclose(fitted.facts.age_days, (np.mean(ages), np.std(ages)), rtol=1e-5)


def test_every_split_is_given_what_was_fitted_on_training_people(people, fitted):
    splits = ("train", "tuning", "held_out", None)
    assert all(timelines.fit(small_run.store(people, s), config_of(fit_sites=10_000)) is fitted for s in splits)
    few = timelines.fit(small_run.store(people, "train"), config_of(fit_people=3, fit_sites=1))
    assert few.facts.rates != fitted.facts.rates
    assert len(fitted.task_names) == fitted.facts.tasks == len(fitted.facts.rates) == (fitted.task_G >= 0).sum()


def test_a_cohort_without_later_events_is_named(people):
    with pytest.raises(ValueError, match=r"no training person has an event that one of a predicted code follows"):
        timelines.fit(small_run.store(people, "train"), config_of(min_task_share=1.1))


def test_wrong_options_are_named():
    for options, words in (({"width": 10}, "multiple of two"), ({"context_tokens": 99}, "at most tokens"),
                           ({"sites": 0}, "sites is 0"), ({"dtype": "float16"}, "float32, bfloat16")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(Config(**motor_cases.SMALL), **options)
