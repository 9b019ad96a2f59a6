"""The chat template of a merged model: what the run rendered, its system message included, as any engine reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from swiftlet import log
from swiftlet.commands.model_source import open_template
from swiftlet.commands.side_files import Chat
from swiftlet.config.filenames import TEMPLATE_FOLDERS
from swiftlet.data.rendering import source_of
from swiftlet.data.system_message import system_first
from swiftlet.data.template import Template
from swiftlet.errors import CheckpointError, describe
from swiftlet.models.safety import read_json

TOKENIZER_CONFIG = "tokenizer_config.json"
OTHERS = ("chat_template.jinja", "chat_template.json", *TEMPLATE_FOLDERS)


def write_template(template: Template, folder: Path) -> None:
    """Write the template of a run into the tokenizer's files of a folder, which stay as they are where they have it."""
    chat, tool_use = (
        (system_first(each, template.system) if template.system else "") + each.source
        for each in (template.chat, template.tool_use)
    )
    own = template.tokenizer.chat_template
    if chat == source_of(own) and tool_use == (source_of(own, tools=True) or chat):
        return
    for name in OTHERS:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path = folder / TOKENIZER_CONFIG
    named = [{"name": "default", "template": chat}, {"name": "tool_use", "template": tool_use}]
    config = read_json(path) if path.is_file() else {}
    config["chat_template"] = chat if tool_use == chat else named
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    own_system = f" with the system message {describe(template.system)}" if template.system else ""
    log.info(f"the exported chat template is that of the run{own_system}")


def check_template(folder: Path, expected: list[Chat]) -> None:
    """Check that the files of a folder alone render chats to the ids that the run saw.

    Raises:
        CheckpointError: they do not.
    """
    tokenizer, template = open_template(folder, template_type=None, system=None)
    for query, input_ids in expected:
        found = template.encode_prompt([{"role": "user", "content": query}])
        if found != input_ids:
            raise CheckpointError(
                f"the checkpoint was trained on chats such as {describe(tokenizer.decode(input_ids), 300)}, "
                f"but its chat template and system message make {describe(tokenizer.decode(found), 300)}",
                "sft_args.json or the tokenizer's files of the checkpoint have changed: restore it from a copy",
            )
    log.info(f"the exported chat template renders {len(expected)} chats to the ids of the run")
