"""Adapters out of a folder: the settings that change what they compute, and tensors that must fit exactly.

Only safetensors is read. Of adapter_config.json the fields of plain LoRA and DoRA are taken; one that would make the
adapter another thing is refused, and none of them can choose code to import. An adapter written here also says which
base it was trained on (`adapter_base.json`), and another base is refused even where the shapes agree.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftlet.config.lora import changes_base, is_exact
from swiftlet.errors import CheckpointError, SwiftletError, describe, first_line, reading
from swiftlet.models.base_hash import BASE_NOTE, check_base
from swiftlet.models.decoder import Decoder
from swiftlet.models.decoder_lora import (
    AdaptedDecoder,
    LoraFields,
    adapt,
    are_plain_targets,
    saved_tensors,
    set_tensors,
)
from swiftlet.models.head import inner_model
from swiftlet.models.safety import ADAPTER_CONFIG, ADAPTER_WEIGHTS, inside, read_header, read_json
from swiftlet.models.start import take_up_start

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

TAKEN = (
    "r lora_alpha lora_dropout bias target_modules exclude_modules modules_to_save use_dora use_rslora lora_bias "
    "fan_in_fan_out rank_pattern alpha_pattern layers_to_transform layers_pattern target_parameters "
    "ensure_weight_tying"
).split()
NO_EFFECT = (
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode init_lora_weights "
    "loftq_config eva_config corda_config lora_ga_config runtime_config megatron_core qalora_group_size"
).split()
START = "init_lora_weights"
PLAIN = "r lora_alpha lora_dropout target_modules use_rslora".split()
LONGEST_LIST = 3
ONE_EXPERT = re.compile(r"\.experts\.\d+\.")


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep peft's remarks on tied weights and the like out of the log; what matters is said by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        warnings.simplefilter("ignore", category=FutureWarning)  # peft asks transformers under an old name
        # It looks for the ranks of joint matrices of experts among modules alone.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        yield


def adapted_weight(layer: Any) -> Tensor:
    """Return the weight that a LoRA layer of peft changes; on joint matrices of experts it is one of several."""
    weight: Tensor = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
    return weight


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the fields of adapter_config.json that change what the adapter computes.

    Raises:
        SwiftletError: it is no LoRA adapter, or of a kind that is not known here.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise SwiftletError(
            f"{folder} has no {ADAPTER_CONFIG}", "give the folder of an adapter, such as checkpoint-50"
        )
    raw = read_json(inside(folder, ADAPTER_CONFIG))
    if raw.get("peft_type") != "LORA":
        reason = f"{folder} holds an adapter of type {describe(raw.get('peft_type'))}"
        raise SwiftletError(reason, "only LORA adapters are read")
    odd = sorted(name for name, value in raw.items() if value and name not in TAKEN and name not in NO_EFFECT)
    if odd:
        settings = ", ".join(f"{name}={describe(raw[name], 40)}" for name in odd)
        raise SwiftletError(
            f"the adapter in {folder} uses {settings}, which is not known here", "merge it with peft"
        )
    fields = {name: raw[name] for name in TAKEN if raw.get(name) is not None}
    return fields | _start_to_repeat(folder, raw.get(START))


def _start_to_repeat(folder: Path, init: Any) -> dict[str, str]:
    """Return the start that the base has to be changed by again, as peft itself does; mostly there is none."""
    if not changes_base(init):
        return {}
    if not is_exact(init):
        raise SwiftletError(
            f"the adapter in {folder} is relative to a base that {START}={describe(init, 40)} has changed, "
            "and that base cannot be computed again",
            "save it with path_initial_model_for_weight_conversion of peft, or merge it where it was trained",
        )
    return {START: init}


def plain_fields(folder: Path) -> LoraFields | None:
    """Return what an adapter is where our own decoder can have it, None where it takes peft."""
    return _plain_fields(read_adapter_config(folder), _read_note(folder))


def _plain_fields(fields: Mapping[str, Any], note: Mapping[str, Any]) -> LoraFields | None:
    others = {name: value for name, value in fields.items() if value and name not in PLAIN}
    targets = fields.get("target_modules")
    if others.pop("bias", "none") != "none" or others or note.get("start"):
        return None
    if not isinstance(targets, list) or not are_plain_targets(targets):
        return None
    return LoraFields(**{name: fields[name] for name in PLAIN if name in fields})


def load_adapter(
    model: PreTrainedModel | Decoder, folder: Path, *, is_trainable: bool
) -> PeftModel | AdaptedDecoder:
    """Put the adapter of a folder on its base model.

    Args:
        is_trainable: go on with training it; otherwise it is frozen.

    Raises:
        CheckpointError: it was trained on another base, or its tensors do not fit this one.
        SwiftletError: it is no readable LoRA adapter.
    """
    fields = read_adapter_config(folder)
    note = _read_note(folder)
    base = Path(str(getattr(model.config, "_name_or_path", "")))
    if note.get("base_hash") and (base / "config.json").is_file():
        check_base(base, str(note["base_hash"]), what=f"the adapter in {folder}")
    if isinstance(model, Decoder):
        own = _plain_fields(fields, note)
        assert own is not None, "a model for peft is asked for where the adapter needs it"
        adapted, tensors = adapt(model, own), read_adapter_tensors(folder)
        _check_fits(folder, adapter_tensors(adapted), tensors)
        set_tensors(adapted, tensors)
        return adapted if is_trainable else adapted.requires_grad_(False)
    from peft import LoraConfig, get_peft_model
    from peft.utils import set_peft_model_state_dict

    start = note.get("start") if is_trainable else None
    if isinstance(start, dict):
        fields |= {"r": int(start["rank"]), "lora_alpha": start["alpha"]}
    tensors = read_adapter_tensors(folder)
    try:
        config = LoraConfig(task_type="CAUSAL_LM", inference_mode=not is_trainable, **fields)
        with quiet_peft():
            wrapped: Any = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"the adapter in {folder} does not fit {type(model).__name__}: {first_line(error)}",
            "give the base model it was trained on with --model_id_or_path",
        ) from error
    if isinstance(start, dict):
        tensors = take_up_start(wrapped, tensors, int(start["rank"]))
        wrapped.peft_config["default"].init_lora_weights = str(start["init"])
    _check_fits(folder, {**adapter_tensors(wrapped), **_base_words(wrapped, tensors)}, tensors)
    with quiet_peft():
        set_peft_model_state_dict(wrapped, tensors)
    return wrapped if is_trainable else wrapped.requires_grad_(False)


def _base_words(model: PeftModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's embedding and head where the adapter has them too: peft saves them beside their adapters."""
    inner = inner_model(model)
    modules = (inner.get_input_embeddings(), inner.get_output_embeddings())
    ids = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name in tensors and id(tensor) in ids}


