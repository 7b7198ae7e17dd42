"""Small cases of MOTOR: a config, a dictionary of made-up codes with ancestors, records and rows."""

import functools

import numpy as np
import polars as pl
from records import make_record

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import code_table, statistics
from ehrwear_jax.models.motor import timelines
from ehrwear_jax.models.motor.config import Config
from ehrwear_jax.models.vocabulary import build_vocabulary

SMALL = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "attention_window": 6, "tokens": 48,
         "context_tokens": 20, "features": 6, "sites": 12, "pairs": 60, "tasks": 6, "time_bins": 3,
         "task_width": 4}  # fmt: skip
PARENTS = {"flu": ["lung"], "asthma": ["lung"], "lung": ["organ"], "gout": ["joint"], "joint": ["organ"]}


def config_of(**options):
    """A Config of SMALL sizes."""
    return Config(**SMALL | options)


def vocabulary_of(codes, value, parents):
    """A vocabulary of one event of a training person for each of the codes, with values in two bins."""
    events = pl.DataFrame({"subject_id": range(len(codes)), "code": codes, "numeric_value": value, "text_value": None},
                          {"subject_id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32,
                           "text_value": pl.String})  # fmt: skip
    described = pl.DataFrame({"code": list(parents), "parent_codes": list(parents.values()), "description": ""})
    table = code_table.make_codes(events["code"].unique(), described, {}, False)
    texts = code_table.make_texts(
        pl.DataFrame(schema={"code": pl.String, "text": pl.String, "n_subjects": pl.Int64}), table
    )
    ids = code_table.event_ids(events, table, texts)
    fitted, counts = statistics.fit_in_memory(ids, table, texts, 1)
    return build_vocabulary(
        fitted, counts.join(texts, on="text_id"), dict(table.select("code", "ancestors").iter_rows()),
        min_text_subjects=1, value_bins=2, min_values=5,
    )  # fmt: skip


@functools.cache
def dictionary(most=6):
    """Of flu and asthma (lung, organ), gout (joint, organ), a lab value in two bins, and the static code F."""
    codes = ["flu"] * 4 + ["asthma"] * 2 + ["gout"] * 5 + ["lab"] * 10 + ["F"]
    value = [None] * 11 + [float(i) for i in range(10)] + [None]
    return timelines.make_dictionary(vocabulary_of(codes, value, PARENTS), most)


def timeline(events, end_day, birth_day=-1000.0, static=("F",), drop_repeats=True, values=None):
    """The Timeline of [(day, code)], followed up to a day; days since 1970."""
    found = dictionary()
    code_id = {code: i for i, code in enumerate(found.vocabulary.codes["code"])}
    record = make_record(
        [round(day * DAY_US) for day, _ in events], [code_id[code] for _, code in events], [],
        static=[code_id[code] for code in static], end_us=round(end_day * DAY_US),
        birth_us=round(birth_day * DAY_US), window=np.zeros((0, 6, 2)),
    )  # fmt: skip
    if values is not None:
        record.value_K[:] = values
    return timelines.make_timeline(record, found, drop_repeats)


def row_of(examples, g):
    """Training row g: {field: array without an axis of rows}."""
    batch = examples.spec.empty(1)
    row = {name: array[0] for name, array in batch.items()}
    examples.fill(row, g)
    return row


def batch_of(examples, rows):
    """Training rows as a batch."""
    found = [row_of(examples, g) for g in rows]
    return {name: np.stack([row[name] for row in found]) for name in found[0]}
