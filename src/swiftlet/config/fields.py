"""How an argument is declared: a dataclass field with its help, choices and bounds beside it."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Flat = dict[str, Any]


def arg(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    minus_one: str = "",
    example: str = "",
    is_text: bool = False,
) -> Any:
    """Declare a field: its default, the text of its `--help`, and the values it takes.

    Args:
        minus_one: what -1 stands for; every other value is above 0.
        example: a value for the hint of a mistake, where the default is none.
        is_text: taken as it was typed: white space and commas belong to it, and one value may be empty.
    """
    metadata = {
        "help": help_text,
        "choices": tuple(choices),
        "bounds": {"at_least": at_least, "above": above, "at_most": at_most, "below": below},
        "minus_one": minus_one,
        "example": example,
        "is_text": is_text,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Flag(NamedTuple):
    """One argument as the parser and the help see it."""

    name: str
    group: str
    kind: type
    is_optional: bool
    default: Any
    help: str
    choices: tuple[str, ...]
    bounds: Mapping[str, float | None]
    minus_one: str
    example: str
    is_text: bool

    @property
    def is_list(self) -> bool:
        """Whether the flag takes several values."""
        return self.kind is tuple


def _kind_of(hint: Any) -> tuple[type, bool]:
    is_optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        is_optional = len(members) < len(typing.get_args(hint))
        hint = members[0]
    return typing.get_origin(hint) or hint, is_optional


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def groups_of(command_args: Any) -> dict[str, type]:
    """Return the argument groups of a command: field name -> dataclass."""
    return typing.get_type_hints(command_args)


@functools.cache
def flags_of(command_args: Any) -> dict[str, Flag]:
    """Return every flag of a command by name, in the order of the groups."""
    flags: dict[str, Flag] = {}
    for group, cls in groups_of(command_args).items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind, is_optional = _kind_of(hints[field.name])
            assert field.name not in flags, f"two groups declare {field.name}"
            default = _default_of(field)
            flags[field.name] = Flag(field.name, group, kind, is_optional, default, **field.metadata)
    return flags


def build(command_args: type, values: Mapping[str, Any]) -> Any:
    """Return the command's arguments with `values` by flag name, defaults elsewhere."""
    flags = flags_of(command_args)
    groups = {
        group: cls(**{name: value for name, value in values.items() if flags[name].group == group})
        for group, cls in groups_of(command_args).items()
    }
    return command_args(**groups)


def to_flat(args: Any) -> Flat:
    """Return all arguments of a command as one flat dictionary, tuples as lists."""
    flat: Flat = {}
    for group in dataclasses.fields(args):
        for name, value in dataclasses.asdict(getattr(args, group.name)).items():
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def with_values(args: Any, **values: Any) -> Any:
    """Return a copy of a command's arguments with some flags changed."""
    return build(type(args), {**{k: _frozen(v) for k, v in to_flat(args).items()}, **values})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
