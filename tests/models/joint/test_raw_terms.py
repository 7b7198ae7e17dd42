"""Hidden parts of raw windows: which are hidden, that nothing else says what they hold, and that they are rebuilt."""

import cohort
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import random_rows
import small_model
import term_cases
from flax import linen as nn
from joint_rows import check_mapped, check_together, examples_of, row_of
from raw_cohort import CONTEXT, PPG, RAW, with_waves
from term_cases import RAW_A, RAW_S, RAW_V, B, N, mean

from ehrwear_jax.models.joint.batch import batch_spec
from ehrwear_jax.models.joint.config import Config, ContextConfig
from ehrwear_jax.models.joint.raw_encoder import RawEncoder
from ehrwear_jax.models.joint.raw_terms import RawDecoder, RawMasked

TERMS = ("raw_masked",)


def slow_masked(out, batch):
    errors = []
    for b, n, s, a in np.ndindex(B, N, RAW_S, RAW_A):
        if batch["raw_mask"][b, n, s // (RAW_S // RAW_V)] and batch["raw_observed"][b, n, s, a]:
            errors.append((float(out["raw_masked"][b, n, s, a]) - float(batch["raw"][b, n, s, a])) ** 2)
    return mean(errors)


def test_term_equals_loops(case):
    term_cases.check_loops(case, *TERMS, slow_masked)


def test_only_hidden_and_measured_samples_teach(case, losses):
    term_cases.check_no_loss_without_targets(losses, TERMS)
    term_cases.check_padding_teaches_nothing(losses, TERMS)
    _, batch, _, metrics, grads = case
    hidden = np.repeat(batch["raw_mask"], RAW_S // RAW_V, axis=-1)[..., None] & batch["raw_observed"]
    assert not grads["raw_masked"][~hidden].any() and metrics["raw_masked/count"] == hidden.sum() > 5


# ------------------------------------------------------------------------------------------------ what is hidden


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    raw_cohort = with_waves(cohort.write_cohort(tmp_path_factory.mktemp("waves")))
    return cohort.prepare_cohort(raw_cohort, subjects_per_shard=8, **PPG)


def examples(root, **options):
    context = CONTEXT | RAW | {"raw_windows": 64} | options
    return examples_of(root, context, "train", weights={"raw_masked": (1.0, 1.0, 0)}, raw_width=8)


def test_rows_are_the_same_of_people_in_the_mapped_file(root):
    check_mapped(examples(root, time_warp=0.05))


def test_rows_that_are_written_together_are_what_each_is_alone(root):
    rows = check_together(examples(root, time_warp=0.05), n=6)
    assert sum(bool(row["raw_mask"].any()) for row in rows) > 1


def test_a_quarter_of_each_raw_window_is_hidden_in_contexts_with_masks(root):
    rows = examples(root, masked_contexts=1.0)
    hidden = []
    for g in range(2 * rows.rows_per_epoch):
        row = row_of(rows, g)
        rows.spec.check({k: v[None] for k, v in row.items()}, 1)
        shown_N = row["raw_observed"].any(axis=(1, 2))
        assert not row["raw_mask"][~shown_N].any(), "what is not shown at all has nothing to be rebuilt"
        hidden += row["raw_mask"][shown_N].tolist()
    hidden = np.array(hidden)
    assert len(hidden) > 50 and hidden.mean() == pytest.approx(0.25, abs=0.02)
    assert ((np.diff(hidden.astype(int), prepend=0, append=0) == 1).sum(axis=1) == 1).all(), "one run in each"
    assert len({tuple(x) for x in hidden}) > 10


def test_contexts_without_masks_and_prediction_times_show_all(root):
    rows = examples(root, masked_contexts=0.0)
    assert not any(row_of(rows, g)["raw_mask"].any() for g in range(rows.rows_per_epoch))
    rows = examples(root, masked_contexts=1.0)
    time = [int(rows.people[i].time_N[-1]) for i in range(4)]
    batch, _ = next(rows.prediction_batches([*range(4)], time, 2))
    assert batch["raw_observed"].any() and not batch["raw_mask"].any()


def test_half_of_the_contexts_are_wholly_as_at_inference(root):
    """Either all kinds of masks or none: a context of which raw parts are hidden hides events or patches too."""
    rows, seen = examples(root, masked_contexts=0.5), set()
    for g in range(2 * rows.rows_per_epoch):
        row = row_of(rows, g)
        for n in np.flatnonzero(row["raw_observed"].any(axis=(1, 2))):
            slot = row["raw_window"][n]
            of_context = row["segment"][row["window_position"]] == row["segment"][row["window_position"][slot]]
            of_context &= row["window_position"] >= 0
            seen.add((bool(row["raw_mask"][n].any()), bool(row["patch_mask"][of_context].any())))
    assert (True, True) in seen and (False, False) in seen
    assert (False, True) not in seen


def test_parts_must_divide_the_window():
    context = ContextConfig(raw_segments="ppg", raw_windows=64, raw_parts=4)
    with pytest.raises(ValueError, match="raw_parts is 4, which does not divide the 6 samples of a raw window"):
        batch_spec(context, term_cases.FACTS, RawMasked.targets)


# ----------------------------------------------------------------------------------------- what is seen and learnt


def test_what_is_hidden_is_nowhere_in_the_predictions():
    spec, network, _ = random_rows.model_of()
    batch = random_rows.make_batch(4)
    batch["raw_mask"][:, :, 0], batch["raw_mask"][:, :, 1] = True, False
    batch["raw_observed"][:] = True
    shapes = jax.eval_shape(network.init, jax.random.key(0), batch)["params"]
    params = small_model.random_params(shapes, spread=0.3)
    predict = jax.jit(lambda batch: network.apply({"params": params}, batch))
    before = predict(batch)
    half = spec.sizes["S"] // 2
    hidden, shown = batch["raw"].copy(), batch["raw"].copy()
    hidden[:, :, :half] += 1.0
    shown[:, :, half:] += np.linspace(0, 1, half)[:, None].astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, before, predict(batch | {"raw": hidden}))
    after = predict(batch | {"raw": shown})
    assert np.any(np.asarray(after["raw_masked"]) != np.asarray(before["raw_masked"]))


class Rebuild(nn.Module):
    """The raw encoder and its decoder, without a wearable window around."""

    @nn.compact
    def __call__(self, batch):
        h = RawEncoder(width=16, out_width=16, n_blocks=2).vectors(batch)
        return RawDecoder(64, 1)(h, jnp.zeros((*h.shape[:2], 1)))


@pytest.mark.slow
def test_waves_are_rebuilt_where_they_are_hidden():
    """Sines of any phase at three frequencies, a quarter hidden: far below the variance, 0.5, of what is not seen."""
    rng, parts, samples = np.random.default_rng(0), 8, 64

    def batch_of(n):
        phase, cycles = rng.uniform(0, 2 * np.pi, (n, 1)), rng.choice([2, 3, 4], (n, 1))
        raw = np.sin(2 * np.pi * cycles * np.arange(samples) / samples + phase)[:, None, :, None].astype(np.float32)
        start = rng.integers(0, parts - 1, (n, 1, 1))
        mask = (np.arange(parts) >= start) & (np.arange(parts) < start + 2)
        return {"raw": raw, "raw_observed": np.ones(raw.shape, bool), "raw_mask": mask,
                "raw_window": np.zeros((n, 1), np.int32), "raw_patch": np.zeros((n, 1), np.int32)}  # fmt: skip

    module, term = Rebuild(), RawMasked(term_cases.FACTS, Config())
    params, optimizer = module.init(jax.random.key(0), batch_of(1)), optax.adam(3e-3)

    def loss(params, batch):
        return term.loss(module.apply(params, batch), batch, term.normaliser(batch))[0]

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(300):
        params, state, _ = step(params, state, batch_of(32))
    found, trivial = float(loss(params, batch := batch_of(512))), float(np.mean(np.square(batch["raw"])))
    assert found < 0.2 * trivial, (found, trivial)
