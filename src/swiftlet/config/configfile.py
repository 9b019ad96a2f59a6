"""Arguments in a YAML or JSON file: plain keys and values, nothing that builds objects or grows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swiftlet.config.fields import Flag
from swiftlet.errors import UsageError

SUFFIXES = (".yaml", ".yml", ".json")
LARGEST_BYTES = 1 << 20
# What a run's sft_args.json tells beside arguments; the first name marks such a record.
RECORD = "swiftlet_version"
FACTS = frozenset({RECORD, "model", "model_dir", "base_hash", "rows_hash", "printed_date"})
HIDDEN = "hidden"  # in it: the arguments that held a secret


def is_config_file(word: str) -> bool:
    """Return whether the first word of a command line names a file of arguments."""
    return not word.startswith("-") and word.lower().endswith(SUFFIXES)


def read_config(path: str) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        UsageError: the file is missing, too large, not UTF-8 or no mapping, has a key twice, or YAML tags or anchors.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no such file: {path}", "give the path of a YAML or JSON file of arguments")
    if file.stat().st_size > LARGEST_BYTES:
        raise UsageError(
            f"{path} has {file.stat().st_size} bytes: not a file of arguments", "keep it below 1 MB"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8"
        ) from None
    content = _json(path, text) if file.suffix.lower() == ".json" else _yaml(path, text)
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} holds no arguments", "write one argument a line, such as learning_rate: 1e-4"
        )
    return content


def asked_for(path: str, content: dict[str, Any], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Return the arguments in a file; of a run's own record those that differ from the defaults.

    Raises:
        UsageError: the record has arguments whose values were secrets, or the command does not train.
    """
    if RECORD not in content:
        return content
    if "resume_from_checkpoint" not in flags:
        raise UsageError(
            f"{path} has the arguments of a swift sft", "give the folder it lies in: --ckpt_dir CHECKPOINT"
        )
    if hidden := content.get(HIDDEN):
        names = ", ".join(f"--{name}" for name in hidden)
        raise UsageError(
            f"{path} does not show {names}: the value held a secret",
            f"copy the file without {HIDDEN} and these arguments, and give them as flags",
        )
    defaults = {name: list(flag.default) if flag.is_list else flag.default for name, flag in flags.items()}
    return {
        name: value
        for name, value in content.items()
        if name not in FACTS and not (name in defaults and value == defaults[name])
    }


def _json(path: str, text: str) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_once(path, [key for key, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=mapping)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", "mend the file, or use YAML") from None


def _check_once(path: str, keys: Sequence[str]) -> None:
    twice = [key for key, number in Counter(keys).items() if number > 1]
    if twice:
        raise UsageError(f"{path} has {', '.join(twice)} twice", "keep one of them")


def _yaml(path: str, text: str) -> Any:
    import yaml

    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UsageError(f"{path} uses YAML anchors", "write the values out")
            if tag := getattr(event, "tag", None):
                raise UsageError(f"{path} uses the YAML tag {tag}", "write plain values")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            return None
        _check_once(path, [str(key.value) for key, _ in root.value])
        return {str(key.value): _written(value) for key, value in root.value}
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{path} is not plain YAML: {reason}", "write one argument a line: name: value"
        ) from None


def _written(node: Any) -> Any:
    """Return a value as it was written: of `no`, `1.10`, `0123` and `1:30` YAML would make something else.

    Mappings, such as DeepSpeed's settings, have the values of YAML.
    """
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [_written(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":null"):
        return node.value
    builder = yaml.SafeLoader("")
    return builder.construct_document(node)
