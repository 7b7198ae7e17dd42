"""Label tables against what can be computed by hand: constant hazards of admission and death, known follow-up."""

import math

import numpy as np
import polars as pl
import pytest
from people_in_days import ADMIT, LEAVE, day, write

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.labels import LabelsConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import event_tasks
from ehrwear_jax.data.prepare import workers

N, LAST, HORIZON = 2500, 700.0, 90
ADMITTED, DYING = 1 / 250, 1 / 900  # a day


def draw(rng):
    """A person from day 0 on: admissions and, perhaps, a death at constant hazards; claims after the death."""
    death = rng.exponential(1 / DYING)
    events = [(0.0, "A")]
    t = rng.exponential(1 / ADMITTED)
    while t < LAST:
        events += [(t, ADMIT), (t + 0.01, LEAVE)]
        t += 0.01 + rng.exponential(1 / ADMITTED)
    return [*events, *([(death, meds.DEATH_CODE)] if death < LAST else [])]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("hazards")
    rng = np.random.default_rng(0)
    path = write(root, {k: sorted(draw(rng)) for k in range(N)}, 1000)
    table = root / "followup.parquet"
    pl.DataFrame({"subject_id": range(N), "end": [day(LAST)] * N}).write_parquet(table)

    def groups(prepare=None, pool=None, **options):
        same = {"horizons_days": (HORIZON,), "per_subject": 1, "min_history_days": 30.0, "stay_gap_hours": 0.0}
        source = event_tasks.Source(path, None, LabelsConfig(**same | options), prepare or PrepareConfig(), seed=0)
        return event_tasks.make(source, ("hospitalization", "death"), pool)

    return groups, str(table)


def expected(rate):
    """Probability that an event of this hazard comes first within the horizon."""
    both = ADMITTED + DYING
    return rate / both * (1 - math.exp(-both * HORIZON))


def share(group, name):
    """(mean label, its standard error, rows)."""
    y = group.tables[f"{name}_{HORIZON}d"]["boolean_value"]
    return y.mean(), math.sqrt(y.mean() * (1 - y.mean()) / len(y)), len(y)


def test_with_known_follow_up_labels_are_as_frequent_as_the_hazards_say(made):
    groups, table = made
    found = groups(followup_file=table)
    mean, error, n = share(found["hospitalization"], "hospitalization")
    assert abs(mean - expected(ADMITTED)) < 3.5 * error
    assert n == found["hospitalization"].tables["time_to_hospitalization"].height > N / 2, "nobody is censored"
    mean, error, _ = share(found["death"], "death")
    assert abs(mean - (1 - math.exp(-DYING * HORIZON))) < 3.5 * error


def test_the_composite_is_the_first_of_both(made):
    groups, table = made
    mean, error, _ = share(groups(followup_file=table, composite=True)["hospitalization"], "hospitalization")
    assert abs(mean - expected(ADMITTED) - expected(DYING)) < 3.5 * error


def test_competing_deaths_are_as_many_as_the_hazards_say(made):
    groups, table = made
    group = groups(followup_file=table)["hospitalization"]
    times = group.tables["time_to_hospitalization"]
    died = times["competing_event"] & (times["time_to_event_days"] <= HORIZON)
    assert abs(died.mean() - expected(DYING)) < 3.5 * math.sqrt(expected(DYING) / times.height)
    (late,) = [s for s in group.steps if s["step"].startswith("events of hospitalization up to")]
    assert late["dropped"] > 100, "claims after death"


def test_the_last_record_as_a_guess_makes_events_too_frequent(made):
    """What is said of the guess: it is counted, because whoever stays well has no record to be followed up to."""
    groups, _ = made
    found = groups()["hospitalization"]
    mean, error, n = share(found, "hospitalization")
    assert mean > expected(ADMITTED) + 4 * error and n < 0.7 * N
    guessed = {s["step"]: s["n"] for s in found.steps}["ends of follow-up that are guessed"]
    assert 0.3 * N < guessed < 0.7 * N


def test_the_day_of_extraction_is_right_where_nobody_leaves(made):
    groups, _ = made
    prepare = PrepareConfig(extraction_date=f"{day(LAST):%Y-%m-%d}")
    mean, error, _ = share(groups(prepare, followup="extraction_date")["hospitalization"], "hospitalization")
    assert abs(mean - expected(ADMITTED)) < 3.5 * error


class Counted(workers.Pool):
    """A pool that notes what it is asked for, and hands shards out from the last to the first."""

    def map(self, function, items, description, unit="shard"):
        self.asked = [*getattr(self, "asked", []), len(items)]
        return super().map(function, list(items)[::-1], description, unit)[::-1]


def test_shards_are_gone_through_twice_and_their_order_does_not_matter(made):
    groups, table = made
    alone, pool = groups(followup_file=table), Counted()
    found = groups(followup_file=table, pool=pool)
    assert len(pool.asked) == 2 and min(pool.asked) > 1, "whatever the number of groups"
    for name, group in alone.items():
        assert (group.steps, group.design) == (found[name].steps, found[name].design)
        for task, labels in group.tables.items():
            assert labels.height > 100 and labels.equals(found[name].tables[task])


def test_local_processes_make_the_same_labels(made):
    groups, table = made
    with workers.Pool(workers=2) as pool:
        found = groups(followup_file=table, pool=pool)
    alone = groups(followup_file=table)
    for name, group in alone.items():
        assert group.steps == found[name].steps
        assert all(labels.equals(found[name].tables[task]) for task, labels in group.tables.items())
