"""Summaries of a window: truth on simulated waves, loops, causality, and their way to the targets of the model.

Tolerances on clean simulated waves at 25 Hz, per window: rate 0.5 %, RMSSD and SDNN 3 % or 1 ms.
"""

import shutil

import cohort
import jax
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_rows import examples_of, row_of
from pulse_wave import simulated, simulated_ecg, truth

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import HOUR_US
from ehrwear_jax.data.signals import derived_features, grid, pulse
from ehrwear_jax.models.joint import family, patient

SPEC = grid.WindowSpec(("activity",), 1, 5)
LIMITS = {"activity": (0.0, np.inf), "ppg": (-10.0, 10.0), "rr": (200.0, 3000.0)}
PULSE = [("ppg", "pulse")]
INTERVALS = [("rr", "intervals")]
CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 60, "queries": 8, "events": 8, "patch_steps": 3,
           "future_codes": 6}  # fmt: skip
NETWORK = {"width": 8, "n_layers": 1, "n_heads": 2, "mlp_width": 8, "token_width": 4, "time_features": 4,
           "wear_width": 8, "wear_layers": 1, "wear_heads": 2}  # fmt: skip


def of_windows(rows, n_windows, wanted, limits=LIMITS):
    """One row of numbers per window of the first hours since the epoch."""
    end = (np.arange(n_windows) + 1) * HOUR_US
    values = np.full((n_windows, SPEC.steps, 1), np.nan, np.float32)
    stretches = [Stretch(*row) for row in rows]
    table, n_outside = derived_features.of_person(stretches, end, values, SPEC, limits, wanted)
    return [dict(zip(derived_features.KINDS[wanted[0][1]], row, strict=True)) for row in table.tolist()], n_outside


def n_complete(start_us, rate_hz, n, end_us):
    """How many of n samples end by then."""
    return sum(start_us + round((i + 1) * 1e6 / rate_hz) <= end_us for i in range(n))


# ------------------------------------------------------------------------------------------------------- pulse
@pytest.mark.parametrize("seed", range(3))
def test_each_window_of_a_raw_wave_has_the_rate_and_variability_of_its_beats(seed):
    start_s, slow_s = 1800.0, 300.0
    slow, slow_beat = simulated(25.0, slow_s, mean_s=1.0, sd_s=0.025, seed=seed)
    fast, fast_beat = simulated(25.0, slow_s, mean_s=0.6, sd_s=0.015, seed=seed + 9)
    start_us = int(start_s * 1e6)
    rows = [(start_us, 25.0, "ppg", slow, "a"), (start_us + HOUR_US, 25.0, "ppg", fast, "a")]
    got, n_outside = of_windows(rows, 3, PULSE)
    assert n_outside == 0
    for found, want in ((got[0], truth(slow_beat)), (got[1], truth(fast_beat))):
        assert found["heart_rate_bpm"] == pytest.approx(want["heart_rate_bpm"], rel=0.005)
        assert found["rmssd_ms"] == pytest.approx(want["rmssd_ms"], rel=0.03, abs=1.0)
        assert found["sdnn_ms"] == pytest.approx(want["sdnn_ms"], rel=0.03, abs=1.0)
        assert found["quality"] > 0.9
    assert np.isnan(list(got[2].values())).all(), "no signal there"


def test_a_wave_across_the_end_of_a_window_is_cut_there_and_the_past_does_not_know_it():
    wave, _ = simulated(25.0, 240)
    start_us = HOUR_US - 120_000_017
    whole, _ = of_windows([(start_us, 25.0, "ppg", wave, None)], 2, PULSE)
    n = n_complete(start_us, 25.0, len(wave), HOUR_US)
    alone = pulse.summarise([(25.0, wave[:n])], -10.0, 10.0)
    assert whole[0] == {k: np.float32(alone[k]) for k in whole[0]}
    other = wave.copy()
    other[n:] = np.random.default_rng(0).normal(0, 5, len(wave) - n)
    changed, _ = of_windows([(start_us, 25.0, "ppg", other, None)], 2, PULSE)
    assert changed[0] == whole[0] and changed[1] != whole[1]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), before_ms=st.integers(15_000, 59_000), kind=st.sampled_from(["pulse", "ecg"]))
