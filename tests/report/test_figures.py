import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from report_samples import trajectory
from statsmodels.stats.proportion import proportion_confint

from ehrwear_jax.report import figures, trajectories


def _texts(svg):
    return [e.text for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


# --- calibration ---------------------------------------------------------------------------------


def test_reliability_bins_are_equal_in_size_with_wilson_intervals():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=1000)
    y = (rng.uniform(size=1000) < p).astype(float)
    bins = figures.reliability_bins(y, p)
    assert bins.count_B.tolist() == [100] * 10
    for b, part in enumerate(np.array_split(np.argsort(p), 10)):
        positives = y[part].sum()
        lo, hi = proportion_confint(positives, 100, method="wilson")
        assert bins.predicted_B[b] == pytest.approx(p[part].mean())
        assert bins.observed_B[b] == pytest.approx(positives / 100)
        assert (bins.lo_B[b], bins.hi_B[b]) == pytest.approx((lo, hi))


@given(
    hnp.arrays(float, st.integers(1, 60), elements=st.sampled_from([0, 0.1, 0.25, 0.5, 1])),
    st.integers(0, 2**31),
)
def test_reliability_bins_count_everyone_once_and_keep_ties_together(p, seed):
    y = np.random.default_rng(seed).integers(0, 2, len(p)).astype(float)
    bins = figures.reliability_bins(y, p)
    assert bins.count_B.sum() == len(p) and (bins.count_B > 0).all()
    assert np.sum(bins.observed_B * bins.count_B) == pytest.approx(y.sum())
    assert np.sum(bins.predicted_B * bins.count_B) == pytest.approx(p.sum())
    assert (np.diff(bins.predicted_B) > 0).all()
    assert len(bins.count_B) <= len(np.unique(p))
    assert ((bins.lo_B <= bins.observed_B + 1e-12) & (bins.observed_B <= bins.hi_B + 1e-12)).all()


# --- lines ---------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 2**31))
def test_block_means_keep_the_mean_and_the_bound_on_points(size, n, seed):
    y = np.random.default_rng(seed).normal(size=size)
    x, mean = figures.block_means(np.arange(size, dtype=float), y, n)
    assert len(x) == len(mean) == min(size, n)
    assert (np.diff(x) > 0).all()
    edges = np.linspace(0, size, len(x) + 1).astype(int)
    assert np.sum(mean * np.diff(edges)) == pytest.approx(y.sum())


def test_block_means_skip_what_is_missing():
    y = np.array([1.0, np.nan, np.nan, np.nan, 2.0, 4.0])
    x, mean = figures.block_means(np.arange(6.0), y, 3)
    np.testing.assert_array_equal(mean, [1, np.nan, 3])
    np.testing.assert_allclose(x, [0.5, 2.5, 4.5])


def test_daily_means_by_hand():
    time = np.array([0.1, 0.9, 1.5, 3.0, 3.5])
    middle, mean = trajectories.daily_means(time, np.array([1.0, 3.0, np.nan, 5.0, np.nan]))
    np.testing.assert_array_equal(middle, [0.5, 1.5, 2.5, 3.5])
    np.testing.assert_array_equal(mean, [2, np.nan, np.nan, 5])


# --- principal components ------------------------------------------------------------------------


def test_components_find_the_axes_of_a_known_shape():
    t = np.linspace(-1, 1, 101)
    shape = np.stack([3 * t, t**2 - np.mean(t**2)], axis=1)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 2)))[0]
    z = 5 + shape @ rotation.T
    (first, second), share = trajectories.principal_components([z[:40], z[40:]])
    scores = np.concatenate([first, second])
    assert scores.shape == (101, 2)  # the rank, not the three that were asked for
    np.testing.assert_allclose(np.abs(scores[:, 0]), np.abs(shape[:, 0]), atol=1e-9)
    np.testing.assert_allclose(np.abs(scores[:, 1]), np.abs(shape[:, 1]), atol=1e-9)
    variance = shape.var(axis=0)
    np.testing.assert_allclose(share, variance / variance.sum())


def test_a_constant_state_has_no_components():
    (score,), share = trajectories.principal_components([np.full((4, 3), 2.0)])
    assert score.shape == (4, 0) and share.shape == (0,)
    svg = trajectories.trajectory_figure(trajectory(), np.zeros((30, 0)), (-1, 1), "c")
    assert "Person 7" in _texts(svg)


