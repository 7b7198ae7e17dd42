"""What is fitted on codes, texts and people: the same in memory and by shards, and as a slow loop finds it."""

import json
import shutil

import cohort
import numpy as np
import polars as pl
import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import code_counts, code_table, dataset, signal_statistics, statistics, workers
from ehrwear_jax.data.prepare.texts import TEXTS

CONFIG = PrepareConfig(cohort.CHANNELS, ("activity",), min_subjects=5, min_text_subjects=2, subjects_per_shard=7)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Diagnoses carry a side as text; one of two laboratory codes is rare."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("cohort"), 40, wear_days=1)
    sides = pl.col("subject_id").replace_strict({1: "Left", 2: "left ", 3: "right"}, default="both")
    for path in meds.list_shards(root / "meds"):
        events = meds.read_shard(path)
        text = pl.when(pl.col("code").str.starts_with("DX")).then(sides)
        rare = pl.when((pl.col("code") == "LAB//hdl") & (pl.col("subject_id") % 4 != 1)).then(pl.lit("LAB//other"))
        meds.write_shard(path, events.with_columns(text.alias("text_value"), rare.otherwise("code").alias("code")))
    return cohort.prepare(root, CONFIG)


def events_of(root, *splits):
    events = pl.concat([pl.read_parquet(p) for p in sorted((root / "tables" / "events").glob("*.parquet"))])
    subjects = pl.read_parquet(root / "fit" / "all" / "subjects.parquet")
    mine = subjects.filter(pl.col("split").is_in(splits)) if splits else subjects
    return events.join(mine, on="subject_id", how="semi", maintain_order="left")


def fitted(root, name):
    return pl.read_parquet(root / "fit" / "all" / f"{name}.parquet")


def test_shards_fit_what_memory_fits(root):
    codes, texts = code_table.tables_of(root / "records")
    events = code_table.event_ids(events_of(root, "train"), codes, texts)
    of_code, of_text = statistics.fit_in_memory(events, codes, texts, CONFIG.min_subjects)
    assert fitted(root, "code_statistics").equals(of_code, null_equal=True)
    assert of_code.schema == pl.Schema(statistics.CODE_STATISTICS)
    assert fitted(root, "text_statistics").equals(of_text) and of_text.height == texts.height == 3
    assert of_code["code_id"].to_list() == codes["code_id"].to_list()


def test_counts_are_of_training_people(root):
    events, table = events_of(root, "train"), fitted(root, "code_statistics")
    for row in table.iter_rows(named=True):
        mine = events.filter(pl.col("code") == row["code"])
        assert (row["count"], row["subjects"]) == (mine.height, mine["subject_id"].n_unique())
        assert row["n_values"] == mine["numeric_value"].count()
        assert (row["mean"] is None) == (row["n_values"] == 0)
    texts = pl.read_parquet(root / "records" / "texts.parquet").join(fitted(root, "text_statistics"), on="text_id")
    names = pl.read_parquet(root / "records" / "codes.parquet")["code"].to_list()
    for row in texts.iter_rows(named=True):
        mine = events.filter((pl.col("code") == names[row["code_id"]]) & (pl.col("text_value") == row["text"]))
        assert (row["count"], row["subjects"]) == (mine.height, mine["subject_id"].n_unique())
    assert set(texts["text"]) == {"both", "left"}, "one person has the right"


def test_an_alias_is_the_nearest_ancestor_with_enough_people():
    parents = {"a1": ["a"], "a2": ["a"], "b1": ["b"], "a": ["top"]}
    described = pl.DataFrame({"code": [*parents], "description": "", "parent_codes": [*parents.values()]})
    codes = code_table.make_codes(["a1", "a2", "b1", "own"], described, {}, False)
    none = {"numeric_value": pl.lit(None, pl.Float32), "text_value": pl.lit(None, pl.String)}
    texts = code_table.make_texts(pl.DataFrame(schema=TEXTS), codes)
    named = codes["code"].to_list()

    def alias(rows, min_subjects=3):
        events = pl.DataFrame(rows, ["subject_id", "code"], orient="row").with_columns(**none)
        table, _ = statistics.fit_in_memory(code_table.event_ids(events, codes, texts), codes, texts, min_subjects)
        return {named[i]: None if a is None else named[a] for i, a in table.select("code_id", "alias").rows()}

    rows = [(1, "a1"), (2, "a1"), (2, "a2"), (3, "a2"), (1, "b1"), (2, "b1"), *((s, "own") for s in (1, 2, 3))]
    got = alias(rows)
    assert {k: got[k] for k in ("a1", "a2", "b1", "own")} == {"a1": "a", "a2": "a", "b1": None, "own": "own"}
    assert got["a"] == "a" and got["top"] is None and got["b"] is None
    assert alias([*rows, (3, "a1")])["a1"] == "a1", "enough of its own"
    assert alias(rows[:3] + rows[6:])["a1"] is None, "two people have the ancestor, however often"
    unseen = alias([(s, "own") for s in (1, 2, 3)])
    assert unseen["a1"] is None and unseen["own"] == "own"


