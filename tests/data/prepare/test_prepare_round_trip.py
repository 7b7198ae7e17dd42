"""Prepare then read back equals the input, for arbitrary cohorts, shards and pieces."""

import json
import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data import store as records
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.prepare import dataset as prepare
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.data.prepare.record_shards import NO_BIRTH
from ehrwear_jax.data.signals import grid
from ehrwear_jax.models.joint import vocabulary as tokenizer

EPOCH = datetime(2020, 1, 1, 0, 30)
CODES = ("LAB//a", "LAB//b", "DX//c", "DX//d", "seen by nobody in training")
LIMITS = {"heart_rate": (25.0, 230.0)}

event = st.tuples(
    st.one_of(st.none(), st.integers(0, 400)),  # hours; none: static
    st.sampled_from(CODES[:4]),
    st.one_of(st.none(), st.integers(-3, 9).map(float)),
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
            rows.append((subject, datetime(1960, 1, 1), meds.BIRTH_CODE, None))
        for hours, code, value in events:
            at = None if hours is None else EPOCH + timedelta(hours=hours)
            rows.append((subject, at, code, value))
        if split != "train":
            rows.append((subject, EPOCH, CODES[4], None))
        if worn is not None:
            start = EPOCH + timedelta(minutes=30 * worn[0])
            values = np.repeat(np.array(worn[1], np.float32), 30)
            recordings.append((subject, start, 1 / 60, "heart_rate", values, "bpm", None))
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    frame = pl.DataFrame(rows, schema, orient="row")
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
        channels=("heart_rate",), step_minutes=30, min_coverage=0.05, min_subjects=1, value_bins=3, min_values=4,
        date_only_at_day_end=False, rows_per_piece=rows_per_piece, subjects_per_shard=subjects_per_shard,
    )  # fmt: skip
    prepare.prepare_tables(root / "meds", root / "wearable", root / "tables", config)
    prepare.prepare_split(root / "tables", meds.read_codes(root / "meds"), root / "all", config)

    meta = json.loads((root / "all" / "meta.json").read_text())
    index = pl.read_parquet(root / "all" / "index.parquet")
    vocabulary = tokenizer.Vocabulary.load(root / "all")
    tokens = {row["token_id"]: row for row in vocabulary.tokens.iter_rows(named=True)}
    scale = {row["code"]: (row["value_mean"], row["value_std"]) for row in vocabulary.codes.iter_rows(named=True)}
    read = []
    for name in meta["shards"]:
        reader = ArrayRecordReader(str(root / "all" / "records" / name))
        read += [records.decode(data) for data in reader.read_all()]
        reader.close()
    assert index["subject_id"].to_list() == list(range(1, len(people) + 1)) and len(read) == len(people)
    trained = set()
    for subject, (split, _, events, _) in enumerate(people, 1):
        trained |= {code for _, code, _ in events} if split == "train" else set()
        mine = frame.filter(pl.col("subject_id") == subject)
        assert index["split"][subject - 1] == split
        assert (read[subject - 1]["birth_us"] != NO_BIRTH) == (meds.BIRTH_CODE in mine["code"].to_list())
    assert set(scale) == trained

    total = sum(tokens[t]["count"] for t in tokens)
    for subject, record in enumerate(read, 1):
        mine = frame.filter((pl.col("subject_id") == subject) & (pl.col("code") != meds.BIRTH_CODE))
        known = mine.filter(pl.col("code").is_in(list(trained)))
        assert index["n_unknown"][subject - 1] == mine.height - known.height
        timed = known["time"].is_not_null()
        for part, token, value in ((known.filter(~timed), "static_token", "static_value"),
                                   (known.filter(timed), "token", "value")):  # fmt: skip
            assert [tokens[t]["code"] for t in record[token]] == part["code"].to_list()
            for t, got, code, raw in zip(record[token], record[value], part["code"], part["numeric_value"],
                                         strict=True):  # fmt: skip
                mean, std = scale[code]
                assert (tokens[t]["bin"] >= 0) == (raw is not None and mean is not None)
                if tokens[t]["bin"] >= 0:
                    assert tokens[t]["low"] < raw <= tokens[t]["high"]
                    np.testing.assert_allclose(got, np.clip((raw - mean) / std, -5, 5), rtol=1e-5, atol=1e-5)
                else:
                    assert math.isnan(got)
        np.testing.assert_array_equal(record["time_us"], known.filter(timed)["time"].to_physical())
        surprise = [-math.log(max(tokens[t]["count"], 1) / max(total, 1)) for t in record["token"]]
        np.testing.assert_allclose(index["rarity"][subject - 1], np.mean(surprise or [0.0]), rtol=1e-5, atol=1e-6)
        worn = recordings.filter(pl.col("subject_id") == subject)
        end, window, _ = grid.window_person(wearable.stretches(worn), specs.window_spec(config), LIMITS)
        np.testing.assert_array_equal(record["window_end_us"], end)
        want = np.clip((window - np.float32(meta["mean"])) / np.float32(meta["std"]), -10, 10)
        np.testing.assert_array_equal(record["window"], want.astype(np.float16))
    for folder in ("tables", "all"):
        assert manifest.faults(root / folder, full=True) == []
    assert manifest.read(root / "all")["counts"]["events"]["in"] == (frame["code"] != meds.BIRTH_CODE).sum()