def test_the_sign_of_a_component_does_not_depend_on_the_order_of_rows():
    z = np.random.default_rng(1).normal(size=(50, 4))
    (score,), _ = trajectories.principal_components([z])
    (back,), _ = trajectories.principal_components([z[::-1]])
    np.testing.assert_allclose(back[::-1], score, atol=1e-9)


# --- events --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "lane", "text"),
    [
        ("ICD10//I10", "diagnoses", "I10"),
        ("ATC//C09AA", "drugs", "C09AA"),
        ("LOINC//2345-7", "labs", "2345-7"),
        ("HOSPITAL_ADMISSION//INPATIENT", "hospital", "admission"),
        ("HOSPITAL_DISCHARGE", "hospital", "discharge"),
        ("MEDS_DEATH", "death", "death"),
        ("stroke", "events", "stroke"),
        ("diabetes//type 2", "events", "type 2"),
        ("ICD10//Heart failure, unspecified", "diagnoses", "Heart failure, unspecif…"),
    ],
)
def test_labels_go_to_lanes(label, lane, text):
    assert trajectories.lane_of(label) == lane
    assert trajectories.event_text(label) == text


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.sampled_from(["I10", "C09AA", "long label here"])),
        min_size=1,
        max_size=40,
    )
)
def test_placed_labels_never_overlap_and_stay_inside(events):
    time = np.array([t for t, _ in events])
    placed = trajectories.place_labels(time, [x for _, x in events], (0.0, 100.0), 500)
    assert placed  # the first label always fits
    spans = []
    for t, side, text in placed:
        width = (len(text) * 0.56 + 1.2) * trajectories.LABEL_POINTS * 100 / 500
        spans.append((t, t + width) if side == "left" else (t - width, t))
    spans.sort()
    assert spans[-1][1] <= 100 + 1e-9
    assert all(a[1] <= b[0] + 1e-9 for a, b in zip(spans, spans[1:], strict=False))


def test_a_rare_label_wins_over_a_frequent_one():
    placed = trajectories.place_labels(np.array([0.0, 0.1, 50.0]), ["hdl", "mi", "hdl"], (0, 100), 400)
    assert [text for _, _, text in placed] == ["mi", "hdl"]


# --- drawing -------------------------------------------------------------------------------------


def test_all_parts_of_a_trajectory_are_on_one_axis():
    t = trajectory()
    (score,), _ = trajectories.principal_components([t.z_NxD])
    texts = _texts(trajectories.trajectory_figure(t, score, (-20, 20), "t"))
    for expected in ("Person 7", t.outcome, "latent state z", "diagnoses", "labs", "hospital",
                     "I50", "admission", "heart rate", "prediction"):  # fmt: skip
        assert expected in texts, expected
    assert texts.count("100") == 1  # one time axis, its numbers below the last panel only


def test_figures_take_the_pages_colours_and_ids_are_their_own():
    bars = [
        figures.Bar("joint", "Joint", 0.8, 0.7, 0.9),
        figures.Bar("oracle", "Oracle", 0.9, None, None),
    ]
    first, second = (figures.interval_panel(bars, "A & B", "AUROC", (0.5, 1), x) for x in ("a", "b"))
    assert "A & B" in _texts(first)
    assert set(re.findall(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", first))) == set()
    assert f"var(--blue, {figures.color('blue')})" in first
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= own


def test_a_reader_s_matplotlibrc_changes_nothing():
    import matplotlib

    curves = {"joint": (np.arange(5.0), np.arange(5.0))}
    before = figures.loss_panel(curves, curves, "total", "x", {"joint": 0})
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 20, "svg.fonttype": "path"}):
        assert figures.loss_panel(curves, curves, "total", "x", {"joint": 0}) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_unknown_models_get_colours_that_the_known_ones_leave():
    colors = figures.model_colors(["joint", "mamba", "rnn"])
    assert len(set(colors.values())) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_NxD": np.zeros((29, 8))}, "z_NxD has shape"),
        ({"z_NxD": np.full((30, 8), np.nan)}, "not finite"),
        ({"event_label_E": ["a"]}, "1 event labels for 3 event times"),
        ({"signal_names": ["a", "b"]}, "signal_MxC has shape"),
        ({"signal_time_M": np.zeros(960)}, "does not increase"),
        ({"prediction_time": np.inf}, "a time is not finite"),
    ],
)
def test_a_bad_trajectory_is_named(changes, message):
    with pytest.raises(ValueError, match="trajectory of person 7: .*" + message):
        trajectory(**changes)
