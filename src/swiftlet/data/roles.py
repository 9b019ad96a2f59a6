"""Who speaks: the role names of public formats and the orders of turns that a chat can have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from swiftlet.data.columns import SPEAKERS
from swiftlet.data.names import flag
from swiftlet.data.reasons import RowFault

SYSTEM, USER, ASSISTANT, TOOL, CALL = "system", "user", "assistant", "tool", "call"

ROLES: Mapping[str, str] = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "tool": TOOL,
    "function": TOOL,
    "observation": TOOL,
    "tool_response": TOOL,
    "function_response": TOOL,
    "ipython": TOOL,
    "function_call": CALL,
    "tool_call": CALL,
}
MOST_ROLES = 4
_SHORT_NAME = re.compile(r"[\w .-]{1,24}")
# what every notation has that writes a call into the text of an answer: <tool_call>, {"name": ...}, Action: f, f(x)
_CALL_IN_TEXT = re.compile(r"[<{\[(`:：（【]")

# which role may stand before which; None is the start
_BEFORE: Mapping[str, tuple[str | None, ...]] = {
    SYSTEM: (None,),
    USER: (None, SYSTEM, ASSISTANT),
    ASSISTANT: (USER, TOOL),
    TOOL: (ASSISTANT, TOOL),
}


def role_of(name: Any, turn: int) -> str:
    """Return our role for the name in the data.

    Raises:
        RowFault: the name is no text, or no known role.
    """
    if not isinstance(name, str):
        raise RowFault("schema", f"turn {turn}: the role is not a text")
    if name in ROLES:
        return ROLES[name]
    near = _near(name)
    meant = f" (did you mean {near[0]}?)" if near else ""
    if not _SHORT_NAME.fullmatch(name):
        raise RowFault("role_unknown", f"turn {turn}: unknown role{meant}")
    ours = ROLES[near[0]] if near else ASSISTANT if turn else USER
    others = "" if near else f" (or {', '.join(one for one in SPEAKERS if one != ours)})"
    remedy = f"; name it with {flag(name, ours)}{others}" if ours in (SYSTEM, *SPEAKERS) else ""
    raise RowFault("role_unknown", f'turn {turn}: unknown role "{name}"{meant}{remedy}')


def _near(name: str) -> list[str]:
    return difflib.get_close_matches(name.strip().lower()[:40], ROLES, n=1, cutoff=0.8)


def other_roles(turns: Sequence[Any], turn: int, columns: Mapping[str, str]) -> str:
    """Return the flags for the unknown roles of the turns behind one that has a fault, '' where all are known.

    Args:
        columns: what roles are called already, theirs -> ours.
    """
    known = {*ROLES, *columns, *_names(turns[turn])}
    unknown = [name for one in turns[turn + 1 :] for name in _names(one) if name not in known]
    short = [name for name in dict.fromkeys(unknown) if _SHORT_NAME.fullmatch(name)]
    meant = {name: ROLES[near[0]] if (near := _near(name)) else ASSISTANT for name in short[:MOST_ROLES]}
    flags = [flag(name, ours) for name, ours in meant.items() if ours in (SYSTEM, *SPEAKERS)]
    return f"; other roles with {' '.join(flags)}" if flags else ""


def _names(turn: Any) -> list[str]:
    names = [turn.get(key) for key in ("role", "from")] if isinstance(turn, dict) else []
    return [name for name in names if isinstance(name, str)]


def check_order(messages: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that the turns alternate as in a chat that ends with an answer.

    Raises:
        RowFault: two neighbours of one role, a system turn behind the first, no answer at the end, ...
    """
    before: str | None = None
    for turn, message in enumerate(messages):
        role = message["role"]
        if before not in _BEFORE[role] or (
            role == TOOL and before == ASSISTANT and not _may_call(messages[turn - 1])
        ):
            raise RowFault("role_order", _disorder(turn, before, role))
        before = role
    if before == USER:
        raise RowFault("no_answer", "the conversation ends with a user turn: no answer to learn")
    if before == TOOL:
        raise RowFault("no_answer", "the conversation ends with a tool result: no answer after it")
    if before == SYSTEM:
        raise RowFault("no_answer", "only a system turn")


def _may_call(answer: Mapping[str, Any]) -> bool:
    return "tool_calls" in answer or _CALL_IN_TEXT.search(answer["content"]) is not None


def _disorder(turn: int, before: str | None, role: str) -> str:
    if role == SYSTEM:
        return (
            f"turn {turn}: a second system turn"
            if before == SYSTEM
            else f"turn {turn}: a system turn in the middle"
        )
    if role == TOOL:
        return f"turn {turn}: a tool result without a call before it"
    if role == before:
        return f"turns {turn - 1} and {turn} are both {role}"
    if role == ASSISTANT:
        return f"turn {turn}: the conversation starts with the assistant"
    return f"turn {turn}: {role} behind {before}"
