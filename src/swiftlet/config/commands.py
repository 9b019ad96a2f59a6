"""The table of commands: a name, the module that assembles it, and one line of help."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A row of the command table."""

    module: str
    summary: str
    is_distributed: bool = False


COMMANDS: dict[str, Command] = {
    "sft": Command("sft", "fine-tune a model: LoRA or full, one device or many", is_distributed=True),
    "infer": Command("infer", "chat with a model or a checkpoint, or answer a dataset", is_distributed=True),
    "export": Command("export", "merge an adapter into its model, with a proof"),
    "plan": Command("plan", "memory and time of an sft command line, before it runs"),
    "npu": Command("npu", "devices, their links, and which process sits where"),
    "doctor": Command("doctor", "find what is wrong with this machine, or in a log"),
    "completion": Command("completion", "print the completion script of bash, zsh or fish"),
}
COMMAND_ALIASES: dict[str, list[str]] = {"merge-lora": ["export", "--merge_lora", "true"]}
