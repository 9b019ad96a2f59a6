"""The sandbox answers as Jinja's own does, and no more renderings are made than an answer needs."""

from __future__ import annotations

from datetime import datetime

import jinja2
import jinja2.sandbox
import pytest
from bpe import tokenizer_of
from test_template import CHATML, sample
from test_tool_calls import NATIVE, RESULT, TOOLS, call

from swiftlet.data import rendering
from swiftlet.data.rendering import Renderer, TemplateError
from swiftlet.data.template import build_template
from swiftlet.errors import UsageError

OBJECTS = {
    "d": {"items": 1, "x": 2, "_y": 3, "__class__": 4, "format": 5},
    "s": "a{0.__class__}b",
    "l": [1, 2],
    "n": 3,
    "f": len,
}
NAMES = "x _y y items keys pop update __class__ __init__ __dict__ format format_map startswith append real".split()
ASKED = [
    *(f"{name}.{attribute}" for name in OBJECTS for attribute in NAMES),
    "s.format(n)",
    "s.format_map({'0': n})",
    "s.startswith('a')",
    "d.pop('x')",
    "l.append(3)",
    "ns.x",
    "ns.y",
    "ns._z",
    "ns.__init__",
    "ns.__class__",
    "loop.index",
    "loop.last",
    "loop.previtem",
    "loop.nothing",
    "loop._iterator",
    "loop.__class__",
    "loop.__init__.__globals__",
]


def said(environment, asked):
    source = f"{{% set ns = namespace(x=1, _z=2) %}}{{% for i in [1, 2] %}}{{{{ {asked} }}}}|{{% endfor %}}"
    try:
        return environment.from_string(source).render(**OBJECTS)
    except (jinja2.TemplateError, TypeError, KeyError, IndexError, AttributeError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("undefined", [jinja2.Undefined, jinja2.StrictUndefined])
@pytest.mark.parametrize("asked", ASKED)
def test_the_sandbox_answers_as_jinjas_own(asked, undefined):
    own, right = (
        kind(undefined=undefined)
        for kind in (rendering._Sandbox, jinja2.sandbox.ImmutableSandboxedEnvironment)
    )
    found, expected = (str(said(one, asked)).split(" at 0x")[0] for one in (own, right))
    assert found == expected


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ("{% for m in [1, 2] %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "12"),
        ("{{ {'b': 'é', 'a': [1]} | tojson(true, none, (',', ':'), true) }}", '{"a":[1],"b":"\\u00e9"}'),
        ("{{ {'b': 'é<'} | tojson(indent=1) }}", '{\n "b": "é<"\n}'),
    ],
)
def test_what_is_added_to_jinja_is_as_templates_are_written_for(source, text):
    assert Renderer("t", source, {}, datetime(2026, 1, 1)).render([]) == text


def test_the_renderings_of_a_conversation_grow_with_its_answers(tmp_path, monkeypatch):
    """Each answer needs the conversation up to it twice, asked for it and ended with it; a bare call once more."""
    counts, template = [], build_template(tokenizer_of(tmp_path, "byte_level", NATIVE))
    real = Renderer.render
    monkeypatch.setattr(Renderer, "render", lambda *given, **more: counts.append(1) or real(*given, **more))
    template.encode(sample([{"role": "user", "content": "q"}, call("add"), RESULT], TOOLS))
    for answers in (4, 12):
        turns = [one for _ in range(answers) for one in (call("add", content="I add."), RESULT)]
        counts.clear()
        template.encode(sample([{"role": "user", "content": "q"}, *turns], TOOLS))
        assert len(counts) <= 2 * answers + 4


LONG = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
AGAIN = "{% macro again(n) %}{% if n %}{{ again(n - 1) }}{{ again(n - 1) }}{% endif %}{% endmacro %}{{ again(60) }}"
LEAVES = (
    "{% set leaf = ['a', 'b'] %}{% set tree = [leaf * 30] * 30 %}{% for one in [tree] * 9999 recursive %}"
    "{{ loop(one) if one is not string }}{% endfor %}"
)


def test_a_template_that_comes_to_no_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "LONGEST_S", 0.01)
    with pytest.raises(UsageError, match="has not rendered a short conversation in 0.01 s") as caught:
        build_template(tokenizer_of(tmp_path, "byte_level", LONG))
    assert "--template_type" in caught.value.hint


@pytest.mark.parametrize("without_end", [LONG, AGAIN, LEAVES])
def test_a_row_whose_rendering_comes_to_no_end_is_given_up(tmp_path, monkeypatch, without_end):
    chat = CHATML + "{% if messages[0].content == 'again' %}" + without_end + "{% endif %}"
    template = build_template(tokenizer_of(tmp_path, "byte_level", chat))
    answer = {"role": "assistant", "content": "a"}
    assert template.encode(sample([{"role": "user", "content": "q"}, answer]))
    monkeypatch.setattr(rendering, "LONGEST_S", 0.1)
    with pytest.raises(TemplateError, match="it comes to no end in 0.1 s") as caught:
        template.encode(sample([{"role": "user", "content": "again"}, answer]))
    assert caught.value.reason == "template"


def test_a_template_that_asks_for_all_memory_is_at_fault(tmp_path):
    greedy = build_template(tokenizer_of(tmp_path, "byte_level", "{{ 'a' * 10**15 }}"))
    with pytest.raises(TemplateError, match="cannot render .*: MemoryError"):
        greedy.encode(sample([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]))
