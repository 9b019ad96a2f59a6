"""Chat templates by name, for tokenizers that bring none or another one than wanted: rows of a table.

Each is Jinja like a tokenizer's own. `control` are tokens the vocabulary must have as single tokens: a template of
another family would be cut into letters otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

from swiftlet.errors import UsageError, pick


class NamedTemplate(NamedTuple):
    """The Jinja source of a template and the control tokens it needs."""

    source: str
    control: tuple[str, ...] = ()


def _turns(first: str, system: str, user: str, assistant: str, generation: str) -> str:
    """Join the parts of a template whose turns have no condition but their role."""
    return (
        first
        + "{% for m in messages %}{% if m.role == 'system' %}"
        + system
        + "{% elif m.role == 'user' %}"
        + user
        + "{% elif m.role == 'assistant' %}"
        + assistant
        + "{% else %}{{ raise_exception('this template has no role ' + m.role) }}{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}"
        + generation
        + "{% endif %}"
    )


_MERGED_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)


def _merging(first: str, user: str, assistant: str, generation: str = "") -> str:
    """Join the parts of a template that prints the system message inside the first user turn."""
    return (
        first
        + _MERGED_SYSTEM
        + "{% for m in turns %}{% if m.role == 'user' %}"
        + user
        + "{% elif m.role == 'assistant' %}"
        + assistant
        + "{% else %}{{ raise_exception('this template has no role ' + m.role) }}{% endif %}{% endfor %}"
        + ("{% if add_generation_prompt %}" + generation + "{% endif %}" if generation else "")
    )


_BOS = "{{ bos_token }}"
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)
_CHATML_END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_QWEN_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
)
_IM = ("<|im_start|>", "<|im_end|>")
_LLAMA3_HEADER = (
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

_QWEN = NamedTemplate(_QWEN_SYSTEM + _CHATML + _CHATML_END, _IM)
_GLM4 = NamedTemplate(
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"),
)

NAMED: dict[str, NamedTemplate] = {
    "default-generation": NamedTemplate(
        _turns(_BOS, "{{ m.content }}", "{{ m.content }}", "{{ m.content + (eos_token or '') }}", "")
    ),
    "chatml": NamedTemplate(_CHATML + _CHATML_END, _IM),
    "qwen": _QWEN,
    "internlm2": NamedTemplate(_BOS + _CHATML + _CHATML_END, _IM),
    "yi": NamedTemplate(_CHATML + _CHATML_END, _IM),
    "llama3": NamedTemplate(
        _BOS
        + "{% for m in messages %}"
        + _LLAMA3_HEADER
        + "{% endfor %}{% if add_generation_prompt %}"
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "llama2": NamedTemplate(
        _merging(
            "",
            "{{ bos_token + '[INST] ' }}{% if loop.first and system %}"
            "{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
            "{{ m.content + ' [/INST]' }}",
            "{{ ' ' + m.content + ' ' + eos_token }}",
        )
    ),
    "mistral": NamedTemplate(
        _merging(
            _BOS,
            "{{ '[INST] ' }}{% if loop.first and system %}{{ system + '\n\n' }}{% endif %}{{ m.content + ' [/INST]' }}",
            "{{ ' ' + m.content + eos_token }}",
        )
    ),
    "gemma": NamedTemplate(
        _merging(
            _BOS,
            "{{ '<start_of_turn>user\n' }}{% if loop.first and system %}{{ system + '\n\n' }}{% endif %}"
            "{{ m.content + '<end_of_turn>\n' }}",
            "{{ '<start_of_turn>model\n' + m.content + '<end_of_turn>\n' }}",
            "{{ '<start_of_turn>model\n' }}",
        ),
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "phi3": NamedTemplate(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "glm4": _GLM4,
    "chatglm4": _GLM4,
    "baichuan2": NamedTemplate(
        _turns(
            "",
            "{{ m.content }}",
            "{{ '<reserved_106>' + m.content }}",
            "{{ '<reserved_107>' + m.content + eos_token }}",
            "<reserved_107>",
        ),
        ("<reserved_106>", "<reserved_107>"),
    ),  # fmt: skip
    "deepseek": NamedTemplate(
        _turns(
            _BOS,
            "{{ m.content + '\n\n' }}",
            "{{ 'User: ' + m.content + '\n\n' }}",
            "{{ 'Assistant: ' + m.content + eos_token }}",
            "Assistant:",
        )
    ),
    "zephyr": NamedTemplate(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "vicuna": NamedTemplate(
        _turns(
            _BOS + "{% if messages[0].role != 'system' %}" + _VICUNA + " {% endif %}",
            "{{ m.content + ' ' }}",
            "{{ 'USER: ' + m.content }}",
            "{{ ' ASSISTANT: ' + m.content + eos_token }}",
            " ASSISTANT:",
        )
    ),
    "alpaca": NamedTemplate(
        _turns(
            _BOS + "{% if messages[0].role != 'system' %}" + _ALPACA + "{{ '\n\n' }}{% endif %}",
            "{{ m.content + '\n\n' }}",
            "{{ '### Instruction:\n' + m.content + '\n\n' }}",
            "{{ '### Response:\n' + m.content + eos_token + '\n\n' }}",
            "{{ '### Response:\n' }}",
        )
    ),
}


def named_template(name: str) -> NamedTemplate:
    """Return a template of the table.

    Raises:
        UsageError: there is none of this name.
    """
    return pick(NAMED, name, "--template_type")


def needs(template: NamedTemplate, name: str, has_token: dict[str, bool]) -> None:
    """Refuse a template whose control tokens the vocabulary lacks.

    Raises:
        UsageError: a token is missing.
    """
    missing = [token for token in template.control if not has_token[token]]
    if missing:
        raise UsageError(
            f"template {name!r} needs the tokens {' '.join(missing)}, which the model's vocabulary lacks",
            "leave --template_type out to take the model's own template, or choose one of its family",
        )
