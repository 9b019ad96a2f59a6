"""Where each assistant turn begins and ends in a rendered conversation.

A turn's span is its content as rendered and the end marker that the template prints after it, with the white space
between them. Of tool calls the name is found like a content; what the template prints behind the last one belongs to
the marker's side of the turn.

What was thought before an answer, where the template prints it from a key of its own, is part of its turn, with all
that stands between the two: from where the model begins to write, every token is its own.

A turn also has the place where the model would begin to write: the end of the generation prompt. Between it and the
content may stand a scaffold, such as an empty <think> block, which is printed but not part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from swiftlet.data.endmarkers import ANSWER, QUESTION, Around, Closing, EndMarkers, tail
from swiftlet.data.rendering import LEAVE_OUT_OR_CHANGE, TemplateError
from swiftlet.data.skeleton import Conversation, Skeleton, Turn, fill, learn, shape_of
from swiftlet.data.spans import Located, Locator, Messages, Region

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

    def unprinted_prompt(self) -> str:
        """Return what the prompt for an answer ends with and a plain answer has not before it, such as a tag that opens
        thoughts; '' where there is no such text.
        """
        header, opening = self._header([QUESTION], None, ""), self._opening([QUESTION], None)
        if header is None or opening is None or opening.startswith(header):
            return ""
        shared = opening.rstrip()
        if not header.startswith(shared):
            shared = self.end_markers.common(header, opening)
        return header[len(shared) :].strip()

    def _search(self, messages: Messages, tools: list[Any] | None, prompt: bool) -> Conversation:
        located = self.locator.locate(messages, tools, prompt=prompt)
        occupied = sorted(region for number in range(len(messages)) for region in located.printed(number))
        turns: list[Turn] = []
        append: str | None = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            inside, calls = located.regions[number], message.get("tool_calls") or ()
            if not inside and not calls:
                continue
            self._check_calls(located, number, len(calls))
            before = messages[:number]
            begin, start = self._begin(before, tools, located, inside, occupied)
            content_end = located.printed(number)[-1].end
            following = min(
                (region.start for region in occupied if region.start >= content_end), default=None
            )
            is_last = number == len(messages) - 1 and not prompt
            after = located.text[content_end:following]
            upto = located.text[:content_end]
            marker, append = self._marker(messages, number, tools, Around(upto, after, is_last))
            turn = Turn(number, begin, start, content_end, content_end + len(marker))
            turns += self._parts(turn, located, before, tools) if calls else [turn]
        _check_order(turns)
        return Conversation(located.text, located, turns, append)

    def _parts(
        self, turn: Turn, located: Located, before: Messages, tools: list[Any] | None
    ) -> Iterator[Turn]:
        """Yield a turn in parts where the template ends the answer before a call, or behind one, and opens another.

        The header between them is no part of what the model writes.
        """
        marker = self.end_markers.plain.middle.strip()
        own = located.printed(turn.message)[len(located.thought(turn.message)) :]
        for region, following in pairwise(own if marker else []):
            upto, found, behind = located.text[region.end : following.start].partition(marker)
            opening = self._opening(before, tools) if found else None
            rest = behind.lstrip()
            token = self.end_markers.tokenizer.added_pattern.match(rest)
            _, opens, name = (opening or "").partition(token.group() if token else "\0")
            header = self.end_markers.common(opens + name, rest)
            if found and header:
                end = region.end + len(upto + found)
                yield Turn(turn.message, turn.begin, turn.start, region.end, end)
                begin = following.start - len(rest) + len(header)
                turn = turn._replace(begin=begin, start=begin)
        yield turn

    def _check_calls(self, located: Located, number: int, num_calls: int) -> None:
        """Refuse a turn whose tool calls are not all printed, or cannot be found.

        Raises:
            TemplateError: so it is.
        """
        name, turn = self.locator.renderer.name, f"turn {number}"
        if num_calls and located.calls is None:
            raise TemplateError(
                f"cannot tell where the tool calls of {turn} stand in the text of chat template {name!r}",
                LEAVE_OUT_OR_CHANGE,
            )
        if num_calls > len((located.calls or {}).get(number, [])):
            raise TemplateError(
                f"chat template {name!r} does not print all tool calls of {turn}", LEAVE_OUT_OR_CHANGE
            )
        own = located.printed(number)
        later = (region for others in located.regions[number + 1 :] for region in others)
        if num_calls and any(own[0].start < region.start < own[-1].start for region in later):
            raise TemplateError(
                f"chat template {name!r} prints the text of {turn} behind the results of its calls",
                LEAVE_OUT_OR_CHANGE,
            )

    def _begin(
        self,
        before: Messages,
        tools: list[Any] | None,
        located: Located,
        inside: list[Region],
        occupied: list[Region],
    ) -> tuple[int, int]:
        """Return where the model would begin to write, the end of the generation prompt if it is printed, and where
        the answer begins: its content, or beside calls what a content alone would have the place of, as a call may
        begin before the text beside it. A thought before it begins where the model begins to write.
        """
        number = len(before)
        thought = located.thought(number)
        is_thoughtful = bool(thought) and thought[0] == located.printed(number)[0]
        is_text_first = bool(inside) and inside[0] == located.printed(number)[0]
        if is_text_first:
            limit = inside[0].start
            floor = max((region.end for region in occupied if region.end <= limit), default=0)
        else:
            # a template may print an earlier message behind this turn, as Mistral's do with the system message
            called = located.printed(number)[0].start
            earlier = (region for other in range(number) for region in located.printed(other))
            floor = max((region.end for region in earlier if region.end <= called), default=0)
            limit = min(
                (region.start for region in occupied if region.start >= floor), default=len(located.text)
            )
        before_text = located.text[floor:limit]
        header = self._header(before, tools, located.text[:floor])
        begin = floor + len(header) if header is not None and before_text.startswith(header) else None
        if is_text_first and len(inside) == len(located.printed(number)):
            return limit if begin is None else begin, limit
        if is_text_first and begin == limit:  # nothing stands between the prompt and the text
            return begin, limit
        if is_thoughtful and begin is None and (header or "").startswith(before_text):
            begin = limit  # the prompt opens a thought and ends it
        if is_thoughtful and begin is not None:
            return begin, begin
        opening = self._opening(before, tools)
        if opening is not None and before_text.startswith(opening):
            start = floor + len(opening)
            return start if begin is None else min(begin, start), start
        if is_text_first:
            return limit if begin is None else begin, limit
        if begin is None:
            # the prompt goes on with what is not printed here, such as a tag that opens thoughts
            shared = len(self.end_markers.common(header or "", before_text))
            begin = floor + shared if shared else None
        if begin is None and is_thoughtful:
            begin = limit
        if begin is not None:
            return begin, begin
        raise TemplateError(
            f"cannot tell where the calls of turn {number} begin: chat template {self.locator.renderer.name!r} prints "
            "no header of an answer before them",
            LEAVE_OUT_OR_CHANGE,
        )

    def _header(self, before: Messages, tools: list[Any] | None, printed: str) -> str | None:
        """Return the generation prompt after the messages `before`, None where the template asks for no answer there.

        Args:
            printed: what is known to be printed of these messages; where the prompt stands behind it, one rendering
                does.
        """
        try:
            text = self.locator.render(before, tools, prompt=True)
            if printed and text.startswith(printed):
                return text[len(printed) :]
            return tail(self.locator.locate(before, tools, prompt=True))
        except TemplateError:
            return None

    def _opening(self, before: Messages, tools: list[Any] | None) -> str | None:
        """Return what stands before the content of an answer that ends the conversation, None if it cannot be told."""
        try:
            located = self.locator.locate([*before, ANSWER], tools)
        except TemplateError:
            return None
        inside = located.regions[-1]
        ends = [region.end for number in range(len(before)) for region in located.printed(number)]
        return located.text[max(ends, default=0) : inside[0].start] if inside else None

    def _marker(
        self, messages: Messages, number: int, tools: list[Any] | None, around: Around
    ) -> tuple[str, str | None]:
        """Return the end marker behind a content, and what to append where it is missing."""
        _, after, is_last = around
        roles = tuple((m["role"], bool(m.get("tool_calls"))) for m in messages[: number + 2])
        key = (roles, is_last, bool(tools))
        has_calls = bool(messages[number].get("tool_calls"))
        closing = None if has_calls else self.closings.get(key)
        if closing is None or not after.startswith(closing.last if is_last else closing.middle):
            closing = self.end_markers.of(messages, number, tools, around)
            if not has_calls:
                self.closings[key] = closing
        marker = closing.last if is_last else closing.middle
        if has_calls:
            marker, append = self._behind_calls(marker, is_last)
            is_open = is_last and not append and self._is_open(messages, number, tools, marker)
            return marker, self.end_markers.plain.last if is_open else append
        if marker or not is_last:
            return marker, ""
        return marker, closing.middle or None

    def _behind_calls(self, marker: str, is_last: bool) -> tuple[str, str | None]:
        """Return what follows the last name in a call and belongs to the turn, and what to append where no marker does.

        Raises:
            TemplateError: nothing follows, and so it cannot be told where the call ends.
        """
        if not marker.strip():
            raise TemplateError(
                f"cannot tell where a tool call ends in chat template {self.locator.renderer.name!r}",
                LEAVE_OUT_OR_CHANGE,
            )
        plain = self.end_markers.plain
        if (
            not is_last
            or plain.last.strip()
            or (plain.middle.strip() and marker.rstrip().endswith(plain.middle.strip()))
        ):
            return marker, ""
        return marker, plain.middle or None

    def _is_open(self, messages: Messages, number: int, tools: list[Any] | None, marker: str) -> bool:
        """Return whether a template that ends the last answer with its marker leaves it out behind one tool call alone.

        Others end calls with another token; so it counts only where the marker is there behind two calls.
        """
        end, calls = self.end_markers.plain.last.strip(), messages[number]["tool_calls"]
        if len(calls) > 1 or not end or marker.rstrip().endswith(end):
            return False
        twice = [*messages[:number], {**messages[number], "tool_calls": [*calls, *calls]}]
        return self.end_markers.of(twice, number, tools).last.rstrip().endswith(end)


def _check_order(turns: Sequence[Turn]) -> None:
    done = 0
    for turn in turns:
        if not done <= turn.begin <= turn.start <= turn.content_end <= turn.end:
            raise TemplateError(
                "the answers stand in another order in the text than in the conversation", LEAVE_OUT_OR_CHANGE
            )
        done = turn.end
