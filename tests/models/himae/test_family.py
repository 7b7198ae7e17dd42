"""HiMAE at the seam: published sizes, its loss by numpy, what z may depend on, and that it learns."""

import dataclasses
import functools
import json
import runpy

import flax.linen as nn
import jax
import numpy as np
import pytest
import segment_cases
import small_run
from flax import traverse_util
from repo import REPO
from segment_cases import GRID, READING, batch_of

from ehrwear_jax.config import parse
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.models.himae import family
from ehrwear_jax.models.himae.config import TRAIN, Config
from ehrwear_jax.training import compile_only, embedding, sharding, step
from ehrwear_jax.training.pretrain import Model, pretrain

SMALL = Config(dataclasses.replace(READING, rate_hz=10.0), (4, 8), patch=7)
QUICK = step.runs_once("cpu")
ON_GRID = dataclasses.replace(SMALL, signal=GRID)


@pytest.fixture(scope="module", params=[SMALL, ON_GRID], ids=["segments", "grid"])
def examples(request, people_with_waves):
    return family.examples(small_run.store(people_with_waves, "train"), request.param)


@pytest.fixture(scope="module")
def batch(examples):
    return batch_of(examples, range(2))


@pytest.fixture(scope="module")
def variables(examples, batch):
    """Of a network that has seen some batches: kept statistics are not those of the start."""
    net = family.network(examples.spec, examples.config)
    found = nn.meta.unbox(jax.jit(net.init, compiler_options=QUICK)(jax.random.key(0), batch))
    for _ in range(3):
        found = found | moved(net, found, batch)
    return found


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def moved(net, variables, batch):
    """The statistics after a step of training."""
    return net.apply(variables, batch, deterministic=False, mutable=["batch_stats"])[1]


def test_the_published_sizes():
    """Parameters exactly, and multiplications as counted of the original for ten seconds at 100 Hz."""
    prepare = PrepareConfig(segments={"ppg": {"channels": ("ppg",)}})
    spec, counts = family.assumed(Config(), prepare, 50)
    parts = compile_only.parameters(Model("himae", "himae", Config()), spec)
    assert parts == {"encoder": 700_672, "decoder": 545_281} and sum(parts.values()) == 1_245_953
    encoder, decoder = family.multiplications(Config(), 1000, 1)
    assert encoder == pytest.approx(31.9e6, rel=0.005) and encoder + decoder == pytest.approx(70.6e6, rel=0.01)
    assert family.flops(spec, Config(), parts, counts) == 6 * 8 * (encoder + decoder)
    grid = family.assumed(Config(dataclasses.replace(GRID, per_row=8)), PrepareConfig(channels=("a", "b")), 50)[0]
    assert (grid.facts.channels, grid.facts.samples, grid.facts.from_grid) == (2, 288, True)


