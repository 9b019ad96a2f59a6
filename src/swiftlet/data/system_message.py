"""The system message that a run asks for: one that the template must print, or with `--system ''` none at all.

For none, a dash is given in the place of the one that the template puts there by itself, and cut off again with the
text around it: it stands between the token that begins a text and the header of the first question, which is known from
that of a later one. An empty one would not do, as templates take it for none.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

from swiftlet.data.endmarkers import ANSWER, QUESTION, SYSTEM, EndMarkers
from swiftlet.data.rendering import Renderer, TemplateError
from swiftlet.data.spans import Locator

DASH = {"role": "system", "content": "-"}


def check_system(renderer: Renderer, system: str) -> None:
    """Refuse a system message that the template refuses or leaves out.

    Raises:
        TemplateError: it does.
    """
    hint = "leave --system out, or choose another template with --template_type"
    try:
        messages = [{"role": "system", "content": system}, QUESTION]
        located = Locator(renderer, renderer.tags()).locate(messages, prompt=True)
    except TemplateError as error:
        message = f"chat template {renderer.name!r} takes no system message: {error.message}"
        raise TemplateError(message, hint) from error
    if not located.regions[0] and 0 not in located.unknown:
        raise TemplateError(f"chat template {renderer.name!r} leaves the system message out", hint)


def without_system(renderer: Renderer, end_markers: EndMarkers) -> Renderer:
    """Return a renderer that prints no system message but the conversation's own.

    Raises:
        TemplateError: it cannot be told what belongs to the one that the template puts there.
    """
    locator = Locator(renderer, renderer.tags())
    try:
        located = locator.locate([SYSTEM, QUESTION], prompt=True)
    except TemplateError:
        return renderer
    system, question = located.regions
    if not system or not question:
        return renderer
    around = renderer.render([DASH, QUESTION], generation_prompt=True)
    if len(renderer.render([QUESTION], generation_prompt=True)) < len(around):  # it puts none there
        return renderer
    header = _header(locator, end_markers, located.text[system[0].end : question[0].start])
    first = next((token for token in renderer.tokens.values() if located.text.startswith(token)), "")
    rest = header + located.text[question[0].start :]
    if not header or not around.endswith(rest) or not around.startswith(first):
        raise TemplateError(
            f"cannot tell the system message of chat template {renderer.name!r} from what is around it",
            "leave --system out, or choose another template with --template_type",
        )
    block = around[: len(around) - len(rest)]
    if rest.startswith(first) and not block.startswith(
        2 * first
    ):  # it begins the header of a turn, not the text
        first = ""
    return replace(renderer, source=_wrapped(renderer, first, block))


def _header(locator: Locator, end_markers: EndMarkers, before: str) -> str:
    """Return the header of a question: what a first one shares with a later one, without the end of an answer."""
    located = locator.locate([QUESTION, ANSWER, QUESTION], prompt=True)
    between = located.text[located.regions[1][-1].end : located.regions[2][0].start]
    shared = os.path.commonprefix([before[::-1], between[::-1]])[::-1]
    marker = end_markers.plain.middle
    num_of_end = next((len(marker) - at for at in range(len(marker)) if shared.startswith(marker[at:])), 0)
    return shared[num_of_end:].lstrip()


def system_first(renderer: Renderer, system: str) -> str:
    """Return a statement that puts a system message before a conversation without one; a template's source follows it.

    The newline goes with the tag before it, and keeps the source's own first line the beginning of a line.
    """
    content = [{"type": "text", "text": system}] if renderer.parts else system
    message = json.dumps({"role": "system", "content": content}, ensure_ascii=False)
    return (
        "{% if not messages or messages[0]['role'] != 'system' %}"
        f"{{% set messages = [{message}] + messages %}}{{% endif %}}\n"
    )


def _wrapped(renderer: Renderer, first: str, block: str) -> str:
    """Return a source that cuts the block off; where a block has more in it, such as tools, it stays as it is."""
    source = renderer.source.removesuffix("\n")
    return (
        "{% set given = messages %}"
        + system_first(renderer, DASH["content"])
        + "{% set rendered %}\n"
        + source
        + "{% endset %}"
        "{% set is_added = messages != given %}{% set messages = given %}"
        f"{{% if is_added and rendered.startswith({block!r}) %}}"
        f"{{{{ {first!r} + rendered[{len(block)}:] }}}}{{% else %}}\n" + source + "{% endif %}"
    )
