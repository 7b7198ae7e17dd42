"""Random predictions and targets of the joint terms, with holes and padding, and their losses and gradients."""

import math

import jax
import numpy as np
from flax import traverse_util
from random_rows import spec_of

from ehrwear_jax.models.joint.batch import MODALITY_EHR, N_SPECIAL, Facts
from ehrwear_jax.models.joint.config import MODALITIES, WEIGHTS, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.joint.ehr_terms import CodeTerm
from ehrwear_jax.models.joint.terms import active
from ehrwear_jax.models.layers.vocabulary_loss import token_loss
from ehrwear_jax.models.objective import Ramp, WeightedTerms

V, A, B, S, D = 11, 4, 3, 5, 4  # vocabulary, horizons, rows, width of the common space, width of z
T, W, L, C, P, M, E, Q, H, K, R, J, F = 16, 5, 6, 2, 3, 4, 4, 5, 3, 4, 3, 3, 6  # see joint/batch.py
Y, MIXTURE = 4, 9  # next values, parameters of their density
U, G, X = 3, 12, 7  # numeric codes, statistics of two spans of a code and of a channel
N, RAW_S, RAW_A, RAW_V = 4, 6, 2, 3  # raw windows, their samples, channels and parts
RATE = np.linspace(0.02, 0.9, K * A).reshape(K, A)
FACTS = Facts(
    modalities=MODALITIES, vocabulary=V, steps=L, channels=C, derived=0, future_codes=K, history_tokens=R,
    n_horizons=A, future_rates=tuple(RATE.ravel()), value_codes=U, raw_samples=RAW_S, raw_channels=RAW_A,
)  # fmt: skip
CONFIG = Config(
    context=ContextConfig(
        tokens=T - W, context_tokens=T - W, windows=W, queries=Q, events=E, pairs=J, future_windows=H, future_codes=K,
        history_tokens=R, patch_steps=L // P, value_spans=(30.0, 365.0),
        next_values=Y, raw_segments="ppg", raw_windows=N, raw_parts=RAW_V,
    ),
    network=NetworkConfig(posterior="normal", width=D, align_width=S, raw_width=4),
    weights={term: (0.25 * (i + 1), 0.25 * (i + 1), 0) for i, term in enumerate(WEIGHTS)},
)  # fmt: skip
SPEC = spec_of(CONFIG, FACTS)
PRIOR = {"prior_rate": np.float32([0.02, 0.3, 1.0, 5.0]), "prior_variance": np.float32([0.5, 1.0, 2.0, 1.5])}
TEMPERATURE = np.float32(0.4)
LOG_SD = np.float32([-0.5, 0.3])  # of channels
# {term/name: shape of a row} of what is predicted
OUTPUTS = {
    "ehr_masked/masked": (M, V),
    "future_event/event": (E, V),
    "future_event/query": (Q, V),
    "future_codes": (Q, K, A),
    "ehr_history": (Q, R, A + 1),
    "ehr_values": (Q, U, G),
    "next_value/event": (E, Y, MIXTURE),
    "next_value/query": (Q, Y, MIXTURE),
    "wear_masked": (W, L, C),
    "raw_masked": (N, RAW_S, RAW_A),
    "future_signal/step_window": (W, H, L, C),
    "future_signal/query_window": (Q, H, L, C),
    "wear_history": (Q, F),
    "wear_values": (Q, C, X),
    "wear_to_ehr/event": (E, V),
    "wear_to_ehr/query": (Q, V),
    "ehr_to_wear/event": (E, F),
    "ehr_to_wear/query": (Q, F),
    "contrast/ehr": (J, S),
    "contrast/wear": (J, S),
    "content_norm": (T, D),
    "latent_kl/mean_token": (T, D),
    "latent_kl/mean_query": (Q, D),
    "latent_kl/variance_token": (T, D),
    "latent_kl/variance_query": (Q, D),
    "event_likelihood/token": (T, V),
    "signal_likelihood/mean": (W, L, C),
    "person": (Q, 1 + R),
}


def check_loops(case, term, slow):
    """The loss of a term is what loops over the batch in float64 say."""
    out, batch, _, metrics, _ = case
    want = slow(out, batch)
    assert want > 0.1
    np.testing.assert_allclose(metrics[f"loss/{term}"], want, rtol=2e-5)


def outputs_of(terms):
    """The names in OUTPUTS of these terms."""
    return [name for name in OUTPUTS if name.partition("/")[0] in terms]


