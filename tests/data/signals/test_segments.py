"""Segments: what is cut, how it is resampled, filtered and chosen, and its way through prepare to a batch."""

import json
import shutil

import cohort
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_rows import examples_of, row_of
from pulse_wave import simulated
from raw_cohort import CONTEXT, PPG, RAW, sine, wave, with_waves
from scipy.signal import butter, resample_poly, sosfreqz

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentSpec
from ehrwear_jax.data import record_bytes
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.data.signals import grid, segments
from ehrwear_jax.models.joint.batch import RAW as RAW_FIELDS

MINUTE_US = 60_000_000
SPEC = grid.WindowSpec(("activity",), 1, 5)
END = np.array([3_600_000_000, 7_200_000_000])
FULL = np.ones((2, SPEC.steps, 1), np.float32)
LIMITS = {"ppg": (-10.0, 10.0)}


def cut(rows, values=FULL, **options):
    spec = SegmentSpec(("ppg",), **options)
    rows = [(*row, None) if len(row) == 4 else row for row in rows]
    return segments.of_person(rows, END, values, SPEC, LIMITS, spec)


def steps(found):
    """The step of its window in which each segment begins."""
    return (found["start"] % 3_600_000_000 // (5 * MINUTE_US)).tolist()


# ------------------------------------------------------------------------------------------------------- one person
@pytest.mark.parametrize("rate_hz", [12.5, 25.0, 64.0, 100.0, 130.0])
def test_a_sine_keeps_its_samples_and_is_put_where_it_was_recorded(rate_hz):
    start_us = 62 * MINUTE_US  # second window, step 0; the step ends after three minutes
    found, dropped = cut([(start_us, rate_hz, "ppg", sine(1.3, rate_hz, 60))])
    assert found["start"].tolist() == [start_us, start_us + 30_000_000] and not sum(dropped.values())
    for k, values_Sx1 in enumerate(found["values"]):
        want = sine(1.3, 25.0, 30, 2 * np.pi * 1.3 * 30 * k)
        got = values_Sx1[:, 0].astype(float) * want.std()  # standardised: mean zero up to the part of a period
        inside = slice(20, -20)  # the filter knows nothing beyond
        np.testing.assert_allclose(got[inside], (want - want.mean())[inside], atol=0.02)
        assert values_Sx1.astype(float).mean() == pytest.approx(0, abs=1e-3)
        assert values_Sx1.astype(float).std() == pytest.approx(1, abs=1e-3)


def test_what_the_rate_cannot_hold_is_filtered_and_does_not_come_back_as_another_frequency():
    slow, fast = sine(1.0, 100.0, 30), sine(23.0, 100.0, 30)  # 23 Hz sampled at 25 would look like 2 Hz
    (both,), (alone,) = (cut([(0, 100.0, "ppg", x)])[0]["values"][..., 0].astype(float) for x in (slow + fast, slow))
    assert np.abs(both - alone)[20:-20].max() < 0.02
    naive = (slow + fast)[::4]
    assert np.abs(naive / naive.std() - alone).max() > 0.5, "the test can fail"


def test_resampling_is_that_of_scipy_and_gaps_stay_gaps():
    wave = sine(1.1, 50.0, 30)
    holed = np.where((np.arange(1500) >= 600) & (np.arange(1500) < 700), np.nan, wave)
    (got,) = cut([(0, 50.0, "ppg", holed)])[0]["values"][..., 0].astype(float)
    position, seen = np.arange(1500), np.isfinite(holed)
    want = resample_poly(np.interp(position, position[seen], wave[seen]), 1, 2, padtype="line")
    gone = ~seen[::2]
    np.testing.assert_array_equal(np.isnan(got), gone)
    want = (want - want[~gone].mean()) / want[~gone].std()
    np.testing.assert_allclose(got[~gone], want[~gone], atol=2e-3)


def test_no_segment_crosses_a_step_and_none_knows_what_comes_after_it():
    wave = simulated(25.0, 600)[0]
    start_us = 4 * MINUTE_US + 10_000_000
    found, _ = cut([(start_us, 25.0, "ppg", wave)], per_window=100)
    # 50 s of step 0: one; 300 s of step 1: ten; 250 s of step 2: eight
    assert steps(found) == [0] + [1] * 10 + [2] * 8
    later = wave.copy()
    later[25 * 50 :] = np.random.default_rng(0).normal(size=len(wave) - 25 * 50)  # after the end of step 0
    np.testing.assert_array_equal(cut([(start_us, 25.0, "ppg", later)], per_window=100)[0][0], found[0])


def noisy_pieces(noise, apart_us):
    rng, piece = np.random.default_rng(0), simulated(25.0, 30)[0]
    return [
        (k * apart_us, 25.0, "ppg", np.clip(piece + scale * rng.normal(size=750), -9, 9))
        for k, scale in enumerate(noise)
    ]


def test_the_best_of_a_step_are_kept_in_order_of_time_and_ties_go_to_the_earlier():
    rows = noisy_pieces([3.0, 0.02, 1.0, 0.3, 0.0, 0.0], 30_000_000)  # all in the first step
    everything, _ = cut(rows, per_window=6)
    assert np.argsort(-everything["score"], kind="stable").tolist()[:3] == [4, 5, 1]
    for n in range(1, 6):
        kept, dropped = cut(rows, per_window=n)
        best = np.sort(np.argsort(-everything["score"], kind="stable")[:n])
        np.testing.assert_array_equal(kept, everything[best])
        assert dropped["beyond the room"] == 6 - n
    assert 0.9 < everything["score"].max() <= 1 and everything["score"].min() < 0.5
    covered = cut(rows, per_window=1, score="coverage")[0]
    np.testing.assert_array_equal(covered["values"], everything["values"][:1])  # all alike: the first


@settings(max_examples=12)
@given(st.permutations([3.0, 0.02, 1.0, 0.3, 0.0, 2.0]), st.integers(1, 6))
def test_which_steps_have_room_does_not_depend_on_the_signal(noise, n):
    """Else what is kept in one patch would tell of another that a mask hides."""
    even, uneven = (cut(noisy_pieces(x, 6 * MINUTE_US), per_window=n)[0] for x in ([0.1] * 6, noise))
    assert len(even) == n
    assert steps(even) == steps(uneven)
    # a step gives up its own worse ones first
    more, _ = cut([*noisy_pieces(noise, 6 * MINUTE_US), *noisy_pieces([0.0] * 2, 31_000_000)], per_window=6)
    assert len(set(steps(more))) == 6


def test_rows_that_go_on_where_another_ended_are_one_recording():
    wave = simulated(25.0, 60)[0]
    whole, _ = cut([(0, 25.0, "ppg", wave)])
    pieces, _ = cut([(k * 10_000_000, 25.0, "ppg", wave[250 * k : 250 * (k + 1)]) for k in range(6)])
    np.testing.assert_array_equal(pieces, whole)
    assert len(whole) == 2


def test_what_is_left_out_is_counted():
    wave = simulated(25.0, 30)[0]
    nothing = np.where(np.arange(750) < 400, np.nan, wave)
    values = FULL.copy()
    values[0, 1] = np.nan
    rows = [(0, 25.0, "ppg", nothing), (5 * MINUTE_US, 25.0, "ppg", wave), (600 * MINUTE_US, 25.0, "ppg", wave)]
    found, dropped = cut([*rows, (15 * MINUTE_US, 25.0, "ppg", np.full(750, 11.0))], values)
    assert len(found) == 0 and found.dtype == segments.dtype(SegmentSpec(("ppg",)))
    assert dropped == {"outside": 2, "with gaps": 2, "noisy": 0, "beyond the room": 0}
    assert len(cut([], FULL)[0]) == 0


def test_channels_lie_side_by_side_and_devices_are_not_mixed():
    green, red = sine(1.0, 25.0, 30), sine(2.0, 50.0, 20)
    spec = SegmentSpec(("ppg", "red"))
    rows = [
        (0, 25.0, "ppg", green, "a"),
        (0, 25.0, "ppg", np.full(500, 5.0), "b"),
        (0, 50.0, "red", red, "a"),
    ]
    found, _ = segments.of_person(rows, END, FULL, SPEC, LIMITS, spec)
    assert found["values"].shape == (1, 750, 2)
    seen = np.isfinite(found["values"][0])
    assert seen[:, 0].all() and seen[:500, 1].all() and not seen[500:, 1].any()
    np.testing.assert_allclose(found["values"][0, :, 0].astype(float), green / green.std(), atol=2e-3)


def test_segments_longer_than_a_step_lie_in_as_many_steps_as_divide_the_window():
    """Seven minutes take cells of two steps of five; none crosses a cell, and the grid counts in the whole cell."""
    spec = SegmentSpec(("ppg",), seconds=420.0, rate_hz=4.0, score="coverage", per_window=99)
    assert segments.cell_steps(spec, SPEC) == 2 and segments.cell_steps(SegmentSpec(("ppg",), seconds=901.0), SPEC) == 4
    values = FULL.copy()
    values[0, 1] = np.nan  # the second step of the first cell
    values[0, 2:4] = np.nan  # all of the second cell
    wave = np.random.default_rng(0).normal(size=4 * 3600)
    rows = [(0, 4.0, "ppg", wave, None)]
    found, dropped = segments.of_person(rows, END, values, SPEC, LIMITS, spec)
    cells_us = np.arange(6) * 10 * MINUTE_US
    assert found["start"].tolist() == np.delete(cells_us, 1).tolist() and dropped["outside"] == 1
    assert found["values"].shape == (5, 1680, 1)
    with pytest.raises(ValueError, match="seconds is 3601; a segment must fit into a window"):
        segments.cell_steps(SegmentSpec(("ppg",), seconds=3601.0), SPEC)


def test_a_band_pass_keeps_the_band_and_the_phase_and_knows_the_segment_alone():
    drift, pulse, fast = (sine(hz, 25.0, 90) for hz in (0.05, 1.25, 11.0))
    rows = [(0, 25.0, "ppg", drift + pulse + 0.5 * fast)]
    found, _ = cut(rows, filter="bandpass:0.5-4", standardise=False, per_window=99)
    assert found["values"].dtype == np.float32 and len(found) == 3
    gain = abs(sosfreqz(butter(2, (0.5, 4), "bandpass", fs=25.0, output="sos"), [1.25], fs=25.0)[1][0]) ** 2
    for k, values_Sx1 in enumerate(found["values"]):
        inside = slice(60, -60)
        want = gain * pulse[750 * k : 750 * (k + 1)]
        np.testing.assert_allclose(values_Sx1[inside, 0], want[inside], atol=0.06)
    later = [(0, 25.0, "ppg", np.where(np.arange(2250) < 750, rows[0][3], 5.0))]
    one, _ = cut(later, filter="bandpass:0.5-4", standardise=False, per_window=99)
    np.testing.assert_array_equal(one["values"][0], found["values"][0])
    plain, _ = cut(rows, standardise=False, per_window=99)
    np.testing.assert_allclose(plain["values"][..., 0].ravel(), rows[0][3], atol=1e-6)
    holed = np.where((np.arange(2250) > 100) & (np.arange(2250) < 150), np.nan, rows[0][3])
    gap, _ = cut([(0, 25.0, "ppg", holed)], filter="bandpass:0.5-4", per_window=99)
    np.testing.assert_array_equal(np.isnan(gap["values"][0, :, 0]), np.isnan(holed[:750]))


@pytest.mark.parametrize("options, said", [
    ({"channels": "ppg"}, "must be a tuple"), ({"channels": ("ppg", "ppg")}, "different"), ({}, "different"),
    ({"channels": ("ppg",), "seconds": 4 * 86_400.0}, "must fit into a window"),
    ({"channels": ("ppg",), "per_window": 0}, "per_window"), ({"channels": ("ppg",), "score": "best"}, "coverage"),
    ({"channels": ("ppg",), "rate_hz": 0.01}, "two samples"), ({"channels": ("ppg",), "length": 3}, "has no 'length'"),
    ({"channels": ("ppg",), "filter": "lowpass:3"}, "as in 'bandpass:0.5-12'"),
    ({"channels": ("ppg",), "filter": "bandpass:0.5-12.5"}, "between 0 and rate_hz / 2"),
    ({"channels": ("ppg",), "filter": "bandpass:0.01-4"}, "two periods"),
])  # fmt: skip
def test_options_that_cannot_be_are_named(options, said):
    with pytest.raises(ValueError, match=said) as error:
        specs.segment_specs(PrepareConfig(channels=("a",), segments={"ppg": options}))
    assert "config.prepare.segments" in str(error.value)


def test_sets_need_a_grid_and_names():
    with pytest.raises(ValueError, match=r"config\.prepare\.segments needs config\.prepare\.channels"):
        specs.segment_specs(PrepareConfig(segments={"ppg": {"channels": ("ppg",)}}))
    with pytest.raises(ValueError, match="a name consists of"):
        PrepareConfig(segments={"PPG 25": {"channels": ("ppg",)}})
    with pytest.raises(ValueError, match="must be a dict"):
        PrepareConfig(segments=("ppg",))


# ------------------------------------------------------------------------------------------------------- prepare
@pytest.fixture(scope="module")
def raw_cohort(tmp_path_factory):
    return with_waves(cohort.write_cohort(tmp_path_factory.mktemp("waves")))


@pytest.fixture(scope="module")
def root(raw_cohort):
    return cohort.prepare_cohort(raw_cohort, subjects_per_shard=8, **PPG)


def run(source, root, **options):
    root.mkdir()
    for name in ("meds", "wearable"):
        (root / name).symlink_to(source / name)
    return cohort.prepare_cohort(root, subjects_per_shard=8, **options)


def written(root):
    return {
        str(p.relative_to(root)): p.read_bytes()
        for d in ("tables", "records", "fit")
        for p in (root / d).rglob("*")
        if p.is_file()
    }


def starts(raw_cohort):
    """{subject: [start of each raw stretch, us]}."""
    rows = pl.concat([pl.read_parquet(p) for p in wearable.list_shards(raw_cohort / "wearable")])
    rows = rows.filter(pl.col("channel") == "ppg").with_columns(pl.col("start_time").to_physical())
    return {s: mine["start_time"].to_list() for (s,), mine in rows.group_by("subject_id", maintain_order=True)}


def test_raw_samples_come_out_of_a_batch_at_their_window_and_patch(root, raw_cohort):
    rows = examples_of(root, CONTEXT | RAW | {"raw_windows": 32}, None)
    people = rows.people
    begin, checked = starts(raw_cohort), set()
    for i, subject in enumerate(people.index["subject_id"].to_list()):
        if not len(people[i].window_end_M):
            continue
        ((batch, _),) = rows.prediction_batches([i], [int(people[i].time_N[-1])], 1)
        rows.spec.check(batch, 1)
        real = np.flatnonzero(batch["raw_window"][0] >= 0)
        assert np.all(np.diff(real) == 1) and len(real) <= 2 * len(people[i].window_end_M)
        if subject not in begin:
            assert not len(real)
        for n in real:
            shown = people[i].window_end_M[-(batch["window_position"][0] >= 0).sum() :]  # those known at the last token
            end_us = int(shown[batch["raw_window"][0, n]])
            patch_us = end_us - people.window_us + int(batch["raw_patch"][0, n]) * 3 * 30 * MINUTE_US
            found = False
            for k, start_us in enumerate(begin[subject]):
                for piece in range(2):
                    want = wave(subject, k)[1500 * piece : 1500 * (piece + 1)][::2]
                    want = (want - want.mean()) / want.std()
                    if np.abs(batch["raw"][0, n, 20:-20, 0] - want[20:-20]).max() < 0.03:
                        assert patch_us <= start_us + piece * 30_000_000 < patch_us + 90 * MINUTE_US - 30_000_000
                        found = checked.add((subject, k, piece)) is None
            assert found and batch["raw_observed"][0, n].all()
    assert len(checked) > 60


def test_without_the_option_nothing_is_written_and_no_batch_changes(raw_cohort, root, tmp_path):
    off = run(raw_cohort, tmp_path / "off")
    plain = cohort.prepare_cohort(cohort.write_cohort(tmp_path / "plain"), subjects_per_shard=8)
    # a channel that is not used leaves its mark in the counts of stretches alone
    for name, content in written(plain).items():
        if not name.endswith(".json"):
            assert written(off)[name] == content, name
    assert not (off / "tables" / "segments").exists()
    meta = json.loads((off / "records" / "meta.json").read_text())
    assert list(meta) == ["steps", "step_minutes", "window_hours", "channels", "log_channels", "derived", "quality",
                          "max_age_years", "segments", "shards"]  # fmt: skip
    assert list(record_bytes.decode(cohort.open_store(off)._source[0])) == [
        "static_code", "static_value", "static_text", "code", "value", "text", "time_us", "window_end_us", "window",
        "worn_minutes", "utc_offset", "derived", "birth_us", "end_us", "died",
    ]  # fmt: skip
    assert pl.read_parquet(off / "tables" / "wearers" / "0.parquet").columns == ["subject_id", "first_row", "n_windows"]
    tally = json.loads((off / "tables" / "windows" / "0.json").read_text())
    assert list(tally["files"]) == ["windows/0.parquet", "wearers/0.parquet", "window_values/0.npy", "wearers/0.npy"]
    # data with segments, read by a context without room for them
    one, two = (examples_of(r, CONTEXT) for r in (plain, root))
    more = examples_of(root, CONTEXT | RAW | {"raw_windows": 16})
    for g in range(one.rows_per_epoch):
        row, other, rich = (row_of(x, g) for x in (one, two, more))
        assert row.keys() == other.keys() and rich.keys() - row.keys() == set(RAW_FIELDS)
        for name in row:
            np.testing.assert_array_equal(row[name], other[name])
            np.testing.assert_array_equal(row[name], rich[name])
    with pytest.raises(ValueError, match=r"has no segments 'ppg'.*config\.prepare\.segments"):
        examples_of(plain, RAW | {"raw_windows": 4})


@pytest.mark.slow
def test_two_workers_and_other_shards_write_the_same_records(raw_cohort, root, tmp_path):
    two = run(raw_cohort, tmp_path / "two", workers=2, **PPG)
    assert written(two) == written(root)


def test_a_run_that_lost_a_file_makes_it_again(raw_cohort, root, tmp_path):
    again = run(raw_cohort, tmp_path / "again", **PPG)
    (again / "tables" / "manifest.json").unlink()
    (again / "tables" / "segments" / "ppg" / "1.npy").unlink()
    shutil.rmtree(again / "records")
    shutil.rmtree(again / "fit")
    cohort.prepare_cohort(again, subjects_per_shard=8, **PPG)
    assert written(again) == written(root)


def test_sets_of_any_rate_and_length_lie_beside_each_other(raw_cohort, root, tmp_path):
    sets = {
        "ppg": PPG["segments"]["ppg"],
        "ppg_slow": {"channels": ("ppg",), "rate_hz": 10.0, "seconds": 60.0, "filter": "bandpass:0.5-4"},
        "motion": {"channels": ("activity", "heart_rate"), "rate_hz": 1 / 60, "seconds": 7200.0, "score": "coverage",
                   "standardise": False},
    }  # fmt: skip
    both = run(raw_cohort, tmp_path / "run", segments=sets)
    one, more = cohort.open_store(root), cohort.open_store(both)
    assert list(more.segments) == list(sets) and more.segments["ppg_slow"].samples == 600
    n = dict.fromkeys(sets, 0)
    for i in range(len(one)):
        for name in sets:
            n[name] += len(more[i].segments[name].start_us_R)
        for a, b in zip(one[i].segments["ppg"], more[i].segments["ppg"], strict=True):
            np.testing.assert_array_equal(a, b)
        assert more[i].segments["motion"].values_RxSxA.shape[1:] == (120, 2)
        if len(more[i].window_end_M):  # in their units, as the grid has their mean
            means = np.nanmean(more[i].segments["motion"].values_RxSxA, axis=1)
            assert np.nanmax(np.abs(np.nanmean(means, axis=0) - [20, 70])) < 5
        end_R = more[i].segments["motion"].end_us_R - 1
        assert (more[i].window_of(end_R) == more[i].window_of(more[i].segments["motion"].start_us_R)).all()
    assert min(n.values()) > 50
    index = more.index.select(pl.col("^n_segments_.*$").sum()).row(0, named=True)
    assert index == {f"n_segments_{name}": count for name, count in n.items()}


def test_pseudonyms_take_the_segments_along(raw_cohort, root, tmp_path):
    (tmp_path / "key").write_text("a secret of many bytes")
    hidden = run(raw_cohort, tmp_path / "run", pseudonymise=True, shift_days=9, key_file=str(tmp_path / "key"), **PPG)
    count = []
    for folder in (root, hidden):
        people = examples_of(folder, CONTEXT | RAW | {"raw_windows": 32}, None).people
        found = [people[i].raw for i in range(len(people))]
        assert sum(len(r.window_R) for r in found) > 50
        count.append(sorted(r.values_RxSxA.tobytes() + r.step_R.tobytes() + r.window_R.tobytes() for r in found))
        assert people.index["subject_id"].is_sorted()
    assert count[0] == count[1] and set(people.index["subject_id"]).isdisjoint(range(100))


def test_an_unknown_channel_is_named(raw_cohort, tmp_path):
    with pytest.raises(ValueError, match="no channel.*'ecg'.*'ppg'"):
        run(raw_cohort, tmp_path / "run", segments={"ecg": {"channels": ("ecg",)}})
