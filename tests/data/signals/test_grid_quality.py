"""Quality of the steps of the grid: closed forms, what it may depend on, and its way to the patches of a batch."""

import cohort
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_rows import examples_of, row_of
from pulse_wave import simulated
from raw_cohort import CONTEXT, with_waves

from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.signals import grid, grid_quality
from ehrwear_jax.models.joint.encoders import WearableConfig, WearableEncoder

STEP_US = 300_000_000
SPEC = grid.WindowSpec(("hr", "ppg"), 1, 5)
END = np.array([3_600_000_000, 10_800_000_000])  # the second hour has no window
LIMITS = {"hr": (25.0, 230.0), "ppg": (-10.0, 10.0)}


def quality(rows):
    return grid_quality.of_person([(*row, None) if len(row) == 4 else row for row in rows], END, SPEC, LIMITS)


def test_of_slow_samples_it_is_the_share_of_a_step_that_plausible_ones_fill():
    values = np.full(180, 70.0)
    values[[0, 1, 7, 8, 9]] = np.nan
    values[[10, 11]] = 20.0, 300.0  # out of range
    got = quality([(0, 1 / 60, "hr", values)])
    assert got.dtype == np.uint8 and got.shape == (2, 12, 2) and not got[..., 1].any()
    np.testing.assert_array_equal(got[0, :, 0], np.rint(255 * np.array([3, 2, 3] + [5] * 9) / 5))
    np.testing.assert_array_equal(got[1, :, 0], 255)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), period_min=st.sampled_from([0.5, 1, 2, 5, 7, 20]), start=st.integers(0, 3600))
def test_a_step_that_is_known_has_a_quality_and_no_other(seed, period_min, start):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(400) < 0.3, np.nan, 70.0)
    rows = [(start * 1_000_000, 1 / (60 * period_min), "hr", values, None)]
    end_M, window_MxLxC, _ = grid.window_person(rows, SPEC, LIMITS)
    got = grid_quality.of_person(rows, end_M, SPEC, LIMITS)
    np.testing.assert_array_equal(got > 0, np.isfinite(window_MxLxC))


