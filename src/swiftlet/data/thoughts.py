"""How a chat template prints what is thought before an answer, and where in what a model wrote the answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swiftlet.data.columns import REASONING_KEYS
from swiftlet.data.endmarkers import ANSWER, QUESTION, THOUGHTFUL, EndMarkers
from swiftlet.data.rendering import TemplateError
from swiftlet.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Thoughts:
    """What a template prints around a thought.

    Args:
        opening: between the prompt and a thought, '' where the prompt has it.
        closing: between a thought and its answer, or the end of that where it opens an answer without a thought too;
            '' where the template prints no thoughts.
        markers: the tokens that end an answer and stand between a thought and its answer too.
    """

    tokenizer: Tokenizer
    opening: str
    closing: str
    markers: tuple[int, ...]

    def answer(self, ids: Sequence[int]) -> str | None:
        """Return the text of what a model wrote behind its thought, None where no answer is opened in it."""
        if not self.closing:
            return None
        _, found, answer = self.tokenizer.decode(ids).rpartition(self.closing)
        return self.tokenizer.control_pattern.sub("", answer).strip() if found else None

    def ends_answer(self, ids: Sequence[int]) -> bool:
        """Return whether what a model wrote ends with a marker that ends its answer, and not a thought before it."""
        if not ids or ids[-1] not in self.markers or not self.opening:
            return False
        start = next((at for at in range(len(ids) - 1, 0, -1) if ids[at - 1] in self.markers), 0)
        return self.opening not in self.tokenizer.decode(ids[start:])


def thoughts_of(end_markers: EndMarkers) -> Thoughts:
    """Return how a template prints thoughts."""
    tokenizer, renderer = end_markers.tokenizer, end_markers.locator.renderer
    thought, answer = THOUGHTFUL[REASONING_KEYS[0]], THOUGHTFUL["content"]
    try:
        text = renderer.render([QUESTION, THOUGHTFUL], end_markers.plain_tools)
        plain = renderer.render([QUESTION, {**ANSWER, "content": answer}], end_markers.plain_tools)
        prompt = renderer.render([QUESTION], end_markers.plain_tools, generation_prompt=True)
    except TemplateError:
        return Thoughts(tokenizer, "", "", ())
    before, _, behind = text.partition(thought)
    closing, found, _ = behind.partition(answer)
    if not found or not closing.strip():
        return Thoughts(tokenizer, "", "", ())
    opening = before.removeprefix(prompt).strip() if before.startswith(prompt) else ""
    shared = {token for token in end_markers.plain_ids if tokenizer.decode([token]) in closing}
    closing = closing.strip()
    header = plain.partition(answer)[0].removeprefix(prompt).strip() if plain.startswith(prompt) else ""
    if header and closing.endswith(header):  # gpt-oss names a channel before every answer
        closing = header
    return Thoughts(tokenizer, opening, closing, tuple(sorted(shared)))
