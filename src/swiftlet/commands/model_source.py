"""From the names a user gives to a model's folder, its tokenizer and its template. No torch.

Shared by the commands that train, answer and export, so that they cannot differ in what a name means.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swiftlet import hub, log
from swiftlet.config.check import model_folder_mistake
from swiftlet.data.mapping import check_columns
from swiftlet.data.named_templates import named_template
from swiftlet.data.sources import known_file, on_hub
from swiftlet.data.spec import parse_specs, place_mistake
from swiftlet.device.settings import environment
from swiftlet.errors import DataError, SwiftletError, UsageError, pick, raise_all
from swiftlet.models.families import FAMILIES, fetch, find_model
from swiftlet.models.geometry import is_size
from swiftlet.models.safety import CONFIG, read_config, read_json

if TYPE_CHECKING:
    from swiftlet.data.template import Template
    from swiftlet.data.tokenizer import Tokenizer

LENGTH_KEYS = ("max_position_embeddings", "n_positions", "seq_length", "model_max_length")


class Source(NamedTuple):
    """A model on disk: the name under which its runs are kept, and its folder."""

    name: str
    folder: Path


def unknown_names(model: Any, data: Any, *, is_trained: bool = False) -> Iterator[SwiftletError]:
    """Yield mistakes in names of models, templates, datasets and columns, before anything of theirs is looked for."""
    try:
        yield from _model_mistakes(model, is_trained)
    except UsageError as mistake:
        yield mistake
    try:
        if model.template_type is not None:
            named_template(model.template_type)
    except UsageError as mistake:
        yield mistake
    for flag, texts in (("dataset", data.dataset), ("val_dataset", data.val_dataset)):
        for text in texts:
            yield from _dataset_mistakes(flag, text)
    try:
        check_columns(data.columns)
    except UsageError as mistake:
        yield mistake


def _dataset_mistakes(flag: str, text: str) -> Iterator[SwiftletError]:
    try:
        specs = parse_specs([text])
    except UsageError as mistake:
        yield mistake
        return
    for spec in specs:
        if spec.kind != "path":
            continue
        if wrong := place_mistake(spec.location, f"--{flag}"):
            yield UsageError(*wrong)
        elif Path(spec.location).is_file():
            try:
                known_file(Path(spec.location))  # before a model is fetched for it
            except DataError as mistake:
                yield mistake


def _model_mistakes(model: Any, is_trained: bool) -> Iterator[UsageError]:
    path = model.model_id_or_path
    if model.model_type and model.model_type not in FAMILIES and (path or "/" in model.model_type):
        named = path or model.model_type
        raise UsageError(
            f"unknown --model_type {model.model_type!r}",
            f"leave it out: --model_id_or_path {named} says enough",
        )
    if model.model_type:
        pick(FAMILIES, model.model_type, "--model_type")
    if not (model.model_type or path) or model_folder_mistake(path):  # the rules of the command say so
        return
    choice = find_model(model.model_type, path)
    if model.model_revision and choice.folder is not None:
        yield UsageError(
            f"--model_revision has no effect: {choice.folder} is a folder of this machine", "remove it"
        )
    family = choice.family
    if family and choice.folder is None and family.is_bin_only:
        yield UsageError(
            f"{choice.name} is published as .bin files, which can hold code and are never read",
            "convert them to safetensors, and type --model_id_or_path FOLDER",
        )
    elif family and choice.folder is None and family.needs_code and not model.trust_remote_code:
        yield UsageError(
            f"{choice.name} comes with Python code of its own, which is not run unasked",
            "type --trust_remote_code true if you trust whoever wrote it",
        )
    method = family.quantised if family else None
    if is_trained and method:
        yield UsageError(
            f"{choice.name} is quantised with {method}: such a model is for swift infer, not for training",
            "use the model it was made from",
        )


def check_within_reach(model: Any, data: Any) -> None:
    """Check that the model and all data are on this machine or on hubs that can be reached, before one is fetched.

    Raises:
        SwiftletError: some are not; it names each of them.
    """
    choice = find_model(model.model_type, model.model_id_or_path)
    wanted = [on_hub(spec) for spec in parse_specs([*data.dataset, *data.val_dataset])]
    if choice.folder is None:
        wanted.insert(0, hub.Wanted("model", choice.ms_id, choice.hf_id, model.model_revision))
    raise_all(hub.missing(item for item in wanted if item is not None))


def find_source(model: Any) -> Source:
    """Return the model that the arguments name, fetched from its hub where it is not on this machine.

    Raises:
        SwiftletError: the name is not known, or the model cannot be had.
    """
    choice = find_model(model.model_type, model.model_id_or_path)
    folder = fetch(choice, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    return Source(choice.name, folder.absolute())  # a checkpoint names it, and is used from other folders


def check_trainable(folder: Path) -> None:
    """Check that a model's weights are numbers that can be trained, before anything is made for it.

    Raises:
        UsageError: they are quantised.
    """
    if read_config(folder).get("quantization_config"):
        raise UsageError(
            f"{folder} is quantised: such a model is for swift infer, not for training",
            "use the model it was made from",
        )


def open_template(
    folder: Path, *, template_type: str | None, system: str | None, day: str = ""
) -> tuple[Tokenizer, Template]:
    """Return the tokenizer of a model and the template of its chats.

    Args:
        day: what a template that prints the date prints, as ISO 8601 has it; today where it is empty.
    """
    # Imported here, as wherever a command's module is imported before its mistakes are known: mistakes cost little.
    from swiftlet.data.template import build_template
    from swiftlet.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    now = datetime.fromisoformat(day) if day else None
    return tokenizer, build_template(tokenizer, name=template_type, system=system, now=now)


def context_length(folder: Path) -> int | None:
    """Return the longest sequence of a model [tokens] as its config.json says, None when it does not.

    Raises:
        SwiftletError: the file cannot be read or holds no JSON object.
    """
    config = read_json(folder / CONFIG)
    inner = config.get("text_config")
    config = {**config, **(inner if isinstance(inner, dict) else {})}
    return next((config[key] for key in LENGTH_KEYS if is_size(config.get(key))), None)


def longest_sample(asked: int, folder: Path) -> int:
    """Return the longest sample [tokens]: as asked, and never beyond what the model was made for.

    Raises:
        UsageError: the model's own limit is asked for and not known.
    """
    limit = context_length(folder)
    if asked == -1:
        if limit is None:
            raise UsageError(
                f"--max_length -1: {folder / 'config.json'} names no limit", "type --max_length 2048"
            )
        return limit
    if limit is not None and asked > limit:
        log.info(f"max_length {asked} is above the model's context of {limit} tokens; {limit} is used")
        return limit
    return asked


def warn_of_devices(kind: str, environ: Mapping[str, str]) -> None:
    """Name busy and unhealthy devices that a run started here would use; call it before a model is loaded.

    Args:
        kind: as --device says it.
    """
    from swiftlet.device.placement import check_devices

    for finding in check_devices(kind, environ):
        log.warning(str(finding))


def apply_environment(kind: str, **settings: Any) -> None:
    """Set what the device's libraries read when they are imported; what the user has set stays.

    Args:
        kind: as --device says it.
        settings: of `device.settings.environment`.
    """
    for name, value in environment(kind, os.environ, **settings).items():
        os.environ.setdefault(name, value)
