"""Records come back bit for bit, at random access; scales have inverses; what is selected stays together."""

import json
import pickle
import struct

import cohort
import numpy as np
import pytest
import records
from hypothesis import given
from hypothesis import strategies as st
from raw_cohort import PPG, with_waves

from ehrwear_jax.data import record_bytes, store
from ehrwear_jax.data.formats.times import DAY_US

DTYPES = (np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(
    fields=st.dictionaries(
        st.text(max_size=8), st.tuples(st.sampled_from(DTYPES), shapes, st.integers(0, 99)), max_size=6
    )
)
def test_round_trip_keeps_names_order_dtypes_shapes_and_bits(fields):
    arrays = {}
    for name, (dtype, shape, seed) in fields.items():
        raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
        arrays[name] = raw.view(dtype)[..., 0] % 2 if dtype is np.uint8 else raw.view(dtype)[..., 0]
        if dtype is np.bool_:
            arrays[name] = raw[..., 0] % 2 == 0
    back = record_bytes.decode(record_bytes.encode(arrays))
    assert list(back) == list(arrays)
    for name, want in arrays.items():
        assert back[name].dtype == want.dtype and back[name].shape == want.shape
        assert back[name].tobytes() == np.ascontiguousarray(want).tobytes(), name


def test_views_scalars_and_special_values():
    grid = np.arange(12, dtype=np.int64).reshape(3, 4)
    arrays = {
        "transposed": grid.T,
        "strided": grid[::2, 1::2],
        "fortran": np.asfortranarray(grid),
        "scalar": np.int64(np.iinfo(np.int64).min),
        "flag": np.bool_(True),
        "special": np.array([np.nan, np.inf, -np.inf, -0.0], np.float16),
        "empty": np.zeros((0, 24, 2), np.float16),
    }
    back = record_bytes.decode(record_bytes.encode(arrays))
    for name, want in arrays.items():
        np.testing.assert_array_equal(back[name], want, strict=True)
    assert np.signbit(back["special"][3])


def test_decoded_arrays_cannot_change_the_cached_record():
    back = record_bytes.decode(record_bytes.encode({"x": np.arange(3)}))
    with pytest.raises(ValueError, match="read-only"):
        back["x"][0] = 1


def test_the_layout_is_the_documented_one():
    data = record_bytes.encode({"a": np.array([1, 2], np.int32), "b": np.float64(0.5)})
    (n,) = struct.unpack("<I", data[:4])
    assert json.loads(data[4 : 4 + n]) == [["a", "<i4", [2]], ["b", "<f8", []]]
    assert data[4 + n :] == struct.pack("<iid", 1, 2, 0.5)


# ---------------------------------------------------------------------------------------------------------- scales
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), st.floats(0.1, 50), st.floats(-9, 9))
def test_scales_have_an_inverse(values, std, mean):
    x = np.stack([np.float32(values)] * 2, axis=-1)
    scales = records.make_scales(log=[1], mean=mean, std=std)
    z = scales.standardise(x)
    assert z.dtype == np.float32 and x[..., 0].tolist() == values
    np.testing.assert_allclose(z[..., 0], (x[..., 0] - np.float32(mean)) / np.float32(std), rtol=1e-5, atol=1e-6)
    logs = np.sign(x[..., 1]) * np.log1p(np.abs(np.float64(x[..., 1])))
    np.testing.assert_allclose(z[..., 1], (logs - mean) / std, rtol=1e-4, atol=1e-4)
    back = scales.restore(z)
    np.testing.assert_allclose(back[..., 0], x[..., 0], rtol=1e-5, atol=1e-5 * (abs(mean) + std))
    np.testing.assert_allclose(back[..., 1], x[..., 1], rtol=3e-4, atol=1e-4)


def test_scales_keep_gaps_and_take_columns_of_any_axis():
    x = np.array([[[1.0, np.nan], [3.0, 8.0], [np.nan, 0.5]]], np.float32)
    scales = records.make_scales(log=[1], mean=2.0, std=4.0)
    z = scales.standardise(x)
    np.testing.assert_array_equal(np.isnan(z), np.isnan(x))
    turned = scales.standardise(x.transpose(0, 2, 1), axis=1)
    np.testing.assert_array_equal(turned.transpose(0, 2, 1), z)
    assert turned.flags.c_contiguous and np.isfinite(scales.restore(z))[~np.isnan(x)].all()