def test_no_bit_of_a_window_depends_on_samples_that_end_later(seed, before_ms, kind):
    rate_hz = 25.0 if kind == "pulse" else 50.0
    wave, _ = simulated(rate_hz, 60, noise=0.1, seed=seed) if kind == "pulse" else simulated_ecg(rate_hz, 60, seed=seed)
    start_us = HOUR_US - 1000 * before_ms + 17
    n = n_complete(start_us, rate_hz, len(wave), HOUR_US)
    other = np.concatenate([wave[:n], np.random.default_rng(seed).normal(0, 3, len(wave) - n)])
    found = [of_windows([(start_us, rate_hz, "ppg", x, None)], 1, [("ppg", kind)])[0] for x in (wave, other, wave[:n])]
    whole, changed, cut = (list(windows[0].values()) for windows in found)
    np.testing.assert_array_equal([changed, cut], [whole, whole])
    assert np.isfinite(found[0][0]["quality"])


@pytest.mark.parametrize("seed", range(2))
def test_a_window_of_an_electrocardiogram_has_its_rate_and_variability(seed):
    rows, want = [], []
    for hour, mean_s in enumerate((0.9, 0.6)):
        ecg, beat_s = simulated_ecg(128.0, 120, mean_s=mean_s, noise=0.02, seed=seed)
        rows.append((hour * HOUR_US + 60_000_000, 128.0, "ecg", ecg, None))
        want.append(truth(beat_s))
    got, _ = of_windows(rows, 2, [("ecg", "ecg")], {"ecg": (-5.0, 5.0)})
    for found, true in zip(got, want, strict=True):
        assert found["heart_rate_bpm"] == pytest.approx(true["heart_rate_bpm"], rel=0.005)
        assert found["rmssd_ms"] == pytest.approx(true["rmssd_ms"], rel=0.03, abs=1.0)
        assert found["quality"] > 0.95


def test_noise_lowers_quality_and_an_unusable_wave_gives_no_rate():
    start_us, got = 60_000_000, []
    for noise in (0.0, 0.1, 50.0):
        wave, _ = simulated(25.0, 120, noise=noise)
        got.append(of_windows([(start_us, 25.0, "ppg", wave, None)], 1, PULSE, {})[0][0])
    assert got[0]["quality"] > got[1]["quality"] > got[2]["quality"]
    assert np.isfinite(got[1]["rmssd_ms"]) and np.isnan([got[2]["heart_rate_bpm"], got[2]["rmssd_ms"]]).all()


def test_time_not_worn_does_not_count_as_a_bad_signal():
    wave, beat_s = simulated(25.0, 300)
    wave = np.concatenate([wave, np.full(25 * 1800, np.nan)])  # then half an hour without a value
    got, _ = of_windows([(0, 25.0, "ppg", wave, None)], 1, PULSE)
    assert got[0]["heart_rate_bpm"] == pytest.approx(truth(beat_s)["heart_rate_bpm"], rel=0.005)


def test_the_device_with_most_signal_in_a_window_is_used_and_none_is_mixed():
    slow, _ = simulated(25.0, 120, mean_s=1.0)
    fast, _ = simulated(25.0, 60, mean_s=0.6)
    rows = [(0, 25.0, "ppg", fast, "a"), (0, 25.0, "ppg", slow, "b"), (HOUR_US, 25.0, "ppg", fast, "a")]
    got, _ = of_windows(rows, 2, PULSE)
    assert got[0]["heart_rate_bpm"] == pytest.approx(60, rel=0.02)
    assert got[1]["heart_rate_bpm"] == pytest.approx(100, rel=0.02)
    assert of_windows(rows, 1, PULSE)[1] == 1, "what lies in no window is counted"


