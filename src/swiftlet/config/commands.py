"""The table of commands: a name, the module that assembles it, and one line of help; variables set before them."""

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
# Variables that stand before a command, as its help shows them.
VARIABLES: dict[str, str] = {
    "ASCEND_RT_VISIBLE_DEVICES=0,1": "NPUs to use, one process each (of GPUs: CUDA_VISIBLE_DEVICES)",
    "NPROC_PER_NODE=2": "Processes on this machine, one a device; 1 when no devices are named",
    "NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST": "Several machines; node 0 is HOST",
    "USE_HF=1": "Models and datasets from Hugging Face; ModelScope when not set",
}
