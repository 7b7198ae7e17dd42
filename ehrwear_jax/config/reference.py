"""Prints the reference of all options: name, default, documentation."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from ehrwear_jax.config import families, options
from ehrwear_jax.config.run import RunConfig


class Option(NamedTuple):
    """An option or, with is_part, a part of the config: dotted name, default, documentation."""

    name: str
    default: Any
    text: str
    is_part: bool = False


def entries(cls: type = RunConfig, path: str = "") -> Iterator[Option]:
    """Every option, each part before what is in it."""
    hints, documented = typing.get_type_hints(cls), options.documentation(cls)
    for field in dataclasses.fields(cls):
        name, hint = f"{path}{field.name}", hints[field.name]
        if field.name in families.SHARED and cls is RunConfig:
            hint = families.config_class(field.name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield Option(name, None, (hint.__doc__ or documented[field.name]).strip().splitlines()[0], True)
            yield from entries(hint, f"{name}.")
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            yield Option(name, default, documented[field.name])


def markdown() -> str:
    """The reference as Markdown: a section per part, a line per option."""
    lines = ["# Options", "", "Set with `--config.<option>=<value>`, or in a file of configs/.", ""]
    for option in entries():
        if option.is_part:
            lines += ["", f"## {option.name}", "", option.text, ""]
        else:
            lines.append(f"- `{option.name}` = `{option.default!r}`: {option.text}")
    return "\n".join(lines) + "\n"
