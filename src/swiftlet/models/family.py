"""A row of the family table: a model that has a name here. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from swiftlet.models.geometry import Geometry


class Family(NamedTuple):
    """A named model: its name here, its ids on ModelScope and on Hugging Face, its sizes.

    Args:
        geometry: its sizes; None where only its config.json has them.
        quantised: "gptq" or "awq"; such a model is for `swift infer`.
        needs_code: its Python code comes with it: --trust_remote_code true.
        is_bin_only: its weights are published in no format that is read here.
        folder: where its files lie inside this package.
    """

    model_type: str
    ms_id: str | None = None
    hf_id: str | None = None
    geometry: Geometry | None = None
    quantised: str | None = None
    needs_code: bool = False
    is_bin_only: bool = False
    folder: Path | None = None
