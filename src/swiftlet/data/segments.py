"""A rendered conversation to token ids and labels.

The text is cut where the model begins to write and where each answer ends, and each segment is tokenised for itself:
so the ids before an answer are those that the model is given at inference, whatever the answer begins with, and the
conversation up to any answer is a prefix of the whole. A segment continues the one before it: where the tokenizer
puts a space before a text, the segment is tokenised behind the end of the one before it, and that is taken off.

A scaffold before the content is a segment of its own, which is not trained on, but for spaces at its end: they stay
with the content, because a vocabulary may join them to the first word. Of that segment a token is trained on if it
stands for at least one character of the span.

Only what the template printed can be a control token: where a content spells one, it becomes ordinary pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from swiftlet.data.pieces import Region, texts_of
from swiftlet.data.rendering import LEAVE_OUT, TemplateError
from swiftlet.data.rows import IGNORE_INDEX
from swiftlet.data.skeleton import Conversation, Turn
from swiftlet.data.tokenizer import Pieces, Span, Tokenizer

_NOTHING = np.empty(0, np.int32)
_OTHER_TEXTS = ("tool_calls", "name", "tool_call_id")


class Segment(NamedTuple):
    """Characters [start, end) that are tokenised together; those from `trained` on are trained on, if not None."""

    start: int
    end: int
    trained: int | None


def encode_conversation(
    tokenizer: Tokenizer,
    conversation: Conversation,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and labels of a rendered conversation, int32; turns with `loss: false` have none.

    Raises:
        TemplateError: a text cannot be encoded, or spells a control token that cannot be told from the template's.
    """
    printed = _printed_control(tokenizer, conversation, messages, tools)
    parts = [_NOTHING]
    untrained: list[slice | np.ndarray] = []
    num_tokens = 0
    for segment in cut_segments(tokenizer, conversation, messages):
        if printed is None and not segment.trained and (segment.start == 0 or not tokenizer.adds_prefix):
            ids = tokenizer.encode_array(conversation.text[segment.start : segment.end])
            ends: list[int] = []
        else:
            pieces = _encode_segment(tokenizer, conversation.text, segment, printed)
            ids, ends = np.asarray(pieces.ids, np.int32), [end for _, end in pieces.offsets]
        if segment.trained is None:
            untrained.append(slice(num_tokens, num_tokens + len(ids)))
        elif segment.trained:
            untrained.append(num_tokens + np.flatnonzero(np.asarray(ends) <= segment.trained))
        parts.append(ids)
        num_tokens += len(ids)
    input_ids = np.concatenate(parts)
    labels = input_ids.copy()
    for places in untrained:
        labels[places] = IGNORE_INDEX
    return input_ids, labels


def cut_segments(
    tokenizer: Tokenizer, conversation: Conversation, messages: Sequence[Mapping[str, Any]]
) -> Iterator[Segment]:
    """Yield the segments of a conversation in order; `trained` counts from the segment's start."""
    done = 0
    for turn in conversation.turns:
        scaffold = conversation.text[turn.begin : turn.start]
        spaces = len(scaffold) - len(scaffold.rstrip(" "))
        first = turn.start - spaces
        for start, border in ((done, turn.begin), (turn.begin, first)):
            if border > start:
                yield Segment(start, border, None)
        end = _after_greedy_token(tokenizer, conversation, turn)
        is_trained = messages[turn.message].get("loss") is not False
        yield Segment(first, end, spaces if is_trained else None)
        done = end
    if done < len(conversation.text):
        yield Segment(done, len(conversation.text), None)


