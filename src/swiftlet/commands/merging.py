"""The second half of `swift export`: load, compare before and after the merge, write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from swiftlet import log
from swiftlet.commands.checkpoint_source import CheckpointSource
from swiftlet.commands.export_template import check_template, write_template
from swiftlet.commands.merge_proof import WEIGHTS, check_base_weights, hashes_of_weights
from swiftlet.commands.model_source import open_template
from swiftlet.commands.side_files import PROMPTS_FILE, chats, read_chats
from swiftlet.data.template import Template
from swiftlet.device.spec import dtype_name, open_device, resolve_dtype
from swiftlet.inference import proof
from swiftlet.models.adapter import load_adapter
from swiftlet.models.load import load_model
from swiftlet.models.merge import merge_adapter
from swiftlet.models.save import COPIED, copy_files, write_model
from swiftlet.train.manifest import saving


def write_merged(args: Any, source: CheckpointSource, draft: Path) -> dict[str, Any]:
    """Write the merged model into `draft` and return the figures of its proof.

    Raises:
        SwiftletError: the merged model answers differently, or its template renders other ids than the run's.
        SaveError: it could not be written.
    """
    asked = args.checkpoint
    device = open_device(asked.device, local_rank=0, environ=os.environ)
    name = asked.dtype if asked.dtype != "AUTO" else source.args.get("dtype", "AUTO")
    dtype = resolve_dtype(name, device)
    check_base_weights(source.folder, source.model_folder)
    tolerance = args.merge.merge_tolerance or proof.TOLERANCES[dtype_name(dtype)]
    model = load_model(
        source.model_folder,
        dtype=dtype,
        device=device.torch_device,
        trust_remote_code=asked.trust_remote_code,
    )
    prompts = _prompts(source)
    tuned = load_adapter(model, source.folder, is_trainable=False).eval()
    before = proof.log_probabilities(tuned, prompts)
    merged = merge_adapter(tuned).eval()
    figures = proof.compare(before, proof.log_probabilities(merged, prompts))
    proof.check(figures, tolerance)
    log.info(
        f"merged and adapter agree on {figures.num_prompts} prompts: largest difference of log-probabilities "
        f"{figures.max_difference:.3g} (at most {tolerance:g}), {100 * figures.token_agreement:.1f} % same next token"
    )
    # of a checkpoint of this program it is known how it rendered chats
    template = _template(source) if source.args else None
    with saving(draft.parent):
        write_model(merged, draft, source=source.model_folder, is_adapter=False)
        copy_files(source.tokenizer_folder, draft, COPIED)
        if template is not None:
            write_template(template, draft)
    if template is not None:
        check_template(draft, read_chats(source.folder) or chats(template))
    facts = {"tolerance": tolerance, "dtype": dtype_name(dtype), WEIGHTS: hashes_of_weights(draft)}
    return {**figures._asdict(), **facts}


def _prompts(source: CheckpointSource) -> list[list[int]]:
    path = source.folder / PROMPTS_FILE
    if path.is_file():
        return [[int(token) for token in prompt] for prompt in json.loads(path.read_text(encoding="utf-8"))]
    return [chat.input_ids for chat in chats(_template(source))]


def _template(source: CheckpointSource) -> Template:
    _, template = open_template(
        source.tokenizer_folder,
        template_type=source.args.get("template_type"),
        system=source.args.get("system"),
    )
    return template
