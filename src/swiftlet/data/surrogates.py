"""Half of a surrogate pair in a text: JSON may hold one, UTF-8 and so a tokenizer cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from swiftlet.data.chat import THOUGHT
from swiftlet.data.columns import OURS
from swiftlet.data.names import named
from swiftlet.data.reasons import RowFault
from swiftlet.data.rows import Sample


def check_text(sample: Sample, row: Mapping[str, Any]) -> None:
    """Make sure that the text can be written as UTF-8, as tokenizers need it.

    Raises:
        RowFault: it holds half of a surrogate pair.
    """
    try:
        if sample.text is not None:
            sample.text.encode()
        for message in sample.messages:
            (message["content"] + message.get(THOUGHT, "")).encode()
        if sample.tools or any("tool_calls" in message for message in sample.messages):
            # as a whole, so that what is nested too deep for the hash of the row is found here
            json.dumps([sample.messages, sample.tools], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        what = "half of a surrogate pair (\\ud800 to \\udfff), which UTF-8 cannot hold"
        raise RowFault("surrogate", f"{_place_of_surrogate(sample, row)}: {what}") from None


def _place_of_surrogate(sample: Sample, row: Mapping[str, Any]) -> str:
    for name, value in row.items():
        if name in OURS and isinstance(value, str) and _has_surrogate(value):
            return f"column {named(row, name)}"
    for number, message in enumerate(sample.messages):
        if _has_surrogate(list(message.values())):
            return f"turn {number} ({message['role']})"
    return "tools"


def _has_surrogate(value: Any) -> bool:
    return re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False, default=str)) is not None
