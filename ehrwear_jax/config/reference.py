"""Prints the reference of all options: name, default, documentation."""

import dataclasses
import typing
from collections.abc import Iterator

from ehrwear_jax.config import families, options
from ehrwear_jax.config.run import RunConfig


def fields(cls: type = RunConfig, path: str = "config") -> Iterator[tuple[str, object, str]]:
    """(dotted name, default, documentation) of every option, part by part; a part itself has the default None."""
    hints, documented = typing.get_type_hints(cls), options.documentation(cls)
    for field in dataclasses.fields(cls):
        name, hint = f"{path}.{field.name}", hints[field.name]
        if field.name in families.SHARED and cls is RunConfig:
            hint = families.config_class(field.name)
        if dataclasses.is_dataclass(hint):
            yield name, None, (hint.__doc__ or documented[field.name]).strip().splitlines()[0]
            yield from fields(hint, name)
        else:
            has_factory = field.default_factory is not dataclasses.MISSING
            yield name, field.default_factory() if has_factory else field.default, documented[field.name]


def markdown() -> str:
    """The reference as Markdown: a section per part, a line per option."""
    lines = ["# Options", "", "Set with `--config.<option>=<value>`, or in a file of configs/.", ""]
    for name, default, text in fields():
        name = name.removeprefix("config.")
        if default is None and not text.endswith(".") or _is_part(name):
            lines += ["", f"## {name}", "", text, ""]
        else:
            lines.append(f"- `{name}` = `{default!r}`: {text}")
    return "\n".join(lines) + "\n"


def _is_part(name):
    return any(other.startswith(f"config.{name}.") for other, _, _ in fields())
