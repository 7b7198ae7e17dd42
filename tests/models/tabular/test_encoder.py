"""How features are made fit for models: by hand, and by training rows alone."""

import numpy as np
import pytest
from scipy import sparse

from ehrwear_jax.models.tabular import encoder
from ehrwear_jax.models.tabular.encoder import Encoder
from ehrwear_jax.models.tabular.features import COUNT, FLAG, SINCE, VALUE

KINDS = [COUNT, SINCE, FLAG, VALUE, VALUE]


def stored(rows):
    """CSR of rows in which None is not stored, and 0 is."""
    at = [(i, j, v) for i, row in enumerate(rows) for j, v in enumerate(row) if v is not None]
    row, column, value = zip(*at, strict=True)
    return sparse.coo_matrix((np.array(value, np.float32), (row, column)), (len(rows), len(rows[0]))).tocsr()


TRAIN = [[1, 0, 1, 2.0, 7.0], [3, None, None, 4.0, 7.0], [None, 30, None, 6.0, None]]


def test_encoding_by_hand():
    encode = Encoder(stored(TRAIN), KINDS)
    low, high = np.quantile([2.0, 4.0, 6.0], [0.01, 0.99])
    sd = np.std([low, 4.0, high])
    new = [[0, 0, 1, 4.0, 7.0], [5, 90, None, None, 9.0], [None, None, None, 1e9, None]]
    x = encode(stored(new))
    expected = [
        [0, 1, 1, 1e-6, 1e-6],  # the mean is apart from what is not known, also without any spread
        [np.log(6), 1 / (1 + np.log(4)), 0, 0, 1e-6],
        [0, 0, 0, 10, 0],
    ]
    np.testing.assert_allclose(x.toarray(), expected, rtol=1e-6)
    z = encode(stored([[None, None, None, 4 + sd, None]]))[0, 3]
    assert z == pytest.approx(1, rel=1e-6)


def test_one_absurd_value_does_not_make_a_column_constant():
    rng = np.random.default_rng(0)
    value_N = rng.normal(100, 5, 1000)
    plain, absurd = ([[v] for v in x] for x in (value_N, np.r_[value_N[1:], 1e9]))
    a, b = (Encoder(stored(x), [VALUE]) for x in (plain, absurd))
    assert b.scale_F[0] == pytest.approx(a.scale_F[0], rel=0.02)


def test_order_is_kept_and_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    x = sparse.random(200, 5, 0.6, "csr", np.float32, rng)
    whole = Encoder(x.copy(), KINDS)
    rows = whole(x.copy())
    monkeypatch.setattr(encoder, "_ENTRIES_AT_ONCE", 7)
    parts = Encoder(x.copy(), KINDS)
    np.testing.assert_array_equal(parts.scale_F, whole.scale_F)
    np.testing.assert_array_equal(parts(x.copy()).toarray(), rows.toarray())
    for column, sign in enumerate([1, -1, 1, 1, 1]):  # time since falls
        known = x[:, column].toarray()[:, 0] > 0
        raw, made = (m[:, column].toarray()[known, 0] for m in (x, rows))
        assert (sign * np.diff(made[np.argsort(raw)]) >= 0).all()


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        Encoder(stored([[np.inf]]), [VALUE])
    with pytest.raises(ValueError, match="x_train has 1 columns, expected 2"):
        Encoder(stored([[1.0]]), [VALUE, COUNT])