def random_outputs(seed, terms=tuple(WEIGHTS)):
    """{term/name: array} of the terms; every term has numbers of its own, whatever the others are."""
    out = {}
    for i, (name, shape) in enumerate(OUTPUTS.items()):
        x = np.random.default_rng([seed, i]).normal(0, 2, (B, *shape)).astype(np.float32)
        if name in ("contrast/ehr", "contrast/wear"):
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
        out[name] = np.exp(0.5 * x) if "variance" in name else x
    out |= {"contrast/temperature": TEMPERATURE} | {f"latent_kl/{k}": v for k, v in PRIOR.items()}
    out |= {"signal_likelihood/log_sd": LOG_SD}
    return {name: x for name, x in out.items() if name.partition("/")[0] in terms}


def quiet(out):
    """Zeros where a network would speak, variances of one."""
    constant = {"contrast/temperature", "signal_likelihood/log_sd", *(f"latent_kl/{k}" for k in PRIOR)}
    return {k: v if k in constant else np.full_like(v, float("variance" in k)) for k, v in out.items()}


def random_batch(seed):
    """Random targets with holes; the last row is padding throughout."""
    rng = np.random.default_rng(seed)
    batch = SPEC.empty(B)

    def some(name, values, keep=0.7):
        mask = rng.random(batch[name].shape) < keep
        mask[-1] = False
        batch[name] = np.where(mask, values, batch[name]).astype(batch[name].dtype)

    for target in ("masked_target", "event_next", "query_next"):
        some(target, rng.integers(1, V, batch[target].shape))
    some("masked_position", rng.permuted(np.tile(np.arange(T), (B, 1)), axis=1)[:, :M])  # an event is hidden once
    some("query_segment", rng.integers(1, 3, batch["query_segment"].shape))
    some("query_horizons", rng.integers(0, A + 1, batch["query_horizons"].shape), 0.9)
    some("query_code_bin", rng.integers(0, A, batch["query_code_bin"].shape), 0.5)
    back = np.array([*range(A), 254])
    some("query_token_bin", rng.choice(back, batch["query_token_bin"].shape), 0.5)
    for name in ("query_value", "query_signal"):
        batch[name] = rng.normal(0, 2, batch[name].shape).astype(np.float32)
        some(f"{name}_mask", True, 0.5)
    for name in ("event", "query"):
        some(f"{name}_mark_code", rng.integers(0, U, batch[f"{name}_mark_code"].shape), 0.6)
        batch[f"{name}_mark"] = rng.normal(size=batch[f"{name}_mark"].shape).astype(np.float32)
    some("window_position", rng.integers(0, T, batch["window_position"].shape))
    for name in ("step_window", "query_window"):
        some(name, rng.integers(0, W, batch[name].shape), 0.6)
    some("patch_mask", True, 0.5)
    some("observed", True, 0.8)
    batch["wear"] = np.where(batch["observed"], rng.normal(size=batch["wear"].shape), 0).astype(np.float32)
    some("raw_window", rng.integers(0, W, batch["raw_window"].shape))
    some("raw_mask", True, 0.4)
    some("raw_observed", True, 0.8)
    batch["raw"] = np.where(batch["raw_observed"], rng.normal(size=batch["raw"].shape), 0).astype(np.float32)
    for name in ("event_summary", "query_summary", "query_past"):
        some(f"{name}_mask", True, 0.6)
        batch[name] = rng.normal(size=batch[name].shape).astype(np.float32)
    some("channel_mask", True, 0.3)
    some("pair_patient", rng.integers(0, 3, batch["pair_patient"].shape), 0.8)
    some("token", rng.integers(0, V, batch["token"].shape), 0.9)
    some("modality", rng.integers(1, 3, batch["modality"].shape), 0.9)
    for name in ("event_pool", "query_pool"):
        some(name, np.sort(rng.integers(0, T + 1, batch[name].shape), axis=-1), 1.0)
    some("query_static", True, 0.3)
    some("query_age", np.random.default_rng(seed).uniform(0, 30_000, batch["query_age"].shape), 1.0)
    _fill_states(batch, rng)
    SPEC.check(batch, B)
    return batch


