"""A model folder to a model on its device: every weight from the files, none invented, nothing executed.

The files are checked by `safety.py` first; what was checked there is what is read here. A weight that is missing,
left over or of another shape is an error: a silently random weight would be trained as if it were the model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftlet import log
from swiftlet.errors import SwiftletError, reading
from swiftlet.models.decoder import Decoder
from swiftlet.models.decoder_config import decoder_config
from swiftlet.models.decoder_load import load_decoder
from swiftlet.models.generation_file import read_generation_config
from swiftlet.models.hollow import make_hollow, meta_tensors
from swiftlet.models.rope import forget_lengths
from swiftlet.models.safety import (
    CODE_CLASSES,
    CONFIG,
    TensorInfo,
    check_may_run_code,
    for_library,
    read_config,
    read_header,
    weight_files,
)
from swiftlet.models.targets import is_unreached

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

QUANTISED = {"gptq": "gptqmodel", "awq": "gptqmodel"}  # method -> the package that transformers needs for it
CONVERSION = "automatic conversion of the weights"
LONGEST_LIST = 5
STRETCH = 2**27  # bytes of a file that are mapped at once


def load_plain(folder: Path, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel | Decoder:
    """Return the model of a folder where no more than training is asked of it: our own decoder if it knows the family.

    Raises:
        SwiftletError: see `load_model`.
    """
    config = decoder_config(folder)
    if config is None:
        return load_model(folder, dtype=dtype, device=device)
    return load_decoder(folder, config, _open(folder), dtype=dtype, device=device)


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    hollow: bool = False,
) -> PreTrainedModel:
    """Return the causal language model of a folder, in evaluation mode, each weight read straight to its place.

    Args:
        dtype: type of the weights; norms that a family keeps in fp32 stay so.
        trust_remote_code: run the folder's own Python code, where the library has none for this model.
        hollow: weights take no memory and are not read; `hollow.open_weights` says where they are.

    Raises:
        SwiftletError: no safe weights, a config that is not understood, or weights that do not fit it.
    """
    raw = read_config(folder)
    config, model_class = build_config(folder, raw, trust_remote_code)
    quantised = _quantisation(folder, raw)
    if hollow and quantised is not None:
        raise SwiftletError(
            f"{folder} is quantised and cannot be sharded", "leave out --fsdp and --deepspeed"
        )
    tensors = meta_tensors(folder, dtype) if hollow else dict(_open(folder))
    with _quietly():
        try:
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                device_map={"": "meta" if hollow else device},
                ignore_mismatched_sizes=True,  # they are reported, and refused below with all names
                output_loading_info=True,
            )
        except ImportError as error:
            if quantised is None:
                raise missing_package(model_class, error) from error
            raise SwiftletError(
                f"{folder} is quantised with {quantised}, which needs a package that is missing: {_one_line(error)}",
                f"pip install {QUANTISED[quantised]}, or use the model without {quantised}",
            ) from error
        except RuntimeError as error:
            if CONVERSION not in str(error):
                raise
            raise SwiftletError(
                f"the weights of {folder} do not make up the model: experts are missing or of other shapes",
                "the download is incomplete or its config.json is of another model: get it again",
            ) from error
    if quantised is None:
        _check_complete(folder, report, raw, config.model_type)
    if hollow:
        make_hollow(model, folder, device)
    else:
        tensors.clear()  # the mappings are to end where the model has its own memory
        _own_memory(model)
    _settle(model, folder)
    return model


def build_config(folder: Path, raw: dict[str, Any], trust_remote_code: bool) -> tuple[PreTrainedConfig, Any]:
    """Return the config and the class of the model; the library's own where it has one, else the folder's code.

    Raises:
        SwiftletError: the config is not understood, or its model needs code that may not run.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = raw["model_type"]
    safe = for_library(raw)
    try:
        if kind in CONFIG_MAPPING:
            config = CONFIG_MAPPING[kind].from_dict(safe)
            known, name = MODEL_FOR_CAUSAL_LM_MAPPING, f"a {kind}"
            if type(config) in known:
                config, model_class = _of_text(config, known[type(config)])
                if config.model_type != kind:
                    name += f", whose text model alone is a {config.model_type}"
            if type(config) not in known:  # nobody could load what is trained of mllama's text
                reason = f"{folder} holds {name}, which is no causal language model to transformers"
                raise SwiftletError(reason, "use another model, one of text alone")
            return config, model_class
        config_class, model_class = _folder_code(folder, raw, trust_remote_code)
        return config_class.from_dict(safe), model_class
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{folder / CONFIG} does not describe a {kind}: {_one_line(error)}"
        raise SwiftletError(reason, "get config.json again from where the model came") from error


