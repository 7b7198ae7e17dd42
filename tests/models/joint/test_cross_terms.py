"""Terms across modalities and of latents, against float64 loops and dense Gaussian algebra over a random batch."""

import math

import numpy as np
import pytest
import term_cases
from term_cases import PRIOR, TEMPERATURE, B, D, E, J, Q, mean, nll, observed_of

from ehrwear_jax.models.joint.batch import MODALITY_EHR, MODALITY_WEAR, PAD

TERMS = ("wear_to_ehr", "ehr_to_wear", "contrast", "content_norm", "latent_kl")


def slow_wear_to_ehr(out, batch):
    terms = []
    for name, n in (("event", E), ("query", Q)):
        for i in np.ndindex(B, n):
            there = batch["modality"][i[0], slice(*batch[f"{name}_pool"][i])] == MODALITY_WEAR
            if batch[f"{name}_next"][i] != PAD and there.any():
                terms.append(nll(out[f"wear_to_ehr/{name}"][i], batch[f"{name}_next"][i]))
    return mean(terms)


def slow_ehr_to_wear(out, batch):
    errors = []
    for name in ("event", "query"):
        mask = batch[f"{name}_summary_mask"]
        errors += ((out[f"ehr_to_wear/{name}"].astype(np.float64) - batch[f"{name}_summary"])[mask] ** 2).tolist()
    return mean(errors)


def slow_contrast(out, batch):
    pairs = [i for i in np.ndindex(B, J) if batch["pair_patient"][i] >= 0]
    costs = []
    for i in pairs:
        own = math.fsum(out["contrast/ehr"][i] * out["contrast/wear"][i]) / TEMPERATURE
        others = [j for j in pairs if batch["pair_patient"][j] != batch["pair_patient"][i]]
        scores = [math.fsum(out["contrast/ehr"][i] * out["contrast/wear"][j]) / TEMPERATURE for j in others]
        costs.append(math.log(math.exp(own) + sum(map(math.exp, scores))) - own)
    return mean(costs)


def slow_content_norm(out, batch):
    def of(modality):
        at = zip(*np.nonzero(batch["modality"] == modality), strict=True)
        return mean([np.mean(np.square(out["content_norm"][i].astype(np.float64))) for i in at])

    return of(MODALITY_EHR) + of(MODALITY_WEAR)


def slow_latent_kl(out, batch):
    """Dense Gaussian algebra: the covariance of each context's states, in which queries hang on the last seen token."""
    total = 0.0
    for b in range(B):
        for s in range(1, batch["segment"][b].max() + 1):
            tokens = np.nonzero(batch["segment"][b] == s)[0]
            clock = dict.fromkeys(tokens[:1], 0.0)  # the prior's time: an hour at least passes between states
            for before, t in zip(tokens, tokens[1:], strict=False):
                gap = float(batch["time"][b, t]) - float(batch["time"][b, before])
                clock[t] = clock[before] + max(gap, 1 / 24)
            states = [("token", t, clock[t], 0.0) for t in tokens]
            for q in np.nonzero(batch["query_segment"][b] == s)[0]:
                lo, hi = batch["query_kv_range"][b, q]
                if hi > lo:
                    gap = max(float(batch["query_time"][b, q]) - float(batch["time"][b, hi - 1]), 1 / 24)
                    states.append(("query", q, clock[hi - 1], gap))
                else:
                    states.append(("query", q, np.inf, 0.0))
            total += sum(dense_kl(out, b, states, d) for d in range(D))
        loose = [
            ("query", q, np.inf, 0.0) for q in np.nonzero(batch["query_segment"][b] > batch["segment"][b].max())[0]
        ]
        total += sum(dense_kl(out, b, [x], d) for x in loose for d in range(D))
    return total / observed_of(batch)


def dense_kl(out, b, states, d):
    """KL of independent normals from N(0, K): K = variance * exp(-rate * length of the way between two states)."""
    n, rate = len(states), float(PRIOR["prior_rate"][d])
    way = np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        if i != j:
            at_i, at_j = states[i][2], states[j][2]
            way[i, j] = np.inf if np.isinf([at_i, at_j]).any() else abs(at_i - at_j) + states[i][3] + states[j][3]
    K = float(PRIOR["prior_variance"][d]) * np.exp(-rate * way)
    mu = np.array([out[f"latent_kl/mean_{name}"][b, i, d] for name, i, *_ in states], np.float64)
    sigma = np.diag([float(out[f"latent_kl/variance_{name}"][b, i, d]) for name, i, *_ in states])
    inverse = np.linalg.inv(K)
    logdet = np.linalg.slogdet(K)[1] - np.linalg.slogdet(sigma)[1]
    return 0.5 * (np.trace(inverse @ sigma) + mu @ inverse @ mu - n + logdet)


SLOW = dict(
    zip(TERMS, (slow_wear_to_ehr, slow_ehr_to_wear, slow_contrast, slow_content_norm, slow_latent_kl), strict=True)
)


@pytest.mark.parametrize("term", TERMS)
def test_term_equals_loops(case, term):
    term_cases.check_loops(case, term, SLOW[term])


def test_nothing_to_learn_from_is_zero_and_has_no_gradient(losses):
    term_cases.check_no_loss_without_targets(losses, TERMS)


def test_padding_changes_nothing(case, losses):
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    out, batch, loss, _, _ = case
    loud = {k: v.copy() for k, v in out.items()}
    loud["latent_kl/mean_query"][batch["query_segment"] == 0] = 1e4
    assert losses(loud, batch)[0] == loss


def test_diagnostics_of_pairs_and_parts(case):
    out, batch, _, metrics, _ = case
    pairs = [i for i in np.ndindex(B, J) if batch["pair_patient"][i] >= 0]
    others = [[j for j in pairs if batch["pair_patient"][j] != batch["pair_patient"][i]] for i in pairs]
    np.testing.assert_allclose(metrics["contrast/negatives"], np.mean([len(o) for o in others]), rtol=1e-6)
    np.testing.assert_allclose(metrics["contrast/temperature"], TEMPERATURE, rtol=1e-6)
    first = []
    for i, mine in zip(pairs, others, strict=True):
        score = {j: out["contrast/ehr"][i] @ out["contrast/wear"][j] for j in (i, *mine)}
        first.append(bool(mine) and max(score, key=score.get) == i)
    np.testing.assert_allclose(metrics["contrast/accuracy"], np.mean(first), rtol=1e-6)
    for term, parts in (("content_norm", ("ehr", "wear")), ("latent_kl", ("token", "query"))):
        total = sum(metrics[f"{term}/{part}"] for part in parts)
        np.testing.assert_allclose(metrics[f"loss/{term}"], total, rtol=1e-6)
