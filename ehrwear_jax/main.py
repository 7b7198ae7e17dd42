"""Runs the stages that a config names: prepare, pretrain, embed, evaluate, interpret, report.

python -m ehrwear_jax.main --config=configs/tiny.py

Several processes make one job where Slurm, a JobSet or a TPU slice started them (distributed.py). Exit codes:
exit_codes.py. JAX and the stages are imported when they are needed: neither by --help nor by processes that read and
write data, each of which imports this module.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from ehrwear_jax import config as config_lib
from ehrwear_jax import stages
from ehrwear_jax.config import config_files

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file, e.g. configs/tiny.py or configs/full.py:220m."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; runs/<config> by default.")
STAGES = flags.DEFINE_list("stages", list(stages.ORDER), "Stages to run, in order; study: all of them.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Networks that are pretrained and embedded at a time.")
RATES = flags.DEFINE_list("learning_rates", [], "Multiples of each network's peak rate to choose from; trains no more.")
VERIFY = flags.DEFINE_bool("verify", False, "Read all raw inputs again, whatever their size and time say.")
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main(argv: Sequence[str]) -> None:
    """Runs the flags' stages; exits with one sentence and a code of exit_codes.py if that goes wrong."""
    if len(argv) > 1:
        sys.exit(f"ehrwear_jax: unexpected argument {argv[1]!r}; flags look like --config=configs/tiny.py")
    absl_logging.use_absl_handler()
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    absl_logging.set_verbosity(absl_logging.INFO)
    logging.getLogger("absl").setLevel(logging.WARNING)  # the checkpoint library's own chatter
    for name in ("jax", "orbax", "distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if CONFIG.value is None:
        sys.exit("ehrwear_jax: say which experiment to run, e.g. --config=configs/tiny.py (all flags: --help)")
    from ehrwear_jax.runtime import compile_cache, distributed

    compile_cache.use()
    distributed.to_the_end(_run, DEBUG.value)


def _run():
    from ehrwear_jax.runtime import distributed
    from ehrwear_jax.stages import runner

    distributed.initialize()
    config = config_lib.parse(CONFIG.value)
    workdir = Path(WORKDIR.value or Path("runs") / config.name)
    if RATES.value:
        from ehrwear_jax.stages import learning_rates

        learning_rates.search(config, workdir, [float(x) for x in RATES.value])
        return
    runner.run(config, workdir, STAGES.value, VERIFY.value, PROCESSES.value)


def _parse(argv):
    """absl's flag parsing, with one sentence for a mistake in a flag, a config file or a config key."""
    try:
        sys.argv = argv = config_files.in_arguments(argv)  # ml_collections looks there for fields of a config
    except FileNotFoundError as error:
        sys.exit(f"ehrwear_jax: {error}")
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # a config file is code: anything may come out of it
        if "--debug" in argv:
            raise
        while error.args and isinstance(error.args[0], Exception):  # ml_collections wraps a KeyError
            error = error.args[0]
        text = str(error.args[0] if error.args else error).strip()
        if isinstance(error, KeyError):
            text = "the config has no key " + ": ".join(text.splitlines())
        elif "Traceback" in text:  # an error raised by the config file itself
            text = text.splitlines()[-1].partition(": ")[2]
        sys.exit(f"ehrwear_jax: {' '.join(text.split())}")


def cli() -> None:
    """The program."""
    if not {"-h", "-help", "--help", "-?", "--?"} & set(sys.argv):
        import jax

        jax.config.config_with_absl()  # JAX's own flags, which --helpfull lists
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    cli()
