"""The text of `--help`: one block a group of arguments, in plain text."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from swiftlet.config.aliases import ALIASES
from swiftlet.config.args import InferArgs
from swiftlet.config.check_effects import FOR_TRAINING
from swiftlet.config.commands import COMMANDS, VARIABLES
from swiftlet.config.fields import Flag, flags_of, groups_of


def first_line(doc: str | None) -> str:
    """Return the first line of a docstring."""
    return (doc or "").strip().split("\n")[0]


def _shown_default(flag: Flag) -> str:
    value: Any = flag.default
    if value is None or value == () or value == {}:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _flag_lines(flag: Flag, width: int) -> Iterable[str]:
    text = flag.help
    if flag.choices and flag.kind is not bool:
        text += f" ({' | '.join(flag.choices)})"
    default = _shown_default(flag)
    if default:
        text += f" [{default}]"
    others = [f"--{alias}" for alias, name in ALIASES.items() if name == flag.name]
    if others:
        text += f" (also {', '.join(others)})"
    yield from _entry(f"--{flag.name}", text, width)


def _entry(name: str, text: str, width: int) -> Iterable[str]:
    yield f"  {name}"
    indent = 6 * " "
    # a name such as default-zero2 is searched for and copied: it stays whole
    yield from textwrap.wrap(
        text, width - 8, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def command_help(name: str, command_args: type, example: str = "") -> str:
    """Return the help of one command, grouped as its arguments are."""
    width = max(60, min(110, shutil.get_terminal_size().columns))
    lines = [f"swift {name}: {first_line(command_args.__doc__)}", ""]
    lines += [f"usage: swift {name} [FILE.yaml] [--config FILE] [--flag value ...]", ""]
    if example:
        lines += ["example:", f"  {example}", ""]
    unused = FOR_TRAINING.split() if command_args is InferArgs else ()
    flags = [flag for flag in flags_of(command_args).values() if flag.name not in unused]
    for group, cls in groups_of(command_args).items():
        lines.append(f"{first_line(cls.__doc__)}:")
        for flag in flags:
            if flag.group == group:
                lines += _flag_lines(flag, width)
        lines.append("")
    if COMMANDS[name].is_distributed:
        lines.append("Variables before the command:")
        for variable, text in VARIABLES.items():
            lines += _entry(variable, text, width)
    return "\n".join(lines).rstrip()
