"""Compare the answers found in rendered conversations with a folder of keys, and print every difference.

    python tools/check_template_cases.py FOLDER [--tokenizers FOLDER] [--quiet]

FOLDER holds one folder a template: chat_template.jinja, expected.json (conversations with their rendered text and the
character spans of the answers), special_tokens.json, and `tokenizer`, the name of a folder under --tokenizers
(default: `tokenizers` beside FOLDER). Exit code 1 when a mask differs from its key.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from swiftlet.data.rows import IGNORE_INDEX, Encoded, Origin, Sample
from swiftlet.data.template import Template, TemplateError, build_template
from swiftlet.data.tokenizer import Tokenizer, build_tokenizer
from swiftlet.data.tokenizer_files import read_tokenizer_files

DATES = (
    (r"\d{4}-\d{2}-\d{2}", "%Y-%m-%d"),
    (r"\d{1,2} [A-Z][a-z]{2} \d{4}", "%d %b %Y"),
    (r"\d{1,2} [A-Z][a-z]{3,} \d{4}", "%d %B %Y"),
    (r"[A-Z][a-z]{3,} \d{1,2}, \d{4}", "%B %d, %Y"),
)
QUESTION = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


def read_tokenizer(folder: Path, tokenizers: Path, key: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that a key names, with the tokens that its template needs."""
    special = json.loads((folder / "special_tokens.json").read_text(encoding="utf-8"))
    files = read_tokenizer_files(tokenizers / key["tokenizer"])
    named = {name: special[name] for name in ("bos_token", "eos_token") if special.get(name)}
    return build_tokenizer(
        replace(
            files,
            special_tokens=named,
            extra=tuple((text, True) for text in special.get("add", [])),
            chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
        )
    )


def as_text(content: Any) -> str:
    """Return a content that may be a list of parts as one text."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def dates_in(text: str) -> Iterator[datetime]:
    """Yield the dates that a rendered text prints: its key was made on one of them."""
    for pattern, form in DATES:
        for found in re.findall(pattern, text):
            try:
                yield datetime.strptime(found, form)
            except ValueError:
                continue


def template_of(tokenizer: Tokenizer, messages: list[dict[str, Any]], rendered: str) -> Template:
    """Return the template, at the date that makes its text equal the key's."""
    template = build_template(tokenizer)
    for moment in dates_in(rendered):
        if template.find(messages).text == rendered:
            break
        template = build_template(tokenizer, now=moment)
    return template


def trained_texts(template: Template, encoded: Encoded) -> list[str]:
    """Return the decoded text of each run of trained tokens."""
    runs: list[list[int]] = [[]]
    for token, label in zip(*encoded, strict=True):
        if label != IGNORE_INDEX:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [template.tokenizer.decode(run) for run in runs if run]


def compare(tokenizer: Tokenizer, conversation: dict[str, Any]) -> tuple[str, str]:
    """Return equal, stopped or different for one conversation, and what differs."""
    messages = [{**m, "content": as_text(m["content"])} for m in conversation["messages"]]
    try:
        template = template_of(tokenizer, messages, conversation["rendered"])
        found = template.find(messages)
        encoded, notes = template.encode_noted(Sample(messages, Origin("case", 1)))
    except TemplateError as error:
        return "stopped", f"{error.reason}: {error.message}"
    if found.text != conversation["rendered"]:
        return "different", "the rendered text is another one"
    wanted = [(span["start"], span["content_end"], span["end"]) for span in conversation["spans"]]
    got = [(turn.start, turn.content_end, turn.end) for turn in found.turns]
    if got != wanted:
        return "different", f"spans {got}, key {wanted}"
    trained = [text.split() for text in trained_texts(template, encoded)]
    ends = ["".join(text) for text in trained]
    expected = ["".join(span["text"].split()) for span in conversation["spans"]]
    marker = (
        "" if found.append == "" else found.append or template.tokenizer.special_tokens.get("eos_token", "")
    )
    expected[-1] += "".join(marker.split())
    if ends != expected:
        return "different", f"trained tokens read {ends}, key {expected}"
    return "equal", " ".join(notes)


def check_refused(tokenizer: Tokenizer) -> tuple[str, str]:
    """Return the outcome of a template for which no key could be made: stopped, or equal if it works after all."""
    try:
        build_template(tokenizer).encode(Sample(QUESTION, Origin("case", 1)))
    except TemplateError as error:
        return "refused", f"{error.reason}: {error.message}"
    return "no key", "works, and there is no key to compare with"


def main() -> int:
    """Check every folder; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizers", type=Path, help="default: `tokenizers` beside FOLDER")
    parser.add_argument("--quiet", action="store_true", help="print only what is not equal")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    for folder in sorted(path.parent for path in args.folder.glob("*/expected.json")):
        key = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        tokenizer = read_tokenizer(folder, args.tokenizers or args.folder.parent / "tokenizers", key)
        conversations = {} if "no_key" in key else key["conversations"]
        outcomes = [(name, compare(tokenizer, conversation)) for name, conversation in conversations.items()]
        if "no_key" in key:
            outcomes = [("(no key)", check_refused(tokenizer))]
        for name, (outcome, detail) in outcomes:
            counts[outcome] += 1
            if not args.quiet or outcome != "equal":
                print(f"{outcome:9} {folder.name} {name} {detail}".rstrip())
    total = sum(counts.values())
    print(
        f"{total} checked: " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    )
    return 1 if counts["different"] or not total else 0


if __name__ == "__main__":
    sys.exit(main())
