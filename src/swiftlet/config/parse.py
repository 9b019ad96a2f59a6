"""argv and files to arguments: every mistake is collected, none is guessed away.

Grammar: `--name value`, `--name=value`, `--name` alone for a switch, several values for a list (also separated by
commas). A first word that is a .yaml, .yml or .json file, or `--config FILE`, holds defaults that flags overrule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet.config.aliases import ALIASES, canonical
from swiftlet.config.args import ExportArgs, InferArgs, SftArgs
from swiftlet.config.configfile import asked_for, is_config_file, read_config
from swiftlet.config.elsewhere import BEGINNINGS, CALLED_HERE, ELSEWHERE
from swiftlet.config.fields import Flag, build, flags_of
from swiftlet.config.slips import meant, unexpected
from swiftlet.config.values import value_of
from swiftlet.errors import SwiftletError, UsageError, describe, nearest

OF_COMMANDS = {"swift sft": SftArgs, "swift infer": InferArgs, "swift export": ExportArgs}


class Parsed(NamedTuple):
    """The arguments, which flags were given (not inherited), what was wrong, and whether every file could be read."""

    args: Any
    given: frozenset[str]
    mistakes: tuple[SwiftletError, ...]
    is_whole: bool = True


def parse(command_args: type, argv: Sequence[str]) -> Parsed:
    """Return the arguments of `argv`; mistakes are returned, not raised."""
    flags = flags_of(command_args)
    words, values, is_whole = list(argv), {}, True
    mistakes: list[SwiftletError] = []
    for path in _config_paths(words, mistakes):
        try:
            content = asked_for(path, read_config(path), flags)
            values.update(_convert(content.items(), flags, mistakes, where=f" in {path}"))
        except UsageError as error:
            mistakes.append(error)
            is_whole = False
    values.update(_convert(_pairs(meant(words, flags, mistakes), flags, mistakes), flags, mistakes))
    return Parsed(build(command_args, values), frozenset(values), tuple(mistakes), is_whole)


def parse_mapping(command_args: type, options: Mapping[str, Any]) -> Parsed:
    """Return the arguments of keyword `options`, as the Python API takes them."""
    mistakes: list[SwiftletError] = []
    values = _convert(options.items(), flags_of(command_args), mistakes)
    return Parsed(build(command_args, values), frozenset(values), tuple(mistakes))


def _config_paths(words: list[str], mistakes: list[SwiftletError]) -> list[str]:
    paths = []
    if words and is_config_file(words[0]):
        paths.append(words.pop(0))
    while (
        at := next((at for at, word in enumerate(words) if word.partition("=")[0] == "--config"), -1)
    ) >= 0:
        _, equals, path = words.pop(at).partition("=")
        if not equals and at < len(words):
            path = words.pop(at)
        if path:
            paths.append(path)
        else:
            mistakes.append(UsageError("--config has no value", "type --config FILE.yaml"))
    return paths


def with_copies(argv: Sequence[str], folder: Path) -> list[str]:
    """Return the words of a command line with its files of arguments copied into `folder`: a run may move its own."""
    words, kept = list(argv), list[str]()
    for number, path in enumerate(_config_paths(words, [])):
        copy = folder / f"{number}-{Path(path).name}"
        copy.write_bytes(Path(path).read_bytes())
        kept += ["--config", str(copy)]
    return [*kept, *words]


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _pairs(
    words: list[str], flags: Mapping[str, Flag], mistakes: list[SwiftletError]
) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not _is_flag(word):
            mistakes.append(unexpected(word, flags))
            continue
        name, equals, value = word[2:].partition("=")
        values = [value] if equals else []
        while not equals and at < len(words) and not _is_flag(words[at]):
            if values and not _takes_many(flags.get(canonical(name))):
                break
            values.append(words[at])
            at += 1
        # A list of nothing is what a file says; here a variable of the shell was empty.
        is_empty_list = not values and _is_list(flags.get(canonical(name)))
        pairs.append((name, [""] if is_empty_list else values))
    return pairs


def without_flag(argv: Sequence[str], name: str) -> list[str]:
    """Return the words of a command line without a flag of one value, in whatever spelling it was given."""
    kept: list[str] = []
    is_value = False
    for word in argv:
        if _is_flag(word):
            typed, equals, _ = word[2:].partition("=")
            is_dropped = canonical(typed) == name
            is_value = is_dropped and not equals
        else:
            is_dropped, is_value = is_value, False
        if not is_dropped:
            kept.append(word)
    return kept


def _is_list(flag: Flag | None) -> bool:
    return flag is not None and flag.is_list


def _takes_many(flag: Flag | None) -> bool:
    return flag is None or flag.is_list or flag.kind is dict


def _convert(
    pairs: Any, flags: Mapping[str, Flag], mistakes: list[SwiftletError], where: str = ""
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for typed, raw in pairs:
        name = canonical(str(typed))
        if name not in flags:
            mistakes.append(_unknown(str(typed), flags, where))
            continue
        try:
            value = value_of(flags[name], raw)
        except UsageError as error:
            mistakes.append(UsageError(error.message + where, error.hint))
            continue
        if flags[name].kind is dict and name in values:
            value = {**values[name], **value}
        elif name in values and values[name] != value:
            message = f"--{name} is given twice: {describe(values[name])} and {describe(value)}{where}"
            both = f"type --{name} {' '.join((*values[name], *value))}" if flags[name].is_list else ""
            mistakes.append(UsageError(message, both or "keep one of them"))
        values[name] = value
    return values


def _unknown(typed: str, flags: Mapping[str, Flag], where: str) -> UsageError:
    name = canonical(typed)
    told = _told_elsewhere(typed.replace("-", "_")) or _of_another_command(name, flags)
    if told:
        return UsageError(f"there is no flag --{typed} here{where}", told)
    switch = flags.get(name.removeprefix("no_"))
    if switch and (switch.kind is bool or "false" in switch.choices):
        return UsageError(f"unknown flag --{typed}{where}", f"type --{switch.name} false")
    near = nearest(name, [*flags, *(alias for alias, ours in ALIASES.items() if ours in flags)])
    hint = f"did you mean --{canonical(near[0])}?" if near else "leave it out, or see --help"
    return UsageError(f"unknown flag --{typed}{where}", hint)


def _told_elsewhere(name: str) -> str:
    told = [hint for beginning, hint in BEGINNINGS.items() if name.startswith(beginning)]
    return ELSEWHERE.get(name, *told[:1]) or ""


def _of_another_command(name: str, flags: Mapping[str, Flag]) -> str:
    """Return what to type for a flag that only other commands have, nothing for one that none has."""
    called = [hint for other, ours, hint in CALLED_HERE if other == name and ours in flags]
    if called:
        return called[0]
    others = [command for command, args in OF_COMMANDS.items() if name in flags_of(args)]
    return f"it is a flag of {' and '.join(others)}" if others else ""