# ---------------------------------------------------------------------------------------------------------- selection
def segments(start_us, length_us=100):
    n = len(start_us)
    values = np.arange(2 * n, dtype=np.float16).reshape(n, 2, 1)
    return store.Segments(np.array(start_us, np.int64), np.ones(n, np.float32), values, ("ppg",), length_us)


def test_what_is_selected_stays_together_and_the_record_begins_with_what_is_left():
    quarter = records.QUARTER_DAY_US
    ends = DAY_US + quarter * np.arange(1, 5)
    found = segments([DAY_US + 5, DAY_US + quarter, DAY_US + 3 * quarter + 1])
    whole = records.make_record([10, 20, 30], [7, 8, 9], ends, static=[3, 4], birth_us=-5, segments={"ppg": found})
    assert (whole.first_us, whole.origin_us, whole.end_us) == (10, -5, ends[-1])
    assert whole.window_of(np.array([DAY_US - 1, DAY_US, ends[0] - 1, ends[0], ends[-1]])).tolist() == [-1, 0, 0, 1, -1]
    late = whole.select_events(np.array([False, True, True]), np.array([True, False]))
    assert (late.code_K.tolist(), late.time_K.tolist(), late.static_code_S.tolist()) == ([8, 9], [20, 30], [3])
    assert (late.first_us, late.origin_us) == (20, -5) and len(late.window_end_M) == 4
    odd = whole.select_windows(np.array([False, True, False, True]))
    np.testing.assert_array_equal(odd.window_MxLxC, whole.window_MxLxC[1::2])
    assert odd.segments["ppg"].start_us_R.tolist() == found.start_us_R[1:].tolist(), "those of the windows"
    np.testing.assert_array_equal(odd.segments["ppg"].values_RxSxA, found.values_RxSxA[1:])
    assert found.end_us_R.tolist() == (found.start_us_R + 100).tolist()
    wear, ehr = whole.without_ehr(), whole.without_wear()
    assert wear.birth_us == store.NO_BIRTH and wear.origin_us == ends[0] and not len(wear.static_text_S)
    assert ehr.origin_us == -5 and ehr.first_us == 10 and not len(ehr.segments["ppg"].score_R)
    nothing = ehr.without_ehr()
    assert nothing.first_us == nothing.origin_us == nothing.end_us == ends[-1]
    assert whole.nbytes == ehr.nbytes + whole.window_MxLxC.nbytes + ends.nbytes + sum(x.nbytes for x in found[:3])


# ---------------------------------------------------------------------------------------------------------- the store
@pytest.fixture(scope="module")
def root(tmp_path_factory):
    source = with_waves(cohort.write_cohort(tmp_path_factory.mktemp("cohort"), 20, wear_days=1))
    return cohort.prepare_cohort(source, subjects_per_shard=6, quality=True, summaries=("activity:entropy",), **PPG)


def same(a, b):
    arrays = [x for x in vars(a) if isinstance(getattr(a, x), np.ndarray)]
    segments = [(x, y) for name in a.segments for x, y in zip(a.segments[name], b.segments[name], strict=True)]
    pairs = [(getattr(a, x), getattr(b, x)) for x in vars(a) if x not in (*arrays, "segments")]
    for x, y in [*((getattr(a, x), getattr(b, x)) for x in arrays), *segments, *pairs]:
        np.testing.assert_array_equal(x, y)
    return len(arrays) == 13


def test_views_are_parts_of_everybody_and_survive_pickling(root):
    everybody = cohort.open_store(root)
    ids = everybody.index["subject_id"].to_list()
    assert ids == list(range(1, 21)) and everybody.index["position"].to_list() == list(range(20))
    seen = []
    for split in ("train", "tuning", "held_out"):
        view = pickle.loads(pickle.dumps(everybody.view(split)))
        assert (view.index["split"] == split).all() and view.train_days == everybody.train_days > 100
        for i, subject in enumerate(view.index["subject_id"]):
            assert same(view[i], everybody[ids.index(subject)])
            seen.append(subject)
    assert sorted(seen) == ids


