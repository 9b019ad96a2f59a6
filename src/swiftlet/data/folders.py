"""Which files of a folder are the rows: those that its card names, or every data file but descriptions, other splits
and second copies. What is left out and could have been meant is said in the log.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from swiftlet import log
from swiftlet.config.filenames import COMPRESSED, SUFFIXES
from swiftlet.data.card import Subset, is_structure, read_card
from swiftlet.data.filekind import suffix_of
from swiftlet.errors import DataError

DESCRIPTIONS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "data_info.json",
    "state.json",
    "config.json",
    "configuration.json",
    "package.json",
    "requirements.txt",
    "license.txt",
    "readme.txt",
    "citation.txt",
    "robots.txt",
}
# files beside the rows that nobody means as rows
DOCUMENTS = frozenset(
    ".md .rst .html .pdf .tex .bib .cff .png .jpg .jpeg .gif .svg .webp .py .sh .ipynb .yaml .yml .toml .ini .cfg "
    ".lock .log .sha256 .md5".split()
)
DOCUMENT_NAMES = {
    "license",
    "licence",
    "notice",
    "readme",
    "copying",
    "changelog",
    "authors",
    "makefile",
    "_success",
}
SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev", "eval", "evaluation"},
    "test": {"test", "testing"},
}
HELD_BACK = SPLITS["validation"] | SPLITS["test"]
NUM_SHOWN = 6
# what `map` and its kind leave beside the rows, which are there once more or as numbers
_CACHE = re.compile(r"cache-[0-9a-f]{16}.*\.arrow")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


def choose_files(folder: Path, subsets: Sequence[str] = (), split: str | None = None) -> list[Path]:
    """Return the data files of a folder in the order of their names.

    Args:
        subsets: those of the folder's card; else keep only files of a split or in folders of these names, or with such
            a part in their own name.
        split: train when None: validation and test files are left out where others exist.

    Raises:
        DataError: there are none, or the card names several subsets and nobody chose.
    """
    files, others = _look_through(folder)
    if others:
        _say(folder, "not read (an unknown suffix, a name that begins with _, or a link to no file)", others)
    if not files:
        raise DataError(
            f"{folder}: no data files in the folder", f"give a folder that holds {', '.join(SUFFIXES)} files"
        )
    wanted = split or "train"
    splits = _of_subsets(folder, _without_notes(folder, files), subsets, wanted)
    chosen = _without_copies(folder, _of_split(folder, splits, wanted))
    _tell_of_shards(folder, chosen)
    return chosen


def _look_through(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the data files of a folder, and what else in it could have been meant as such."""
    files: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or path.name.lower() in DESCRIPTIONS:
            continue
        if _CACHE.fullmatch(path.name) or (len(parts) == 1 and path.suffix == ".json" and is_structure(path)):
            continue
        is_data = suffix_of(path) in SUFFIXES and not any(part.startswith("_") for part in parts)
        if path.is_file() and is_data:
            files.append(path)
        elif (path.is_file() or path.is_symlink()) and not _is_document(path):
            others.append(path)
    return files, others


def _is_document(path: Path) -> bool:
    return path.suffix.lower() in DOCUMENTS or path.stem.lower() in DOCUMENT_NAMES


