"""Weighted sums of terms: ramps at their knots and between, whole-batch normalisers, means of what exists."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.objective import Ramp, WeightedTerms, masked_mean, n_true


@given(start=st.floats(0, 2), end=st.floats(0, 2), steps=st.integers(1, 50_000), step=st.integers(0, 100_000))
def test_ramp_is_linear_then_constant(start, end, steps, step):
    ramp = Ramp(start, end, steps)
    np.testing.assert_allclose(ramp(0), start, atol=1e-7)
    np.testing.assert_allclose(ramp(step), np.interp(step, [0, steps], [start, end]), atol=1e-6)


def test_ramp_without_steps_is_its_end_from_the_beginning():
    assert Ramp(0.2, 1.0)(0) == Ramp(0.2, 1.0, 0)(7) == 1.0


def test_ramp_runs_inside_a_jitted_step():
    traced = jax.jit(Ramp(0.2, 1.0, 50_000))
    for step, want in ((0, 0.2), (25_000, 0.6), (50_000, 1.0), (10**6, 1.0)):
        np.testing.assert_allclose(traced(jnp.int32(step)), want, rtol=1e-6)


@pytest.mark.parametrize(("step", "wear_to_ehr"), [(0, 0.2), (10_000, 0.36), (50_000, 1.0), (500_000, 1.0)])
def test_the_weights_of_the_paper(step, wear_to_ehr):
    """Appendix A.4: 0.2 to 1.0 over 50,000 steps; 0.1 the other way; 1 within a modality throughout."""
    weights = {name: float(Ramp(*of)(step)) for name, of in Config().weights.items()}
    np.testing.assert_allclose(weights.pop("wear_to_ehr"), wear_to_ehr, rtol=1e-6)
    np.testing.assert_allclose(weights.pop("ehr_to_wear"), 0.1, rtol=1e-6)
    further = {"ehr_values", "next_value", "wear_values", "person"}  # the paper has no such terms
    optional = {"contrast", "content_norm", "raw_masked", "latent_kl", "event_likelihood", "signal_likelihood"}
    assert {name for name, w in weights.items() if w == 0} == optional | further
    assert all(w in (0.0, 1.0) for w in weights.values())


@dataclasses.dataclass(frozen=True)
class Mean:
    """A term that averages what is out where a field is positive."""

    name: str
    field: str

    def normaliser(self, batch):
        return n_true(batch[self.field] > 0)

    def loss(self, out, batch, normaliser):
        value = masked_mean(out, batch[self.field] > 0, normaliser)
        return value, {"count": n_true(batch[self.field] > 0)}


OBJECTIVE = WeightedTerms((Mean("a", "x"), Mean("b", "y")), {"a": Ramp(1.0, 0.0, 10), "b": Ramp(2.0, 2.0)})


def case():
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(8, 3)).astype(np.float32), "y": rng.normal(size=(8, 2)).astype(np.float32)}
    batch["x"][::2] = -1.0
    out = {"a": rng.normal(size=(8, 3)).astype(np.float32), "b": rng.normal(size=(8, 2)).astype(np.float32)}
    return out, batch


@pytest.mark.parametrize(("step", "weights"), [(0, {"a": 1.0, "b": 2.0}), (5, {"a": 0.5, "b": 2.0})])
def test_total_is_the_weighted_sum(step, weights):
    out, batch = case()
    found = OBJECTIVE.weights(step)
    assert {k: float(v) for k, v in found.items()} == weights
    loss, metrics = OBJECTIVE(out, batch, found, OBJECTIVE.normalisers(batch))
    want = {"a": out["a"][batch["x"] > 0].mean(), "b": out["b"][batch["y"] > 0].mean()}
    for name, value in want.items():
        np.testing.assert_allclose(metrics[f"loss/{name}"], value, rtol=1e-5)
        assert metrics[f"{name}/count"] == (batch["x" if name == "a" else "y"] > 0).sum()
    np.testing.assert_allclose(loss, sum(w * want[name] for name, w in weights.items()), rtol=1e-5)
    assert metrics["loss/total"] == loss


def test_parts_that_share_the_normalisers_of_the_whole_add_up():
    """However unevenly targets are spread: half of the rows have none of one term."""
    out, batch = case()
    whole, weights = OBJECTIVE.normalisers(batch), OBJECTIVE.weights(0)
    loss, metrics = OBJECTIVE(out, batch, weights, whole)
    parts = [
        OBJECTIVE({k: v[i::4] for k, v in out.items()}, {k: v[i::4] for k, v in batch.items()}, weights, whole)
        for i in range(4)
    ]
    np.testing.assert_allclose(sum(p[0] for p in parts), loss, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(sum(p[1][name] for p in parts), value, rtol=1e-5, err_msg=name)


def test_masked_mean_ignores_what_is_masked_and_half_precision_overflow():
    value = jnp.full((4, 100), 2.0**15, jnp.float16)
    mask = jnp.arange(4)[:, None] < 3
    assert masked_mean(value.at[3].set(jnp.nan), mask) == 2.0**15
    assert masked_mean(value, jnp.zeros((4, 1), bool)) == 0.0
