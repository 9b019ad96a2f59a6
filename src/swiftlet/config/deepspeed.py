"""The settings of DeepSpeed behind the names that users type, and what of a user's own settings is taken.

The run's arguments rule over batch sizes, clipping, optimizer and learning rate: a second place that says something
else about them is refused, "auto" is filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet.errors import UsageError, describe, nearest

BUCKET = 200_000_000
OTHER_BUCKET = 500_000_000  # DeepSpeed's own default
LIVE = 1_000_000_000
OFFLOAD = "zero3-offload"
NAMES = {"default-zero2": 2, "default-zero3": 3, OFFLOAD: 3}
HINT = f"choose one of {', '.join(NAMES)}, or give a JSON file"
RULED = {
    "train_micro_batch_size_per_gpu": "--batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "train_batch_size": "--batch_size",
    "gradient_clipping": "--max_grad_norm",
}
AUTO = "auto"
REPLACED = {"optimizer": "--optim and --learning_rate", "scheduler": "--lr_scheduler_type"}


class Facts(NamedTuple):
    """What of a run DeepSpeed must know; `dtype` is fp32 or bf16."""

    batch_size: int
    accumulation: int
    world_size: int
    max_grad_norm: float
    dtype: str
    hidden_size: int
    can_overlap: bool = True


def zero_stage(asked: str) -> int:
    """Return the ZeRO stage of a name, file or text of `--deepspeed`; 0 where it does not say."""
    if asked in NAMES:
        return NAMES[asked]
    stage = _zero_section(asked).get("stage")
    return stage if isinstance(stage, int) else 0


def offloaded(asked: str) -> set[str]:
    """Return which of param and optimizer a name, file or text of `--deepspeed` leaves in the host's memory."""
    if asked in NAMES:
        return {"param", "optimizer"} if asked == OFFLOAD else set()
    zero = _zero_section(asked)
    sections = {name: zero.get(f"offload_{name}") for name in ("param", "optimizer")}
    return {
        name
        for name, one in sections.items()
        if isinstance(one, dict) and (one.get("device") or "none") != "none"
    }


def own_buffers(asked: str, hidden_size: int) -> tuple[float, float] | None:
    """Return of a user's settings the numbers of all buckets of gradients, and the parameters kept whole at most.

    None where the buffers are those of a name. What the settings do not say is DeepSpeed's own, not ours.
    """
    if asked in NAMES:
        return None
    zero = _settled(_zero_section(asked), Facts(1, 1, 1, 0.0, "bf16", hidden_size))
    buckets = 2 if zero.get("stage") == 2 and zero.get("overlap_comm") is True else 1
    buckets *= zero.get("contiguous_gradients") is not False
    sizes = (zero.get("reduce_bucket_size"), OTHER_BUCKET), (zero.get("stage3_max_live_parameters"), LIVE)
    bucket, live = (float(size) if isinstance(size, int | float) else other for size, other in sizes)
    return buckets * bucket, live


def _zero_section(asked: str) -> dict[str, Any]:
    try:
        zero = read_settings(asked).get("zero_optimization")
    except UsageError:  # another rule names what is wrong
        return {}
    return zero if isinstance(zero, dict) else {}


def read_settings(asked: str) -> dict[str, Any]:
    """Return the settings in a file or text of JSON.

    Raises:
        UsageError: there is no such file, or no JSON object.
    """
    text = asked
    if not asked.lstrip().startswith("{"):
        try:
            text = Path(asked).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            near = nearest(asked, NAMES)
            raise UsageError(
                f"--deepspeed {describe(asked)} is neither a name nor a file that can be read: {reason}",
                f"did you mean {near[0]}?" if near else HINT,
            ) from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--deepspeed is not JSON: {error}", HINT) from error
    if not isinstance(content, dict):
        raise UsageError("--deepspeed holds no JSON object", HINT)
    return content