def test_people_have_the_events_of_frequent_codes_and_their_rarity(root):
    table, everybody = fitted(root, "code_statistics"), events_of(root)
    code_of, people = table["code"].to_list(), fitted(root, "subject_statistics")
    alias = {
        row["code"]: None if row["alias"] is None else code_of[row["alias"]] for row in table.iter_rows(named=True)
    }
    assert None in alias.values() and any(a for a in alias.values())
    train = [alias[c] for c in events_of(root, "train")["code"] if alias[c]]
    share = {a: train.count(a) / len(train) for a in set(train)}
    for row in people.iter_rows(named=True):
        mine = everybody.filter(pl.col("subject_id") == row["subject_id"])
        known = mine.filter(pl.col("code").is_in([c for c, a in alias.items() if a]))
        assert row["known_static"] == known["time"].null_count()
        timed = [alias[c] for c in known.filter(pl.col("time").is_not_null())["code"]]
        assert row["known_events"] == len(timed)
        assert row["rarity"] == pytest.approx(np.mean([-np.log(share[a]) for a in timed] or [0.0]), rel=1e-5)
    assert people["rarity"].n_unique() > 10


def test_signal_statistics_follow_the_log_channels(root):
    meta = json.loads((root / "fit" / "all" / "signal_statistics.json").read_text())
    records = cohort.open_store(root, "train")
    flat = np.concatenate([records[i].window_MxLxC.reshape(-1, 2) for i in range(len(records))]).astype(np.float64)
    flat[:, 1] = np.log1p(flat[:, 1])
    np.testing.assert_allclose(meta["mean"], np.nanmean(flat, axis=0), rtol=1e-6)
    np.testing.assert_allclose(meta["std"], np.nanstd(flat, axis=0), rtol=1e-6)
    np.testing.assert_allclose(records.scales.mean_C, meta["mean"], rtol=1e-6)


def test_an_artefact_of_a_signal_does_not_make_the_rest_alike(root, tmp_path):
    """Steps of a person's heart rate at 1e7: they count as at the fence, in the number of files there are."""
    tables, outs = tmp_path / "tables", []
    shutil.copytree(root / "tables", tables)
    path = sorted((tables / "window_values").glob("*.npy"))[0]
    values = np.load(path, mmap_mode="r+")
    wearers = pl.read_parquet(tables / "wearers" / f"{path.stem}.parquet")
    train = pl.read_parquet(tables / "subjects.parquet").filter(pl.col("split") == "train")["subject_id"]
    first = wearers.filter(pl.col("subject_id").is_in(train.implode()))["first_row"][0]
    n = int(np.isfinite(values[first, :, 0]).sum())
    assert n > 2
    values[first, :, 0] = np.where(np.isfinite(values[first, :, 0]), 1e7, np.nan)
    values.flush()
    for fence in (10.0, 0.0):
        outs.append(tmp_path / f"fit{fence:g}")
        outs[-1].mkdir()
        shutil.copy(root / "fit" / "all" / "subjects.parquet", outs[-1])
    configs = (PrepareConfig(**vars(CONFIG) | {"value_fence": fence}) for fence in (10.0, 0.0))
    with workers.open_pool(CONFIG) as pool:
        found, spoiled = (
            signal_statistics.fit_signals(tables, out, config, pool)
            for out, config in zip(outs, configs, strict=True)
        )
    plain = json.loads((root / "fit" / "all" / "signal_statistics.json").read_text())
    assert plain["n_beyond"] == [0, 0] and found["n_beyond"] == [n, 0] and spoiled["n_beyond"] == [0, 0]
    assert found["n_values"] == plain["n_values"]
    assert found["std"][0] < 3 * plain["std"][0] and spoiled["std"][0] > 1000 * plain["std"][0]
    assert abs(found["mean"][0] - plain["mean"][0]) < plain["std"][0]
    assert [found[k][1] for k in ("mean", "std")] == [plain[k][1] for k in ("mean", "std")]


def test_options_of_the_tokens_change_neither_records_nor_statistics(root, tmp_path):
    """value_bins and min_values are the family's; cuts of any number of bins come from the same permilles."""
    other = PrepareConfig(**vars(CONFIG) | {"value_bins": 5, "min_values": 3})
    out = tmp_path / "fit"
    dataset.fit_split(root / "tables", root / "records", out, other)
    for name in ("code_statistics.parquet", "text_statistics.parquet", "subject_statistics.parquet"):
        assert (out / name).read_bytes() == (root / "fit" / "all" / name).read_bytes()
    row = fitted(root, "code_statistics").filter(pl.col("code") == "LAB//glucose").row(0, named=True)
    x = events_of(root, "train").filter(pl.col("code") == "LAB//glucose")["numeric_value"].cast(pl.Float64)
    cuts, _ = code_counts.bin_cuts(row["quantile"], row["up_to"], row["n_values"], 5)
    assert cuts == sorted({x.quantile(q / 5, "nearest") for q in range(1, 5)})
