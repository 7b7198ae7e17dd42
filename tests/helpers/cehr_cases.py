"""Small cases of CEHR-BERT: a config, a table of made-up codes, records."""

import functools

import numpy as np
from motor_cases import vocabulary_of
from records import make_record

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.cehr_bert import timelines
from ehrwear_jax.models.cehr_bert.config import Config

SMALL = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "time_features": 4, "tokens": 64,
         "context_tokens": 24, "visits": 16, "sites": 6, "static_tokens": 2, "visit_mlp_width": 12,
         "dropout": 0.0, "attention_dropout": 0.0, "target_chunk": 16}  # fmt: skip
IN, OUT, CLINIC = "HOSPITAL_ADMISSION//ER", "HOSPITAL_DISCHARGE//HOME", "CLINIC//eye"


def config_of(**options):
    """A Config of SMALL sizes."""
    return Config(**SMALL | options)


@functools.cache
def table(**options):
    """Of flu, gout, a clinic, a stay, a lab value in two bins, and the static code F."""
    codes = ["flu"] * 4 + ["gout"] * 5 + [IN] * 4 + [OUT] * 4 + [CLINIC] * 3 + ["lab"] * 10 + ["F"]
    value = [None] * 20 + [float(i) for i in range(10)] + [None]
    config = config_of(**{"encounter_codes": ("CLINIC",)} | options)
    return timelines.make_table(vocabulary_of(codes, value, {"flu": ["lung"]}), config)


def record(events, end_day=2000.0, birth_day=-1000.0, **options):
    """The Record of [(day, code) or (day, code, value)], in order; days since 1970."""
    code_id = {code: i for i, code in enumerate(table(**options).vocabulary.codes["code"])}
    found = make_record(
        [round(day * DAY_US) for day, *_ in events], [code_id[code] for _, code, *_ in events], [],
        static=[code_id["F"]], end_us=round(end_day * DAY_US), birth_us=round(birth_day * DAY_US),
        window=np.zeros((0, 6, 2)),
    )  # fmt: skip
    found.value_K[:] = [event[2] if len(event) > 2 else np.nan for event in events]
    return found


def timeline(events, birth_day=-1000.0, **options):
    """Its Timeline."""
    return timelines.make_timeline(record(events, birth_day=birth_day, **options), table(**options))


def part_at(found, day):
    """The Part that is known at a day."""
    stop, is_closed = found.known(round(day * DAY_US))
    return found.part(0, stop, is_closed)


def said(found, day=10_000.0, **options):
    """Names of the tokens that are known at a day, behind the static ones."""
    return [table(**options).names[e] for e in part_at(found, day).entry_K]
