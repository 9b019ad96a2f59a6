"""Rules over what is trained: how adapters start, which modules have them, what is frozen."""

from __future__ import annotations

import re
from typing import Any

from swiftlet.config.lora import start_mistake
from swiftlet.errors import UsageError

SHARE = re.compile(r"0?\.\d+|0(\.0*)?")  # what older versions take as --freeze_parameters


def _init_weights(args: Any, given: frozenset[str]) -> UsageError | None:
    tuner = args.tuner
    if tuner.sft_type == "full":
        return None
    return start_mistake(tuner.init_lora_weights, rank=tuner.lora_rank, use_dora=tuner.use_dora)


def _modules(args: Any, given: frozenset[str]) -> UsageError | None:
    tuner = args.tuner
    both = [name for name in tuner.lora_target_modules if name in tuner.lora_modules_to_save]
    if tuner.sft_type == "full" or not both:
        return None
    return UsageError(
        f"{', '.join(both)} cannot have an adapter (--lora_target_modules) and be trained whole "
        "(--lora_modules_to_save)",
        "leave it out of one flag",
    )


def _frozen(args: Any, given: frozenset[str]) -> UsageError | None:
    for name in args.tuner.freeze_parameters if args.tuner.sft_type == "full" else ():
        if SHARE.fullmatch(name):
            return UsageError(
                f"--freeze_parameters takes names, found {name}", f"type --freeze_parameters_ratio {name}"
            )
    return None


TUNER_RULES = (_init_weights, _modules, _frozen)
