"""What a merged model and the adapter it came from record of themselves, and the checks of it. No torch."""

from __future__ import annotations

from pathlib import Path

from swiftlet import log
from swiftlet.errors import CheckpointError
from swiftlet.files import sha256
from swiftlet.models.base_hash import BASE_NOTE, weights_hash
from swiftlet.models.safety import inside, read_json, weight_files

PROOF_FILE = "merge_proof.json"
WEIGHTS = "weights_sha256"  # in the proof: of the files of the merged model; in BASE_FILE: of all tensors of the base
BASE_FILE = "proof_base.json"


def hashes_of_weights(folder: Path) -> dict[str, str]:
    """Return the sha256 of the files that hold a model's weights."""
    return {path.name: sha256(path) for path in weight_files(folder)}


def check_weights(folder: Path) -> None:
    """Check the weights of a merged model against its proof; a folder without one is not judged.

    Raises:
        CheckpointError: a file is gone or has changed.
    """
    path = folder / PROOF_FILE
    recorded = read_json(path).get(WEIGHTS) if path.is_file() else None
    for name, expected in (recorded if isinstance(recorded, dict) else {}).items():
        file = inside(folder, name)
        if not file.is_file() or sha256(file) != expected:
            raise CheckpointError(
                f"{file} is {'damaged' if file.is_file() else 'missing'}: {PROOF_FILE} has another sha256",
                "merge again: swift export --ckpt_dir CHECKPOINT --merge_lora true --overwrite true",
            )


def check_base_weights(checkpoint: Path, base: Path) -> None:
    """Check every byte of an adapter's base model where the checkpoint keeps its hash, and say where it does not.

    Raises:
        CheckpointError: the base is another one.
    """
    path = checkpoint / BASE_FILE
    if not path.is_file():
        known = (
            "samples of each are compared" if (checkpoint / BASE_NOTE).is_file() else "any that fits is taken"
        )
        log.info(f"{checkpoint} keeps no hash of all weights of its base model: {known}")
        return
    found, expected = weights_hash(base), read_json(path).get(WEIGHTS)
    if found != expected:
        raise CheckpointError(
            f"the weights of {base} are not those that the adapter was trained on: sha256 {found[:12]}, "
            f"{BASE_FILE} has {str(expected)[:12]}",
            "restore the base model, or give the one it was trained on with --model_id_or_path",
        )
