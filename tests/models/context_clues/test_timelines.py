"""Tokens of codes, ranges of values, texts and days between events, by hand."""

import cohort
import numpy as np
import polars as pl
import pytest
import small_run
from records import make_record

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import code_table, statistics
from ehrwear_jax.models import vocabulary as vocabulary_lib
from ehrwear_jax.models.context_clues import timelines

PARENTS = {"lab//mg": ["lab"], "lab//mmol": ["lab"]}


def made_vocabulary():
    """Of flu, a test in two units with ten values each, and a rhythm with two texts; rare//g is too rare for one."""
    codes = ["flu"] * 4 + ["lab//mg"] * 10 + ["lab//mmol"] * 10 + ["ecg"] * 4
    value = [None] * 4 + [float(x) for x in range(70, 170, 10)] + [float(x) for x in range(10)] + [None] * 4
    text = [None] * 24 + ["sinus", "sinus", "flutter", "flutter"]
    schema = {"subject_id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}
    events = pl.DataFrame({"subject_id": range(len(codes)), "code": codes, "numeric_value": value,
                           "text_value": text}, schema)  # fmt: skip
    described = pl.DataFrame({"code": list(PARENTS), "parent_codes": list(PARENTS.values()), "description": ""})
    units = {"lab//mg": "mg/dL", "lab//mmol": "mmol/L"}
    table = code_table.make_codes([*events["code"].unique(), "unseen"], described, units, False)
    frequent = pl.DataFrame({"code": ["ecg", "ecg"], "text": ["flutter", "sinus"], "n_subjects": [2, 2]},
                            {"code": pl.String, "text": pl.String, "n_subjects": pl.Int64})  # fmt: skip
    texts = code_table.make_texts(frequent, table)
    ids = code_table.event_ids(events, table, texts)
    fitted, counts = statistics.fit_in_memory(ids, table, texts, 1)
    lineage = dict(table.select("code", "ancestors").iter_rows())
    counted = counts.join(texts, on="text_id")
    return vocabulary_lib.build_vocabulary(fitted, counted, lineage, min_text_subjects=1, value_bins=2, min_values=5)


@pytest.fixture(scope="module")
def vocabulary():
    return made_vocabulary()


def names_of(vocabulary, events, day_tokens=False, static=()):
    """(names of tokens, days of tokens, the timeline) of [(day, code, value or text_id)]."""
    dictionary = timelines.make_dictionary(vocabulary, day_tokens)
    code_id = {code: i for i, code in enumerate(vocabulary.codes["code"])}
    record = make_record([round(day * DAY_US) for day, *_ in events], [code_id[code] for _, code, _ in events], [],
                         static=[code_id[code] for code in static], window=np.zeros((0, 6, 2)))  # fmt: skip
    for k, (_, _, said) in enumerate(events):
        if isinstance(said, int):
            record.text_K[k] = said
        elif said is not None:
            record.value_K[k] = said
    timeline = timelines.make_timeline(record, dictionary)
    return [dictionary.names[t] for t in timeline.token_K], (timeline.time_K / DAY_US).tolist(), timeline


def test_a_value_lies_in_the_ranges_of_its_own_code_and_unit(vocabulary):
    """The original takes the first range that a number fits, whatever its unit: 8 mmol/L would be a low mg/dL."""
    events = [(0, "lab//mg", 8.0), (1, "lab//mmol", 8.0), (2, "lab//mmol", 1.0), (3, "lab//mg", 160.0)]
    names, _, _ = names_of(vocabulary, events)
    assert names == ["lab//mg//Q0", "lab//mmol//Q1", "lab//mmol//Q0", "lab//mg//Q1"]


def test_texts_are_tokens_and_what_is_not_in_the_vocabulary_is_none(vocabulary):
    events = [(0, "ecg", 0), (1, "unseen", None), (2, "ecg", 1), (3, "flu", None)]
    names, days, timeline = names_of(vocabulary, events, static=("flu", "unseen"))
    assert names == ["ecg//flutter", "ecg//sinus", "flu"] and days == [0, 2, 3]
    assert len(timeline.static_token_S) == 1 and timeline.is_event_K.all()


def test_days_between_events_are_tokens_of_the_later_event(vocabulary):
    """Midnights between; none between events of one day, nor ahead of the first one."""
    events = [(10.9, "flu", None), (11.1, "flu", None), (11.2, "ecg", 0), (1091.5, "flu", None), (2172, "flu", None)]
    names, days, timeline = names_of(vocabulary, events, day_tokens=True)
    assert names == ["flu", "<1 days>", "flu", "ecg//flutter", "<1080 days>", "flu", "<later>", "flu"]
    np.testing.assert_allclose(days, [10.9, 11.1, 11.1, 11.2, 1091.5, 1091.5, 2172, 2172])
    assert timeline.is_event_K.tolist() == [True, False, True, True, False, True, False, True]
    assert names_of(vocabulary, events)[0] == ["flu", "flu", "ecg//flutter", "flu", "flu"]
    assert names_of(vocabulary, [], day_tokens=True)[0] == []


def test_names_and_tokens_are_each_others_inverse(vocabulary):
    """In the original the way back raises."""
    names = timelines.make_dictionary(vocabulary, True).names
    assert len(set(names)) == len(names) == len(vocabulary) + 1081
    plain = timelines.make_dictionary(vocabulary, False).names
    assert plain[:3] == ["<pad>", "<begin>", "<end>"] and len(timelines.SPECIAL) == vocabulary_lib.N_SPECIAL
    assert plain[3:] == vocabulary.tokens["token"].to_list()[3:] == names[3 : len(plain)]


def test_tokens_and_their_ranges_are_those_of_training_people(tmp_path):
    """A person outside training changes no name and no range, whatever is measured of them."""
    tokens = []
    for name, factor in (("as it was", 1.0), ("changed", 50.0)):
        root = cohort.write_cohort(tmp_path / name, n_subjects=20, wear_days=0.1)
        splits = dict(pl.read_parquet(root / "meds" / "metadata" / "subject_splits.parquet").iter_rows())
        outside = [s for s, split in splits.items() if split != "train"]
        for path in (root / "meds" / "data").rglob("*.parquet"):
            value = pl.col("numeric_value")
            table = pl.read_parquet(path)
            other = pl.when(pl.col("subject_id").is_in(outside)).then(value * factor).otherwise(value)
            table.with_columns(other.cast(pl.Float32).alias("numeric_value")).write_parquet(path)
        store = small_run.store(cohort.prepare_cohort(root), "held_out")
        tokens.append(vocabulary_lib.of_store(store).tokens)
    assert tokens[0].equals(tokens[1])
