"""Prepare then read back equals the input, for arbitrary cohorts, shards and pieces."""

import math
from datetime import datetime, timedelta

import cohort
import numpy as np
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.data.signals import grid
from ehrwear_jax.data.store import NO_BIRTH
from ehrwear_jax.models import vocabulary

EPOCH = datetime(2020, 1, 1, 0, 30)
CODES = ("LAB//a", "LAB//b", "DX//c", "DX//d", "seen by nobody in training")
LIMITS = {"heart_rate": (25.0, 230.0)}

event = st.tuples(
    st.one_of(st.none(), st.integers(0, 400)),  # hours; none: static
    st.sampled_from(CODES[:4]),
    st.one_of(st.none(), st.integers(-3, 9).map(float)),
    st.sampled_from([None, None, "", " High", "high ", "LOW", "seen once"]),
)
signals = st.lists(st.one_of(st.just(math.nan), st.integers(20, 240).map(float)), min_size=1, max_size=40)
person = st.tuples(
    st.sampled_from(["train", "train", "tuning", "held_out"]),
    st.booleans(),  # is the birth known
    st.lists(event, max_size=8),
    st.one_of(st.none(), st.tuples(st.integers(0, 300), signals)),
)


def write(root, people, n_shards):
    """MEDS and wearable shards of the people, numbered from 1, with odd ids last."""
    rows, recordings = [], []
    for subject, (split, born, events, worn) in enumerate(people, 1):
        if born:
            rows.append((subject, datetime(1960, 1, 1), meds.BIRTH_CODE, None, None))
        for hours, code, value, text in events:
            at = None if hours is None else EPOCH + timedelta(hours=hours)
            rows.append((subject, at, code, value, text))
        if split != "train":
            rows.append((subject, EPOCH, CODES[4], None, None))
        if worn is not None:
            start = EPOCH + timedelta(minutes=30 * worn[0])
            values = np.repeat(np.array(worn[1], np.float32), 30)
            recordings.append((subject, start, 1 / 60, "heart_rate", values, "bpm", None))
    frame = pl.DataFrame(rows, meds.EVENT_SCHEMA, orient="row")
    frame = frame.sort("subject_id", "time", nulls_last=False, maintain_order=True)
    for k in range(n_shards):
        meds.write_shard(root / "meds" / "data" / f"{k}.parquet", frame.filter(pl.col("subject_id") % n_shards == k))
    splits = pl.DataFrame({"subject_id": range(1, len(people) + 1), "split": [p[0] for p in people]})
    codes = pl.DataFrame({"code": [*CODES, meds.BIRTH_CODE], "description": None, "parent_codes": None})
    meds.write_metadata(root / "meds", meds.Metadata("arbitrary", "1", codes, splits))
    wearable.write_channels(
        root / "wearable",
        pl.DataFrame([("heart_rate", "bpm", "", *LIMITS["heart_rate"])], list(wearable.wearable_checks.CHANNEL_SCHEMA),
                     orient="row"),
    )  # fmt: skip
    table = pl.DataFrame(recordings, wearable.ROW_SCHEMA, orient="row")
    for k in range(2):
        wearable.write_shard(root / "wearable" / f"{k}.parquet", table.filter(pl.col("subject_id") % 2 == k))
    return frame, table


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    people=st.lists(person, min_size=1, max_size=7),
    n_shards=st.integers(1, 3),
    rows_per_piece=st.integers(1, 12),
    subjects_per_shard=st.integers(1, 8),
)
def test_what_is_read_back_is_what_went_in(tmp_path_factory, people, n_shards, rows_per_piece, subjects_per_shard):
    root = tmp_path_factory.mktemp("any")
    frame, recordings = write(root, people, n_shards)
    config = PrepareConfig(
        channels=("heart_rate",), step_minutes=30, min_coverage=0.05, min_subjects=1, value_bins=4, min_values=4,
        min_text_subjects=2, date_only_at_day_end=False, rows_per_piece=rows_per_piece,
        subjects_per_shard=subjects_per_shard,
    )  # fmt: skip
    cohort.prepare(root, config)
    records = cohort.open_store(root)
    assert records.index["subject_id"].to_list() == list(range(1, len(people) + 1)) and len(records) == len(people)
    assert records.index["split"].to_list() == [p[0] for p in people]
    names, texts = records.codes["code"].to_list(), records.texts["text"].to_list()
    frequent = {}
    for subject, (_, _, events, _) in enumerate(people, 1):
        for _, code, value, text in events:
            if value is None and text and text.strip():
                frequent.setdefault((code, text.strip().lower()), set()).add(subject)
    frequent = {pair: len(ids) for pair, ids in frequent.items() if len(ids) > 1}
    by_code = [(names[code], text, n) for _, code, text, n in records.texts.iter_rows()]
    assert by_code == [(*pair, n) for pair, n in sorted(frequent.items())]

    for subject in range(1, len(people) + 1):
        record = records[subject - 1]
        mine = frame.filter((pl.col("subject_id") == subject) & (pl.col("code") != meds.BIRTH_CODE))
        born = frame.filter((pl.col("subject_id") == subject) & (pl.col("code") == meds.BIRTH_CODE)).height
        assert (record.birth_us != NO_BIRTH) == bool(born)
        timed = mine["time"].is_not_null()
        for part, codes, values, ids in (
            (mine.filter(~timed), record.static_code_S, record.static_value_S, record.static_text_S),
            (mine.filter(timed), record.code_K, record.value_K, record.text_K),
        ):
            assert [names[k] for k in codes] == part["code"].to_list()
            np.testing.assert_array_equal(values, part["numeric_value"].fill_null(math.nan).to_numpy(), strict=True)
            for code, value, text, text_id in zip(part["code"], values, part["text_value"], ids, strict=True):
                pair = (code, (text or "").strip().lower())
                is_category = math.isnan(value) and pair in frequent
                assert (text_id >= 0) == is_category and (text_id < 0 or texts[text_id] == pair[1])
        np.testing.assert_array_equal(record.time_K, mine.filter(timed)["time"].to_physical())
        worn = recordings.filter(pl.col("subject_id") == subject)
        end, window, _ = grid.window_person(wearable.stretches(worn), specs.window_spec(config), LIMITS)
        np.testing.assert_array_equal(record.window_end_M, end)
        np.testing.assert_array_equal(record.window_MxLxC, window, strict=True)
    check_tokens(records)
    check_manifests(root, frame, people)


