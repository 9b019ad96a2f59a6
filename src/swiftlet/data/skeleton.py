"""What a template prints around the contents of conversations of one shape, learnt once and proved on every row.

A skeleton is the text between the contents, the places where contents go, and the answers' edges relative to them.
It serves a later conversation with the same roles only if its true rendering is exactly the skeleton filled with its
contents; otherwise that conversation is searched as if none had been seen before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from swiftlet.data.chat import THOUGHT
from swiftlet.data.pieces import Messages, Region, texts_of
from swiftlet.data.spans import Located

_EDGES: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


class Slot(NamedTuple):
    """A place where text `number` of a conversation goes; `edges` numbers how its white space is treated."""

    number: int
    edges: int


class Answer(NamedTuple):
    """An answer between two slots: `lead` characters from its begin to the first and `opening` from its start, `tail`
    from the last one to its end marker's end.
    """

    message: int
    first: int
    last: int
    lead: int
    opening: int
    tail: int


class Turn(NamedTuple):
    """An assistant turn: characters [start, end) are trained on, the model begins to write at `begin` <= start."""

    message: int
    begin: int
    start: int
    content_end: int
    end: int


class Conversation(NamedTuple):
    """A rendered conversation: where its contents stand, its assistant turns, and what to append to it.

    `append` is the text of an end marker that the template leaves out after the last turn; '' where it prints one;
    None where it never prints any.
    """

    text: str
    located: Located
    turns: list[Turn]
    append: str | None


class Skeleton(NamedTuple):
    """The texts between the slots (one more than there are slots), the slots in order, and the answers."""

    gaps: tuple[str, ...]
    slots: tuple[Slot, ...]
    answers: tuple[Answer, ...]
    append: str | None


def shape_of(messages: Messages, *, prompt: bool) -> tuple[object, ...] | None:
    """Return what conversations that may share a skeleton have in common; None where none should be shared."""
    if any(message.get("tool_calls") for message in messages):
        return None
    return (prompt, *((m["role"], bool(m.get("content")), bool(m.get(THOUGHT))) for m in messages))


def learn(conversation: Conversation, messages: Messages) -> Skeleton | None:
    """Return the skeleton of a conversation; None where a content was altered in more than its edges."""
    text, located, texts = conversation.text, conversation.located, texts_of(messages)
    if located.unknown:
        return None
    placed = sorted((region, number) for number, regions in enumerate(located.texts()) for region in regions)
    gaps, slots, done = [], [], 0
    for region, number in placed:
        printed = text[region.start : region.end]
        edges = next((n for n, treat in enumerate(_EDGES) if treat(texts[number]) == printed), None)
        if edges is None or region.start < done:
            return None
        gaps.append(text[done : region.start])
        slots.append(Slot(number, edges))
        done = region.end
    gaps.append(text[done:])
    answers = []
    for turn in conversation.turns:
        own = [n for n, slot in enumerate(slots) if slot.number % len(messages) == turn.message]
        if not own:
            return None
        first = placed[own[0]][0].start
        lead, opening = first - turn.begin, first - turn.start
        answers.append(Answer(turn.message, own[0], own[-1], lead, opening, turn.end - turn.content_end))
    return Skeleton(tuple(gaps), tuple(slots), tuple(answers), conversation.append)


def fill(skeleton: Skeleton, messages: Messages, text: str) -> Conversation | None:
    """Return the conversation that `text` renders if it is the skeleton filled with the contents, else None."""
    parts: list[str] = []
    texts = texts_of(messages)
    regions: list[list[Region]] = [[] for _ in texts]
    placed: list[Region] = []
    done = 0
    for gap, (number, edges) in zip(skeleton.gaps, skeleton.slots, strict=False):
        filling = _EDGES[edges](texts[number])
        start = done + len(gap)
        done = start + len(filling)
        parts += (gap, filling)
        placed.append(Region(start, done))
        regions[number].append(placed[-1])
    parts.append(skeleton.gaps[-1])
    if "".join(parts) != text:
        return None
    turns = [
        Turn(number, start - lead, start - opening, end, end + tail)
        for number, first, last, lead, opening, tail in skeleton.answers
        for start, end in [(placed[first].start, placed[last].end)]
    ]
    own, thoughts = regions[: len(messages)], regions[len(messages) :]
    return Conversation(text, Located(text, own, frozenset(), None, thoughts), turns, skeleton.append)


def altered_texts(conversation: Conversation, messages: Messages) -> tuple[str, ...]:
    """Return codes for texts that were not printed as they are."""
    found = set()
    thoughts = [number for number, message in enumerate(messages) if message.get(THOUGHT)]
    left_out = [number for number in thoughts if not conversation.located.thought(number)]
    if left_out:
        found.add("reasoning_unused" if left_out == thoughts else "reasoning_left_out")
    for number, message in enumerate(messages):
        content = message.get("content") or ""
        if number in conversation.located.unknown or not content.strip():
            continue
        printed = [
            conversation.text[region.start : region.end] for region in conversation.located.regions[number]
        ]
        who = "answer" if message["role"] == "assistant" else "prompt"
        if not printed:
            found.add(f"{who}_left_out")
        elif content not in printed:
            found.add(
                f"{who}_stripped"
                if content.strip() in (text.strip() for text in printed)
                else f"{who}_altered"
            )
    return tuple(sorted(found))
