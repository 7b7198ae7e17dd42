"""The describe and compile stages: what a config costs, printed; they need no data, no devices and no workdir."""

from ehrwear_jax import config as config_lib
from ehrwear_jax.training import compile_only as dry_run
from ehrwear_jax.training import sharding, train


def _patients(config, row):
    context = config_lib.context_config(config, row)
    return dry_run.AssumedPatients(context, config_lib.prepare_config(config), config.compile.vocabulary)


def describe(config):
    """Prints the number of parameters of the model of the row of reference, by part."""
    row = config_lib.reference_model(config)
    parts = dry_run.parameters(_patients(config, row), config_lib.model_options(config))
    head = f"{config.name}, {row}: {sum(parts.values()):,} parameters"
    print(f"{head} with a vocabulary of {config.compile.vocabulary:,} tokens, assumed")
    for part, count in parts.items():
        print(f"  {part:<12} {count:>13,}")


def compile_step(config):
    """Prints what the training step of the row of reference takes of each device of config.topology."""
    c, row = config.compile, config_lib.reference_model(config)
    devices = dry_run.tpu_devices(config.topology)
    mesh = sharding.make_mesh(devices, config_lib.mesh_config(config))
    options = train.with_rows(config_lib.train_config(config), mesh)
    rows = options.batch_size
    patients = _patients(config, row)
    context = patients.config
    done = dry_run.compile_step(patients, config_lib.model_options(config), options, mesh, rows, "tpu")
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"{config.name}, {row}, on {config.topology}: {len(devices)} x {devices[0].device_kind}; {axes}")
    print(f"  batch        {rows:,} rows of {context.tokens:,} tokens, {context.windows:,} windows")
    print(f"  vocabulary   {c.vocabulary:,}, assumed")
    print(f"  compiled in  {done.seconds:.0f} s")
    for part, size in done.memory.items():
        print(f"  memory       {size / 2**30:8.3f} GiB a device: {part}")
    print(f"  flops        {done.model_flops / len(devices):.3e} a device and step by formula, of rows without padding")
    print(f"  flops        {done.flops:.3e} by the compiler, without custom kernels, loops counted once")
    for kind, (count, size) in done.collectives.items():
        print(f"  {kind:<19} {count:6,} a step, {size / 2**30:8.3f} GiB")
