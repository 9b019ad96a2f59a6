"""A checkpoint is whole or absent: MANIFEST.json names every file with its size and sha256, and is written last.

A folder is written under a draft name, every file is flushed to the disk, then the manifest, then the folder is
renamed. So a folder `checkpoint-N` without a valid manifest is not a checkpoint, whatever else it holds. A file that
the manifest does not name is damage where readers take it because it is there, as they do a chat_template.jinja; any
other, such as results of inference, is nobody's business here.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from swiftlet.errors import SaveError, SwiftletError, describe
from swiftlet.faults import fault
from swiftlet.files import sha256, sync
from swiftlet.log import redacted

NAME = "MANIFEST.json"
DRAFT = ".tmp-"
PREFIX = "checkpoint-"
STATE_FILE = "trainer_state.json"
OPTIMIZER_FILES = "optimizer-*.safetensors"
# Files that are read wherever they lie beside a model: weights, settings, tokenizer, chat templates, code.
FOUND_BY_NAME = (
    "[!.]*.safetensors", "[!.]*.safetensors.index.json", "config.json", "[!.]*_config.json", STATE_FILE,
    "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "[!.]*.model", "[!.]*.tiktoken", "chat_template.json", "[!.]*.jinja", "*chat_templates/[!.]*.jinja", "[!.]*.py",
)  # fmt: skip
FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; a run with another identity does not continue it unasked.

    `settings` are the arguments that shape the trajectory, as JSON values. World size and engine are not among them.
    """

    data_hash: str = ""
    base_model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def differences(self, other: Identity) -> list[str]:
        """Return one line for each thing in which `other` differs from this one."""
        mine: dict[str, Any] = {"dataset": self.data_hash, "base model": self.base_model, **self.settings}
        theirs = {"dataset": other.data_hash, "base model": other.base_model, **other.settings}
        return [
            f"{name}: {mine.get(name)!r} in the checkpoint, {theirs.get(name)!r} now"
            for name in sorted(mine.keys() | theirs.keys())
            if not _is_same(mine.get(name), theirs.get(name))
        ]


def concealed(value: Any) -> Any:
    """Return a setting as a manifest keeps it: a hash stands for one with a secret, so that it can be compared."""
    if redacted(value) == value:
        return value
    return _hash_of(value)


def _hash_of(value: Any) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_same(mine: Any, theirs: Any) -> bool:
    return _hash_of(mine) == _hash_of(theirs) or _hash_of(mine) == theirs or mine == _hash_of(theirs)


@dataclass(frozen=True)
class Manifest:
    """What MANIFEST.json says; it holds no time, so equal checkpoints have equal manifests."""

    step: int
    world_size: int
    identity: Identity
    version: str
    files: dict[str, dict[str, Any]]

    def to_json(self) -> str:
        """Return the text of the file."""
        content = {
            "format": FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "data_hash": self.identity.data_hash,
            "base_model": self.identity.base_model,
            "settings": {name: concealed(value) for name, value in self.identity.settings.items()},
            "version": self.version,
            "files": self.files,
        }
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


@contextmanager
def saving(target: Path) -> Iterator[None]:
    """Say of a block that writes an exported model, and reads nothing, that the disk did not take it.

    Raises:
        SaveError: it did not.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise SaveError(
            f"{target} could not be written: {reason_of(error)}",
            "free space there, or type --export_dir FOLDER on another disk",
        ) from error


def reason_of(error: BaseException) -> str:
    """Return why something could not be written, without what to do about it."""
    return error.message if isinstance(error, SwiftletError) else getattr(error, "strerror", "") or str(error)


def seal(folder: Path, *, step: int, world_size: int, identity: Identity, version: str) -> Manifest:
    """Flush and hash every file of a draft and write its manifest."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        fault(f"ckpt.file.{name}", step=step, path=path)
    fault("ckpt.fsync", step=step)
    manifest = Manifest(step, world_size, identity, version, files)
    path = folder / NAME
    path.write_text(manifest.to_json(), encoding="utf-8")
    sync(path)
    fault("ckpt.manifest", step=step, path=path)
    for inner in sorted({p.parent for p in folder.rglob("*")} | {folder}):
        sync(inner)
    return manifest


def revoke(folder: Path, draft: Path) -> Path:
    """Make a checkpoint none in one step and return where the rest of it is: `draft`, where it can be renamed.

    Raises:
        OSError: it cannot be changed.
    """
    try:
        return folder.rename(draft)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    (folder / NAME).unlink()  # what came with the image of a container can be removed, and not renamed
    return folder


def read_manifest(folder: Path) -> Manifest | str:
    """Return the manifest, or why there is no usable one."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return f"{NAME} has format {content['format']!r}, this version reads {FORMAT}"
        identity = Identity(content["data_hash"], content["base_model"], dict(content["settings"]))
        files = {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in content["files"].items()
        }
        return Manifest(
            int(content["step"]), int(content["world_size"]), identity, str(content["version"]), files
        )
    except FileNotFoundError:
        return f"{NAME} is missing: the checkpoint was not finished"
    except OSError as error:
        return f"{NAME} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return f"{NAME} is damaged"


def find_damage(folder: Path, manifest: Manifest, *, unread: Collection[str] = ()) -> str | None:
    """Return the first file that differs from the manifest and how, None when all are whole.

    Args:
        unread: patterns of file names that do not matter, because nobody reads them.
    """

    def is_read(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in unread)

    files = {name: entry for name, entry in manifest.files.items() if is_read(name)}
    for look in (_misfit, _changed):  # the sizes of all files first: they cost no reading
        for name, entry in files.items():
            try:
                problem = look(folder, name, entry)
            except (OSError, ValueError, RuntimeError) as error:
                # A name that no file can have, or a loop of links.
                return f"{describe(name)} cannot be read: {getattr(error, 'strerror', None) or error}"
            if problem:
                return f"{name} {problem}"
    try:
        present = {
            path.relative_to(folder).as_posix() for pattern in FOUND_BY_NAME for path in folder.glob(pattern)
        }
    except OSError as error:
        return f"the folder cannot be listed: {error.strerror}"
    added = sorted(name for name in present if name not in manifest.files and is_read(name))
    return f"{added[0]} is not in {NAME}: move it elsewhere" if added else None


def _misfit(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return "leads out of the checkpoint"
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return f"has {size} bytes, expected {entry['bytes']}" if size != entry["bytes"] else None


def _changed(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    found = sha256(folder / name)
    return (
        f"has sha256 {found[:12]}..., expected {entry['sha256'][:12]}..."
        if found != entry["sha256"]
        else None
    )