def _after_greedy_token(tokenizer: Tokenizer, conversation: Conversation, turn: Turn) -> int:
    """Return the turn's end, behind the white space that belongs to its last token, as some vocabularies say."""
    if not tokenizer.has_greedy:
        return turn.end
    text = conversation.text
    tokens = [
        text[found.start() : found.end()]
        for found in tokenizer.added_pattern.finditer(text, turn.content_end, turn.end)
    ]
    if (
        not tokens
        or not text.endswith(tokens[-1], turn.content_end, turn.end)
        or not tokenizer.added[tokens[-1]].rstrip
    ):
        return turn.end
    following = (region.start for regions in conversation.located.texts() for region in regions)
    limit = min((start for start in following if start >= turn.end), default=len(text))
    rest = text[turn.end : limit]
    return turn.end + len(rest) - len(rest.lstrip())


def _printed_control(
    tokenizer: Tokenizer,
    conversation: Conversation,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None,
) -> list[Span] | None:
    """Return where the template itself printed control tokens; None where no text of the row spells any.

    Raises:
        TemplateError: a text spells a control token, and its place in the rendered text is not known.
    """
    located = conversation.located
    spelt = [n for n, text in enumerate(texts_of(messages)) if tokenizer.control_pattern.search(text)]
    others = [message[key] for message in messages for key in _OTHER_TEXTS if message.get(key)]
    if (tools or others) and tokenizer.control_pattern.search(
        json.dumps([tools, others], ensure_ascii=False)
    ):
        raise TemplateError(
            "the description of a tool or the call of one spells a control token",
            LEAVE_OUT,
            reason="special_token_in_text",
        )
    if not spelt:
        return None
    if any(number in located.unknown for number in spelt):
        raise TemplateError(
            "a text spells a control token, and it cannot be told where the chat template printed that text",
            LEAVE_OUT,
            reason="special_token_in_text",
        )
    regions = sorted(region for regions in located.texts() for region in regions)
    printed: list[Span] = []
    done = 0
    for region in [*regions, Region(len(conversation.text), len(conversation.text))]:
        found = tokenizer.control_pattern.finditer(conversation.text, done, region.start)
        printed += [match.span() for match in found]
        done = region.end
    return printed


def _encode_segment(tokenizer: Tokenizer, text: str, segment: Segment, printed: list[Span] | None) -> Pieces:
    """Return the ids of a segment as they are behind the text before it; offsets count from its start."""
    if segment.start == 0 or not tokenizer.adds_prefix:
        return _encode(tokenizer, text, segment.start, segment.end, printed)
    for start in _anchors(tokenizer, text, segment.start):
        found = _behind(_encode(tokenizer, text, start, segment.end, printed), segment.start - start)
        if found is not None:
            return found
    ids, offsets = _encode(
        tokenizer,
        "\n" + text[segment.start :],
        0,
        segment.end - segment.start + 1,
        _moved(printed, segment.start - 1),
    )
    found = _behind(Pieces(ids, offsets), 1)
    return found if found is not None else _encode(tokenizer, text, segment.start, segment.end, printed)


def _anchors(tokenizer: Tokenizer, text: str, at: int) -> list[int]:
    """Return where a piece of text may begin that shows what stands before `at`: a control token, or a character."""
    tokens = [
        found.start()
        for found in tokenizer.added_pattern.finditer(text, max(0, at - 64), at)
        if found.end() == at
    ]
    return [tokens[-1]] if tokens else [at - 1]


def _behind(pieces: Pieces, width: int) -> Pieces | None:
    """Take off the first `width` characters; None where a token spans that border."""
    ids, offsets = pieces
    first = next((number for number, (_, end) in enumerate(offsets) if end > width), len(ids))
    if first < len(ids) and offsets[first][0] < width:
        return None
    return Pieces(ids[first:], [(start - width, end - width) for start, end in offsets[first:]])


def _encode(tokenizer: Tokenizer, text: str, start: int, end: int, printed: list[Span] | None) -> Pieces:
    if printed is None:
        return tokenizer.encode_with_offsets(text[start:end])
    inside = [(a - start, b - start) for a, b in printed if a >= start and b <= end]
    return tokenizer.encode_around(inside, text[start:end])


def _moved(printed: list[Span] | None, by: int) -> list[Span] | None:
    return None if printed is None else [(start - by, end - by) for start, end in printed if start - by > 0]