# ------------------------------------------------------------------------------------------------------- intervals
def test_intervals_have_the_closed_form_and_none_reaches_over_a_gap():
    beat = np.array([800.0, 840.0] * 15)
    rows = [(0, 1.2, "rr", beat, None), (600_000_000, 1.2, "rr", np.append(np.nan, beat + 100.0), None)]
    (got,), _ = of_windows(rows, 1, INTERVALS)
    both = np.concatenate([beat, beat + 100.0])
    assert got["rmssd_ms"] == pytest.approx(40.0, rel=1e-6)
    assert got["heart_rate_bpm"] == pytest.approx(60_000 / both.mean(), rel=1e-6)
    assert got["sdnn_ms"] == pytest.approx(both.std(ddof=1), rel=1e-6)
    assert got["pnn50_percent"] == 0.0


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), rate=st.floats(0.5, 2.0), start_s=st.integers(3400, 3599))
def test_an_interval_counts_in_the_window_in_which_it_is_complete(seed, rate, start_s):
    rng = np.random.default_rng(seed)
    beat = np.where(rng.random(200) < 0.1, np.nan, rng.normal(850, 30, 200))
    (got, _), _ = of_windows([(start_s * 1_000_000, rate, "rr", beat, None)], 2, INTERVALS)
    time_s, kept = float(start_s), []
    for k, x in enumerate(beat):
        time_s += (1 / rate) if np.isnan(x) else x / 1000
        if max(time_s, start_s + (k + 1) / rate) <= 3600 + 1e-6:
            kept.append(x)
    trusted = pulse.trustworthy(kept)
    assert got["rmssd_ms"] == pytest.approx(pulse.hrv(trusted)["rmssd_ms"], rel=1e-5, nan_ok=True)
    assert got["heart_rate_bpm"] == pytest.approx(pulse.heart_rate(trusted), rel=1e-5, nan_ok=True)


def test_sleep_is_the_share_of_known_epochs_without_a_change_of_posture():
    rng = np.random.default_rng(0)
    turning, still = rng.uniform(-80, 80, 360), 20 + rng.uniform(-1, 1, 360)
    rows = [(0, 0.2, "arm_angle", np.r_[turning, still], None), (HOUR_US, 1.0, "arm_angle", np.repeat(still, 5), None)]
    rows += [(2 * HOUR_US, 0.2, "arm_angle", still[:350], None), (3 * HOUR_US, 1 / 60, "arm_angle", still[:60], None)]
    found, n_outside = of_windows(rows, 4, [("arm_angle", "sleep")])
    assert n_outside == 0
    asleep = [window["asleep"] for window in found]
    assert asleep[0] == pytest.approx(0.5, abs=0.02) and asleep[1] == 1.0
    assert np.isnan(asleep[2:]).all(), "less than half an hour is known; a minute says nothing of epochs"


def test_auto_stands_for_what_the_channels_allow():
    units = {"heart_rate": "bpm", "ppg_green": "a.u.", "ECG": "mV", "rr": "ms", "nn": "s", "hrv_rmssd": "ms",
             "enmo": "mg", "arm_angle": "deg", "current": "mA"}  # fmt: skip
    found = derived_features.automatic(("auto",), ("enmo", "arm_angle"), units)
    assert found == ("enmo:entropy", "arm_angle:sleep", "ECG:ecg", "ppg_green:pulse", "rr:intervals")
    assert derived_features.parse(found, ("enmo", "arm_angle"), units)
    named = ("ppg_green:ecg", "auto", "enmo:entropy")
    found = derived_features.automatic(named, ("enmo",), units)
    assert found == ("ppg_green:ecg", "enmo:entropy", "ECG:ecg", "rr:intervals")
    assert derived_features.automatic(("rr:intervals",), (), units) == ("rr:intervals",)
    assert derived_features.automatic(("auto",), (), {}) == ()
    with pytest.raises(ValueError, match="holds 'auto', expected 'channel:kind'"):
        derived_features.parse(("auto",), ())


