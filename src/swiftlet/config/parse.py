"""argv and files to arguments: every mistake is collected, none is guessed away.

Grammar: `--name value`, `--name=value`, `--name` alone for a switch, several values for a list (also separated by
commas). A first word that is a .yaml, .yml or .json file, or `--config FILE`, holds defaults that flags overrule.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from swiftlet.config.aliases import ELSEWHERE, NO, VALUE_ALIASES, VALUES_ELSEWHERE, YES, canonical
from swiftlet.config.configfile import is_config_file, read_config
from swiftlet.config.fields import Flag, build, flags_of
from swiftlet.errors import SwiftletError, UsageError, describe, suggest

LARGEST = {int: 2**31 - 1, float: 3.4e38}  # counts, and what a number of 32 bits holds


class Parsed(NamedTuple):
    """The arguments, which flags were given (not inherited), and what was wrong."""

    args: Any
    given: frozenset[str]
    mistakes: tuple[SwiftletError, ...]


def parse(command_args: type, argv: Sequence[str]) -> Parsed:
    """Return the arguments of `argv`; mistakes are returned, not raised."""
    flags = flags_of(command_args)
    words, values = list(argv), {}
    mistakes: list[SwiftletError] = []
    for path in _config_paths(words, mistakes):
        try:
            values.update(_convert(read_config(path).items(), flags, mistakes, where=f" in {path}"))
        except UsageError as error:
            mistakes.append(error)
    values.update(_convert(_pairs(words, flags, mistakes), flags, mistakes))
    return Parsed(build(command_args, values), frozenset(values), tuple(mistakes))


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
            hint = "flags start with two dashes: --name value"
            mistakes.append(UsageError(f"unexpected word {describe(word)}", hint))
            continue
        name, equals, value = word[2:].partition("=")
        values = [value] if equals else []
        while not equals and at < len(words) and not _is_flag(words[at]):
            if values and not _takes_many(flags.get(canonical(name))):
                break
            values.append(words[at])
            at += 1
        pairs.append((name, values))
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
            _check_text(name, raw)
            value = _value(flags[name], raw)
        except UsageError as error:
            mistakes.append(UsageError(error.message + where, error.hint))
            continue
        if flags[name].kind is dict and name in values:
            value = {**values[name], **value}
        elif name in values and values[name] != value:
            message = f"--{name} is given twice: {describe(values[name])} and {describe(value)}{where}"
            mistakes.append(UsageError(message, "keep one of them"))
        values[name] = value
    return values


def _check_text(name: str, raw: Any) -> None:
    """Check that a value is text: bytes that the locale cannot read reach a program as surrogates, which no file takes.

    Raises:
        UsageError: it holds such bytes.
    """
    if isinstance(raw, Mapping):
        raw = [*raw, *raw.values()]
    for word in raw if isinstance(raw, (list, tuple)) else [raw]:
        if isinstance(word, str) and not word.isascii() and any("\ud800" <= one <= "\udfff" for one in word):
            raise UsageError(
                f"--{name} {describe(word)} is not text in the encoding of this shell, {sys.getfilesystemencoding()}",
                "rename it in UTF-8, and set LC_ALL=C.UTF-8",
            )


def _unknown(typed: str, flags: Mapping[str, Flag], where: str) -> UsageError:
    if typed in ELSEWHERE:
        return UsageError(f"there is no flag --{typed} here{where}", ELSEWHERE[typed])
    guess = suggest(canonical(typed), flags)
    hint = guess.replace("did you mean ", "did you mean --") if guess.startswith("did") else "see --help"
    return UsageError(f"unknown flag --{typed}{where}", hint)


def _value(flag: Flag, raw: Any) -> Any:
    """Return `raw` (a word, a list of words, or a value of YAML or Python) as the flag's type."""
    if flag.kind is dict:
        return _mapping(flag, raw)
    if flag.is_list:
        return _several(flag, raw)
    if isinstance(raw, (list, tuple)):
        if len(raw) > 1:
            raise UsageError(
                f"--{flag.name} takes one value, found {describe(list(raw))}", "keep one of them"
            )
        if not raw:
            if flag.kind is bool or "true" in flag.choices:
                return True if flag.kind is bool else "true"
            raise UsageError(f"--{flag.name} has no value", f"type --{flag.name} {_example(flag)}")
        raw = raw[0]
    if raw is None or (flag.is_optional and raw in ("none", "None", "null")):
        if flag.is_optional:
            return None
        raise UsageError(f"--{flag.name} has no value", f"type --{flag.name} {_example(flag)}")
    return _bounded(flag, _scalar(flag, raw))


