"""Tool descriptions and tool calls in the shape that chat templates expect; objects, or the same as JSON text."""

from __future__ import annotations

from typing import Any

from swiftlet.data.hints import NUM_NAMES
from swiftlet.data.jsonlines import JsonReader
from swiftlet.data.names import shown
from swiftlet.data.reasons import RowFault

# what tells an object that describes a tool from one that holds descriptions under their names
KINDS_OF_TOOL = frozenset({"name", "function", "type"})


def parsed(value: Any, what: str) -> Any:
    """Return `value`, read as JSON when it is a text.

    Raises:
        RowFault: it is a text and no JSON, or an object in it has a key twice.
    """
    if not isinstance(value, str):
        return value
    reader = JsonReader()
    try:
        read = reader.read(value)
    except RecursionError:
        raise RowFault("nesting", f"{what} is nested too deep") from None
    except ValueError:
        raise RowFault("schema", f"{what} is a text that is not JSON") from None
    if fault := reader.fault():
        raise RowFault("repeated_key", f"{what}: {fault}")
    return read


def read_tools(value: Any, what: str = "tools") -> list[Any] | None:
    """Return the descriptions of the tools as `{"type": "function", "function": {...}}`, None when there are none.

    Args:
        what: the column, for messages.

    Raises:
        RowFault: not a list of objects that describe a tool each.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    tools = parsed(value, what)
    tools = [tools] if isinstance(tools, dict) else tools
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise RowFault("schema", f"{what} is not a list")
    found = [parsed(tool, f"{what}[{index}]") for index, tool in enumerate(tools)]
    for index, tool in enumerate(found):
        if not isinstance(tool, dict):
            raise RowFault("schema", f"{what}[{index}] is not an object")
        if KINDS_OF_TOOL.isdisjoint(tool) and tool and all(isinstance(one, dict) for one in tool.values()):
            names = ", ".join(shown(name) for name in sorted(tool)[:NUM_NAMES])
            raise RowFault(
                "schema",
                f"{what}[{index}] holds objects under the names {names} and is no description of a tool; "
                'write tools as [{"name": ..., "description": ..., "parameters": ...}]',
            )
    return [_as_tool(tool) for tool in found] or None


def _as_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a description as `{"type": "function", "function": {...}}`, where it is that of a function alone."""
    is_bare = (
        isinstance(tool.get("name"), str)
        and "function" not in tool
        and tool.get("type", "function") == "function"
    )
    if not is_bare:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def read_calls(value: Any, turn: int) -> list[dict[str, Any]]:
    """Return tool calls as `{"type": "function", "function": {"name", "arguments"}}`, arguments as an object.

    Raises:
        RowFault: not a call, or a list of calls.
    """
    what = f"turn {turn}: tool call"
    calls = parsed(value, what)
    calls = [calls] if isinstance(calls, dict) else calls
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise RowFault("schema", f"{what} is not an object")
    return [_call(parsed(call, what), what) for call in calls]


def _call(call: Any, what: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowFault("schema", f"{what} is not an object")
    function = parsed(call.get("function"), what) if "function" in call else call
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise RowFault("schema", f"{what} has no name")
    arguments = function.get("arguments", function.get("parameters"))
    result: dict[str, Any] = {"type": "function"}
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    result["function"] = {"name": name, "arguments": _arguments(arguments, what)}
    return result


def _arguments(value: Any, what: str) -> Any:
    if value is None:
        return {}
    try:
        read = parsed(value, what)
    except RowFault as fault:
        if fault.reason == "repeated_key":
            raise
        return value  # a text that is no JSON is the argument itself
    return read if isinstance(read, dict) else value