# ------------------------------------------------------------------------------------------------------- entropy
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), lost=st.floats(0, 1), zeros=st.floats(0, 1))
def test_entropy_equals_a_loop(seed, lost, zeros):
    rng = np.random.default_rng(seed)
    x = rng.exponential(20, (4, SPEC.steps, 1)) * (rng.random((4, SPEC.steps, 1)) >= zeros)
    x[rng.random(x.shape) < lost] = np.nan
    end = (np.arange(4) + 1) * HOUR_US
    got, _ = derived_features.of_person([], end, x.astype(np.float32), SPEC, LIMITS, [("activity", "entropy")])
    for row, values in zip(got[:, 0], x.astype(np.float32)[..., 0].astype(float), strict=True):
        seen = values[np.isfinite(values)]
        if len(seen) < max(2, SPEC.steps / 2) or not seen.sum() > 0:
            assert np.isnan(row)
        else:
            share = [v / seen.sum() for v in seen if v > 0]
            assert row == pytest.approx(-sum(p * np.log(p) for p in share) / np.log(len(seen)), abs=1e-6)


# ------------------------------------------------------------------------------------------------------- the config
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("activity",), "expected 'channel:kind' with a kind of entropy, pulse, ecg, intervals"),
        (("activity:rhythm",), "expected 'channel:kind'"),
        (("ppg:entropy",), "the channel is not in config.prepare.channels"),
        (("rr:intervals",), "no such channel in metadata/channels.parquet"),
        (("ppg:pulse", "ppg:pulse"), "twice"),
        (("ppg:pulse", "ppg:intervals"), "for two kinds of heart beats"),
    ],
)
def test_what_cannot_be_summed_up_is_named(texts, message):
    with pytest.raises(ValueError, match=message):
        derived_features.parse(texts, ("activity",), {"activity", "ppg"})


# ------------------------------------------------------------------------------------------------------- to the model
@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The small cohort, of whom some also have a raw wave of two minutes a day."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("cohort"), wear_days=2)
    channels = pl.read_parquet(root / "wearable" / "metadata" / "channels.parquet")
    ppg = pl.DataFrame({"channel": ["ppg"], "unit": ["a.u."], "description": [""], "valid_min": [-9.0],
                        "valid_max": [9.0]})  # fmt: skip
    wearable.write_channels(root / "wearable", pl.concat([channels, ppg]))
    for shard in wearable.list_shards(root / "wearable"):
        parts = []
        for (subject,), rows in pl.read_parquet(shard).group_by("subject_id", maintain_order=True):
            parts.append(rows)
            if subject % 3:
                wave, _ = simulated(25.0, 120, mean_s=0.6 + 0.02 * subject, seed=subject)
                parts.append(
                    rows[:1].with_columns(
                        pl.col("start_time") + pl.duration(hours=9),
                        sample_rate_hz=pl.lit(25.0),
                        channel=pl.lit("ppg"),
                        unit=pl.lit("a.u."),
                        values=pl.lit(wave.astype(np.float32).tolist(), pl.List(pl.Float32)),
                    )
                )
        pl.concat(parts).write_parquet(shard)
    options = {"summaries": ("activity:entropy", "ppg:pulse"), "step_minutes": 30, "min_subjects": 2, "min_values": 10}
    config = PrepareConfig(cohort.CHANNELS, ("activity",), **options)
    return cohort.prepare(root, config)


def windows_of(root):
    return pl.concat([pl.read_parquet(p) for p in sorted((root / "tables" / "windows").glob("*.parquet"))])


def test_prepare_writes_the_summaries_beside_those_of_the_grid(root):
    table = windows_of(root)
    seen = table.filter(pl.col("ppg__heart_rate_bpm").is_not_null())
    assert set(seen["subject_id"]) == {s for s in set(table["subject_id"]) if s % 3}
    for subject, rate in seen.select("subject_id", "ppg__heart_rate_bpm").iter_rows():
        assert rate == pytest.approx(60 / (0.6 + 0.02 * subject), rel=0.02)
    assert table["activity__entropy"].null_count() < table.height
    assert "ppg__mean" not in table.columns
    # of the recording, not of its logarithm: nearly the same in all steps of these windows
    assert table["activity__entropy"].drop_nulls().min() > 0.99


