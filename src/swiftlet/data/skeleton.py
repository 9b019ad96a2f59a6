"""What a template prints around the contents of conversations of one shape, learnt once and proved on every row.

A skeleton is the text between the contents, the places where contents go, and the answers' edges relative to them.
It serves a later conversation with the same roles only if its true rendering is exactly the skeleton filled with its
contents; otherwise that conversation is searched as if none had been seen before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from swiftlet.data.pieces import Messages, Region
from swiftlet.data.spans import Located

_EDGES: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


class Slot(NamedTuple):
    """A place where the content of a message goes; `edges` numbers how its white space is treated."""

    message: int
    edges: int


class Answer(NamedTuple):
    """An answer between two slots: `lead` characters from its begin to its content, `tail` to its end marker's end."""

    message: int
    first: int
    last: int
    lead: int
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
    return (prompt, *((message["role"], bool(message.get("content"))) for message in messages))


def learn(conversation: Conversation, messages: Messages) -> Skeleton | None:
    """Return the skeleton of a conversation; None where a content was altered in more than its edges."""
    text, located = conversation.text, conversation.located
    if located.unknown:
        return None
    placed = sorted((region, number) for number, regions in enumerate(located.regions) for region in regions)
    gaps, slots, done = [], [], 0
    for region, number in placed:
        content = messages[number].get("content") or ""
        printed = text[region.start : region.end]
        edges = next((n for n, treat in enumerate(_EDGES) if treat(content) == printed), None)
        if edges is None or region.start < done:
            return None
        gaps.append(text[done : region.start])
        slots.append(Slot(number, edges))
        done = region.end
    gaps.append(text[done:])
    answers = []
    for turn in conversation.turns:
        own = [index for index, slot in enumerate(slots) if slot.message == turn.message]
        if not own:
            return None
        answers.append(
            Answer(turn.message, own[0], own[-1], turn.start - turn.begin, turn.end - turn.content_end),
        )
    return Skeleton(tuple(gaps), tuple(slots), tuple(answers), conversation.append)


def fill(skeleton: Skeleton, messages: Messages, text: str) -> Conversation | None:
    """Return the conversation that `text` renders if it is the skeleton filled with the contents, else None."""
    parts: list[str] = []
    regions: list[list[Region]] = [[] for _ in messages]
    placed: list[Region] = []
    done = 0
    for gap, (number, edges) in zip(skeleton.gaps, skeleton.slots, strict=False):
        content = _EDGES[edges](messages[number].get("content") or "")
        start = done + len(gap)
        done = start + len(content)
        parts += (gap, content)
        placed.append(Region(start, done))
        regions[number].append(placed[-1])
    parts.append(skeleton.gaps[-1])
    if "".join(parts) != text:
        return None
    turns = [
        Turn(
            number, placed[first].start - lead, placed[first].start, placed[last].end, placed[last].end + tail
        )
        for number, first, last, lead, tail in skeleton.answers
    ]
    return Conversation(text, Located(text, regions, frozenset()), turns, skeleton.append)


def altered_texts(conversation: Conversation, messages: Messages) -> tuple[str, ...]:
    """Return codes for texts that were not printed as they are."""
    found = set()
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