@pytest.mark.parametrize("rate_hz", [25.0, 64.0])
def test_of_a_pulse_wave_it_falls_with_noise_and_with_holes(rate_hz):
    clean = simulated(rate_hz, 300)[0]
    rng = np.random.default_rng(0)
    noisy = [np.clip(clean + s * rng.normal(size=len(clean)), -10, 10) for s in (0.0, 0.2, 0.5, 2.0)]
    of_noise = [int(quality([(0, rate_hz, "ppg", x)])[0, 0, 1]) for x in noisy]
    assert of_noise[0] > 240 and np.all(np.diff(of_noise) < 0) and of_noise[-1] < 100
    half = int(quality([(0, rate_hz, "ppg", clean[: len(clean) // 2])])[0, 0, 1])
    assert half == pytest.approx(of_noise[0] / 2, abs=3)
    flat = np.where(np.arange(len(clean)) < len(clean) / 2, clean, clean[0])  # a sensor that got stuck
    assert int(quality([(0, rate_hz, "ppg", flat)])[0, 0, 1]) == pytest.approx(half, abs=6)


def test_it_knows_no_sample_of_another_step():
    wave = simulated(25.0, 900)[0]
    before = quality([(0, 25.0, "ppg", wave)])
    other = wave.copy()
    other[25 * 300 : 25 * 600] = np.random.default_rng(0).normal(0, 3, 25 * 300)
    after = quality([(0, 25.0, "ppg", other)])
    moved = (before != after)[0, :, 1]
    assert moved.tolist() == [False, True, False] + [False] * 9
    pieces = [(k * STEP_US, 25.0, "ppg", wave[25 * 300 * k : 25 * 300 * (k + 1)]) for k in range(3)]
    np.testing.assert_array_equal(quality(pieces), before)


def test_a_second_copy_adds_nothing_and_the_better_device_counts():
    values = np.where(np.arange(60) % 5 < 2, np.nan, 70.0)
    once = quality([(0, 1 / 60, "hr", values, "a")])
    np.testing.assert_array_equal(quality([(0, 1 / 60, "hr", values, "a")] * 2), once)
    both = quality([(0, 1 / 60, "hr", values, "a"), (0, 1 / 30, "hr", np.full(60, 70.0), "b")])
    np.testing.assert_array_equal(both[0, :6, 0], 255)
    np.testing.assert_array_equal(both[0, 6:], once[0, 6:])


# ------------------------------------------------------------------------------------------------------- batches
OPTIONS = {"quality": True, "channels": ("heart_rate", "activity", "ppg"), "subjects_per_shard": 8}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return with_waves(cohort.write_cohort(tmp_path_factory.mktemp("waves")))


def run(source, root, **options):
    root.mkdir()
    for name in ("meds", "wearable"):
        (root / name).symlink_to(source / name)
    return cohort.prepare_cohort(root, **OPTIONS | options)


@pytest.fixture(scope="module")
def root(source, tmp_path_factory):
    return run(source, tmp_path_factory.mktemp("prepared") / "run")


def examples(root, modalities=("ehr", "wear"), **options):
    return examples_of(root, CONTEXT | options, None, modalities=modalities)


def test_a_patch_has_the_mean_quality_of_its_known_steps_times_their_share(root, source):
    rows, checked = examples(root), set()
    people = rows.people
    stretches = {
        subject: wearable.stretches(rows)
        for path in wearable.list_shards(source / "wearable")
        for (subject,), rows in wearable.read_shard(path).group_by("subject_id")
    }
    limits = {"heart_rate": (25.0, 230.0), "activity": (0.0, 1e5), "ppg": (-10.0, 10.0)}
    for i, subject in enumerate(people.index["subject_id"].to_list()):
        p = people[i]
        if not len(p.window_end_M):
            continue
        ((batch, _),) = rows.prediction_batches([i], [int(p.time_N[-1])], 1)
        rows.spec.check(batch, 1)
        n = int((batch["window_position"][0] >= 0).sum())
        spec = grid.WindowSpec(people.channels, 6, 30)
        by_step = grid_quality.of_person(stretches[subject], p.window_end_M, spec, limits)[-n:] / 255
        known = np.isfinite(p.window_MxLxC[-n:])
        want = np.where(known, by_step, 0).reshape(n, 4, 3, 3).mean(axis=2)
        np.testing.assert_allclose(batch["quality"][0, :n], want, atol=1e-6)
        assert not batch["quality"][0, n:].any()
        checked |= set(np.round(want[..., 2][want[..., 2] > 0], 3).tolist())
        share = known[..., 0].reshape(n, 4, 3).mean(axis=2)
        assert (want[..., 0] <= share + 1e-6).all() and np.median(want[..., 0][share == 1]) > 0.9
    assert checked and np.allclose(list(checked), 65 / 5400, atol=1e-3)  # 65 s of a wave in 90 minutes


def test_without_the_option_nothing_changes_and_with_it_nothing_else(root, source, tmp_path):
    off = run(source, tmp_path / "off", quality=False)
    assert not (off / "tables" / "window_quality").exists()
    plain, more = (examples(r, time_warp=0.05, noise=0.1) for r in (off, root))
    assert not plain.facts.quality and more.facts.quality and plain.rows_per_epoch == more.rows_per_epoch
    for g in range(plain.rows_per_epoch):
        row, rich = row_of(plain, g), row_of(more, g)
        assert rich.keys() - row.keys() == {"quality"}
        for name in row:
            np.testing.assert_array_equal(row[name], rich[name])
    (ehr, without) = (examples(r, modalities=("ehr",)) for r in (root, off))
    assert ehr.spec.fields.keys() == without.spec.fields.keys() == row_of(ehr, 0).keys()


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(root, source, tmp_path):
    two = run(source, tmp_path / "two", workers=2)
    for path in root.rglob("*"):
        if path.is_file() and path.relative_to(root).parts[0] in ("tables", "records", "fit"):
            assert (two / path.relative_to(root)).read_bytes() == path.read_bytes(), path


def test_pseudonyms_take_the_quality_along(root, source, tmp_path):
    (tmp_path / "key").write_text("a secret of many bytes")
    hidden = run(source, tmp_path / "run", pseudonymise=True, key_file=str(tmp_path / "key"))
    found = []
    for people in (examples(root).people, examples(hidden).people):
        found.append(sorted((people[i].window_MxLxC.tobytes(), people[i].quality_MxLxC.tobytes())
                            for i in range(len(people))))  # fmt: skip
    assert found[0] == found[1]


def test_what_a_channel_or_a_stretch_loses_has_no_quality(root):
    rows = examples(root, channel_dropout=0.5, noise=0.1)
    n_lost = 0
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        known = row["observed"].reshape(*row["observed"].shape[:1], 4, 3, 3).any(axis=2)
        assert not row["quality"][~known].any() and (row["quality"] <= 1).all() and (row["quality"] >= 0).all()
        n_lost += (~known[..., 0] & known[..., 1]).sum()
    assert n_lost > 10
    people = rows.people
    i = next(i for i in range(len(people)) if len(people[i].window_end_M) > 4)
    t = int(people[i].window_end_M[-1])
    occluded = perturbations.occlude_channels([people.channels[0]], 1e6, -1.0)
    ((batch, _),) = rows.prediction_batches([i], [t], 1, occluded)
    assert not batch["quality"][..., 0].any() and batch["quality"][..., 1].any()


def test_the_encoder_sees_no_quality_of_what_is_hidden(root):
    rows = [examples(root, masked_contexts=1.0, wear_mask_kind=kind) for kind in ("contiguous", "channel")]
    module = WearableEncoder(WearableConfig(width=8, out_width=8, n_layers=1, n_heads=2, patch_steps=3))
    batches = [{k: v[None] for k, v in row_of(r, 1).items()} for r in rows]
    params = jax.jit(module.init)(jax.random.key(0), batches[0])
    of_quality = jax.jit(jax.grad(lambda q, b: (module.apply(params, b | {"quality": q}) ** 2).sum()))
    for batch in batches:
        grad = np.asarray(of_quality(batch["quality"], batch))
        hidden = batch["patch_mask"][..., None] | batch["channel_mask"][:, :, None]
        hidden = np.broadcast_to(hidden, grad.shape)
        assert hidden.sum() > 10 and not grad[hidden].any()
        assert grad[~hidden & (batch["quality"] > 0)].any()