def test_targets_are_the_standardised_averages_and_the_model_predicts_them(root):
    records = cohort.open_store(root)
    names = ["activity__entropy", "ppg__heart_rate_bpm", "ppg__rmssd_ms", "ppg__sdnn_ms"]
    assert list(records.derived) == names
    table = windows_of(root).join(records.index, on="subject_id")
    of_train = table.filter(pl.col("split") == "train").select(names).cast(pl.Float64)
    np.testing.assert_allclose(records.derived_scales.mean_C, of_train.mean().row(0), rtol=1e-6)
    np.testing.assert_allclose(records.derived_scales.std_C, of_train.std(ddof=0).row(0), rtol=1e-6)
    rows = examples_of(root, CONTEXT, **NETWORK)
    assert rows.people.derived_channel_X.tolist() == [1, -1, -1, -1]
    n_summaries = rows.facts.summaries
    assert n_summaries == 3 * 2 + 4
    checked = 0
    for g in range(3 * rows.rows_per_epoch):
        row = row_of(rows, g)
        assert row["query_past"].shape == (CONTEXT["queries"], n_summaries)
        for q in np.flatnonzero(row["query_past_mask"][:, 7]):
            known = row["window"][slice(*row["query_kv_range"][q])]
            age = row["query_time"][q] - row["time"][slice(*row["query_kv_range"][q])]
            assert ((known >= 0) & (age < rows.config.context.summary_days)).any()
            assert not np.isnan(row["query_past"][q]).any() and np.abs(row["query_past"][q, 6:]).max() <= 10
            checked += 1
        assert (row["query_past"][~row["query_past_mask"]] == 0).all()
    assert checked
    network, objective = family.network(rows.spec, rows.config), family.objective(rows.spec, rows.config)
    assert {"wear_history", "ehr_to_wear"} <= {t.name for t in objective.terms}
    batch = {k: v[None] for k, v in row_of(rows, 0).items()}
    rows.spec.check(batch, 1)

    def loss(rng):
        out = network.apply(network.init(rng, batch), batch)
        found = objective(out, batch, objective.weights(0), objective.normalisers(batch))
        return found[0], out["wear_history"], out["ehr_to_wear"]["query"]

    value, *predicted = jax.eval_shape(loss, jax.random.key(0))
    assert value.shape == () and all(x.shape == (1, CONTEXT["queries"], n_summaries) for x in predicted)


def test_a_lost_channel_takes_the_summaries_made_of_it(root):
    people = examples_of(root, CONTEXT, None).people
    person = next(p for p in (people[i] for i in range(len(people))) if np.isfinite(p.derived_MxX).all(axis=1).any())
    shown = person.signal(0, len(person.window_end_M))
    same = person.shown_summary(0, shown, people.derived_channel_X)
    np.testing.assert_array_equal(same, person.summary(0, len(shown)))
    shown[0, :, 1] = np.nan
    got = person.shown_summary(0, shown, people.derived_channel_X)
    assert np.isnan(got[0, 6]) and np.isfinite(same[0, 6])
    np.testing.assert_array_equal(got[1:], same[1:])
    np.testing.assert_array_equal(got[0, 7:], same[0, 7:])
    np.testing.assert_array_equal(got[:, :6], patient.summary_table(shown))


def test_a_dataset_without_wearables_needs_no_other_config(tmp_path):
    root = cohort.write_cohort(tmp_path, 12, wear_days=1)
    config = PrepareConfig(cohort.CHANNELS, summaries=("activity:entropy",), min_subjects=2)
    shutil.rmtree(root / "wearable")
    records = cohort.open_store(cohort.prepare(root, config))
    assert records.derived == ("activity__entropy",)
    assert (records.derived_scales.mean_C.tolist(), records.derived_scales.std_C.tolist()) == ([0.0], [1.0])
    people = examples_of(root, {"patch_steps": 3}, None).people
    assert all(people[i].summary(0, 0).shape == (0, 7) for i in range(len(people)))
