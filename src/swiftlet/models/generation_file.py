"""What of a model's generation_config.json is used: nothing that answers in another way or returns more than tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swiftlet import log
from swiftlet.errors import SwiftletError, first_line
from swiftlet.models.safety import GENERATION_CONFIG, inside, read_json, without_code_fields

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Each takes a tokenizer, a second model, more memory or a clock, or changes the shape of what generate returns.
NOT_USED = (
    "assistant_early_exit constraints dola_layers force_words_ids is_assistant max_time num_return_sequences "
    "output_attentions output_hidden_states output_logits output_scores penalty_alpha prompt_lookup_num_tokens "
    "return_dict_in_generate stop_strings token_healing"
).split()
# The flags of generation decide these alone: of what a model adds to them, some would change the sampling unseen, the
# others are of beams, or a second limit that every call would be warned of.
DECIDED_BY_FLAGS = (
    "temperature top_k top_p top_h min_p typical_p epsilon_cutoff eta_cutoff max_length num_beams num_beam_groups "
    "diversity_penalty early_stopping length_penalty"
).split()


def end_ids(eos_token_id: int | list[int] | None) -> list[int]:
    """Return the tokens that end an answer by a model's own settings, such as one behind the call of a tool."""
    return eos_token_id if isinstance(eos_token_id, list) else [] if eos_token_id is None else [eos_token_id]


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Return how a model says that it answers, without what is not used here; None where it says nothing.

    Raises:
        SwiftletError: the file is damaged.
    """
    from transformers import GenerationConfig

    if not (folder / GENERATION_CONFIG).is_file():
        return None
    fields = without_code_fields(read_json(inside(folder, GENERATION_CONFIG)))
    found = {name: fields.pop(name, None) for name in NOT_USED}
    odd = [name for name, value in found.items() if value and (name, value) != ("num_return_sequences", 1)]
    if odd:
        hint = "; --stop_words ends answers at a text" if "stop_strings" in odd else ""
        log.warning(f"{folder / GENERATION_CONFIG}: {', '.join(odd)} not used here{hint}")
    try:
        return GenerationConfig.from_dict(
            {name: value for name, value in fields.items() if name not in DECIDED_BY_FLAGS}
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise SwiftletError(
            f"{folder / GENERATION_CONFIG} is damaged: {first_line(error)}",
            "get the file again from where the model came",
        ) from error
