"""The caches of ModelScope and Hugging Face as their clients lay them out, with small stand-ins under the real ids.

The model is the embedded one (1.1 million parameters, a Qwen2 with its own chat template), the dataset is generated
word problems in the columns of blossom-math-v2.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from swiftlet.data.demo_math import rows
from swiftlet.models.families import EMBEDDED

ROWS = 40
COMMIT = "0" * 39 + "1"


def lay_out(folder: Path) -> dict[str, str]:
    """Fill both caches below `folder` and return the variables that point to them."""
    modelscope, hugging_face = folder / "modelscope", folder / "huggingface"
    # the layout of the spring of 2024, and the one of today
    _model(modelscope / "hub" / "qwen" / "Qwen1___5-7B-Chat")
    _rows(modelscope / "datasets" / "AI-ModelScope--blossom-math-v2" / "snapshots" / "master")
    for kind, repo, fill in (
        ("models", "Qwen--Qwen1.5-7B-Chat", _model),
        ("datasets", "Azure99--blossom-math-v2", _rows),
    ):
        place = hugging_face / "hub" / f"{kind}--{repo}"
        fill(place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)
    return {"MODELSCOPE_CACHE": str(modelscope), "HF_HOME": str(hugging_face)}


def _model(folder: Path) -> None:
    shutil.copytree(EMBEDDED["tiny-math-chat"], folder)


def _rows(folder: Path) -> None:
    folder.mkdir(parents=True)
    with open(folder / "blossom-math-v2-10k.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows(ROWS, seed=1)):
            named = {"id": str(number), **row, "dataset": "math23k"}
            file.write(json.dumps(named, ensure_ascii=False) + "\n")
