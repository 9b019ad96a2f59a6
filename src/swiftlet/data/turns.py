"""Where each assistant turn begins and ends in a rendered conversation.

A turn's span is its content as rendered and the end marker that the template prints after it, with the white space
between them. What the template prints of a turn beyond its content, such as tool calls, belongs to the marker's side
of it.

A turn also has the place where the model would begin to write: the end of the generation prompt. Between it and the
content may stand a scaffold, such as an empty <think> block, which is printed but not part of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from swiftlet.data.endmarkers import Closing, EndMarkers, tail
from swiftlet.data.rendering import TemplateError
from swiftlet.data.skeleton import Conversation, Skeleton, Turn, fill, learn, shape_of
from swiftlet.data.spans import Located, Locator, Messages, Region

_LEAVE_OUT = "leave such rows out with --bad_rows skip, or choose another template with --template_type"
_MOST_SHAPES, _MOST_SKELETONS = 4096, 4


@dataclass(frozen=True)
class TurnFinder:
    """Finds the assistant turns in the renderings of one template."""

    locator: Locator
    end_markers: EndMarkers
    closings: dict[tuple[Any, ...], Closing] = field(default_factory=dict)
    skeletons: dict[tuple[object, ...], list[Skeleton]] = field(default_factory=dict)

    def find(
        self, messages: Messages, tools: list[Any] | None = None, *, prompt: bool = False
    ) -> Conversation:
        """Render a conversation, with the generation prompt or without, and find its assistant turns.

        Raises:
            TemplateError: it cannot be rendered, or it cannot be told where its answers stand.
        """
        shape = None if tools else shape_of(messages, prompt=prompt)
        known = [] if shape is None else self.skeletons.get(shape, [])
        if known:
            text = self.locator.render(messages, tools, prompt=prompt)
            for skeleton in known:
                filled = fill(skeleton, messages, text)
                if filled is not None:
                    return filled
        conversation = self._search(messages, tools, prompt)
        skeleton_found = learn(conversation, messages)
        if shape is not None and skeleton_found is not None and len(self.skeletons) < _MOST_SHAPES:
            self.skeletons[shape] = [skeleton_found, *known[: _MOST_SKELETONS - 1]]
        return conversation

    def _search(self, messages: Messages, tools: list[Any] | None, prompt: bool) -> Conversation:
        located = self.locator.locate(messages, tools, prompt=prompt)
        occupied = sorted(region for regions in located.regions for region in regions)
        turns: list[Turn] = []
        append: str | None = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            inside = located.regions[number]
            if not inside and not message.get("tool_calls"):
                continue
            before = messages[:number]
            begin = self._begin(before, tools, located, inside, occupied)
            start, content_end = (inside[0].start, inside[-1].end) if inside else (begin, begin)
            following = min(
                (region.start for region in occupied if region.start >= content_end), default=None
            )
            is_last = number == len(messages) - 1 and not prompt
            after = located.text[content_end:following]
            marker, append = self._marker(messages, number, tools, after, is_last)
            turns.append(Turn(number, begin, start, content_end, content_end + len(marker)))
        _check_order(turns)
        return Conversation(located.text, located, turns, append)

    def _begin(
        self,
        before: Messages,
        tools: list[Any] | None,
        located: Located,
        inside: list[Region],
        occupied: list[Region],
    ) -> int:
        """Return where the model would begin to write: the end of the generation prompt, if it is printed here."""
        number = len(before)
        try:
            prompt = self.locator.locate(before, tools, prompt=True)
        except TemplateError:
            prompt = None
        if inside:
            limit = inside[0].start
            floor = max((region.end for region in occupied if region.end <= limit), default=0)
        else:
            floor = max((region.end for regions in located.regions[:number] for region in regions), default=0)
            limit = min(
                (region.start for region in occupied if region.start >= floor), default=len(located.text)
            )
        if prompt is not None:
            header = tail(prompt)
            if located.text[floor:limit].startswith(header):
                return floor + len(header)
        if inside:
            return limit
        raise TemplateError(
            f"cannot tell where an answer without text begins in chat template {self.locator.renderer.name!r}",
            _LEAVE_OUT,
        )

    def _marker(
        self, messages: Messages, number: int, tools: list[Any] | None, after: str, is_last: bool
    ) -> tuple[str, str | None]:
        """Return the end marker in `after`, the text behind a content, and what to append where it is missing."""
        roles = tuple((m["role"], bool(m.get("tool_calls"))) for m in messages[: number + 2])
        key = (roles, is_last, bool(tools))
        has_calls = bool(messages[number].get("tool_calls"))
        closing = None if has_calls else self.closings.get(key)
        if closing is None or not after.startswith(closing.last if is_last else closing.middle):
            closing = self.end_markers.of(messages, number, tools, after, is_last)
            if not has_calls:
                self.closings[key] = closing
        marker = closing.last if is_last else closing.middle
        if marker or not is_last:
            return marker, ""
        return marker, closing.middle or None


def _check_order(turns: Sequence[Turn]) -> None:
    done = 0
    for turn in turns:
        if not done <= turn.begin <= turn.start <= turn.content_end <= turn.end:
            raise TemplateError(
                "the answers stand in another order in the text than in the conversation", _LEAVE_OUT
            )
        done = turn.end