def _of_text(config: Any, model_class: Any) -> tuple[PreTrainedConfig, Any]:
    """Return a class and its config: where it is of text alone, not the config that describes images too."""
    text_class = config.sub_configs.get("text_config")
    if text_class is None or model_class.config_class is not text_class:
        return config, model_class
    text = config.get_text_config()
    if getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    return text, model_class


def missing_package(model_class: Any, error: ImportError) -> SwiftletError:
    """Return what to say where the class of a model asks for a package that is not installed."""
    named = re.search(r"pip install ([\w.-]*\w)", str(error))
    package = named[1] if named else error.name or "the package that is named there"
    reason = f"{model_class.__name__} needs a package that is missing: {_one_line(error)}"
    return SwiftletError(reason, f"pip install {package}")


def _folder_code(folder: Path, raw: dict[str, Any], trust_remote_code: bool) -> tuple[Any, Any]:
    kind, references = raw["model_type"], raw.get("auto_map")
    if not isinstance(references, dict) or "AutoModelForCausalLM" not in references:
        hint = "pip install -U transformers, if the model is newer than it"
        raise SwiftletError(f"transformers does not know the model_type {kind!r} of {folder}", hint)
    if not trust_remote_code:
        raise SwiftletError(
            f"the model in {folder} ({kind}) runs only with its own Python code, which is not trusted",
            "read the code, then --trust_remote_code true; or use a model that needs none",
        )
    check_may_run_code(folder, raw)
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    config_class, model_class = (
        get_class_from_dynamic_module(references[name], str(folder)) for name in CODE_CLASSES
    )
    return config_class, model_class


def _quantisation(folder: Path, raw: dict[str, Any]) -> str | None:
    settings = raw.get("quantization_config")
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in QUANTISED:
        known = " and ".join(sorted(QUANTISED))
        reason = f"{folder} is quantised with {method!r}; only {known} are read here"
        raise SwiftletError(reason, "use the model without quantisation")
    return str(method)


def _open(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of a folder, mapped from the files: nothing is read before it is used.

    What was read stays in memory until a mapping ends, so each stretch of a file has one of its own: where the tensors
    are copied one by one, the whole never lies in memory twice.
    """
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        for names in _stretches(read_header(path)):
            try:
                with reading(path), safe_open(path, framework="pt", device="cpu") as file:
                    for name in names:
                        yield name, file.get_tensor(name)
            except SafetensorError as error:
                raise SwiftletError(f"{path} cannot be read: {error}", "download the file again") from error


def _stretches(header: dict[str, TensorInfo]) -> Iterator[list[str]]:
    """Yield the names of a file's tensors as they lie there, in parts of about `STRETCH` bytes."""
    names, end = [], STRETCH
    for name, tensor in sorted(header.items(), key=lambda item: item[1].begin):
        names.append(name)
        if tensor.begin + tensor.num_bytes >= end:
            yield names
            names, end = [], tensor.begin + tensor.num_bytes + STRETCH
    if names:
        yield names


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the library's progress bar and report out of the log while a model loads; errors are ours to word."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _check_complete(folder: Path, report: dict[str, Any], raw: dict[str, Any], kind: str) -> None:
    is_text_alone = isinstance(raw.get("text_config"), dict) and kind != raw["model_type"]
    if is_text_alone:
        log.info(f"{folder}: the text model alone is used and saved ({kind})")
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    unexpected = [name for name in unexpected if not (is_text_alone and is_unreached(name))]
    shapes = [
        f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]
    ]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:LONGEST_LIST])}{', ...' if len(names) > LONGEST_LIST else ''}"
        for names, what in (
            (missing, "missing"),
            (unexpected, "left over"),
            (sorted(shapes), "of another shape"),
        )
        if names
    ]
    if parts:
        raise SwiftletError(
            f"the weights of {folder} do not fit its {CONFIG}; {'; '.join(parts)}",
            "the download is incomplete or its config.json is of another model: get it again",
        )


def _own_memory(model: PreTrainedModel) -> None:
    """Copy weights that still lie in a mapped file into aligned memory of their own, one at a time.

    A mapped tensor lies wherever the file's header ends; kernels may then add up in another order, and the same
    weights out of two files would not give the same bits. In the order of the files, so that each mapping soon ends.
    """
    on_cpu = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cpu"]
    for tensor in sorted(on_cpu, key=torch.Tensor.data_ptr):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def _settle(model: PreTrainedModel, folder: Path) -> None:
    """Set what does not come with the weights: path, generation settings, a tied head, rotations that start afresh."""
    model.config._name_or_path = str(folder)
    forget_lengths(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if (
        getattr(model.config, "tie_word_embeddings", False)
        and head is not None
        and head.weight is not embedding.weight
    ):
        log.warning(f"{folder}: config.json ties head and embedding, the files hold two; both are kept")
        model.config.tie_word_embeddings = False
    model.generation_config = read_generation_config(folder) or model.generation_config


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
