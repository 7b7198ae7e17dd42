"""Builds option dataclasses from nested dicts, with errors that name the key, and reads the fields' documentation.

An option is a field of a frozen dataclass whose default is the product's; the string behind a field documents it (PEP
258), and `python -m ehrwear_jax.config` prints it. Nothing here imports an accelerator's library.
"""

import ast
import dataclasses
import inspect
import math
import sys
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar


class Options(Protocol):
    """An instance of an option dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Options)


def build(cls: type[T], values: Mapping[str, Any], path: str = "config", base: T | None = None) -> T:
    """An instance of an option dataclass.

    Args:
      cls: frozen dataclass whose fields may be dataclasses themselves.
      values: field name -> value; absent fields keep their defaults; lists become tuples.
      path: what the values are called in errors.
      base: has the defaults; None: those of the class. A part's are what the field that holds it says.

    Raises:
      ValueError: a key that is no field, a value of another type, or what the class's own checks say.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"{path} has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    default = {name: field.default if base is None else getattr(base, name) for name, field in known.items()}
    given = {name: _converted(hints[name], v, f"{path}.{name}", default[name]) for name, v in values.items()}
    if base is not None:
        return dataclasses.replace(base, **given)
    missing = [
        name
        for name, field in known.items()
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{path}.{missing[0]} is not set")
    return cls(**given)


def _converted(hint, value, path, default=dataclasses.MISSING):
    """The value as a field of this type holds it."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        base = default if isinstance(default, hint) else None
        return value if isinstance(value, hint) else build(hint, value, path, base)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _converted(next(a for a in arguments if a is not type(None)), value, path)
    if origin is tuple or hint is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ValueError(f"{path} is {value!r}; it must be a tuple, as in ('a',)")
        return tuple(_plain(x) for x in value)
    if origin is dict or hint is dict or origin is Mapping:
        return {str(k): _plain(v) for k, v in dict(value).items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise ValueError(f"{path} is {value!r}; it must be {_NAMES[hint]}")
        return value
    return _plain(value)


_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def _plain(value):
    """Lists as tuples, mappings as dicts, at any depth."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(x) for x in value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


ABOVE_0 = sys.float_info.min  # as the lower limit of a field
_ADDED, _ADDED_KEYS, _WITHIN = "added", "added_keys", "within"


def added(default: Any) -> Any:
    """A field that came when there were artifacts already, which keep their digests: see `identity`."""
    if isinstance(default, dict):  # one for each instance, as it can be changed
        return dataclasses.field(default_factory=lambda: dict(default), metadata={_ADDED: True})
    return dataclasses.field(default=default, metadata={_ADDED: True})


def added_keys(default: Mapping[str, Any], *keys: str) -> Any:
    """A field that is a dict, some of whose keys came when there were artifacts already: see `identity`."""
    return dataclasses.field(default_factory=lambda: dict(default), metadata={_ADDED_KEYS: keys})


def within(default: Any, low: float, high: float = math.inf) -> Any:
    """A field whose value, or each value of whose tuple, lies in [low, high]; `require_within` checks it.

    Args:
      default: of the field; None, if it can be that, lies within any limits.
    """
    return dataclasses.field(default=default, metadata={_WITHIN: (low, high)})


def identity(options: Any) -> Any:
    """As `as_dict`, without fields and keys that were `added` and have their default: what an artifact depends on."""
    if dataclasses.is_dataclass(options):
        values = {field: getattr(options, field.name) for field in dataclasses.fields(options)}
        unset = {f for f, v in values.items() if f.metadata.get(_ADDED) and v == _default(f)}
        return {f.name: identity(_set_keys(f, v)) for f, v in values.items() if f not in unset}
    if isinstance(options, Mapping):
        return {k: identity(v) for k, v in options.items()}
    return tuple(identity(x) for x in options) if isinstance(options, (list, tuple)) else options


def _set_keys(field, value):
    """A value without the keys that were added to its field and have their default."""
    default = _default(field) if (keys := field.metadata.get(_ADDED_KEYS)) else {}
    return {k: v for k, v in value.items() if v != default[k] or k not in keys} if keys else value


def _default(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def as_dict(options: Any) -> Any:
    """The nested dict of an option dataclass; `build` is its inverse."""
    if dataclasses.is_dataclass(options):
        return {field.name: as_dict(getattr(options, field.name)) for field in dataclasses.fields(options)}
    if isinstance(options, Mapping):
        return {k: as_dict(v) for k, v in options.items()}
    return tuple(as_dict(x) for x in options) if isinstance(options, (list, tuple)) else options


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """base with the values of changes in their places, dict by dict."""
    out = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if inner else value
    return out


def documentation(cls: type) -> dict[str, str]:
    """{field: its documentation in one paragraph} of an option dataclass, "" where there is none."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    tree = next(node for node in body if isinstance(node, ast.ClassDef))
    found, name = {field.name: "" for field in dataclasses.fields(cls)}, None
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = " ".join(str(node.value.value).split())
            name = None
        else:
            name = None
    return found


def require_range(where: str, options: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises ValueError for a field outside its limits {name: (low, high)}, both included; tuples value by value."""
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        for x in value if isinstance(value, tuple) else (value,):
            if not low <= x <= high:
                least = "above 0" if low == ABOVE_0 else f"at least {low:g}"
                must = f"be {least}" if high == math.inf else f"lie in [{low:g}, {high:g}]"
                raise ValueError(f"{where}.{name} is {x}; it must {must}")


def require_within(where: str, options: Options) -> None:
    """Raises ValueError for a field of a dataclass outside the limits that it was declared `within`."""
    declared = {f.name: f.metadata[_WITHIN] for f in dataclasses.fields(options) if _WITHIN in f.metadata}
    require_range(where, options, {k: limits for k, limits in declared.items() if getattr(options, k) is not None})


def require_choice(where: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{where}.{name} is {value!r}; it can be {', '.join(choices)}")
