"""What a value of `--dataset` means: a name, a hub id, a file or a folder, with subsets and a sample size. No I/O but
asking whether a path exists: a path that exists is always a path, also with `#`, `:` or `,` in its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swiftlet.config.filenames import SUFFIXES, unpacked_name
from swiftlet.data.datasets import DATASETS
from swiftlet.errors import UsageError, describe, suggest

HUBS = {"ms": "ms", "hf": "hf", "modelscope": "ms", "huggingface": "hf"}
REGISTRY = "data/dataset_info.json"  # where LLaMA-Factory looks for the names of its datasets
_COUNT = re.compile(r"#([0-9]+)$")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_PAGE = re.compile(r"/datasets/([\w.-]+/[\w.-]+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class DatasetSpec:
    """One source of rows.

    Args:
        text: as the user typed it.
        kind: named (a row of DATASETS), ms or hf (an id of that hub), hub (an id of the default hub), path.
        location: the name, id or path.
        num_samples: draw so many rows of the whole set; None takes all.
    """

    text: str
    kind: str
    location: str
    subsets: tuple[str, ...] = ()
    split: str | None = None
    num_samples: int | None = None


def parse_spec(text: str) -> DatasetSpec:
    """Return what one value of `--dataset` means.

    Forms: NAME, ORG/DATASET, HF::ORG/DATASET, MS::ORG/DATASET, FILE, FOLDER; each with `:subset1/subset2` and then
    `#2000` behind it.

    Raises:
        UsageError: the text has none of the forms, or names an unknown dataset.
    """
    if not text.strip() or "\0" in text:
        raise UsageError(
            f"not a dataset: {describe(text)}", "give --dataset a name, a hub id, a file or a folder"
        )
    path = os.path.expanduser(text)
    if os.path.exists(path):
        return DatasetSpec(text, "path", path)
    rest, num_samples = _split_count(text)
    path = os.path.expanduser(rest)
    if os.path.exists(path):
        return DatasetSpec(text, "path", path, num_samples=num_samples)
    _check_address(text)
    if _DRIVE.match(rest):
        return DatasetSpec(text, "path", rest, num_samples=num_samples)
    hub, rest = _split_hub(rest)
    head, colon, tail = rest.partition(":")
    subsets = tuple(part for part in tail.split("/") if part)
    if colon and not subsets:
        raise UsageError(f"no subset after ':' in --dataset {describe(text)}", "write NAME:subset1/subset2")
    return _named_or_placed(text, hub, head, subsets, num_samples)


def parse_specs(texts: Iterable[str]) -> tuple[DatasetSpec, ...]:
    """Return the sources of all values of `--dataset`, each possibly several joined by commas.

    Raises:
        UsageError: as `parse_spec`.
    """
    specs: list[DatasetSpec] = []
    for text in texts:
        whole = os.path.exists(os.path.expanduser(text)) or os.path.exists(
            os.path.expanduser(_split_count(text)[0])
        )
        parts = [text] if whole else [part.strip() for part in text.split(",") if part.strip()]
        specs += [parse_spec(part) for part in parts or [text]]
    return tuple(specs)


def absolute_text(text: str) -> str:
    """Return a value of `--dataset` that means the same in any working folder.

    Raises:
        UsageError: as `parse_spec`.
    """
    spec = parse_spec(text)
    if spec.kind != "path":
        return text
    subsets = f":{'/'.join(spec.subsets)}" if spec.subsets else ""
    count = f"#{spec.num_samples}" if spec.num_samples else ""
    return f"{Path(spec.location).absolute()}{subsets}{count}"


def place_mistake(location: str, flags: str) -> tuple[str, str] | None:
    """Return what is wrong with a path given to one of the flags and what to do, None for a file or a folder."""
    if not os.path.exists(location):  # False also for what is too long or may not be looked at
        return f"no such data file or folder: {location}", _how_to_find(location, flags)
    if Path(location).is_file() or Path(location).is_dir():
        return None
    return (
        f"{location} is no file: rows are read several times, and a pipe or device has them once",
        "write the rows to a file, and give that",
    )


def _how_to_find(location: str, flags: str) -> str:
    hint = f"check the path given to {flags}"
    if any(sign in location for sign in "*?["):
        return f"{hint}; write a pattern without quotes: the shell puts the names of its files there"
    if any(sign in location for sign in "，、；"):
        return f"{hint}; several are separated by the comma of the keyboard: ,"
    return f"{hint}; several are words of their own, or separated by commas" if " " in location else hint


def _split_count(text: str) -> tuple[str, int | None]:
    found = _COUNT.search(text)
    if not found:
        return text, None
    digits = found.group(1)
    if len(digits) > 12 or int(digits) == 0:
        raise UsageError(
            f"#{digits[:20]} is no number of rows", "write NAME#2000 for a random sample of 2000 rows"
        )
    return text[: found.start()], int(digits)


def _check_address(text: str) -> None:
    """Check that a text is not the address of a page.

    Raises:
        UsageError: it is; the page of a dataset on a hub has its id.
    """
    if "://" not in text:
        return
    found = _PAGE.search(text)
    hint = f"type {found[1]}, the id on the hub" if found else "download it, and give the file"
    raise UsageError(f"{describe(text)} is an address, no dataset", hint)


def _split_hub(text: str) -> tuple[str | None, str]:
    prefix, colons, rest = text.partition("::")
    if not colons:
        return None, text
    if prefix.lower() not in HUBS:
        raise UsageError(
            f"unknown hub {describe(prefix)} in --dataset {describe(text)}", "write HF:: or MS::"
        )
    return HUBS[prefix.lower()], rest


def _named_or_placed(
    text: str, hub: str | None, head: str, subsets: tuple[str, ...], num_samples: int | None
) -> DatasetSpec:
    path = os.path.expanduser(head)
    if hub is not None:
        if not _HUB_ID.fullmatch(head):
            raise UsageError(f"not a hub id: {describe(head)}", "write HF::ORGANISATION/DATASET")
        return DatasetSpec(text, hub, head, subsets, None, num_samples)
    if head in DATASETS:
        _check_words(text, head, subsets)
        return DatasetSpec(text, "named", head, subsets, DATASETS[head].split, num_samples)
    if os.path.exists(path) or looks_like_a_path(head):
        return DatasetSpec(text, "path", path, subsets, None, num_samples)
    if _HUB_ID.fullmatch(head):
        return DatasetSpec(text, "hub", head, subsets, None, num_samples)
    if "#" in head:
        hint = "a sample size is a number: NAME#2000"
    elif head.lower() in HUBS:
        hint = f"two colons stand behind the name of a hub: {head}::ORGANISATION/DATASET"
    elif not head:
        hint = "write it behind the name, without a space: NAME#2000"
    elif head.endswith((".yaml", ".yml")):
        hint = f"for a file of arguments type --config {head}"
    elif os.path.exists(REGISTRY):
        hint = f"for a name of {REGISTRY} type --dataset {Path(REGISTRY).parent}:{head}"
    else:
        hint = f"{suggest(head, DATASETS)}; or give a hub id (ORGANISATION/DATASET), a file or a folder"
    raise UsageError(f"unknown dataset {describe(head or text)}", hint)


def _check_words(text: str, name: str, words: tuple[str, ...]) -> None:
    """Check the words behind the name of a generated dataset, which are what its generator is told."""
    named = DATASETS[name]
    if named.generator is None or len(words) == len(named.arguments):
        return
    if named.arguments:
        form = f"{name}:{'/'.join(named.arguments)}"
        raise UsageError(f"--dataset {text}: {name} is written {form}", f"type --dataset {form}")
    raise UsageError(f"{name} has no subset {'/'.join(words)}: it has none", f"type --dataset {name}")


def looks_like_a_path(text: str) -> bool:
    """Return whether a text that names nothing that exists was meant as a path."""
    if text.startswith((".", "/", "~", "\\")):
        return True
    return unpacked_name(text).endswith(SUFFIXES) or text.count("/") > 1