def check_tokens(records):
    """Tokens and what the fold notes of people follow from records and vocabulary, event by event."""
    v = vocabulary.of_store(records)
    tokens = {row["token_id"]: row for row in v.tokens.iter_rows(named=True)}
    scale = {row["code"]: (row["value_mean"], row["value_std"]) for row in v.codes.iter_rows(named=True)}
    names, seen, trained = records.codes["code"].to_list(), dict.fromkeys(tokens, 0), {}
    train = [records[i] for i in np.flatnonzero(records.index["split"] == "train")]
    for record in train:
        for code in [*record.static_code_S, *record.code_K]:
            trained[names[code]] = trained.get(names[code], 0) + 1
    for i in range(len(records)):
        record, row = records[i], records.index.row(i, named=True)
        known = [[names[code] in trained for code in codes] for codes in (record.static_code_S, record.code_K)]
        assert (row["known_static"], row["known_events"]) == (sum(known[0]), sum(known[1]))
        share = [trained[names[code]] / sum(trained.values()) for code in record.code_K if names[code] in trained]
        np.testing.assert_allclose(row["rarity"], np.mean(-np.log(share or [1.0])), rtol=1e-5, atol=1e-6)
        static = record.static_code_S, record.static_value_S, record.static_text_S
        for codes, values, ids in (static, (record.code_K, record.value_K, record.text_K)):
            token_N, value_N = v.encode(codes, values, ids)
            for t, got, code, raw, text in zip(token_N, value_N, codes, values, ids, strict=True):
                assert (t >= 0) == (names[code] in trained)
                if t < 0:
                    continue
                seen[t] += row["split"] == "train"
                (mean, std), token = scale[names[code]], tokens[t]
                assert token["code"] == names[code]
                assert (token["bin"] >= 0) == (not math.isnan(raw) and mean is not None)
                assert token["text_id"] in (-1, text) and (token["text_id"] < 0 or math.isnan(raw))
                if token["bin"] >= 0:
                    assert token["low"] < raw <= token["high"]
                    np.testing.assert_allclose(got, np.clip((raw - mean) / std, -5, 5), rtol=1e-5, atol=1e-5)
                else:
                    assert math.isnan(got)
    assert seen == {t: row["count"] for t, row in tokens.items()}


def check_manifests(root, frame, people):
    for folder in ("tables", "records", "fit/all"):
        assert manifest.faults(root / folder, full=True) == []
        assert (root / folder / manifest.NAME).exists()
    n_events = (frame["code"] != meds.BIRTH_CODE).sum()
    for folder in ("records", "fit/all"):
        assert manifest.read(root / folder)["counts"]["events"]["in"] == n_events
    of_text = manifest.read(root / "tables")["counts"]["text results"]
    texts = [value is None and bool((text or "").strip()) for _, _, events, _ in people for *_, value, text in events]
    assert of_text["in"] == sum(texts)
