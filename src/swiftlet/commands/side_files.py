"""What a checkpoint keeps beside its weights, so that a merged model and other engines answer as this one does.

Prompts and chats as token ids, which `swift export` compares, and how answers are generated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.commands.evaluation import generation_settings
from swiftlet.commands.merge_proof import WEIGHTS
from swiftlet.commands.sft import Ready, Setup
from swiftlet.data.template import Template, TemplateError
from swiftlet.models.base_hash import weights_hash
from swiftlet.models.generation_file import DECIDED_BY_FLAGS, end_ids
from swiftlet.models.safety import GENERATION_CONFIG, read_json

PROMPTS_FILE, CHATS_FILE = "proof_prompts.json", "proof_chats.json"
MOST_PROMPTS, LONGEST_PROMPT = 8, 256
QUESTIONS = (
    "Hello! Who are you?",
    "What is 12 + 30?",
    "请用一句话介绍一下北京。",
    "Write a short poem about the sea.",
)


class Chat(NamedTuple):
    """A question, and the token ids of a chat that begins with it."""

    query: str
    input_ids: list[int]


def side_files(setup: Setup) -> dict[str, str]:
    """Return the files of every checkpoint of a run: name -> text."""
    ready = setup.ready
    generation = generation_config(ready.source.folder, ready.template, setup.args.generation)
    return {
        PROMPTS_FILE: json.dumps(_prompts(ready)),
        CHATS_FILE: json.dumps([chat._asdict() for chat in _kept_chats(ready.template)]),
        GENERATION_CONFIG: json.dumps(generation, indent=2, sort_keys=True) + "\n",
    }


def base_file(folder: Path) -> str:
    """Return the text of BASE_FILE. It takes seconds for a large model, so a save asks for it, not the start."""
    return json.dumps({WEIGHTS: weights_hash(folder)}) + "\n"


def _prompts(ready: Ready) -> list[list[int]]:
    store = ready.data.val if ready.data.val is not None and len(ready.data.val) else ready.data.train
    return [store[number][0].tolist()[:LONGEST_PROMPT] for number in range(min(MOST_PROMPTS, len(store)))]


def chats(template: Template) -> list[Chat]:
    """Return the ids of a few questions, without a system message of their own.

    Raises:
        TemplateError: the template does not render a question alone.
    """
    return [Chat(text, template.encode_prompt([{"role": "user", "content": text}])) for text in QUESTIONS]


def _kept_chats(template: Template) -> list[Chat]:
    if "strftime_now" in template.chat.source:  # it prints the day, another one when the checkpoint is merged
        return []
    try:
        return chats(template)
    except TemplateError as error:
        log.info(f"no chat is kept for swift export to compare: {error.message}")
        return []


def read_chats(folder: Path) -> list[Chat]:
    """Return the chats that a checkpoint keeps, none where it keeps none."""
    path = folder / CHATS_FILE
    return [Chat(**entry) for entry in json.loads(path.read_text("utf-8"))] if path.is_file() else []


def generation_config(source: Path, template: Template, generation: Any) -> dict[str, Any]:
    """Return the base model's generation settings with those of the run and the tokens that end its answers."""
    path = source / GENERATION_CONFIG
    own = read_json(path) if path.is_file() else {}
    return {
        **{name: value for name, value in own.items() if name not in DECIDED_BY_FLAGS},
        **generation_settings(generation).to_json(),
        "eos_token_id": list(dict.fromkeys([*end_ids(own.get("eos_token_id")), *template.stop_token_ids])),
    }
