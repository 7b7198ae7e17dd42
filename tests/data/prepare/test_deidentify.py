"""De-identification: nothing of the ids and dates is left in the output, and everything else is as without it."""

import dataclasses
import hashlib
import hmac
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import cohort
import numpy as np
import polars as pl
import polars.testing
import pytest
import small_run
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ehrwear_jax import config as config_lib
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data import record_bytes, store
from ehrwear_jax.data.formats import meds, meds_checks, wearable
from ehrwear_jax.data.prepare import dataset, deidentify
from ehrwear_jax.data.prepare import events as prepare_events
from ehrwear_jax.data.prepare.deidentify import Deidentifier
from ehrwear_jax.stages import prepare as stage
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.workdir import ABOUT, INPUTS

KEY, OTHER_KEY = b"a secret of sufficient length", b"another secret, as long as that"
FIRST_ID = 730_000_000  # ids that no count or year of the output is by chance
DAY_US = 86_400_000_000


def shifted(**options):
    return Deidentifier(KEY, **{"pseudonymise": True, "shift_days": 364, "whole_weeks": True} | options)


# ------------------------------------------------------------------------------------------------------- the mapping
def test_pseudonyms_are_the_hmac_of_the_id():
    ids = pl.DataFrame({"subject_id": [7, 8, 7]})
    got = Deidentifier(KEY, pseudonymise=True).table(ids)["subject_id"]
    want = {
        i: int.from_bytes(hmac.new(KEY, f"subject:{i}".encode(), hashlib.sha256).digest()[:8], "big") >> 1
        for i in (7, 8)
    }
    assert sorted(got) == sorted([want[7], want[7], want[8]]) and got.is_sorted()
    other = Deidentifier(OTHER_KEY, pseudonymise=True).table(ids)["subject_id"]
    assert not set(got) & set(other) and min(got) > 0


def test_a_collision_is_an_error(monkeypatch):
    monkeypatch.setattr(Deidentifier, "_number", lambda *_: 6)
    with pytest.raises(ValueError, match="two subject ids have the same pseudonym"):
        Deidentifier(KEY, pseudonymise=True).table(pl.DataFrame({"subject_id": [1, 2]}))


@settings(max_examples=30)
@given(reach=st.integers(1, 1000), weeks=st.booleans())
def test_dates_move_by_whole_days_within_reach_and_never_not_at_all(reach, weeks):
    if weeks and reach < 7:
        return
    found = {Deidentifier(KEY, shift_days=reach, whole_weeks=weeks).days(i) for i in range(300)}
    assert 0 not in found and max(map(abs, found)) <= reach
    assert min(found) < 0 < max(found)
    assert not weeks or all(d % 7 == 0 for d in found)


