"""Parses the options of a simulated cohort from a command line: a preset, and single options by name."""

import argparse
import dataclasses

from ehrwear_jax.config.data import SIMULATED, SimulateConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --preset and --set."""
    parser.add_argument("--preset", choices=sorted(SIMULATED), help="a variant of the configs of simulated cohorts")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="numbers of config.simulate")


def config_of(options: argparse.Namespace, **more: object) -> SimulateConfig:
    """The config that --preset, --set and then `more` give.

    Raises:
      ValueError: an option that config.simulate has not, or whose value is no number.
    """
    changes: dict = dict(SIMULATED[options.preset]) if options.preset else {}
    known = {f.name: f.default for f in dataclasses.fields(SimulateConfig) if isinstance(f.default, (int, float))}
    for change in options.set:
        name, _, value = change.partition("=")
        if name not in known:
            raise ValueError(f"--set {change}: config.simulate has no number {name!r}; it has {', '.join(known)}")
        try:
            changes[name] = type(known[name])(float(value))
        except ValueError as error:
            raise ValueError(f"--set {change}: {value!r} is no number") from error
    return dataclasses.replace(SimulateConfig(), **(changes | more))
