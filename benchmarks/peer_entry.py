"""Runs inside a peer's own environment: its own entry point, with one line printed a step for the harness to time.

python peer_entry.py trl|llama-factory|ms-swift ARGUMENTS_OF_THE_TOOL...
"""

from __future__ import annotations

import runpy
import sys
from functools import wraps
from typing import Any

import torch
from transformers import Trainer, TrainerCallback


class Marks(TrainerCallback):
    """Prints each logged step and its loss at once."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a mark; the tools call this after each step when asked to log each step."""
        if logs and "loss" in logs:
            print(f"\n@step {state.global_step} {float(logs['loss'])}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the peak memory of the accelerator, where there is one."""
        if torch.cuda.is_available():
            print(
                f"\n@memory {torch.cuda.max_memory_allocated()} {torch.cuda.max_memory_reserved()}",
                flush=True,
            )


def mark_steps() -> None:
    """Let every trainer that is made in this process print marks."""
    original = Trainer.__init__

    @wraps(original)  # a tool looks at the arguments that it may give
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(Marks)

    Trainer.__init__ = init  # type: ignore[method-assign]


def main() -> None:
    """Hand the arguments to the tool."""
    tool = sys.argv.pop(1)
    mark_steps()
    if tool == "llama-factory":
        from llamafactory.train.tuner import run_exp

        run_exp()
    else:
        module = {"trl": "trl.scripts.sft", "ms-swift": "swift.cli.sft"}[tool]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