def test_what_is_hidden_is_random_patches_of_all_channels(examples, batch):
    n_patches = -(-examples.spec.facts.samples // 7)
    assert batch["hidden"].shape[2] == n_patches
    there = batch["person"] >= 0
    assert there.sum() > 3
    np.testing.assert_array_equal(batch["hidden"].sum(2), np.where(there, int(0.8 * n_patches), 0))
    assert len({x.tobytes() for x in batch["hidden"][there]}) > 3
    assert np.abs(batch["signal"]).max() <= 1 and not batch["signal"][~batch["observed"]].any()
    if not examples.spec.facts.from_grid:
        assert (batch["signal"].max((2, 3)) == there).all() and (batch["signal"].min((2, 3)) == -1.0 * there).all()


def numpy_loss(out, batch, patch):
    """(mean squared error of hidden samples, that of the mean of what is seen), sample by sample."""
    errors, trivial = [], []
    for r, n in np.ndindex(batch["person"].shape):
        signal, observed = (batch[name][r, n] for name in ("signal", "observed"))
        hidden = np.array([batch["hidden"][r, n, s // patch] for s in range(len(signal))])
        for a in range(signal.shape[1]):
            asked, seen = observed[:, a] & hidden, observed[:, a] & ~hidden
            mean = signal[seen, a].mean() if seen.any() else 0.0
            errors += ((out[r, n, asked, a] - signal[asked, a]) ** 2).tolist()
            trivial += ((mean - signal[asked, a]) ** 2).tolist()
    return np.mean(errors), np.mean(trivial)


def test_the_loss_is_that_of_numpy_and_of_masked_samples_only(examples, batch):
    objective, rng = family.objective(examples.spec, examples.config), np.random.default_rng(0)
    batch = batch | {"observed": batch["observed"] & (rng.random(batch["observed"].shape) < 0.8)}
    out = rng.normal(size=batch["signal"].shape).astype(np.float32)
    whole = objective.normalisers(batch)
    value, found = objective({"masked": out}, batch, objective.weights(0), whole)
    want, trivial = numpy_loss(out, batch, 7)
    assert float(value) == pytest.approx(want, rel=1e-5)
    assert float(found["masked/mean_error"]) == pytest.approx(trivial, rel=1e-4)
    shown = ~np.repeat(batch["hidden"], 7, 2)[:, :, : out.shape[2], None] | ~batch["observed"]
    same, _ = objective({"masked": np.where(shown, 9.0, out)}, batch, objective.weights(0), whole)
    assert float(same) == float(value), "what is seen or was not observed is not asked for"
    halves = [{k: v[r : r + 1] for k, v in batch.items()} for r in range(2)]
    parts = [float(objective({"masked": out[r : r + 1]}, halves[r], objective.weights(0), whole)[0]) for r in range(2)]
    assert sum(parts) == pytest.approx(float(value), rel=1e-5)


def test_hidden_samples_are_not_seen(examples, batch, variables):
    net = family.network(examples.spec, examples.config)
    run = jax.jit(lambda b: net.apply(variables, b)["masked"], compiler_options=QUICK)
    hidden = np.repeat(batch["hidden"], 7, 2)[:, :, : batch["signal"].shape[2], None]
    other = batch | {"signal": np.where(hidden, 0.37, batch["signal"]).astype(np.float32)}
    np.testing.assert_array_equal(run(batch), run(other))
    assert np.abs(np.asarray(run(batch))).max() <= 1
    seen = batch | {"signal": np.where(hidden, batch["signal"], 0.37).astype(np.float32)}
    assert np.any(run(seen) != run(batch))


def test_z_of_a_piece_depends_on_no_other_of_its_batch(examples, batch, variables):
    """With kept statistics; the probe of the original computed new ones of each batch. Padding is zero."""
    net = family.network(examples.spec, examples.config)
    encode = jax.jit(lambda b: net.apply(variables, b, method="encode"), compiler_options=QUICK)
    whole = np.asarray(encode(batch))
    assert whole.shape == (*batch["person"].shape, 8) and np.abs(whole[batch["person"] >= 0]).max(1).min() > 0
    for r, n in np.argwhere(batch["person"] >= 0):
        rest = {name: np.zeros_like(x) for name, x in batch.items()} | {"person": np.full_like(batch["person"], -1)}
        for name, x in batch.items():
            rest[name][r, n] = x[r, n]
        alone = np.asarray(encode(rest))
        np.testing.assert_array_equal(alone[r, n], whole[r, n])
        assert not alone[rest["person"] < 0].any()
    np.testing.assert_array_equal(encode(batch | {"hidden": ~batch["hidden"]}), whole, "nothing is hidden")


def test_pieces_that_are_not_there_change_no_statistics(examples, batch, variables):
    net = family.network(examples.spec, examples.config)
    gone = batch | {"person": batch["person"].copy()}
    gone["person"][1, 1:] = -1
    other = gone | {"signal": np.where(gone["person"][..., None, None] < 0, 0.9, batch["signal"]).astype(np.float32)}
    found = [jax.tree.leaves(moved(net, variables, b)) for b in (gone, other, batch)]
    for a, b in zip(*found[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize("config", [SMALL, ON_GRID], ids=["segments", "grid"])
def test_later_segments_change_no_bit_of_z_and_everybody_has_one(people_with_waves, config):
    position, time, store = segment_cases.asked(people_with_waves, config.signal)
    examples = family.examples(store, config, train=False)
    net = family.network(examples.spec, config)
    start = nn.meta.unbox(jax.jit(net.init, compiler_options=QUICK)(jax.random.key(1), examples.spec.empty(1)))
    encode = jax.jit(lambda b: net.apply(start, b, method="encode"), compiler_options=QUICK)
    index = segment_cases.index_of(store, position, time)
    whole, known = (
        embedding.embed(lambda b: np.asarray(encode(b)), examples, index, 2, transform)
        for transform in (lambda record, t: record, lambda record, t: record.until(t))
    )
    np.testing.assert_array_equal(whole, known)
    # a person's times together: the same pieces in other slots
    z = embedding.embed(lambda b: np.asarray(encode(b)), examples, index, 2)
    np.testing.assert_allclose(z, known, rtol=1e-5, atol=1e-6)
    assert np.isfinite(z).all()
    without = examples.tokens_seen(position, time)["segments"] == 0
    assert without.any() and not z[without].any() and np.abs(z[~without]).max(1).min() > 0


def test_every_kernel_has_names_of_its_axes(examples, batch):
    net = family.network(examples.spec, examples.config)
    boxed = jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"]
    spec = traverse_util.flatten_dict(nn.get_partition_spec(boxed), sep="/")
    kernels = {name: tuple(axes) for name, axes in spec.items() if name.endswith("kernel")}
    assert len(kernels) == 2 * 3 + 3 + 1 and all(axes[0] is None and len(axes) == 3 for axes in kernels.values())
    assert kernels["encoder/block_0/conv_in/kernel"][1:] == ("embed", "mlp")


def test_wrong_options_are_named():
    for changes, words in (({"mask_ratio": 1.0}, "mask_ratio is 1.0"), ({"kernel": 4}, r"kernel 4 \(odd\)"),
                           ({"widths": ()}, "must be positive"), ({"dtype": "float16"}, "bfloat16")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match=r"segments 'ppg'; config.prepare.segments has \[\]"):
        SMALL.check_prepared(PrepareConfig(channels=("a",)))


@pytest.mark.slow
def test_on_a_mesh_of_several_devices_losses_statistics_and_gradients_are_those_of_one(people_with_waves):
    examples = family.examples(small_run.store(people_with_waves, "train"), SMALL)
    batch, objective = batch_of(examples, range(4)), family.objective(examples.spec, SMALL)

    def found(mesh):
        net = family.network(examples.spec, SMALL, sharding.mesh_ops(mesh))
        start = nn.meta.unbox(net.init(jax.random.key(0), batch))

        def loss(params):
            variables = {"params": params, "batch_stats": start["batch_stats"]}
            out, stats = net.apply(variables, batch_on, deterministic=False, mutable=["batch_stats"])
            return objective(out, batch_on, objective.weights(0), objective.normalisers(batch_on))[0], stats

        batch_on = sharding.device_batch(batch, mesh)
        return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(start["params"]))

    one = found(sharding.make_mesh(jax.devices()[:1]))
    for shape in ({"data": 4}, {"data": 2, "fsdp": 2}):
        several = found(sharding.make_mesh(jax.devices()[:4], MeshConfig(**{"data": 1} | shape)))
        # what scales a kernel before a norm has no gradient but rounding
        largest = max(np.abs(x).max() for x in jax.tree.leaves(one[1]))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * largest)


@pytest.mark.slow
def test_it_learns_more_than_the_mean_of_the_signal(tmp_path):
    """On the simulated cohort's pulse waves, validation error well below that of the mean of what is seen."""
    config = runpy.run_path(str(REPO / "configs" / "tiny.py"))["get_config"]("himae")
    config.simulate.update({"n_subjects": 150, "ppg_subjects_fraction": 1.0, "wear_days": 5})
    config.models.himae.train.update({"steps": 150, "warmup_steps": 15, "validate_every": 150})
    run = parse(config)
    simulate.simulate(tmp_path / "raw", run.simulate)
    store = small_run.store(small_run.prepare(tmp_path, tmp_path / "raw", run.prepare))
    pretrain(tmp_path / "himae", Model(**run.model("himae", 0)), store)
    lines = [json.loads(x) for x in (tmp_path / "himae" / "metrics.jsonl").read_text().splitlines()]
    found = next(x for x in reversed(lines) if "validation/loss/total" in x)
    assert found["validation/loss/masked"] < 0.8 * found["validation/masked/mean_error"], found


def test_published_training_can_be_set():
    config = runpy.run_path(str(REPO / "configs" / "tiny.py"))["get_config"]("himae")
    config.models.himae.train = dict(TRAIN)
    assert parse(config).train_config("himae").decay == "linear"
