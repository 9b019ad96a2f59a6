"""A word, a list of words, or a value of YAML or Python as the type of its flag, in its bounds, among its choices."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from swiftlet.config.aliases import NO, NOT_CHOSEN, VALUE_ALIASES, VALUES_ELSEWHERE, YES
from swiftlet.config.fields import Flag
from swiftlet.config.slips import value_mistake
from swiftlet.errors import UsageError, describe, suggest

LARGEST = {int: 2**31 - 1, float: 3.4e38}  # counts, and what a number of 32 bits holds


def value_of(flag: Flag, raw: Any) -> Any:
    """Return `raw` as the flag's type.

    Raises:
        UsageError: it is not one that the flag takes.
    """
    _check_text(flag, raw)
    return _value(flag, raw)


def _check_text(flag: Flag, raw: Any) -> None:
    """Check that a value is text: bytes that the locale cannot read reach a program as surrogates, which no file takes.

    Raises:
        UsageError: it holds such bytes, or white space of the place it was copied from.
    """
    if isinstance(raw, Mapping):
        raw = [*raw, *raw.values()]
    for word in raw if isinstance(raw, (list, tuple)) else [raw]:
        if not isinstance(word, str):
            continue
        if not word.isascii() and any("\ud800" <= one <= "\udfff" for one in word):
            raise UsageError(
                f"--{flag.name} {describe(word)} is not text in the encoding of this shell, "
                f"{sys.getfilesystemencoding()}",
                "rename it in UTF-8, and set LC_ALL=C.UTF-8",
            )
        if mistake := value_mistake(flag, word):
            raise mistake


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
    word = str(raw)
    is_unset = flag.is_optional and (
        word in ("none", "None", "null") or word in NOT_CHOSEN.get(flag.name, ())
    )
    if raw is None or is_unset:
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
    is_words = raw is None or (isinstance(raw, Collection) and not isinstance(raw, Mapping))
    if not is_words or any(isinstance(one, (Mapping, list)) for one in raw or ()):
        raise UsageError(
            f"--{flag.name} takes words, found {describe(raw)}", f"type --{flag.name} {_example(flag)}"
        )
    words = [raw] if isinstance(raw, str) else list(raw or ())
    if not flag.is_text and words and str(words[0]).startswith("[") and not os.path.exists(str(words[0])):
        plain = " ".join(word for one in words for word in re.findall(r"[^\[\],\s'\"]+", str(one)))
        raise UsageError(
            f"--{flag.name} takes words, found {describe(' '.join(map(str, words)))}",
            f"type --{flag.name} {plain or _example(flag)}",
        )
    values: list[str] = []
    for word in words:
        if flag.is_text and word:
            values.append(str(word))
            continue
        is_path = os.path.exists(str(word)) or os.path.exists(str(word).rpartition("#")[0])  # NAME#2000
        parts = [str(word)] if is_path else str(word).split(",")
        values += [part.strip() for part in parts if part.strip()]
    if not values and (flag.choices or flag.default or words or raw is None):
        raise UsageError(f"--{flag.name} has no value", f"type --{flag.name} {_example(flag)}")
    same = VALUE_ALIASES.get(flag.name, {})
    return tuple(_chosen(flag, same.get(value, value)) for value in values)


def _chosen(flag: Flag, word: str) -> str:
    if flag.choices and word not in flag.choices:
        hint = VALUES_ELSEWHERE.get(flag.name, {}).get(word.lower()) or suggest(word, flag.choices)
        raise UsageError(f"--{flag.name} {describe(word)} is not known", hint)
    return word


def _mapping(flag: Flag, raw: Any) -> dict[str, str]:
    if isinstance(raw, Mapping):
        return {str(key): str(value) for key, value in raw.items()}
    if not isinstance(raw, (str, list, tuple)) or not all(isinstance(word, str) for word in raw):
        raise UsageError(
            f"--{flag.name} takes theirs=ours, found {describe(raw)}", f"type --{flag.name} question=query"
        )
    if not raw:
        raise UsageError(f"--{flag.name} has no value", f"type --{flag.name} question=query")
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