def _read_note(folder: Path) -> dict[str, Any]:
    return read_json(inside(folder, BASE_NOTE)) if (folder / BASE_NOTE).is_file() else {}


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter.

    Raises:
        SwiftletError: there is no safetensors file, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = inside(folder, ADAPTER_WEIGHTS)
    if not path.is_file():
        other = next((p.name for p in folder.glob("adapter_model.*")), None)
        why = f"only {other}, which can run code when opened" if other else "no weights"
        raise SwiftletError(f"{folder} has {why}", f"save the adapter again as {ADAPTER_WEIGHTS}")
    read_header(path)
    try:
        with reading(path):
            return load_file(path)
    except SafetensorError as error:
        raise SwiftletError(f"{path} cannot be read: {error}", "copy the file again") from error


def adapter_tensors(
    model: PeftModel | AdaptedDecoder, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the tensors of the adapter by the names they are saved under; `state` stands for the model's own."""
    if isinstance(model, AdaptedDecoder):
        return saved_tensors(model.state_dict() if state is None else state)
    from peft.utils import get_peft_model_state_dict

    given: Any = dict(state) if state is not None else None
    with quiet_peft():
        return get_peft_model_state_dict(model, state_dict=given, save_embedding_layers=False)


def _check_fits(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = (("missing", expected.keys() - found.keys()), ("left over", found.keys() - expected.keys()))
    parts = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:LONGEST_LIST])}" for what, names in kinds if names
    ]
    parts += [f"{len(shapes)} of another shape: {', '.join(shapes[:LONGEST_LIST])}"] if shapes else []
    if parts:
        raise CheckpointError(
            f"the adapter in {folder} does not fit this base model; {'; '.join(parts)}",
            _hint(expected, found),
        )


def _hint(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return what to do about an adapter that does not fit: often the base is the one it was trained on."""
    if any(_has_other_rows(name, expected[name], found.get(name)) for name in expected):
        return (
            "its embedding has another number of tokens, so it was resized before the training: resize the base's "
            "alike (resize_token_embeddings), save it, and type --model_id_or_path THAT_FOLDER"
        )
    if any(ONE_EXPERT.search(name) for name in found.keys() - expected.keys()):
        return (
            "it adapts each expert by itself, as transformers 4 had them, and their matrices are joint here: merge it "
            "with the versions that trained it, and give the merged model"
        )
    return "give the base model it was trained on with --model_id_or_path"


def _has_other_rows(name: str, expected: Tensor, found: Tensor | None) -> bool:
    """Return whether a saved matrix of the base, such as an embedding, has only its number of rows changed."""
    if found is None or expected.dim() != 2 or ".lora_" in name:
        return False
    return found.shape[1:] == expected.shape[1:] and found.shape != expected.shape
