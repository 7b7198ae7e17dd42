"""The public op: arguments, dispatch, dropout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_attention_suite import Suite, arguments, device_arrays

from ehrwear_jax.ops.kernel_attention import ExponentialMixture, api, kernel_attention, reference
from ehrwear_jax.ops.kernel_attention.reference import dropout_keep, dropout_seed


def test_dropout_keeps_the_mean_and_depends_on_global_indices_only():
    seed = dropout_seed(jax.random.key(3))
    index = np.arange(200, dtype=np.uint32)
    keep = dropout_keep(seed, jnp.uint32(0), jnp.uint32(1), jnp.asarray(index)[:, None], jnp.asarray(index)[None], 0.3)
    assert abs(float(keep.mean()) - 0.7) < 4 * np.sqrt(0.21 / keep.size)
    part = dropout_keep(
        seed, jnp.uint32(0), jnp.uint32(1), jnp.asarray(index[50:60])[:, None], jnp.asarray(index[7:9])[None], 0.3
    )
    np.testing.assert_array_equal(part, keep[50:60, 7:9])
    # rows, columns, heads and keys are unrelated to one another
    other = dropout_keep(
        dropout_seed(jax.random.key(4)),
        jnp.uint32(0),
        jnp.uint32(1),
        jnp.asarray(index)[:, None],
        jnp.asarray(index)[None],
        0.3,
    )
    for a, b in ((keep[1:], keep[:-1]), (keep[:, 1:], keep[:, :-1]), (keep, other), (keep, keep.T)):
        assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.03


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_of_no_two_rows_columns_heads_or_seeds_is_related(rate):
    """Correlations of all pairs spread as those of independent draws do; so do products over rectangles."""
    n = 512
    index = jnp.arange(n, dtype=jnp.uint32)

    def drawn(head=0, seed=3):
        words = dropout_seed(jax.random.key(seed))
        keep = dropout_keep(words, jnp.uint32(0), jnp.uint32(head), index[:, None], index[None], rate)
        return (np.asarray(keep, np.float64) - (1 - rate)) / np.sqrt(rate * (1 - rate))

    x = drawn()
    assert abs(x.sum()) / n < 4
    for y in (x, x.T):
        assert abs(np.var(y.sum(1) / np.sqrt(n)) - 1) < 5 * np.sqrt(2 / n)
        pairs = (y @ y.T / np.sqrt(n))[np.triu_indices(n, 1)]
        assert abs(np.var(pairs) - 1) < 0.03 and abs(np.mean(pairs)) < 0.02
    for y in (drawn(head=1), drawn(seed=4)):
        assert abs(np.var(x @ y.T / np.sqrt(n)) - 1) < 0.03 and abs(np.sum(x * y)) / n < 4
    for a, b in itertools.product((1, 2, 16, 64), (1, 8, 64)):
        corners = x[:-a, :-b] * x[a:, :-b] * x[:-a, b:] * x[a:, b:]
        assert abs(corners.sum()) / np.sqrt(corners.size) < 5


def inputs():
    x = Suite().case()
    return Suite.plain, x


def call(changes=None, **more):
    shape, x = inputs()
    learned, rest = device_arrays(shape, x)
    args, keywords = arguments(shape, rest, learned)
    return kernel_attention(*args, **(keywords | (changes or {}) | more))


def test_errors_name_the_argument():
    _, x = inputs()
    with pytest.raises(ValueError, match="dropout_key"):
        call(dropout_rate=0.1)
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        call(implementation="fast")
    with pytest.raises(ValueError, match="k_time"):
        call({"k_time_BxS": x["k_time"][:, 1:]})
    with pytest.raises(ValueError, match="kv_range must hold integers"):
        call({"kv_range_BxTx2": x["kv_range"].astype(np.float32)})
    with pytest.raises(ValueError, match="skip_tolerance"):
        call(skip_tolerance=-1.0)
    with pytest.raises(ValueError, match="beta"):
        call({"kernel": ExponentialMixture(jnp.ones((3, 2)), jnp.ones((3, 2)))})
    with pytest.raises(ValueError, match="source_bias and q_modality"):
        call({"q_modality_BxT": None})


def test_times_are_constants():
    shape, x = inputs()
    learned, rest = device_arrays(shape, x)
    args, keywords = arguments(shape, rest, learned)
    for name in ("reference", "xla"):
        grad = jax.grad(
            lambda t, n=name: jnp.sum(kernel_attention(*args, **(keywords | {"k_time_BxS": t}), implementation=n))
        )
        assert np.all(np.asarray(grad(keywords["k_time_BxS"])) == 0)


def test_dropout_keys_typed_and_raw_are_one():
    key = jax.random.key(3)
    typed, raw = (call(dropout_rate=0.5, dropout_key=k) for k in (key, jax.random.key_data(key)))
    np.testing.assert_array_equal(typed, raw)
    assert np.any(np.asarray(typed) != np.asarray(call()))


def test_dropout_of_a_part_is_that_of_the_whole():
    """Rows, heads and queries of a call with dropout, computed alone with their global indices."""
    shape, x = inputs()
    learned, rest = device_arrays(shape, x)
    args, keywords = arguments(shape, rest, learned)
    more = {"dropout_rate": 0.4, "dropout_key": jax.random.key(0)}
    whole = kernel_attention(*args, **keywords, **more)
    q, k, v = args
    part = kernel_attention(
        q[1:, 30:, 1:],
        k[1:, :, 1:],
        v[1:, :, 1:],
        q_time_BxT=rest["q_time"][1:, 30:],
        k_time_BxS=rest["k_time"][1:],
        kv_range_BxTx2=rest["kv_range"][1:, 30:],
        kernel=ExponentialMixture(learned["first"][1:], learned["second"][1:]),
        source_bias_BxHxMxS=learned["bias"][1:, 1:],
        q_modality_BxT=rest["modality"][1:, 30:],
        first_index=(1, 1, 30, 0),
        **more,
    )
    np.testing.assert_allclose(part, whole[1:, 30:, 1:], atol=2e-6)


def test_newest_visible_is_the_maximum_over_the_range():
    rng = np.random.default_rng(0)
    for n_key in (1, 2, 7, 64, 100):
        time = rng.normal(size=(3, n_key)).astype(np.float32)
        ends = np.sort(rng.integers(0, n_key + 1, (3, 50, 2)), axis=-1).astype(np.int32)
        got = reference.newest_visible(jnp.asarray(time), jnp.asarray(ends))
        for b, i in np.ndindex(3, 50):
            lo, hi = ends[b, i]
            assert got[b, i] == (time[b, lo:hi].max() if hi > lo else -np.inf)


def test_an_implementation_that_cannot_run_is_passed_over(monkeypatch, caplog):
    def broken(*args, **keywords):
        raise NotImplementedError("no such hardware")

    monkeypatch.setattr(api, "IMPLEMENTATIONS", {"broken": broken} | api.IMPLEMENTATIONS)
    monkeypatch.setattr(api, "_logged", set())
    with caplog.at_level("INFO"):
        np.testing.assert_array_equal(call(), call(implementation="xla"))
    assert "broken" in caplog.text and "no such hardware" in caplog.text
    with pytest.raises(NotImplementedError, match="no such hardware"):
        call(implementation="broken")
