"""Copies parameters of Flax into modules of PyTorch, and compares what both compute.

Importing it skips the test file where PyTorch is not installed. The modules are written in the tests from the published
descriptions; each test names, for every tensor of its module, the parameters of ours that it is made of.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")

TOLERANCE = 1e-4  # of outputs of order one, in float32
torch.set_num_threads(1)


def array(x):
    """A tensor of the numbers of an array of JAX or numpy."""
    return torch.from_numpy(np.array(x))


def linear(name, p, n_inputs=1):
    """{name.weight, name.bias} of a product: kernels hold inputs first here, and outputs first there."""
    kernel = np.asarray(p["kernel"])
    n_in = int(np.prod(kernel.shape[:n_inputs]))
    found = {f"{name}.weight": kernel.reshape(n_in, -1).T}
    return found | ({f"{name}.bias": np.asarray(p["bias"]).reshape(-1)} if "bias" in p else {})


def convolution(name, p, transposed=False):
    """Of a convolution [K, in, out]: [out, in, K] there, and transposed [in, out, K] with samples the other way."""
    kernel = np.asarray(p["kernel"])
    weight = kernel[::-1].transpose(1, 2, 0) if transposed else kernel.transpose(2, 1, 0)
    return {f"{name}.weight": weight} | ({f"{name}.bias": p["bias"]} if "bias" in p else {})


def norm(name, p):
    """Of a norm with learned scale, and shift if it has one."""
    return {f"{name}.weight": p["scale"]} | ({f"{name}.bias": p["bias"]} if "bias" in p else {})


def batch_norm(name, p, statistics):
    """Of layers.convolution.BatchNorm, with the statistics that it keeps."""
    kept = {"running_mean": statistics["norm"]["mean"], "running_var": statistics["norm"]["var"]}
    return norm(name, p["norm"]) | {f"{name}.{k}": x for k, x in kept.items()}


def renamed(prefix, values):
    """{prefix.name: value}."""
    return {f"{prefix}.{name}": x for name, x in values.items()}


def filled(module, values, ours):
    """The module, at inference, with these tensors: all of its own, and every number of `ours`, a tree of Flax."""
    counters = {name: x for name, x in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(counters | {name: array(x) for name, x in values.items()}, strict=True)
    assert sum(np.size(x) for x in values.values()) == sum(np.size(x) for x in jax.tree.leaves(ours))
    return module.eval()


def assert_same(name, ours, theirs, tolerance=TOLERANCE):
    """Both are the same within the tolerance, and not all the same; prints the largest difference (pytest -rP)."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    assert np.std(ours) > 0.01
    difference = np.abs(ours - theirs).max()
    print(f"{name}: {difference:.1e} of {np.abs(ours).max():.2f}")
    assert difference < tolerance


def random_statistics(shapes, seed=0):
    """Statistics that batch norm might keep: means around 0, variances around 1."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        is_mean = jax.tree_util.keystr(path).endswith("['mean']")
        return np.float32(rng.normal(size=x.shape) * 0.3 if is_mean else rng.uniform(0.5, 1.5, x.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def packed_ranges(lengths, n_tokens, window=None):
    """kv_range [1, T, 2] of contexts of these lengths in a row, causal within a window; None: all of the context.

    Padding behind them sees nothing. Also bool [T, T], which tokens see which, and int [T], places in the context.
    """
    ranges, begin = np.full((1, n_tokens, 2), sum(lengths), np.int32), 0
    places = np.zeros(n_tokens, np.int64)
    for n in lengths:
        at = np.arange(begin, begin + n)
        first = np.full(n, begin) if window is None else np.maximum(begin, at + 1 - window)
        ranges[0, at] = np.stack([first, np.full(n, begin + n) if window is None else at + 1], axis=1)
        places[at] = at - begin
        begin += n
    key = np.arange(n_tokens)[None]
    return ranges, (key >= ranges[0, :, :1]) & (key < ranges[0, :, 1:]), places
