"""The backbone against its formula in float64, and what it may not do."""

import functools

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from flax import linen as nn
from jax.extend.core import Var

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.layers.mesh_ops import MeshOps
from ehrwear_jax.models.layers.transformer import Backbone, TimeKernel, TransformerConfig
from ehrwear_jax.ops.kernel_attention import kernel_attention

B, T, Q, D, H, R, S = 2, 6, 4, 8, 2, 3, 3
SIZES = {"n_layers": 2, "width": D, "n_heads": H, "mlp_width": 12, "n_components": R, "source_width": S, "dropout": 0.0}


def backbone(**options):
    return Backbone(TransformerConfig(**SIZES | options))


def fields(seed=0):
    """Two rows: one context; two contexts and a pad. Query 0 sees nothing, query 1 a middle range."""
    rng = np.random.default_rng(seed)
    kv = np.stack([np.zeros((B, T)), np.broadcast_to(1 + np.arange(T), (B, T))], -1)
    kv[1, 3:5, 0] = 3
    kv[1, 5] = 0
    ranges = np.array([[(0, 0), (1, 3), (0, 4), (0, 6)], [(0, 0), (0, 3), (3, 4), (3, 5)]])
    return {  # gaps of about 1 / gamma, where a mixture differs from its slowest component
        "time": np.sort(rng.gamma(1.0, 2.0, (B, T)), axis=1).astype(np.float32),
        "kv_range": kv.astype(np.int32),
        "modality": rng.integers(0, 3, (B, T)).astype(np.int32),
        "query_time": np.sort(rng.gamma(2.0, 2.0, (B, Q)), axis=1).astype(np.float32),
        "query_kv_range": ranges.astype(np.int32),
    }


def vectors(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(B, Q, D)).astype(np.float32)


def random_params(module, seed=0):
    shapes = jax.eval_shape(lambda k: module.init(k, *vectors(), fields(), True), jax.random.key(0))["params"]
    return small_model.random_params(shapes, seed)


@pytest.fixture(scope="module")
def setting():
    module = backbone()
    params = random_params(module)
    return params, jax.jit(lambda p, x, y, f: module.apply({"params": p}, x, y, f, True))


