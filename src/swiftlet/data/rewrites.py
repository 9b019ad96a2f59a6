"""Programs for jq that rewrite rows of layouts that no flag reaches as conversations: `{"messages": [...]}` a row."""

from __future__ import annotations

from typing import Any

from swiftlet.data.guesses import Row, are_texts, are_turns, guess, other_texts
from swiftlet.data.names import by_jq, in_file, key, named

Found = tuple[str, str]  # what a program does, and the program
NONE = ("", "")
MEDIA = frozenset({"image", "audio", "video"})
_PAIR = '{role: "user", content: %s}, {role: "assistant", content: %s}'
_PREFERRED = "{messages: (.input.messages + .preferred_output), tools: .input.tools}"
_CALLING = (
    r'{messages: [{role: "system", content: (.system | ltrimstr("SYSTEM: "))}, (.chat '
    r'| gsub(" *<\\|endoftext\\|>"; "") | splits("\n+(?=(USER|ASSISTANT|FUNCTION RESPONSE): )") '
    r'| capture("^(?<role>[A-Z ]+): (?<content>.*)"; "p") '
    r'| .role |= ({USER: "user", ASSISTANT: "assistant"}[.] // "tool") | .content |= sub("\\s+\\z"; ""))]}'
)
_SEGMENTS = (
    "{messages: [reduce .segments[] as $one ([]; if .[-1].label == $one.label then .[-1].text += $one.text "
    'else . + [$one] end) | .[] | {role: (if .label then "assistant" else "user" end), content: (.text '
    '| gsub("</?s>"; ""))}]}'
)
_STEPS = "select(all(.labels[]; . == true or . == 1)) | {messages: [%s]}"
_ANNOTATED = "first(.annotations[] | select(.was_cancelled != true)) as $one | {messages: [%s]}"
_ANNOTATION = (
    '([$one.result[] | select(.type == "textarea" or .type == "choices") | .value | .text // .choices] | flatten '
    r'| join("\n"))'
)
_TRANSCRIPT = (
    r'{messages: [("\n\n" + %s) | split("\n\nHuman:")[1:][] | split("\n\nAssistant:") | to_entries[] '
    r'| {role: (if .key == 0 then "user" else "assistant" end), content: (.value | ltrimstr(" "))}]}'
)


def rewritten(row: Row) -> str:
    """Return the command that writes a row of a known layout as a conversation, '' for a row of any other."""
    layouts = (_preferences, _transcript_with_calls, _segments, _steps, _annotations, _transcript)
    return next(
        (f"{what}: {by_jq(program)}" for what, program in (layout(row) for layout in layouts) if what), ""
    )


def _preferences(row: Row) -> Found:
    """OpenAI's rows of preferences, whose questions stand in an object."""
    asked = row.get("input")
    if not (
        isinstance(asked, dict)
        and are_turns(asked.get("messages"))
        and are_turns(row.get("preferred_output"))
    ):
        return NONE
    return "learn the preferred answers alone, as written by", _PREFERRED


def _transcript_with_calls(row: Row) -> Found:
    """Glaive's rows: functions in a system text, and turns with calls in one text."""
    chat = row.get("chat")
    if not (
        isinstance(chat, str)
        and isinstance(row.get("system"), str)
        and "USER: " in chat
        and "ASSISTANT: " in chat
    ):
        return NONE
    return "write the transcript as messages, with its functions and calls as text", _CALLING


def _segments(row: Row) -> Found:
    """Axolotl's rows without a template: texts, and whether each is learnt."""
    segments: Any = row.get("segments")
    if not are_turns(segments) or not {"label", "text"} <= segments[0].keys():
        return NONE
    return "write segments with the label true as answers, and the others as questions", _SEGMENTS


def _steps(row: Row) -> Found:
    """Rows of stepwise supervision: the steps of an answer, and whether each is right."""
    steps: Any = row.get("completions")
    labels = row.get("labels")
    is_judged = isinstance(labels, list) and are_texts(steps) and len(labels) == len(steps) > 0
    if not is_judged or not isinstance(row.get("prompt"), str):
        return NONE
    program = _STEPS % (_PAIR % (key(in_file(row, "prompt")), r'(.completions | join("\n"))'))
    return "write the steps as one answer, leaving out rows with a wrong step", program


def _annotations(row: Row) -> Found:
    """Tasks as Label Studio exports them; JSON_MIN, its other export, has a column for each text."""
    data, annotations = row.get("data"), row.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return NONE
    if any(not isinstance(one, dict) or "result" not in one for one in annotations) or not MEDIA.isdisjoint(
        data
    ):
        return NONE
    texts = [guess(data, "query"), guess(data, "text"), *other_texts(data, ())]
    name = next((name for name in texts if name is not None), None)
    if name is None:
        return NONE
    what = "write what was annotated first as the answer, leaving out tasks without an annotation"
    return what, _ANNOTATED % (_PAIR % (f".data{key(name)}", _ANNOTATION))


def _transcript(row: Row) -> Found:
    """Anthropic's rows: a chat in one text."""
    for name, value in row.items():
        said = value.strip() if isinstance(value, str) else ""
        is_chat = said.startswith("Human:") and "\n\nAssistant:" in said and not said.endswith("Assistant:")
        if is_chat and "reject" not in name:
            return f"write {named(row, name)} as messages", _TRANSCRIPT % key(in_file(row, name))
    return NONE
