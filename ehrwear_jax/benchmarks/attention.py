"""Times kernel attention on this machine, beside attention without a kernel and the plain formula.

    python -m ehrwear_jax.benchmarks.attention --shapes=8x2048x16x64,2x8192x16x64 --dtype=bfloat16

Causal attention over one sequence of events a row, with a learned mixture and a modality bias; gradients to all of
them. Everything is compiled first and then timed in turn, so that a ratio compares neighbours in time. Prints medians;
--json=FILE writes one flat mapping from a metric's name, such as "xla/1x4096x4x64/forward_backward_ms", to its number.

Rows "plain" and "unbiased" are no implementations of the op: the former is the formula in einsum, softmax and exp, the
latter the platform's own attention without kernel and bias (cuDNN's flash attention on a GPU).
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.ops.kernel_attention import ExponentialMixture, api

BASELINES = ("unbiased", "plain")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: sizes, dtype, components R, modalities M.

    memory_tokens: how many tokens back K has fallen to skip_tolerance; 0: decay times from hours to years.
    """

    batch: int
    length: int
    heads: int
    depth: int
    dtype: str
    components: int
    modalities: int
    skip_tolerance: float = 0.0
    memory_tokens: float = 0.0

    @property
    def name(self):
        return f"{self.batch}x{self.length}x{self.heads}x{self.depth}"

    def flops(self, backward):
        """Of the products alone, causal: 2 forward, 5 more backward (Dao et al. 2022 count the same)."""
        return (7 if backward else 2) * self.batch * self.heads * self.length**2 * self.depth


def make_inputs(case, seed=0):
    """(learned, rest): events at random times, an hour apart on average."""
    rng = np.random.default_rng(seed)
    b, s, h = case.batch, case.length, case.heads
    learned = {n: jnp.asarray(rng.normal(size=(b, s, h, case.depth)), case.dtype) for n in "qkv"}
    learned["bias"] = jnp.asarray(rng.normal(size=(b, h, case.modalities, s)), jnp.float32)
    learned["beta"] = jnp.asarray(rng.uniform(0.1, 1, (h, case.components)), jnp.float32)
    if case.memory_tokens:
        slowest = -np.log(case.skip_tolerance or 1e-3) / case.memory_tokens * 24.0
        gamma = slowest * rng.uniform(1, 10, (h, case.components))
        gamma[:, 0] = slowest
    else:
        gamma = 1.0 / np.exp(rng.uniform(np.log(0.1), np.log(1000.0), (h, case.components)))
    learned["gamma"] = jnp.asarray(gamma, jnp.float32)
    at = np.cumsum(rng.exponential(1 / 24.0, (b, s)), axis=1)
    stop = np.broadcast_to(np.arange(1, s + 1), (b, s))
    rest = {
        "time": jnp.asarray(at, jnp.float32),
        "kv_range": jnp.asarray(np.stack([np.zeros_like(stop), stop], -1), jnp.int32),
        "modality": jnp.asarray(rng.integers(0, case.modalities, (b, s)), jnp.int32),
        "weight": jnp.asarray(rng.normal(size=(b, s, h, case.depth)), case.dtype),
    }
    return learned, rest