def _without_notes(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files without .txt ones where there are tables beside them."""
    tables = [file for file in files if suffix_of(file) != ".txt"]
    if tables and len(tables) < len(files):
        _say(folder, f"{len(files) - len(tables)} .txt files beside tables are not read", ())
    return tables or files


def _stem(path: Path) -> str:
    name = path.name
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return Path(name).stem


def _of_subsets(folder: Path, files: list[Path], names: Sequence[str], wanted: str) -> dict[Path, str | None]:
    """Return the files of the subsets asked for, or of the one meant unasked, each with its split by the card.

    A split of the card that is asked for by its name is the one wanted.
    """
    card = {subset.name: subset for subset in read_card(folder)}
    if not names:
        return _unasked(folder, files, card)
    found: dict[Path, str | None] = {}
    of_card = [*card, *(split for subset in card.values() for split in subset.splits if split)]
    for name in names:
        if name in card:
            mine = card[name].files(folder, files)
            if not mine:
                raise DataError(f"{folder}: no file of subset {name!r} is here", "fetch its files too")
            _tell_of_columns(folder, card[name])
        else:
            pairs = [pair for subset in card.values() for pair in subset.files(folder, files).items()]
            mine = {file: wanted for file, split in pairs if split == name}
        found |= mine or dict.fromkeys(_of_subset(folder, files, name, of_card))
    return found


def _unasked(folder: Path, files: list[Path], card: Mapping[str, Subset]) -> dict[Path, str | None]:
    chosen = [subset for subset in card.values() if subset.is_default] or list(card.values())
    if len(chosen) > 1:
        raise DataError(
            f"{folder}: {len(card)} subsets and no default: {', '.join(list(card)[:20])}",
            f"choose by a word behind the name, such as --dataset NAME:{chosen[0].name}",
        )
    found: dict[Path, str | None] = {**chosen[0].files(folder, files)} if chosen else {}
    if not found:
        if chosen:
            _say(folder, "the card names no file that is here: the names of the files tell the splits", ())
        return dict.fromkeys(files)
    if rest := set(files) - found.keys():
        _say(folder, f"not in the subset {chosen[0].name} of the card", rest)
    _tell_of_columns(folder, chosen[0])
    return found


def _tell_of_columns(folder: Path, subset: Subset) -> None:
    if subset.columns:
        _say(
            folder,
            f"the names that dataset_info.json gives to the columns of {subset.name} are not read from there: they "
            f"are given by --columns {' '.join(subset.columns)}",
            (),
        )


def _of_subset(folder: Path, files: list[Path], subset: str, of_card: list[str]) -> list[Path]:
    found = [file for file in files if subset in file.relative_to(folder).parts[:-1] or subset == _stem(file)]
    if not found:
        part = re.compile(rf"(^|[-_.]){re.escape(subset)}($|[-_.])")
        found = [file for file in files if part.search(_stem(file))]
    if not found and subset != "default":
        names = list(dict.fromkeys(of_card)) or sorted({_label(folder, file) for file in files})
        raise DataError(f"{folder}: no subset {subset!r}", f"there are: {', '.join(names[:20])}")
    return found or files


def _label(folder: Path, file: Path) -> str:
    parts = file.relative_to(folder).parts[:-1]
    return next((part for part in reversed(parts) if part != "data"), _stem(file))


def _words(folder: Path, file: Path, split: str | None) -> set[str]:
    """Return the words that tell the split of a file: those of its split by the card, or else of its path."""
    parts = [split] if split else [*file.relative_to(folder).parts[:-1], _stem(file)]
    return {word for part in parts for word in re.split(r"[-_.]", part.lower())}


def _of_split(folder: Path, files: Mapping[Path, str | None], split: str) -> list[Path]:
    words = {file: _words(folder, file, of_card) for file, of_card in files.items()}
    if split != "train":
        found = [file for file in files if SPLITS.get(split, {split}) & words[file]]
        if not found:
            raise DataError(
                f"{folder}: no files of the split {split!r}", "choose another split, or name the files"
            )
        return found
    # beside the split train of a card, one such as train_1M mostly holds a part of it once more
    exact = [file for file, of_card in files.items() if of_card == split]
    open_to_all = [file for file in files if not HELD_BACK & words[file] or SPLITS[split] & words[file]]
    found = exact or open_to_all
    if exact and (rest := set(open_to_all) - set(exact)):
        _say(folder, "other splits of the card than train are not read", rest)
    if found and (held_back := files.keys() - set(open_to_all) - set(exact)):
        _say(folder, "validation and test files are not trained on", held_back)
    splits = sorted({name for file in found if (name := files[file])})
    if len(splits) > 1:
        taken = f"{len(splits)} splits are trained on together ({', '.join(splits[:NUM_SHOWN])})"
        _say(folder, f"{taken}: choose by a word behind the name, such as NAME:{splits[0]}", ())
    return found or list(files)


def _without_copies(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files without those that hold the same rows in another format: same folder and name, other suffix."""
    best: dict[tuple[Path, str], Path] = {}
    for file in files:
        key = (file.parent, _stem(file))
        if key not in best or SUFFIXES.index(suffix_of(file)) < SUFFIXES.index(suffix_of(best[key])):
            best[key] = file
    kept = [file for file in files if best[(file.parent, _stem(file))] == file]
    if len(kept) < len(files):
        _say(folder, "the same names in another format are not read", set(files) - set(kept))
    return kept


def _tell_of_shards(folder: Path, files: list[Path]) -> None:
    """Say where a set of numbered files is not whole, or is there twice: whoever fetched or wrote it may not know."""
    sets: dict[tuple[Path, str], list[str]] = {}
    for file in files:
        if shard := _SHARD.match(file.name):
            sets.setdefault((file.parent / shard[1], shard[3]), []).append(shard[2])
    names = [f"{stem.name}-*-of-{total}" for stem, total in sets]
    for name, (_, total), shards in zip(names, sets, sets.values(), strict=True):
        number = len(set(shards))
        if number < int(total):
            _say(folder, f"only {number} of {int(total)} files are here of {name}: rows are missing", ())
        if number < len(shards):
            _say(folder, f"{len(shards)} files are here of {name}: rows may be there twice", ())
    several = {stem for stem, count in Counter(stem for stem, _ in sets).items() if count > 1}
    if twice := [name for name, (stem, _) in zip(names, sets, strict=True) if stem in several]:
        _say(
            folder, f"sets of numbered files under one name: {', '.join(twice)}: rows may be there twice", ()
        )


def _say(folder: Path, what: str, files: Collection[Path]) -> None:
    names = sorted(file.name for file in files)
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    _say_once(folder, f"{what}: {', '.join(names[:NUM_SHOWN])}{more}" if names else what)


@cache
def _say_once(folder: Path, message: str) -> None:
    """A folder is looked through more than once in a run."""
    log.warning(message)