def settings_mistake(given: dict[str, Any], known: Mapping[str, Any], dtype: str | None) -> UsageError | None:
    """Return what of a user's settings contradicts the run's arguments, or asks for a stage that is not ZeRO-2 or 3.

    Args:
        known: what the arguments say of the names in `RULED`, as far as it is known yet.
        dtype: type of the run; None where it is not known yet.
    """
    for name, flags in REPLACED.items():
        if name in given:
            return UsageError(
                f"the settings of --deepspeed have a section {name!r}, and {flags} say the same",
                f"remove {name!r} from the settings; {flags} rule",
            )
    for name, flag in RULED.items():
        if name in known and given.get(name, AUTO) not in (AUTO, known[name]):
            return UsageError(
                f"{name} is {describe(given[name])} in the settings of --deepspeed, {known[name]} by {flag}",
                f'type "auto" for {name} there, or change {flag}',
            )
    zero = given.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (2, 3):
        return UsageError(
            f"zero_optimization.stage is {describe(stage)} in the settings of --deepspeed",
            "2 or 3; leave --deepspeed out for replicas",
        )
    for kind in ("fp16", "bf16") if dtype else ():
        section = given.get(kind, {})
        enabled = section.get("enabled", AUTO) if isinstance(section, dict) else section
        if enabled not in (AUTO, dtype == kind):
            return UsageError(
                f"{kind}.enabled is {describe(enabled)} in the settings of --deepspeed, the run is in {dtype}",
                f'type "auto" there, or --dtype {kind if enabled else "fp32"}',
            )
    return None


def deepspeed_settings(asked: str, facts: Facts) -> dict[str, Any]:
    """Return the settings for `deepspeed.initialize`.

    Args:
        asked: a name, or a file or text of JSON settings.

    Raises:
        UsageError: the user's settings contradict the arguments, or ask for a stage that is not ZeRO-2 or 3.
    """
    if asked in NAMES:
        zero = _zero2(facts) if NAMES[asked] == 2 else _zero3(facts)
        if asked == OFFLOAD:
            place = {"device": "cpu", "pin_memory": True}
            zero |= {"offload_param": dict(place), "offload_optimizer": dict(place)}
        return {**_common(facts), "zero_optimization": zero}
    return _user_settings(read_settings(asked), facts)


def _common(facts: Facts) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": facts.batch_size,
        "gradient_accumulation_steps": facts.accumulation,
        "train_batch_size": facts.batch_size * facts.accumulation * facts.world_size,
        "gradient_clipping": facts.max_grad_norm,
        "bf16": {"enabled": facts.dtype == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _zero2(facts: Facts) -> dict[str, Any]:
    return {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": BUCKET,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
        "overlap_comm": facts.can_overlap,
        "contiguous_gradients": True,
    }


def _zero3(facts: Facts) -> dict[str, Any]:
    """Return stage 3; thresholds follow from the hidden size as transformers' "auto" does.

    A parameter below the persistence threshold is never sharded: norms, biases and the matrices of small adapters.
    """
    size = facts.hidden_size
    return {
        "stage": 3,
        "overlap_comm": facts.can_overlap,
        "contiguous_gradients": True,
        "sub_group_size": LIVE,
        "reduce_bucket_size": size * size,
        "stage3_prefetch_bucket_size": int(0.9 * size * size),
        "stage3_param_persistence_threshold": 10 * size,
        "stage3_max_live_parameters": LIVE,
        "stage3_max_reuse_distance": LIVE,
        "stage3_gather_16bit_weights_on_model_save": True,
    }


def _user_settings(given: dict[str, Any], facts: Facts) -> dict[str, Any]:
    ours = _common(facts)
    mistake = settings_mistake(given, ours, facts.dtype)
    if mistake is not None:
        raise mistake
    settled = _settled(given["zero_optimization"], facts)
    kept = {name: value for name, value in given.items() if name not in ("fp16", "bf16") and value != AUTO}
    return {**ours, **kept, "zero_optimization": settled}


def _settled(zero: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Return a section with our values for "auto", and without the names that we have none for."""
    automatic = _zero2(facts) if zero.get("stage") == 2 else _zero3(facts)
    settled = {name: automatic.get(name) if value == AUTO else value for name, value in zero.items()}
    return {name: value for name, value in settled.items() if value is not None}
