"""Prints the reference of all options: name, default, documentation."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from ehrwear_jax.config import families, options
from ehrwear_jax.config.run import RunConfig
from ehrwear_jax.config.segment_spec import SegmentSpec

# families of the package whose options stand in config.models alone
IN_MODELS = (
    "motor",
    "cehr_bert",
    "context_clues",
    "himae",
    "papagei",
    "motif_distance",
    "pulse_ppg",
    "tabular",
    "late_fusion",
    "stacked",
)


class Option(NamedTuple):
    """An option or, with is_part, a part of the config: dotted name, default, documentation."""

    name: str
    default: Any
    text: str
    is_part: bool = False


def entries(cls: type = RunConfig, path: str = "", base: Any = None) -> Iterator[Option]:
    """Every option, each part before what is in it; base: has the defaults, None: those of the class."""
    hints, documented = typing.get_type_hints(cls), options.documentation(cls)
    for field in dataclasses.fields(cls):
        name, hint = f"{path}{field.name}", hints[field.name]
        if field.name in families.SHARED and cls is RunConfig:
            hint = families.config_class(field.name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield Option(name, None, (hint.__doc__ or documented[field.name]).strip().splitlines()[0], True)
            yield from entries(hint, f"{name}.", field.default if isinstance(field.default, hint) else None)
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            default = default if base is None else getattr(base, field.name)
            yield Option(name, default, documented[field.name])


def further() -> dict[str, type]:
    """{title: dataclass} of options that stand in dicts of the config, by names of the user's own."""
    models = {f"A model of the family {name}, in models": families.config_class(name) for name in IN_MODELS}
    return {"A set of segments, in prepare.segments": SegmentSpec} | models


def of_run(config: RunConfig) -> str:
    """Every option as a run has it, with its default where it is another one, and what it does; then the models."""
    values, lines = options.as_dict(config), [f"config {config.name}"]
    for option in entries():
        found: Any = values
        for key in option.name.split("."):
            found = found.get(key, option.default) if isinstance(found, dict) else option.default
        if option.is_part:
            lines += ["", f"{option.name}: {option.text}"]
        elif option.name != "models":
            told = "" if found == option.default else f"  (default {option.default!r})"
            lines += [f"  config.{option.name} = {found!r}{told}", f"      {' '.join(option.text.split())}"]
    (models,) = (option.text for option in entries() if option.name == "models")
    lines += ["", f"models: {models}"]
    return "\n".join([*lines, *(f"  {name}: {entry!r}" for name, entry in config.models.items())]) + "\n"


def markdown() -> str:
    """The reference as Markdown: a section per part, a line per option."""
    lines = ["# Options", "", "Set with `--config.<option>=<value>`, or in a file of configs/.", ""]
    for option in entries():
        if option.is_part:
            lines += ["", f"## {option.name}", "", option.text, ""]
        else:
            lines.append(f"- `{option.name}` = `{option.default!r}`: {option.text}")
    for title, cls in further().items():
        lines += ["", f"## {title}", "", (cls.__doc__ or "").strip().splitlines()[0], ""]
        lines += [f"- `{option.name}` = `{option.default!r}`: {option.text}" for option in entries(cls)]
    return "\n".join(lines) + "\n"