def plain_formula(learned, rest):
    """softmax(q k / sqrt(D) + bias + log K) v as one would write it, in the order that XLA takes best."""
    q, k, v = (learned[n] for n in "qkv")
    gap = jnp.maximum(rest["time"][:, :, None] - rest["time"][:, None], 0.0)[:, None]
    beta, gamma = (learned[n][None, :, :, None, None] for n in ("beta", "gamma"))
    kernel = sum(beta[:, :, r] * jnp.exp(-gamma[:, :, r] * gap) for r in range(beta.shape[2]))
    logit = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    logit = logit + jnp.take_along_axis(learned["bias"], rest["modality"][:, None, :, None], axis=2) + jnp.log(kernel)
    causal = jnp.tril(jnp.ones(logit.shape[-2:], bool))[None, None]
    weight = jax.nn.softmax(jnp.where(causal, logit, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weight.astype(v.dtype), v)


def _is_flash(case, baseline):
    """Whether a baseline takes memory linear in the length here."""
    return baseline == "unbiased" and jax.default_backend() == "gpu" and case.dtype == "bfloat16"


def attention(case, implementation, options=None):
    """(learned, rest) -> out; options: of the implementation."""
    if implementation == "plain":
        return plain_formula
    if implementation == "unbiased":
        flash = "cudnn" if _is_flash(case, implementation) else None
        return lambda x, _: jax.nn.dot_product_attention(x["q"], x["k"], x["v"], is_causal=True, implementation=flash)
    return lambda x, rest: api.kernel_attention(
        x["q"],
        x["k"],
        x["v"],
        q_time_BxT=rest["time"],
        k_time_BxS=rest["time"],
        kv_range_BxTx2=rest["kv_range"],
        kernel=ExponentialMixture(x["beta"], x["gamma"]),
        source_bias_BxHxMxS=x["bias"],
        q_modality_BxT=rest["modality"],
        skip_tolerance=case.skip_tolerance,
        implementation=implementation,
        options=options,
    )


def compile_passes(case, implementation, options=None):
    """{"forward", "forward_backward": compiled function of (learned, rest)}."""
    forward = attention(case, implementation, options)

    def objective(learned, rest):
        return jnp.sum((forward(learned, rest) * rest["weight"]).astype(jnp.float32))

    shapes = jax.eval_shape(functools.partial(make_inputs, case))
    passes = {"forward": forward, "forward_backward": jax.grad(objective)}
    return {name: jax.jit(f).lower(*shapes).compile() for name, f in passes.items()}


def measure(cases, implementations, repeats, max_plain, options=None):
    """{metric name: number} over cases, implementations and the two baselines."""
    results = {}
    for case in cases:
        names = [*implementations, *(n for n in BASELINES if case.length <= max_plain or _is_flash(case, n))]
        compiled, inputs = {n: compile_passes(case, n, options) for n in names}, make_inputs(case)
        for which in ("forward", "forward_backward"):
            seconds = {n: [] for n in names}
            for _ in range(repeats):
                for n in names:
                    # once before the clock starts: a row should not pay for giving back its neighbour's memory
                    jax.block_until_ready(compiled[n][which](*inputs))
                    began = time.perf_counter()
                    jax.block_until_ready(compiled[n][which](*inputs))
                    seconds[n].append(time.perf_counter() - began)
            median = {n: statistics.median(s) for n, s in seconds.items()}
            for n in names:
                key = f"{n}/{case.name}/{which}"
                results[f"{key}_ms"] = 1e3 * median[n]
                results[f"{key}_tflops"] = case.flops(which != "forward") / median[n] / 1e12
                results[f"{key}_temporary_mib"] = compiled[n][which].memory_analysis().temp_size_in_bytes / 2**20
                for other in BASELINES:
                    if other in names and n != other:
                        results[f"{key}_ratio_to_{other}"] = median[n] / median[other]
    return results


def table(results):
    """Lines of a text table, one a row and pass."""
    metrics = ("ms", "tflops", "temporary_mib", "ratio_to_unbiased", "ratio_to_plain")
    lines = [f"{'row / shape / pass':44}" + "".join(f"{m:>19}" for m in metrics)]
    keys = dict.fromkeys(k.removesuffix("_ms") for k in results if k.endswith("_ms"))
    for key in keys:
        values = [results.get(f"{key}_{m}") for m in metrics]
        lines.append(f"{key:44}" + "".join(f"{'' if v is None else format(v, '.4g'):>19}" for v in values))
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1x4096x4x64", help="batch x length x heads x depth, comma-separated")
    parser.add_argument("--implementations", default="", help="comma-separated")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--components", type=int, default=4)
    parser.add_argument("--modalities", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-plain", type=int, default=4096, help="longest for baselines of quadratic memory")
    parser.add_argument("--skip-tolerance", type=float, default=0.0)
    parser.add_argument("--memory-tokens", type=float, default=0.0, help="tokens back at which K is skip-tolerance")
    parser.add_argument("--options", default="", help="of the implementations, such as block_q=128,block_k=128")
    parser.add_argument("--json", default="", help="file for the results")
    flags = parser.parse_args(argv)
    sizes = [tuple(int(n) for n in shape.split("x")) for shape in flags.shapes.split(",")]
    cases = [
        Case(*s, flags.dtype, flags.components, flags.modalities, flags.skip_tolerance, flags.memory_tokens)
        for s in sizes
    ]
    implementations = (flags.implementations or "xla").split(",")
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, median of {flags.repeats}")
    options = {name: int(n) for name, n in (pair.split("=") for pair in flags.options.split(",") if pair)}
    results = measure(cases, implementations, flags.repeats, flags.max_plain, options)
    print("\n".join(table(results)))
    if flags.json:
        with open(flags.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