# ----------------------------------------------------------------------------------------------- in float64
def layer_norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def dense(p, x):
    return np.tensordot(x, p["kernel"], 1) + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(p, reader, source, time, key_time, kv_range, modality):
    """One row: logit = q.k / sqrt(d) + u_m . v_j + log K(max(t_i - t_j, 0)) over the visible range."""
    query = dense(p["query"], reader)
    key, value = (dense(p[name], source) for name in ("key", "value"))
    bias_of = p["modality_bias"]
    tag = np.tensordot(source, bias_of["projection"], 1) + bias_of["offset"]
    beta, gamma = np.logaddexp(0, p["kernel"]["beta"]), np.logaddexp(0, p["kernel"]["gamma"])
    out = np.zeros((len(reader), H, D // H))
    for i, h in np.ndindex(len(reader), H):
        seen = range(*kv_range[i])
        if len(seen):
            gap = np.maximum(time[i] - key_time[seen], 0.0)
            decay = (beta[h] * np.exp(-gap[:, None] * gamma[h])).sum(-1)
            bias = tag[seen, h] @ bias_of["tag"][modality[i], h]
            logit = key[seen, h] @ query[i, h] / np.sqrt(D // H) + bias + np.log(decay)
            weight = np.exp(logit - logit.max())
            out[i, h] = weight / weight.sum() @ value[seen, h]
    return np.einsum("nhd,hdw->nw", out, p["out"]["kernel"]) + p["out"]["bias"]


def in_float64(params, x_BxTxD, y_BxQxD, f):
    p64 = jax.tree.map(np.float64, params)
    xs, ys = [], []
    for b in range(B):
        x, y, row = x_BxTxD[b].astype(np.float64), y_BxQxD[b].astype(np.float64), {k: v[b] for k, v in f.items()}
        for layer in range(2):
            p = jax.tree.map(lambda a, i=layer: a[i], p64["blocks"])
            source = layer_norm(p["norm_attention"], x)
            of_query = np.full(Q, batch_lib.MODALITY_QUERY)
            dx = attend(p, source, source, row["time"], row["time"], row["kv_range"], row["modality"])
            dy = attend(p, layer_norm(p["norm_attention"], y), source, row["query_time"], row["time"],
                        row["query_kv_range"], of_query)  # fmt: skip
            x, y = x + dx, y + dy
            x, y = (z + dense(p["down"], gelu(dense(p["up"], layer_norm(p["norm_mlp"], z)))) for z in (x, y))
        xs.append(layer_norm(p64["norm_out"], x))
        ys.append(layer_norm(p64["norm_out"], y))
    return np.stack(xs), np.stack(ys)


def test_backbone_equals_the_formula_in_float64(setting):
    params, apply = setting
    z, z_query = apply(params, *vectors(), fields())
    want, want_query = in_float64(params, *vectors(), fields())
    assert z.shape == (B, T, D) and z_query.shape == (B, Q, D) and z.dtype == z_query.dtype == np.float32
    np.testing.assert_allclose(z, want, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(z_query, want_query, rtol=1e-3, atol=2e-4)


# ----------------------------------------------------------------------------------------------- who sees whom
def test_a_query_is_seen_by_nobody(setting):
    params, apply = setting
    x, y = vectors()
    before = jax.tree.map(np.asarray, apply(params, x, y, fields()))
    moved, other = y.copy(), fields()
    moved[:, 2] += 5.0
    other["query_time"][:, 2] += 1.0
    after = jax.tree.map(np.asarray, apply(params, x, moved, other))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1][:, [0, 1, 3]], before[1][:, [0, 1, 3]])
    assert np.all(np.any(after[1][:, 2] != before[1][:, 2], axis=-1))


def test_an_empty_range_reads_nothing_and_stays_finite(setting):
    params, apply = setting
    x, y = vectors()
    before = np.asarray(apply(params, x, y, fields())[1])
    after = np.asarray(apply(params, x * 3 + 1, y, fields())[1])
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert np.all(np.any(after[:, 1:] != before[:, 1:], axis=-1))


def test_gradients_reach_exactly_the_visible_tokens(setting):
    params, apply = setting
    x, y = vectors()
    weight = jnp.arange(1.0, D + 1)

    @jax.jit
    def sensitivity(x):
        return jax.vmap(lambda q: jax.grad(lambda x: jnp.sum(apply(params, x, y, fields())[1][:, q] @ weight))(x))(
            jnp.arange(Q)
        )

    reached_QxBxT = np.any(np.asarray(sensitivity(x)) != 0, axis=-1)
    visible = np.zeros((Q, B, T), bool)
    for b, q in np.ndindex(B, Q):
        for t in range(*fields()["query_kv_range"][b, q]):  # a token that is read has itself read its own range
            visible[q, b, fields()["kv_range"][b, t, 0] : t + 1] = True
    np.testing.assert_array_equal(reached_QxBxT, visible)


# ----------------------------------------------------------------------------------------------- layers
def test_every_layer_has_its_own_parameters(setting):
    params, apply = setting
    module = backbone()
    start = jax.jit(lambda k: module.init(k, *vectors(), fields(), True))(jax.random.key(0))["params"]
    start = nn.meta.unbox(start)
    for path, leaf in jax.tree_util.tree_leaves_with_path(start["blocks"]):
        assert leaf.shape[0] == 2, path
        if path[-1].key in ("kernel", "tag", "projection"):
            assert np.all(np.asarray(leaf[0]) != np.asarray(leaf[1])), f"{path}: drawn once for all layers"
    swapped = params | {"blocks": jax.tree.map(lambda a: a[::-1], params["blocks"])}
    assert np.any(apply(swapped, *vectors(), fields())[0] != apply(params, *vectors(), fields())[0])


@pytest.mark.parametrize("options", [{"remat": "full"}, {"remat": "attention"}, {"remat": "products", "unroll": 2}])
def test_remat_and_unrolling_change_no_value(setting, options):
    params, apply = setting
    module = backbone(**options)
    got = jax.jit(lambda p: module.apply({"params": p}, *vectors(), fields(), True))(params)
    for a, b in zip(got, apply(params, *vectors(), fields()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "remat, kept", [("full", (1, 0, 0, 0)), ("attention", (1, 3, 1, 0)), ("products", (1, 3, 1, 1))]
)
def test_remat_keeps_what_its_name_says(remat, kept, capsys):
    """Per layer: its input; query, key, value; the attention's result, once; the hidden units."""
    module = backbone(remat=remat)
    read = lambda p: module.apply({"params": p}, *vectors(), fields(), True)[0].sum()  # noqa: E731
    jax.ad_checkpoint.print_saved_residuals(read, random_params(module))
    text = capsys.readouterr().out
    layers_of = (
        f"f32[2,{B},{T},{D}]",
        f"f32[2,{B},{T},{H},{D // H}]",
        f"f32[2,{B},{H},{T},{D // H}]",
        f"f32[2,{B},{T},12]",
    )
    assert tuple(text.count(shape) for shape in layers_of) == kept


def live_calls(jaxpr, wanted, name):
    """How many calls of kernels of a name compute something that the wanted results depend on."""
    live, n = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and isinstance(v, Var)}, 0
    for eqn in reversed(jaxpr.eqns):
        used = [v in live for v in eqn.outvars]
        if not any(used):
            continue
        live |= {v for v in eqn.invars if isinstance(v, Var)}
        if eqn.primitive.name == "pallas_call":
            n += eqn.params["name"].endswith(name)
        elif "jaxpr" in eqn.params:  # of a scan all results count: which are carried is not looked at
            inner = eqn.params["jaxpr"]
            n += live_calls(getattr(inner, "jaxpr", inner), [True] * len(used), name)
    return n


@pytest.mark.parametrize("remat, n_forward", [("none", 1), ("full", 2), ("attention", 1), ("products", 1)])
def test_attention_whose_result_is_kept_does_not_run_twice(remat, n_forward):
    """In the program of a gradient, of the tokens' and of the queries' attention; XLA drops what nothing reads."""
    attend = functools.partial(kernel_attention, options={"interpret": True})
    module = Backbone(TransformerConfig(**SIZES, remat=remat, attention="triton"), MeshOps(attend=attend))
    shapes = jax.eval_shape(lambda k: module.init(k, *vectors(), fields(), True), jax.random.key(0))["params"]
    read = lambda p: sum(z.sum() for z in module.apply({"params": p}, *vectors(), fields(), True))  # noqa: E731
    program = jax.make_jaxpr(jax.grad(read))(shapes).jaxpr
    found = {n: live_calls(program, [True] * len(program.outvars), n) for n in ("forward", "key_gradients")}
    assert found == {"forward": 2 * n_forward, "key_gradients": 2}


def test_products_that_end_a_sublayer_start_smaller_the_more_layers_add_up():
    def spread(n_layers, **options):
        module = Backbone(TransformerConfig(**SIZES | {"width": 64, "mlp_width": 64, "n_layers": n_layers} | options))
        x = jnp.zeros((1, T, 64))
        rows = {k: v[:1] for k, v in fields().items()}
        blocks = nn.meta.unbox(module.init(jax.random.key(0), x, x[:, :Q], rows, True))["params"]["blocks"]
        return {name: float(blocks[name]["kernel"].std()) for name in ("up", "query", "down", "out")}

    plain, deep = spread(8), spread(8, residual_init="depth")
    for name, factor in (("up", 1.0), ("query", 1.0), ("down", 0.25), ("out", 0.25)):
        assert deep[name] == pytest.approx(factor * plain[name], rel=1e-5)


def test_qk_norm_bounds_logits_and_leaves_values_alone(setting):
    """With it, scaling the projections of queries and keys changes nothing."""
    module = backbone(qk_norm=True)
    params = random_params(module)
    run = jax.jit(lambda p: module.apply({"params": p}, *vectors(), fields(), True))
    assert params["blocks"]["query_norm"]["scale"].shape == (2, D // H)

    def scaled(params, names):
        blocks = params["blocks"]
        return params | {"blocks": blocks | {n: jax.tree.map(lambda x: 30.0 * x, blocks[n]) for n in names}}

    want = run(params)
    for a, b in zip(run(scaled(params, ("query", "key"))), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert np.abs(run(scaled(params, ("value",)))[0] - want[0]).max() > 0.1
    plain, apply = setting
    moved = apply(scaled(plain, ("query", "key")), *vectors(), fields())[0] - apply(plain, *vectors(), fields())[0]
    assert np.abs(moved).max() > 0.1, "the test can tell"


# ----------------------------------------------------------------------------------------------- randomness
def test_nothing_is_dropped_when_deterministic(setting):
    params, apply = setting
    module = backbone(**{"dropout": 0.5, "attention_dropout": 0.5, "stochastic_depth": 0.5})
    got = jax.jit(lambda p: module.apply({"params": p}, *vectors(), fields(), True))(params)  # needs no key
    for a, b in zip(got, apply(params, *vectors(), fields()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "stochastic_depth"])
def test_each_kind_of_dropping_follows_its_key(setting, kind):
    params, apply = setting
    module = backbone(**{kind: 0.5})
    run = jax.jit(lambda k: module.apply({"params": params}, *vectors(), fields(), False, rngs={"dropout": k}))
    one, again, two = (jax.tree.map(np.asarray, run(jax.random.key(s))) for s in (1, 1, 2))
    plain = jax.tree.map(np.asarray, apply(params, *vectors(), fields()))
    for i in range(2):
        np.testing.assert_array_equal(one[i], again[i])
        assert np.any(one[i] != two[i]) and np.any(one[i] != plain[i]) and np.isfinite(one[i]).all()


def test_stochastic_depth_drops_whole_rows_with_a_chance_that_grows_with_depth():
    """Layers that can only add a constant: what a row comes to tells which updates it kept, and their scale."""
    n_rows, rate = 1500, 0.6
    module = backbone(stochastic_depth=rate)
    params = jax.tree.map(jnp.zeros_like, random_params(module))
    bias = params["blocks"]["out"]["bias"].at[0, 0].set(1.0).at[1, 1].set(1.0)  # layer 0 in column 0, layer 1 in 1
    blocks = params["blocks"] | {"out": params["blocks"]["out"] | {"bias": bias}}
    # the last norm keeps ratios: undo it with a large constant column
    x = np.zeros((n_rows, 1, D), np.float32)
    x[..., 7] = 100.0
    few = {
        "time": np.zeros((n_rows, 1), np.float32),
        "kv_range": np.zeros((n_rows, 1, 2), np.int32),
        "modality": np.ones((n_rows, 1), np.int32),
        "query_time": np.zeros((n_rows, 1), np.float32),
        "query_kv_range": np.zeros((n_rows, 1, 2), np.int32),
    }
    params = params | {"blocks": blocks, "norm_out": {"scale": jnp.ones(D), "bias": jnp.zeros(D)}}
    run = jax.jit(lambda k: module.apply({"params": params}, x, x, few, False, rngs={"dropout": k}))
    for z in run(jax.random.key(0)):
        z = np.asarray(z, np.float64)[:, 0]
        step = (z[:, :2] - z[:, 2:3]) / (z[:, 7:] - z[:, 2:3]) * 100.0  # undoes the norm: columns 2 and 7 are 0 and 100
        for layer, drop in enumerate((rate / 2, rate)):
            kept = step[:, layer] > 0.5
            np.testing.assert_allclose(step[kept, layer], 1 / (1 - drop), rtol=1e-3)
            np.testing.assert_allclose(step[~kept, layer], 0.0, atol=1e-3)
            assert abs(kept.mean() - (1 - drop)) < 5 * np.sqrt(drop * (1 - drop) / n_rows)


# ----------------------------------------------------------------------------------------------- time kernels
def test_mixture_starts_log_spaced_from_hours_to_years():
    module = TimeKernel("mixture", 4, 3)
    kernel, _ = module.init_with_output(jax.random.key(0))
    np.testing.assert_allclose(kernel.beta_HxR.sum(-1), 1.0, rtol=1e-5)
    days = 1.0 / np.asarray(kernel.gamma_HxR, np.float64)
    assert days.shape == (4, 3)
    np.testing.assert_allclose(np.sort(days.ravel()), np.geomspace(0.25, 3650.0, 12), rtol=1e-4)
    assert np.all(days.max(-1) / days.min(-1) > 400), "every head spans hours to years"
    assert np.all(np.diff(days[:, 0]) > 0), "heads are shifted against one another"


def test_rational_quadratic_starts_log_spaced_and_none_is_none():
    kernel, _ = TimeKernel("rational_quadratic", 5, 3).init_with_output(jax.random.key(0))
    np.testing.assert_allclose(kernel.length_H, np.geomspace(0.25, 3650.0, 5), rtol=1e-4)
    np.testing.assert_allclose(kernel.alpha_H, 1.0, rtol=1e-5)
    assert TimeKernel("none", 5, 3).init_with_output(jax.random.key(0))[0] is None
    with pytest.raises(ValueError, match="unknown time kernel 'gaussian'"):
        TimeKernel("gaussian", 5, 3).init(jax.random.key(0))


def test_time_matters_with_a_kernel_and_not_without(setting):
    params, apply = setting
    late = fields()
    late["time"], late["query_time"] = late["time"] * 2.0, late["query_time"] * 2.0
    assert np.abs(apply(params, *vectors(), late)[0] - apply(params, *vectors(), fields())[0]).max() > 1e-3
    module = backbone(kernel="none")
    plain = random_params(module)
    run = jax.jit(lambda f: module.apply({"params": plain}, *vectors(), f, True))
    for a, b in zip(run(late), run(fields()), strict=True):
        np.testing.assert_array_equal(a, b)
