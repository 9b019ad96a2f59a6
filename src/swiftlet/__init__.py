"""Fine-tune and run large language models on Ascend NPUs, CUDA GPUs and CPUs.

`from swiftlet import sft, infer` takes the arguments of the command line as keywords.
"""

from __future__ import annotations

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["export", "infer", "sft"]


def sft(**options: Any) -> Any:
    """Fine-tune as `swift sft` does and return where everything is (`commands.sft.Outcome`).

    Raises:
        SwiftletError: a mistake in the options, or a run that failed.
    """
    from swiftlet import launch
    from swiftlet.commands import sft as command

    return command.call(options, launch.check_alone(os.environ, "swift sft"))


def infer(**options: Any) -> Any:
    """Answer the rows of a dataset as `swift infer` does and return them (list of dictionaries).

    Raises:
        SwiftletError: a mistake in the options, or a run that failed.
    """
    from swiftlet import launch
    from swiftlet.commands import infer as command

    return command.call(options, launch.check_alone(os.environ, "swift infer"))


def export(**options: Any) -> Any:
    """Merge as `swift export` does and return the folder that was written.

    Raises:
        SwiftletError: a mistake in the options, or a merge that does not agree with its adapter.
    """
    from swiftlet.commands import export as command

    return command.call(options)
