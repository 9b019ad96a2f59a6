"""Slips that a shell passes on: dashes and quotes of word processors, spaces and line ends that came along in pasting.

What was meant is certain, so the rest of the command line is read as it was meant, and each slip is one mistake.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from swiftlet.config.aliases import canonical
from swiftlet.config.configfile import is_config_file
from swiftlet.config.fields import Flag
from swiftlet.config.places import record_in
from swiftlet.errors import SwiftletError, UsageError, describe

DASHES = "-‐‑‒–—―−－"
QUOTES = "“”„‘’‚«»＂＇"
TWO_DASHES = "flags start with two dashes: --name value"
LINE_ENDS = r"remove the line ends of Windows: sed -i 's/\r$//' SCRIPT"
LAST_SIGN = "a backslash goes on with a line where nothing, not even a space, stands behind it"


def meant(words: Sequence[str], flags: Collection[str], mistakes: list[SwiftletError]) -> list[str]:
    """Return the words with each flag spelled as it was meant; what was typed in its place is added to the mistakes."""
    found: list[str] = []
    for word in words:
        typed, *value = word.strip().split(maxsplit=1) or [""]
        name = typed.lstrip(DASHES)
        flag = f"--{name}"
        is_text = bool(value) and (typed != flag or "=" in name)  # of a value that begins with a dash
        if word == flag or is_text or name == typed or canonical(name.partition("=")[0]) not in flags:
            found.append(word)
            continue
        found += [flag, *value]
        if typed != flag:
            mistakes.append(
                UsageError(f"{describe(typed)} is no flag: {_signs(typed, name)}", f"type {flag}")
            )
        else:
            hint = f"type a plain space, and quotes around no more than the value: {flag} VALUE"
            mistakes.append(UsageError(f"{describe(word)} is one word for the shell", line_end(word) or hint))
    return found


def _signs(typed: str, name: str) -> str:
    dashes = typed.removesuffix(name)
    if set(dashes) == {"-"}:
        return TWO_DASHES.partition(":")[0]
    return f"{dashes} is not two times the dash of the keyboard"


def unexpected(word: str, flags: Mapping[str, Flag]) -> UsageError:
    """Return the mistake of a word that is neither a flag nor a value of one."""
    if told := line_end(word):
        return UsageError(f"unexpected word {describe(word)}", told)
    name, equals, _ = word.partition("=")
    hint = TWO_DASHES
    if any(sign in QUOTES for sign in word):
        hint = "the quotes of a shell are straight: 'a value with spaces'"
    elif equals and canonical(name) in flags:
        hint = f"type --{word}"
    elif "ckpt_dir" in flags and os.path.isdir(word):
        hint = f"type --ckpt_dir {word}, or --model_id_or_path {word}"
    elif "resume_from_checkpoint" in flags and (record := record_in(word)):
        hint = f"put {record} first: it has --model_type, --dataset and the other flags of that run"
    elif "model_type" in flags and is_config_file(word):
        hint = f"put {word} first, before flags such as --model_type and --dataset"
    elif "log" in flags and word[:1] not in DASHES:
        hint = f"type --log {word}"
    return UsageError(f"unexpected word {describe(word)}", hint)


def line_end(word: str) -> str:
    """Return what to do about a word in which an end of a line is left over, nothing where there is none."""
    if word.endswith("\r"):
        return LINE_ENDS
    return LAST_SIGN if word and word.strip() in ("", "\\") else ""


def value_mistake(flag: Flag, word: str) -> UsageError | None:
    """Return what came along in pasting a value that is not taken as it was typed."""
    if flag.is_text or flag.kind is dict or word.lstrip().startswith("{") or os.path.exists(word):
        return None
    name = f"--{flag.name}"
    typed = word.lstrip(DASHES)
    if flag.is_list and typed != word and typed[:1].isalpha():
        return UsageError(f"{describe(word)} behind {name} is no flag: {_signs(word, typed)}", TWO_DASHES)
    if hint := line_end(word):
        return UsageError(f"{name} {describe(word)} holds the end of a line", hint)
    if word == "=":
        return UsageError(f"{name} {word} is no value", f"type {name} VALUE, or {name}=VALUE without spaces")
    if flag.kind in (str, tuple) and len(word) > 2 and word[0] in QUOTES and word[-1] in QUOTES:
        return UsageError(
            f"{name} {word}: the shell takes such quotes for letters", f"type {name} {word[1:-1]}"
        )
    if word != word.strip() and not flag.is_list:
        return UsageError(f"{name} {describe(word)} has white space around it", f"type {name} {word.strip()}")
    return None
