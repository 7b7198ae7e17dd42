"""Prints what a config says and costs: print_config, describe and compile, which need no data, devices or workdir."""

from ehrwear_jax.config import RunConfig, reference
from ehrwear_jax.training import compile_only, sharding
from ehrwear_jax.training.pretrain import Model, with_rows


def _reference(config: RunConfig) -> Model:
    """The reference model; the largest network where that is none."""
    name = config.evaluate.reference_model
    names = [name] if name in config.networks else config.networks
    models = [Model(**config.model(n, config.seeds[0])) for n in names]
    return models[0] if len(models) == 1 else max(models, key=lambda m: sum(_parameters(config, m).values()))


def _parameters(config, model):
    spec, _ = compile_only.assumed(model, config.prepare, config.compile.vocabulary)
    return compile_only.parameters(model, spec)


def print_config(config: RunConfig) -> None:
    """Prints every option of a run and what it does."""
    print(reference.of_run(config), end="")


def describe(config: RunConfig) -> None:
    """Prints the number of parameters of the reference model, by part, and its numbers beside those of its paper."""
    model = _reference(config)
    parts = _parameters(config, model)
    head = f"{config.name}, {model.name}: {sum(parts.values()):,} parameters"
    print(f"{head} with a vocabulary of {config.compile.vocabulary:,} tokens, assumed")
    for part, count in parts.items():
        print(f"  {part:<12} {count:>13,}")
    if hasattr(model.module, "published"):
        _print_published(*model.module.published(model.config, model.train, config.prepare))


def _print_published(rows, added):
    width = max(len(what) for what, *_ in rows)
    print(f"{'beside the paper':<{width + 2}} {'paper':<28} here")
    for what, paper, here in rows:
        print(f"  {what:<{width}} {paper:<28} {here}{'' if paper == here else '   differs'}")
    print("  added to it: " + ("; ".join(added) if added else "nothing"))


def compile_step(config: RunConfig) -> None:
    """Prints what the training step of the reference model takes of each device of config.compile.topology."""
    c, model = config.compile, _reference(config)
    devices = compile_only.tpu_devices(c.topology)
    mesh = sharding.make_mesh(devices, config.mesh)
    rows = with_rows(model.train, mesh).batch_size
    spec, counts = compile_only.assumed(model, config.prepare, c.vocabulary)
    shares = compile_only.shares(mesh)
    read = sorted({rows * len(s.blocks) // s.count for s in shares.values()})
    others = {name: Model(**config.model(name, config.seeds[0])) for name in getattr(model.config, "needs", ())}
    needed = {n: (m, compile_only.assumed(m, config.prepare, c.vocabulary)[0]) for n, m in others.items()}
    done = compile_only.compile_step(model, spec, counts, mesh, "tpu", config.mesh, needed)
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"{config.name}, {model.name}, on {c.topology}: {len(devices)} x {devices[0].device_kind}; {axes}")
    held = ", ".join(f"{n:,} {name}" for name, n in counts.items() if name in ("tokens", "windows"))
    print(f"  batch        {rows:,} rows of {held}")
    print(f"  processes    {len(shares)}, each reads {' or '.join(f'{n:,}' for n in read)} rows of a batch")
    print(f"  vocabulary   {c.vocabulary:,}, assumed")
    print(f"  compiled in  {done.seconds:.0f} s")
    for part, size in done.memory.items():
        print(f"  memory       {size / 2**30:8.3f} GiB a device: {part}")
    print(f"  flops        {done.model_flops / len(devices):.3e} a device and step by formula, of rows without padding")
    print(f"  flops        {done.flops:.3e} by the compiler, without custom kernels, loops counted once")
    for kind, (count, size) in done.collectives.items():
        print(f"  {kind:<19} {count:6,} a step, {size / 2**30:8.3f} GiB")