def test_records_say_what_they_hold(root):
    everybody = cohort.open_store(root)
    assert everybody.channels == cohort.CHANNELS and everybody.log_channels == ("activity",)
    assert (everybody.steps, everybody.step_us, everybody.window_us) == (12, 30 * 60_000_000, DAY_US // 4)
    assert everybody.derived == ("activity__entropy",) and everybody.has_quality
    assert everybody.segments["ppg"].samples == 750 and everybody.scales.is_log_C.tolist() == [False, True]
    for i, row in enumerate(everybody.index.iter_rows(named=True)):
        record = everybody[i]
        assert (row["n_static"], row["n_events"], row["n_windows"], row["n_segments_ppg"]) == (
            len(record.static_code_S), len(record.code_K), len(record.window_end_M), len(record.segments["ppg"].score_R)
        )  # fmt: skip
        assert (row["first_us"], row["end_us"]) == (record.first_us, record.end_us)
        shape = record.window_MxLxC.shape
        assert (
            shape[1:] == (12, 2) and record.quality_MxLxC.shape == shape and record.derived_MxX.shape == (shape[0], 1)
        )
        assert record.segments["ppg"].values_RxSxA.shape[1:] == (750, 1)
    heart_rate = np.concatenate([everybody[i].window_MxLxC[..., 0].ravel() for i in range(20)])
    assert 60 < np.nanmean(heart_rate) < 80, "beats a minute"


def test_the_cache_stays_within_its_bytes(root):
    whole = cohort.open_store(root)
    total = sum(whole[i].nbytes for i in range(len(whole)))
    assert all(whole[i] is whole[i] for i in range(len(whole)))
    small = cohort.open_store(root, cache_bytes=total // 2)
    kept = [small[i] is small[i] for i in range(len(small))]
    assert 0 < sum(r.nbytes for r in small._cache.held.values()) <= total // 2 and 0 < sum(kept) < len(kept)
    assert whole.read(0) is not whole.read(0) and not pickle.loads(pickle.dumps(whole))._cache.held


def test_files_are_all_that_examples_are_made_of_and_lie_below_the_folder(root):
    records_ = cohort.open_store(root)
    there = {str(p.relative_to(root)) for d in ("records", "fit") for p in (root / d).rglob("*") if p.is_file()}
    unread = {n for n in there if n.endswith("manifest.json") or "/parts/" in n or n.endswith("/subjects.parquet")}
    assert records_.folder == root and set(records_.files()) == there - unread


def test_a_fit_of_other_codes_is_refused(root, tmp_path):
    other = cohort.prepare_cohort(cohort.write_cohort(tmp_path, 6, wear_days=1))
    mixed = store.RecordStore(root / "records", root / "fit" / "all")
    mixed.fit_dir = other / "fit" / "all"
    with pytest.raises(ValueError, match="was fitted on other codes"):
        mixed.code_statistics  # noqa: B018


def test_a_damaged_shard_is_never_read_as_other_records(tmp_path):
    root = cohort.prepare_cohort(cohort.write_cohort(tmp_path, n_subjects=12))
    whole = cohort.open_store(root)
    want = [whole.read(i) for i in range(len(whole))]
    (shard,) = (root / "records").glob("*.array_record")
    data, n_refused = shard.read_bytes(), 0
    for place in np.random.default_rng(0).choice(len(data) // 4, 40, replace=False):
        damaged = bytearray(data)
        damaged[place] ^= 1
        shard.write_bytes(bytes(damaged))
        try:
            found = cohort.open_store(root)
            got = [found.read(i) for i in range(len(found))]
        except (RuntimeError, ValueError):
            n_refused += 1
            continue
        for one, two in zip(want, got, strict=True):
            assert one.window_MxLxC.tobytes() == two.window_MxLxC.tobytes()
            assert one.code_K.tobytes() == two.code_K.tobytes() and one.time_K.tobytes() == two.time_K.tobytes()
    assert n_refused > 2