def _scalar(flag: Flag, raw: Any) -> Any:
    if flag.kind is bool:
        word = str(raw).lower()
        if word not in YES | NO:
            raise UsageError(
                f"--{flag.name} is true or false, found {describe(raw)}", f"type --{flag.name} true"
            )
        return word in YES
    if flag.kind is str:
        if isinstance(raw, (dict, list)) and flag.name == "deepspeed":
            return json.dumps(raw)
        word = str(raw)
        if not word and not flag.is_text:
            raise UsageError(f"--{flag.name} has no value", f"type --{flag.name} {_example(flag)}")
        if "true" in flag.choices and word.lower() in YES | NO:
            word = "true" if word.lower() in YES else "false"
        return _chosen(flag, VALUE_ALIASES.get(flag.name, {}).get(word, word))
    try:
        number = float(raw)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(raw, bool) or not math.isfinite(number) or (flag.kind is int and number != int(number)):
        kind = "a whole number" if flag.kind is int else "a number"
        raise UsageError(
            f"--{flag.name} is {kind}, found {describe(raw)}", f"type --{flag.name} {_example(flag)}"
        )
    return int(Decimal(str(raw))) if flag.kind is int else number  # a float has 53 bits


def _bounded(flag: Flag, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    hint = f"type --{flag.name} {_example(flag)}"
    if flag.minus_one and value != -1 and value < 1:
        raise UsageError(f"--{flag.name} must be above 0, or -1 for {flag.minus_one}, found {value:g}", hint)
    if abs(value) > LARGEST[flag.kind] and flag.bounds["at_most"] is None:
        raise UsageError(
            f"--{flag.name} must be at most {_plain(LARGEST[flag.kind])}, found {_plain(value)}", hint
        )
    b = flag.bounds
    tests = (
        ("at_least", "at least", lambda bound: value >= bound),
        ("above", "above", lambda bound: value > bound),
        ("at_most", "at most", lambda bound: value <= bound),
        ("below", "below", lambda bound: value < bound),
    )
    for key, words, holds in tests:
        bound = b[key]
        if bound is not None and not holds(bound):
            raise UsageError(f"--{flag.name} must be {words} {_plain(bound)}, found {_plain(value)}", hint)
    return value


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _several(flag: Flag, raw: Any) -> tuple[str, ...]:
    if raw is not None and (isinstance(raw, Mapping) or not isinstance(raw, Collection)):
        raise UsageError(
            f"--{flag.name} takes words, found {describe(raw)}", f"type --{flag.name} {_example(flag)}"
        )
    words = [raw] if isinstance(raw, str) else list(raw or ())
    values: list[str] = []
    for word in words:
        if flag.is_text and word:
            values.append(str(word))
            continue
        parts = [str(word)] if os.path.exists(str(word)) else str(word).split(",")
        values += [part.strip() for part in parts if part.strip()]
    is_empty = bool(words) or isinstance(raw, (list, tuple))
    if not values and (flag.choices or flag.default or not is_empty or any(words)):
        raise UsageError(f"--{flag.name} has no value", f"type --{flag.name} {_example(flag)}")
    same = VALUE_ALIASES.get(flag.name, {})
    return tuple(_chosen(flag, same.get(value, value)) for value in values)


def _chosen(flag: Flag, word: str) -> str:
    if flag.choices and word not in flag.choices:
        hint = VALUES_ELSEWHERE.get(flag.name, {}).get(word) or suggest(word, flag.choices)
        raise UsageError(f"--{flag.name} {describe(word)} is not known", hint)
    return word


def _mapping(flag: Flag, raw: Any) -> dict[str, str]:
    if isinstance(raw, Mapping):
        return {str(key): str(value) for key, value in raw.items()}
    if not isinstance(raw, (str, list, tuple)) or not all(isinstance(word, str) for word in raw):
        raise UsageError(
            f"--{flag.name} takes theirs=ours, found {describe(raw)}", f"type --{flag.name} question=query"
        )
    pairs: dict[str, str] = {}
    for word in [raw] if isinstance(raw, str) else raw:
        if word.lstrip().startswith("{"):
            try:
                pairs.update({str(key): str(value) for key, value in json.loads(word).items()})
            except json.JSONDecodeError as error:
                raise UsageError(
                    f"--{flag.name} is not JSON: {error}", f"type --{flag.name} theirs=ours"
                ) from None
            continue
        key, equals, value = word.rpartition("=")
        if not (equals and key and value):
            raise UsageError(
                f"--{flag.name} takes theirs=ours, found {describe(word)}",
                f"type --{flag.name} question=query",
            )
        pairs[key] = value
    return pairs


def _example(flag: Flag) -> str:
    if flag.example:
        return flag.example
    if flag.choices:
        return flag.choices[0]
    if flag.kind in (int, float) and flag.default is not None:
        return f"{flag.default:g}"
    return {int: "8", float: "0.1"}.get(flag.kind, flag.name.upper())
