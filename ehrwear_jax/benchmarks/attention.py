"""Times kernel attention on this machine, beside attention without a kernel and the plain formula.

    python -m ehrwear_jax.benchmarks.attention --shapes=8x2048x16x64,2x8192x16x64 --dtype=bfloat16 --contexts=1,8

Causal attention over sequences of events, one or several packed in a row, with a learned mixture and a modality bias;
gradients to all of them. Everything is compiled first and then timed in turn, so that a ratio compares neighbours in
time. Prints medians; --json=FILE writes one flat mapping from a metric's name, such as
"xla/1x4096x4x64/forward_backward_ms", to its number. --tune=forward (query, key) times one kernel of the Triton
implementation with many tilings.

Rows "unbiased", "materialised" and "plain" are no implementations of the op. The first is the platform's own attention
without kernel and bias (cuDNN's flash attention on a GPU; of packed rows it computes more than is asked for), the
second that attention with log K and the bias as one array of quadratic size, the third the formula in einsum, softmax
and exp.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.ops.kernel_attention import ExponentialMixture, api

BASELINES = ("unbiased", "materialised", "plain")
PASSES = ("forward", "forward_backward")
MEASURED_SECONDS = 0.02  # at least, per repetition: dispatching a call to a GPU takes longer than some calls

Inputs = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: sizes, dtype, components R, modalities M.

    contexts: packed in a row, of uneven lengths. dropout: rate on the weights.
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
    contexts: int = 1
    dropout: float = 0.0

    @property
    def name(self) -> str:
        """Sizes, contexts if there are several, dropout if there is any."""
        packed = f"/{self.contexts}contexts" if self.contexts > 1 else ""
        dropped = f"/dropout{self.dropout:g}" if self.dropout else ""
        return f"{self.batch}x{self.length}x{self.heads}x{self.depth}{packed}{dropped}"

    def flops(self, backward: bool) -> float:
        """Of the products alone, over visible pairs: 2 forward, 5 more backward (Dao et al. 2022 count the same)."""
        pairs = sum(np.sum(np.diff(e).astype(float) ** 2) for e in self.edges())
        return (7 if backward else 2) * pairs * self.heads * self.depth

    def edges(self) -> np.ndarray:
        """Where the contexts of each row begin and end, int [B, contexts + 1]; lengths by a Dirichlet distribution."""
        if self.contexts == 1:
            return np.tile([0, self.length], (self.batch, 1))
        rng = np.random.default_rng(1)
        share = rng.dirichlet(np.full(self.contexts, 2.0), self.batch)
        inner = np.round(np.cumsum(share, axis=1)[:, :-1] * self.length).astype(int)
        return np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, self.length)))


def make_inputs(case: Case, seed: int = 0) -> tuple[Inputs, Inputs]:
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
    position, edges = np.arange(s), case.edges()
    context = np.stack([np.searchsorted(e[1:-1], position, side="right") for e in edges])
    start = np.take_along_axis(edges, context, axis=1)
    at = at - np.take_along_axis(at, start, axis=1)  # each context has a clock of its own
    stop = np.broadcast_to(position + 1, (b, s))
    rest = {
        "time": jnp.asarray(at, jnp.float32),
        "kv_range": jnp.asarray(np.stack([start, stop], -1), jnp.int32),
        "modality": jnp.asarray(rng.integers(0, case.modalities, (b, s)), jnp.int32),
        "weight": jnp.asarray(rng.normal(size=(b, s, h, case.depth)), case.dtype),
    }
    return learned, rest


def _bias(learned, rest):
    """log K and the modality bias as one array [B, H, T, S], and what is visible [B, 1, T, S]."""
    gap = jnp.maximum(rest["time"][:, :, None] - rest["time"][:, None], 0.0)[:, None]
    beta, gamma = (learned[n][None, :, :, None, None] for n in ("beta", "gamma"))
    kernel = sum(beta[:, :, r] * jnp.exp(-gamma[:, :, r] * gap) for r in range(beta.shape[2]))
    bias = jnp.take_along_axis(learned["bias"], rest["modality"][:, None, :, None], axis=2) + jnp.log(kernel)
    key = jnp.arange(bias.shape[-1])[None, None]
    visible = (key >= rest["kv_range"][..., :1]) & (key < rest["kv_range"][..., 1:])
    return bias, visible[:, None]


def plain_formula(learned: Inputs, rest: Inputs) -> jax.Array:
    """softmax(q k / sqrt(D) + bias + log K) v as one would write it, in the order that XLA takes best."""
    q, k, v = (learned[n] for n in "qkv")
    bias, visible = _bias(learned, rest)
    logit = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weight = jax.nn.softmax(jnp.where(visible, logit + bias, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weight.astype(v.dtype), v)


def _materialised(learned, rest):
    bias, visible = _bias(learned, rest)
    bias = jnp.where(visible, bias, -1e9).astype(learned["q"].dtype)
    q, k, v = (learned[n] for n in "qkv")
    return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=_flash(q.dtype))


def _unbiased(learned, rest):
    q, k, v = (learned[n] for n in "qkv")
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=_flash(q.dtype))


def _flash(dtype):
    return "cudnn" if jax.default_backend() == "gpu" and dtype == jnp.bfloat16 else None


def baselines(case: Case, max_plain: int) -> list[str]:
    """Rows to compare with: those of quadratic memory up to a length only."""
    linear = ["unbiased"] if jax.default_backend() == "gpu" and case.dtype == "bfloat16" else []
    return list(BASELINES) if case.length <= max_plain else linear


def attention(case: Case, implementation: str, options: Mapping[str, Any] | None = None) -> Callable[..., jax.Array]:
    """(learned, rest) -> out; options: of the implementation."""
    functions = {"plain": plain_formula, "materialised": _materialised, "unbiased": _unbiased}
    if implementation in functions:
        return functions[implementation]
    key = jax.random.key(0) if case.dropout else None
    attend: Callable[..., jax.Array] = api.kernel_attention  # type: ignore[assignment]  # no residuals are asked for
    return lambda x, rest: attend(
        x["q"],
        x["k"],
        x["v"],
        q_time_BxT=rest["time"],
        k_time_BxS=rest["time"],
        kv_range_BxTx2=rest["kv_range"],
        kernel=ExponentialMixture(x["beta"], x["gamma"]),
        source_bias_BxHxMxS=x["bias"],
        q_modality_BxT=rest["modality"],
        dropout_rate=case.dropout,
        dropout_key=key,
        bit_causal=False,  # as in training
        skip_tolerance=case.skip_tolerance,
        implementation=implementation,
        options=options,
    )


def compile_passes(
    case: Case, implementation: str, options: Mapping[str, Any] | None = None, which: Sequence[str] = PASSES
) -> dict[str, Any]:
    """{"forward", "forward_backward": compiled function of (learned, rest)}."""
    forward = attention(case, implementation, options)

    def objective(learned, rest):
        return jnp.sum((forward(learned, rest) * rest["weight"]).astype(jnp.float32))

    shapes = jax.eval_shape(functools.partial(make_inputs, case))
    passes = {"forward": forward, "forward_backward": jax.grad(objective)}
    return {name: jax.jit(passes[name]).lower(*shapes).compile() for name in which}


def seconds_of(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """{name: median seconds of a call} of functions called in turn."""

    def run(function, times):
        began = time.perf_counter()
        for _ in range(times):
            out = function()
        jax.block_until_ready(out)
        return (time.perf_counter() - began) / times

    times = {}
    for name, function in functions.items():
        run(function, 1)
        times[name] = max(1, min(100, math.ceil(MEASURED_SECONDS / run(function, 1))))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            # once before the clock starts: a row should not pay for giving back its neighbour's memory
            run(function, 1)
            seconds[name].append(run(function, times[name]))
    return {name: statistics.median(s) for name, s in seconds.items()}


def measure(
    cases: Iterable[Case], implementations: Sequence[str], repeats: int, max_plain: int,
    options: Mapping[str, Any] | None = None,
) -> dict[str, float]:  # fmt: skip
    """{metric name: number} over cases, implementations and the baselines."""
    results = {}
    for case in cases:
        names = [*implementations, *baselines(case, max_plain)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            made = pool.map(lambda n, case=case: compile_passes(case, n, options), names)
            compiled, inputs = dict(zip(names, made, strict=True)), make_inputs(case)
        for which in PASSES:
            median = seconds_of({n: functools.partial(compiled[n][which], *inputs) for n in names}, repeats)
            for n in names:
                key = f"{n}/{case.name}/{which}"
                results[f"{key}_ms"] = 1e3 * median[n]
                results[f"{key}_tflops"] = case.flops(which != "forward") / median[n] / 1e12
                results[f"{key}_temporary_mib"] = compiled[n][which].memory_analysis().temp_size_in_bytes / 2**20
                for other in BASELINES:
                    if other in names and n != other:
                        results[f"{key}_ratio_to_{other}"] = median[n] / median[other]
    return results


BLOCKS = ((64, 128), (64, 64), (128, 64), (128, 128), (32, 64))
TILINGS: tuple[tuple[int, ...], ...] = tuple(
    (*block, warps, stages) for block, warps, stages in itertools.product(BLOCKS, (4, 8), (2, 3))
)
# block_q, block_k, warps, stages, edge, masked, reach
TILINGS += tuple((*block, 4, 2, 32, masked) for block, masked in itertools.product(BLOCKS[:3], (16, 32)))
TILINGS += tuple((64, 64, 4, 2, 32, 64, reach) for reach in (-1, 8, 16, 60))
TILINGS += ((64, 64, 4, 2, 16), (64, 64, 4, 2, 64))


def tune(case: Case, kernel: str, repeats: int, tilings: Sequence[tuple[int, ...]] = TILINGS) -> list[tuple]:
    """[(ms, tiling)] of the forward pass, or of both passes, with tilings of one Triton kernel; the fastest first."""
    which = "forward" if kernel == "forward" else "forward_backward"

    def compiled(tiling):
        try:
            return compile_passes(case, "triton", {kernel: tiling}, (which,))[which]
        except Exception as error:  # the compilers' errors have no common class; most are too little shared memory
            print(f"{kernel} {tiling}: {str(error).splitlines()[0][:100]}")
            return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = dict(zip(tilings, pool.map(compiled, tilings), strict=True))
    inputs = make_inputs(case)
    calls = {str(t): functools.partial(f, *inputs) for t, f in made.items() if f is not None}
    return sorted((1e3 * s, tiling) for tiling, s in seconds_of(calls, repeats).items())


def table(results: Mapping[str, float]) -> list[str]:
    """Lines of a text table, one a row and pass."""
    metrics = ("ms", "tflops", "temporary_mib", *(f"ratio_to_{n}" for n in BASELINES))
    lines = [f"{'row / shape / pass':56}" + "".join(f"{m:>22}" for m in metrics)]
    keys = dict.fromkeys(k.removesuffix("_ms") for k in results if k.endswith("_ms"))
    for key in keys:
        values = [results.get(f"{key}_{m}") for m in metrics]
        lines.append(f"{key:56}" + "".join(f"{'' if v is None else format(v, '.4g'):>22}" for v in values))
    return lines


def _case(flags, shape, contexts, dropout):
    batch, length, heads, depth = (int(n) for n in shape.split("x"))
    sizes = {"batch": batch, "length": length, "heads": heads, "depth": depth, "contexts": contexts}
    names = ("dtype", "components", "modalities", "skip_tolerance", "memory_tokens")
    return Case(**sizes, **{name: getattr(flags, name) for name in names}, dropout=dropout)


def parsed_options(text: str) -> dict[str, int | tuple[int, ...]]:
    """ "block_q=128,query=64:64:4" -> {"block_q": 128, "query": (64, 64, 4)}."""
    options: dict[str, int | tuple[int, ...]] = {}
    for name, value in (pair.split("=") for pair in text.split(",") if pair):
        numbers = tuple(int(n) for n in value.split(":"))
        options[name] = numbers if len(numbers) > 1 else numbers[0]
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark by its flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1x4096x4x64", help="batch x length x heads x depth, comma-separated")
    parser.add_argument("--implementations", default="", help="comma-separated")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--components", type=int, default=4)
    parser.add_argument("--modalities", type=int, default=4)
    parser.add_argument("--contexts", default="1", help="packed in a row, comma-separated")
    parser.add_argument("--dropout", default="0", help="rates on the weights, comma-separated")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-plain", type=int, default=4096, help="longest for baselines of quadratic memory")
    parser.add_argument("--skip-tolerance", type=float, default=0.0)
    parser.add_argument("--memory-tokens", type=float, default=0.0, help="tokens back at which K is skip-tolerance")
    parser.add_argument(
        "--options",
        default="",
        help="of the implementations, such as block_q=128,block_k=128 or query=64:64:4:2:32:64:16",
    )
    parser.add_argument("--tune", default="", help="kernels to time with many tilings: forward,query,key")
    parser.add_argument("--json", default="", help="file for the results")
    flags = parser.parse_args(argv)
    cases = [
        _case(flags, shape, int(contexts), float(dropout))
        for shape, contexts, dropout in itertools.product(
            flags.shapes.split(","), flags.contexts.split(","), flags.dropout.split(",")
        )
    ]
    implementations = (flags.implementations or "xla").split(",")
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, median of {flags.repeats}")
    for kernel in flags.tune.split(",") if flags.tune else ():
        for case in cases:
            print(f"{kernel}, {case.name}: block_q, block_k, warps, stages, edge, masked, reach")
            print("\n".join(f"  {ms:8.3f} ms {tiling}" for ms, tiling in tune(case, kernel, flags.repeats)), flush=True)
    options = parsed_options(flags.options)
    results = measure(cases, implementations, flags.repeats, flags.max_plain, options) if not flags.tune else {}
    print("\n".join(table(results)))
    if flags.json:
        with open(flags.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