def _fill_states(batch, rng):
    """Two contexts in a row (one in the last but one), with ties, and queries in them; the last row stays empty."""
    for b, starts in ((0, (0, 9)), (1, (1,))):
        for s, begin in enumerate(starts, 1):
            stop = (*starts, T)[s]
            batch["segment"][b, begin:stop], batch["kv_range"][b, begin:stop, 0] = s, begin
            batch["kv_range"][b, begin:stop, 1] = 1 + np.arange(begin, stop)
            batch["time"][b, begin:stop] = np.cumsum(rng.choice([0.0, 0.01, 0.3, 40.0], stop - begin))
    for b, q in np.ndindex(B - 1, Q):
        known = np.nonzero(batch["segment"][b] == max(batch["query_segment"][b, q], 1))[0]
        hi = rng.integers(0, len(known) + 1) if len(known) else 0
        lo = known[0] if len(known) else 0
        batch["query_kv_range"][b, q] = lo, lo + hi
        last = batch["time"][b, lo + hi - 1] if hi else 0.0
        batch["query_time"][b, q] = last + rng.choice([0.0, 3.0])


class Losses:
    """(out, batch) -> (loss, metrics, gradients with respect to OUTPUTS) of some terms, on the host."""

    def __init__(self, terms, facts=FACTS):
        mine = tuple(t for t in active(CONFIG, facts) if t.name in terms)
        assert {t.name for t in mine} == set(terms)
        self.objective = WeightedTerms(mine, {t.name: Ramp(*CONFIG.weights[t.name]) for t in mine})

        @jax.jit
        def run(floats, rest, batch):
            def objective(floats):
                scored = {k: self.scored(k, x, batch) for k, x in floats.items()}
                out = traverse_util.unflatten_dict(scored | rest, sep="/")
                return self.objective(out, batch, self.objective.weights(0), self.objective.normalisers(batch))

            (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(floats)
            return loss, metrics, grads

        self._run = run

    def scored(self, name, x, batch):
        """What the terms that predict tokens take, by the plain formula from scores; what others take as it is."""
        term, _, part = name.partition("/")
        (term,) = (t for t in self.objective.terms if t.name == term)
        return token_loss(x, term.asked(batch)[part][0]) if isinstance(term, CodeTerm) else x

    def __call__(self, out, batch):
        floats = {k: v for k, v in out.items() if k in OUTPUTS}
        return jax.tree.map(np.asarray, self._run(floats, {k: v for k, v in out.items() if k not in floats}, batch))


# ------------------------------------------------------------------------------------------------ slow recomputation


def mean(values):
    """Of a list; 0 of none."""
    return sum(values) / len(values) if values else 0.0


def nll(logits, target):
    """-log softmax(logits)[target] in float64."""
    logits = [float(x) for x in logits]
    peak = max(logits)
    return peak + math.log(sum(math.exp(x - peak) for x in logits)) - logits[target]


def known_events(batch):
    """{(row, position): vocabulary id} of EHR tokens in a context, hidden ones by what they hide."""
    said = {(b, t): batch["token"][b, t] for b, t in np.ndindex(B, T)}
    for b, m in np.ndindex(B, M):
        if batch["masked_position"][b, m] >= 0:
            said[b, batch["masked_position"][b, m]] = batch["masked_target"][b, m]
    return {
        i: int(token) for i, token in said.items()
        if token >= N_SPECIAL and batch["modality"][i] == MODALITY_EHR and batch["segment"][i] > 0
    }  # fmt: skip


def known_steps(batch):
    """[(row, window, step, channel)] of the measured steps of windows."""
    at = zip(*np.nonzero(batch["observed"]), strict=True)
    return [i for i in at if batch["window_position"][i[:2]] >= 0]


def observed_of(batch):
    """By how many steps the parts of the bound are divided."""
    return len(known_events(batch)) + len(known_steps(batch))


# ------------------------------------------------------------------------------------- what holds for every term


def check_no_loss_without_targets(losses, terms):
    """Of an empty batch: zeros, and gradients of zero."""
    loss, metrics, grads = losses(random_outputs(2, terms), SPEC.empty(B))
    assert loss == 0.0 and all(v == 0.0 for v in metrics.values())
    for grad in grads.values():
        assert np.isfinite(grad).all() and not grad.any()


def check_padding_teaches_nothing(losses, terms):
    """What is said in the last row, which is padding, changes nothing however loud it is, and has no gradient."""
    out, batch = random_outputs(1, terms), random_batch(10)
    loss, _, grads = losses(out, batch)
    for name, grad in grads.items():
        assert np.isfinite(grad).all() and np.any(grad != 0), name
        assert not grad[-1].any(), f"{name}: a row of padding teaches nothing"
    loud = {k: v.copy() for k, v in out.items()}
    for name in outputs_of(terms):
        loud[name][-1] = 1e4
    assert losses(loud, batch)[0] == loss