def test_shifts_are_uniform():
    days = np.array([Deidentifier(KEY, shift_days=3).days(i) for i in range(6000)])
    counts = np.array([(days == d).sum() for d in (-3, -2, -1, 1, 2, 3)])
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5, "chi-squared of 5 degrees, p = 0.001"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pseudonymise": True}, "need a secret key of at least 16 bytes: .*EHRWEAR_DEIDENTIFY_KEY"),
        ({"shift_days": 3, "key": b"short"}, "need a secret key"),
        ({"shift_days": 6, "whole_weeks": True, "key": KEY}, "whole weeks need at least 7"),
        ({"shift_days": -1}, "must not be negative"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Deidentifier(**options)


def test_the_key_comes_from_a_file_or_the_environment_and_is_never_shown(tmp_path, monkeypatch):
    (tmp_path / "key").write_bytes(KEY + b"\n")
    config = PrepareConfig(pseudonymise=True, key_file=str(tmp_path / "key"))
    assert deidentify.of(config).key == KEY
    monkeypatch.setenv(deidentify.KEY_VARIABLE, OTHER_KEY.decode())
    assert deidentify.of(dataclasses.replace(config, key_file="")).key == OTHER_KEY
    assert "secret" not in repr(deidentify.of(config)) + json.dumps(deidentify.of(config).settings())
    with pytest.raises(FileNotFoundError, match="there is no file .*nokey"):
        deidentify.of(dataclasses.replace(config, key_file=str(tmp_path / "nokey")))
    assert not deidentify.of(PrepareConfig()).active


def without_births(events):
    """As meds_checks.screen returns it: nothing set aside."""
    aside = meds_checks.screen(events[:0], "x", meds_checks.TimeBounds())[1]
    got, _ = Deidentifier(max_age_years=89).events(events, aside)
    _, births, _ = prepare_events.harmonise_events(
        got.with_columns(numeric_value=pl.lit(None, pl.Float32)), PrepareConfig()
    )
    return got, dict(births.rows())


def people_table(rows):
    table = pl.DataFrame(rows, ["subject_id", "time", "code"], orient="row").cast({"time": pl.Datetime("us")})
    return table.with_columns(text_value=pl.lit(None, pl.String)).sort("subject_id", "time", nulls_last=False)


def test_who_is_above_the_limit_at_the_first_record_gets_a_birth_of_that_age_and_others_keep_theirs():
    first = datetime(2009, 4, 3, 7)
    births = {1: datetime(1905, 2, 11), 2: datetime(1920, 5, 1), 3: datetime(1920, 4, 3), 4: datetime(1920, 4, 2)}
    rows = [(s, t, "MEDS_BIRTH") for s, t in births.items()]
    rows += [(s, first + timedelta(days=d), "A") for s in (*births, 5) for d in (0, 900)] + [(1, None, "GENDER//F")]
    got, kept = without_births(people_table(rows))
    assert kept == births | {1: datetime(1920, 4, 3), 4: datetime(1920, 4, 3)}, (
        "two years and a half later, all are old"
    )
    events = people_table(rows).filter(pl.col("code") != "MEDS_BIRTH")
    assert got.filter(pl.col("code") != "MEDS_BIRTH").equals(events, null_equal=True)


def test_another_future_changes_no_birth_and_known_age_says_nothing_of_death():
    """Old people of whom some die soon; forgetting a birth by the record's end told who lives on."""
    rng = np.random.default_rng(0)
    n, first = 3000, datetime(2015, 1, 1)
    age, lives = rng.uniform(82, 89, n), rng.exponential(1500, n)
    end = np.minimum(lives, 8 * 365)
    births = [(i, (first - timedelta(days=365.25 * age[i])).replace(hour=0, minute=0, second=0, microsecond=0),
               "MEDS_BIRTH") for i in range(n)]  # fmt: skip
    seen = [(i, first + timedelta(days=d), "A") for i in range(n) for d in range(0, 200, 50) if d <= end[i]]
    future = [(i, first + timedelta(days=float(end[i])), "A") for i in range(n)]
    _, now = without_births(people_table(births + seen))
    _, later = without_births(people_table(births + seen + future))
    assert now == later and len(now) == n
    at_risk = np.flatnonzero(end > 200)
    dies = lives[at_risk] < 1000
    known = np.array([later.get(i) is not None for i in at_risk])
    assert roc_auc_score(dies, known) == 0.5
    by_the_end = age[at_risk] + end[at_risk] / 365.25 <= 89
    assert roc_auc_score(dies, by_the_end) > 0.7, "the comparison can fail"


# ------------------------------------------------------------------------------------------------------- the output
def write_raw(root):
    """The small run's inputs with other ids, groups, a bad row of each kind, and a free text."""
    folds = pl.DataFrame(
        {"subject_id": range(1, small_run.N_SUBJECTS + 1), "fold": [i % 2 for i in range(small_run.N_SUBJECTS)]}
    )
    small_run.write_inputs(root, folds.cast({"fold": pl.Int32}))
    for path in root.rglob("*.parquet"):
        table = pl.read_parquet(path)
        if "subject_id" in table.columns:
            table.with_columns(pl.col("subject_id") + FIRST_ID).write_parquet(path)
    ids = pl.Series("subject_id", range(FIRST_ID + 1, FIRST_ID + 1 + small_run.N_SUBJECTS))
    groups = pl.DataFrame({"subject_id": ids, "group_id": ids + 50_000_000})
    groups.write_parquet(root / "raw" / "meds" / "metadata" / "subject_groups.parquet")
    shard = meds.list_shards(root / "raw" / "meds")[0]
    diagnosis = pl.when(pl.col("code") == "DX//I10").then(pl.lit("Left "))
    events = pl.read_parquet(shard).with_columns(text_value=diagnosis)
    first = events["text_value"].is_not_null().arg_max()
    named = pl.when(pl.int_range(pl.len()) == first).then(pl.lit("Mrs Smith called")).otherwise("text_value")
    events = events.with_columns(text_value=named)
    bad = [
        events[-1:].with_columns(pl.col("time") - timedelta(days=300_000), text_value=pl.lit("Mr Smith")),
        events[-1:].with_columns(numeric_value=pl.lit(float("inf"), pl.Float32)),
        events[-1:].with_columns(subject_id=pl.lit(None, pl.Int64)),
    ]
    pl.concat([events[:-1], *bad, events[-1:]]).write_parquet(shard)
    worn = wearable.list_shards(root / "raw" / "wearable")[0]
    rows = pl.read_parquet(worn)
    pl.concat([rows[:1].with_columns(unit=pl.lit("mmHg"), device=pl.lit("serial 4711")), rows]).write_parquet(worn)
    return root


def small_config(root, **options):
    config = small_run.small_config(root)
    config.labels.physiology.update({"measures": ("activity_entropy",), "period_days": (1,), "min_days": 1,
                                     "min_history_days": 0.0})  # fmt: skip
    config.prepare.update({"summaries": ("activity:entropy",), "min_text_subjects": 2})
    config.prepare.update(options)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: plan}: plain, and de-identified by a key, and by another."""
    root = write_raw(tmp_path_factory.mktemp("raw"))
    out, options = {}, {"pseudonymise": True, "shift_days": 364, "shift_whole_weeks": True}
    for name, key in (("plain", None), ("one", KEY), ("again", KEY), ("other", OTHER_KEY)):
        out[name] = tmp_path_factory.mktemp("run") / "run"
        config = small_config(root)
        if key:
            (out[name].parent / "key").write_bytes(key)
            config = small_config(root, key_file=str(out[name].parent / "key"), **options)
        config_lib.check(config_lib.parse(config))
        out[name] = small_run.plan_of(config, out[name])
        stage.run(out[name])
    return out


@pytest.fixture(scope="module")
def root(runs):
    """Folder of the raw data."""
    return Path(runs["plain"].config.data.labels_dir).parent


def tables_of(folder):
    """Every table of the output, and its text files as they are."""
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix == ".parquet":
            yield path, pl.read_parquet(path)
        elif path.suffix in (".csv", ".json"):
            yield path, path.read_text()


def place(plan, path):
    """A path of the output without the digests of the artifacts."""
    kind, name, *rest = path.relative_to(plan.workdir.root).parts
    return (kind, *(re.sub("-[0-9a-f]{8}$", "", part) for part in (name, *rest)))


def events_of(plan):
    tables = [pl.read_parquet(p) for p in sorted((plan.tables.folder / "events").glob("*.parquet"))]
    return pl.concat(tables)


def persons(plan):
    """{subject: decoded record}."""
    index = pl.read_parquet(plan.records.folder / "index.parquet")
    out = {}
    for path in sorted(plan.records.folder.glob("*.array_record")):
        out |= dict(enumerate((record_bytes.decode(r) for r in ArrayRecordReader(str(path)).read_all()), len(out)))
    return {s: out[p] for s, p in index.select("subject_id", "position").iter_rows()}


def test_no_id_and_no_date_of_a_person_is_left(runs, root):
    deid = shifted()
    ids = set(range(FIRST_ID, FIRST_ID + 100)) | set(range(FIRST_ID + 50_000_000, FIRST_ID + 50_000_100))
    original = {deid._pseudonyms(pl.Series([i]))[i]: i for i in sorted(ids)}
    times = {}
    raw = root / "raw"
    sources = *meds.list_shards(raw / "meds"), *wearable.list_shards(raw / "wearable")
    for path in (*sources, *(root / "labels").glob("*.parquet")):
        table = pl.read_parquet(path)
        for column in (c for c, t in table.schema.items() if isinstance(t, pl.Datetime)):
            for subject, time in table.select("subject_id", column).drop_nulls().iter_rows():
                times.setdefault(subject, set()).add(time)
    n_tables, n_times = 0, 0
    one = runs["one"].workdir.root
    for path, table in tables_of(one):
        if isinstance(table, str):
            assert not any(str(i) in table for i in ids), path
            continue
        n_tables += 1
        for column, dtype in table.schema.items():
            if dtype.is_integer():
                assert not ids & set(table[column].to_list()), (path, column)
            elif dtype == pl.String:
                text = " ".join(table[column].drop_nulls())
                assert not any(str(i) in text for i in ids) and "Smith" not in text and "4711" not in text, (
                    path,
                    column,
                )
            elif isinstance(dtype, pl.Datetime):
                for subject, time in table.select("subject_id", column).drop_nulls().iter_rows():
                    assert time not in times[original[subject]], (path, column)
                    n_times += 1

    def times_in(name):
        found = tables_of(runs[name].workdir.root)
        tables = {place(runs[name], p): t for p, t in found if not isinstance(t, str)}
        return {p: [t[c].count() for c, d in t.schema.items() if isinstance(d, pl.Datetime)] for p, t in tables.items()}

    plain, changed = times_in("plain"), times_in("one")
    assert len(plain) > 15 and n_tables == len(changed) and n_times == sum(map(sum, changed.values()))
    kept = [p for p in plain if "quarantine" not in p]  # a time of nobody is forgotten there
    assert [plain[p] for p in kept] == [changed[p] for p in kept], "no time of the plain output is lost"
    everything = b"".join(p.read_bytes() for p in one.rglob("*") if p.is_file())
    for i in ids:
        assert str(i).encode() not in everything and int(i).to_bytes(8, "little") not in everything
    for subject, record in persons(runs["one"]).items():
        us = {int(np.datetime64(t, "us").astype(np.int64)) for t in times.get(original[subject], ())}
        for name in ("time_us", "window_end_us"):
            assert not us & set(record[name].tolist())


def test_the_quarantine_keeps_the_reason_and_says_nothing_of_the_person(runs):
    plain, one = (runs[k].tables.folder / stage.QUARANTINE for k in ("plain", "one"))
    assert [p.name for p in sorted(plain.iterdir())] == [p.name for p in sorted(one.iterdir())]
    for path in sorted(plain.iterdir()):
        before, after = pl.read_parquet(path), pl.read_parquet(one / path.name)
        kept = ["row", "column", "reason"]
        assert before.select(kept).sort(kept).equals(after.select(kept).sort(kept))
        nobody = after.filter(pl.col("subject_id").is_null())
        assert nobody.select(c for c in after.columns if after[c].dtype == pl.Datetime("us")).null_count().row(0) == (
            (nobody.height,)
        )


def test_a_text_is_written_only_where_several_people_have_it(runs):
    for name in ("plain", "one"):
        texts = pl.read_parquet(runs[name].records.folder / "texts.parquet")
        assert texts["text"].to_list() == ["left"] and texts["n_subjects"][0] >= 2
        assert set(events_of(runs[name])["text_value"].drop_nulls()) == {"left"}
        for artifact in (runs[name].tables, runs[name].records, runs[name].fit("all")):
            for path, table in tables_of(artifact.folder):
                if stage.QUARANTINE in path.parts:  # as it was read, without a key
                    continue
                said = table if isinstance(table, str) else " ".join(map(str, table.select(pl.col(pl.String)).rows()))
                assert "smith" not in said.lower(), path
    (step,) = [c for c in stage.counts(runs["one"]) if c["step"] == "events with a text as their only result"]
    assert step["n"] >= 2 and step["dropped"] == 1


def test_everything_else_is_as_without_it_but_for_one_shift_a_person(runs):
    deid = shifted()
    plain, one = persons(runs["plain"]), persons(runs["one"])
    assert len(one) == len(plain) == small_run.N_SUBJECTS
    for subject, record in plain.items():
        mine, us = one[deid._pseudonyms(pl.Series([subject]))[subject]], deid.days(subject) * DAY_US
        for name, array in record.items():
            if name.endswith("_us"):
                moved = np.where(array == store.NO_BIRTH, array, array + us)
                np.testing.assert_array_equal(mine[name], moved, err_msg=name)
            else:
                np.testing.assert_array_equal(mine[name], array, err_msg=name)
    for name in ("code_statistics", "text_statistics"):
        a, b = (pl.read_parquet(runs[k].fit("all").folder / f"{name}.parquet") for k in ("plain", "one"))
        polars.testing.assert_frame_equal(a, b)
    paths = [runs[k].fit("all").folder / "signal_statistics.json" for k in ("plain", "one")]
    a, b = (json.loads(path.read_text()) for path in paths)
    for name in a:  # sums in another order
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6)
    assert stage.counts(runs["plain"]) == stage.counts(runs["one"])


def test_splits_groups_folds_and_labels_follow_their_person(runs, root):
    deid = shifted()
    plain, one = (pl.read_parquet(runs[k].tables.folder / "subjects.parquet") for k in ("plain", "one"))
    wanted = deid.table(plain)
    assert one.select(wanted.columns).equals(wanted)
    assert one["group_id"].n_unique() == one.height and not set(one["group_id"]) & set(one["subject_id"])
    for task in ("readmission", "activity_entropy_1d"):
        before, after = (Labels(runs[k]).table(task) for k in ("plain", "one"))
        assert not Labels(runs["one"]).files(task)[0].is_relative_to(root)
        assert after.equals(deid.table(before).sort("subject_id", "prediction_time")) and after.height


def test_the_same_key_gives_the_same_bytes_and_another_key_other_people(runs):
    def files(name):  # what artifacts are made of names the file of the key
        found = (p for p in runs[name].workdir.root.rglob("*") if p.is_file() and p.name not in (ABOUT, INPUTS))
        return {place(runs[name], p): p.read_bytes() for p in found}

    assert files("one") == files("again")
    one, other = (set(events_of(runs[k])["subject_id"]) for k in ("one", "other"))
    assert len(one) == len(other) and not one & other


def test_tables_of_two_keys_are_never_mixed(runs, tmp_path, monkeypatch):
    root = cohort.write_cohort(tmp_path / "raw", 12, wear_days=1)
    options = {"channels": cohort.CHANNELS, "pseudonymise": True, "shift_days": 10}
    monkeypatch.setenv(deidentify.KEY_VARIABLE, KEY.decode())
    config = PrepareConfig(**options)
    dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / "out", config)
    dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / "out", config)  # the same again
    with pytest.raises(ValueError, match=r"another de-identification \(pseudonymise, shift_days, key\)"):
        dataset.prepare_tables(root / "meds", None, tmp_path / "out", PrepareConfig())
    monkeypatch.setenv(deidentify.KEY_VARIABLE, OTHER_KEY.decode())
    with pytest.raises(ValueError, match=r"out: holds tables with another de-identification \(key\)"):
        dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / "out", config)
    dataset.prepare_tables(root / "meds", None, tmp_path / "plain", PrepareConfig())
    with pytest.raises(ValueError, match="another de-identification"):
        dataset.prepare_tables(root / "meds", None, tmp_path / "plain", config)


def test_intervals_between_modalities_stay(runs):
    """A person's wearables, events and labels move together."""
    deid = shifted()
    plain, one = persons(runs["plain"]), persons(runs["one"])
    both = [s for s, r in plain.items() if len(r["time_us"]) and len(r["window_end_us"])]
    assert both
    for s in both:
        a, b = plain[s], one[deid._pseudonyms(pl.Series([s]))[s]]
        assert b["time_us"][0] - b["window_end_us"][0] == a["time_us"][0] - a["window_end_us"][0]
        assert (b["time_us"][0] - a["time_us"][0]) % (7 * DAY_US) == 0


