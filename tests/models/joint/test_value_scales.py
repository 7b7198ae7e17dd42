"""Robust scales of numeric codes: which codes, clipping, and what mistyped values do to them."""

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.data.prepare import statistics
from ehrwear_jax.models.joint import value_scales
from ehrwear_jax.models.vocabulary import build_vocabulary

SODIUM, POTASSIUM, CONSTANT, WORD = range(4)


def fitted(values, limit=8):
    """(vocabulary, scales) of {code_id: values}."""
    of_codes, of_texts = counted(values)
    vocabulary = build_vocabulary(of_codes, of_texts, {}, min_text_subjects=1, value_bins=4, min_values=5)
    return vocabulary, value_scales.fit(vocabulary, of_codes, limit)


def fitted_statistics(values):
    """CODE_STATISTICS of {code_id: values}."""
    return counted(values)[0]


def counted(values):
    """(statistics of codes, of texts, of which there are none) of {code_id: values}; WORD has no value."""
    codes = pl.DataFrame({
        "code_id": pl.Series(range(4), dtype=pl.Int32), "code": ["LAB//na", "LAB//k", "LAB//c", "DX//x"],
        "ancestors": pl.Series([[]] * 4, dtype=pl.List(pl.String)),
    })  # fmt: skip
    rows = [(i, c, float(v)) for c, found in values.items() for i, v in enumerate(found)]
    rows += [(i, WORD, None) for i in range(30)]
    events = pl.DataFrame(
        rows, {"subject_id": pl.Int64, "code_id": pl.Int32, "numeric_value": pl.Float64}, orient="row"
    )
    events = events.with_columns(text_id=pl.lit(-1, pl.Int32))
    none = pl.DataFrame(schema={"text_id": pl.Int32, "code_id": pl.Int32, "text": pl.String})
    of_codes, of_texts = statistics.fit_in_memory(events, codes, none, min_subjects=5)
    return of_codes, of_texts.join(none, on="text_id", how="left")


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    sodium, potassium = rng.normal(140, 4, 4000), np.exp(rng.normal(1.4, 0.2, 3000))
    potassium[:5] = 1e5  # mistyped
    values = {SODIUM: sodium, POTASSIUM: potassium, CONSTANT: np.full(5000, 7.0)}
    return values, *fitted(values)


def test_the_codes_with_the_most_values_that_differ_come_first(case):
    values, vocabulary, scales = case
    assert scales.names == ("LAB//na", "LAB//k"), "a constant has no state, a diagnosis no value"
    assert fitted(values, 1)[1].names == ("LAB//na",)
    codes = vocabulary.tokens["code"].to_list()
    for token, u in enumerate(scales.class_V):
        assert u == (scales.names.index(codes[token]) if codes[token] in scales.names else -1)
    assert (scales.class_V == 0).sum() == 4, "all bins of a code are one class"


@pytest.mark.parametrize("code", [SODIUM, POTASSIUM])
def test_values_are_clipped_to_quantiles_and_standardised(case, code):
    values, vocabulary, scales = case
    raw = values[code]
    token, standard = vocabulary.encode(np.full(len(raw), code), raw, np.full(len(raw), -1))
    found = scales(scales.class_V[token], standard)
    assert abs(found.mean()) < 0.02 and found.std() == pytest.approx(1.0, abs=0.02)
    low, high = np.quantile(raw, [0.01, 0.99])
    inside = np.clip(raw, low, high)
    want = (inside - inside.mean()) / inside.std()
    np.testing.assert_allclose(found, want, atol=0.06)
    assert found[raw > high].std() < 1e-3 and found.max() < 4, "a mistyped value is as far out as the last percent"


def test_no_value_stays_none(case):
    assert np.isnan(case[2](np.array([0]), np.array([np.nan]))).all()


def test_quantiles_are_ranks_among_the_training_values(case):
    values, vocabulary, _ = case
    statistic = fitted_statistics(values)
    quantiles = value_scales.fit_quantiles(vocabulary, statistic)
    for code in (SODIUM, POTASSIUM):
        raw = np.sort(values[code])
        token, standard = vocabulary.encode(np.full(len(raw), code), raw, np.full(len(raw), -1))
        found = quantiles(token, standard)
        rank = np.arange(len(raw)) / len(raw)
        assert np.all(np.diff(found) >= 0) and found.min() > 0 and found.max() < 1
        np.testing.assert_allclose(found[50:-50], rank[50:-50], atol=0.03)
    token, standard = vocabulary.encode(np.array([CONSTANT, WORD]), np.array([7.0, np.nan]), np.array([-1, -1]))
    assert quantiles(token, standard).tolist() == [0.5, 0.0], "all alike: in the middle; without a value: none"