def test_no_file_keeps_the_order_of_the_ids_and_windows_stay_with_their_people(runs):
    deid = shifted()
    plain, one = (runs[k].tables.folder for k in ("plain", "one"))
    n_moved = 0
    for path in sorted((plain / "wearers").glob("*.parquet")):
        before, after = pl.read_parquet(path), pl.read_parquet(one / "wearers" / path.name)
        new_id = deid._pseudonyms(before["subject_id"])
        assert after["subject_id"].is_sorted()
        n_moved += [new_id[i] for i in before["subject_id"]] != after["subject_id"].to_list()
        place = {i: (first, n) for i, first, n in after.iter_rows()}
        frame = pl.read_parquet(one / "windows" / path.name)["subject_id"]
        for folder in ("window_values", "wearers"):
            a, b = (np.load(t / folder / f"{path.stem}.npy") for t in (plain, one))
            assert len(a) == len(b) == len(frame)
            for subject, first, n in before.iter_rows():
                there, n_there = place[new_id[subject]]
                mine, theirs = a[first : first + n], b[there : there + n_there]
                assert n == n_there and (frame[there : there + n] == new_id[subject]).all()
                if folder == "window_values":
                    np.testing.assert_array_equal(theirs, mine)
                else:
                    np.testing.assert_array_equal(theirs["derived"], mine["derived"])
                    np.testing.assert_array_equal(np.diff(theirs["end"]), np.diff(mine["end"]))
    assert n_moved, "some file's people stand in another order"


def test_it_is_refused_where_the_raw_data_would_lie_beside_it():
    config = config_lib.base()
    config.data.source = "synthetic"
    config.prepare.max_age_years = 89.0
    with pytest.raises(ValueError, match="de-identification, which config.data.source 'synthetic' does not have"):
        config_lib.check(config_lib.parse(config))
