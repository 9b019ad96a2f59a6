"""The datasets known by name: where they are, how their columns become ours, and how long their rows are. Data only.

Ids, sizes and token statistics of ms-swift's table of datasets, spring 2024 (docs/source_en/LLM of version 2.0): tokens
of the Qwen tokenizer with its chat template. They are for planning before anything is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SOURCE = "ms-swift 2.0, Supported-models-datasets.md; tokens of the Qwen tokenizer"


class Lengths(NamedTuple):
    """Tokens a row."""

    mean: float
    std: float
    min: int
    max: int


class NamedDataset(NamedTuple):
    """One dataset known by name.

    Args:
        fields: our column -> a pattern of theirs, such as `{"response": "{output} {answer}"}`; empty where the
            columns are found without it.
        subsets: those taken when none is asked for; all files when empty.
        lengths: with `source`, for planning.
        generator: module of swiftlet.data whose `rows()` makes the rows, in the place of hub ids.
        arguments: what the generator is told, by the words after the name: `self-cognition:NAME/MAKER`.
    """

    help: str
    ms_id: str | None = None
    hf_id: str | None = None
    split: str = "train"
    fields: Mapping[str, str] = {}
    subsets: tuple[str, ...] = ()
    num_rows: int | None = None
    lengths: Lengths | None = None
    source: str = SOURCE
    generator: str | None = None
    arguments: tuple[str, ...] = ()


DATASETS: dict[str, NamedDataset] = {
    "blossom-math-zh": NamedDataset(
        "Chinese word problems with worked solutions",
        "AI-ModelScope/blossom-math-v2",
        "Azure99/blossom-math-v2",
        fields={"query": "{input}", "response": "{output}\n\nAnswer: {answer}"},
        num_rows=10000,
        lengths=Lengths(169.3, 58.7, 35, 563),
    ),
    "demo-math-zh": NamedDataset(
        "generated word problems in Chinese and English: needs no hub",
        fields={"query": "{input}", "response": "{output}\n\nAnswer: {answer}"},
        num_rows=5000,
        source="swiftlet.data.demo_math",
        generator="demo_math",
    ),
    "self-cognition": NamedDataset(
        "generated questions about the assistant's name and maker (self-cognition:NAME/MAKER): needs no hub",
        source="swiftlet.data.identity",
        generator="identity",
        arguments=("NAME", "MAKER"),
    ),
    "alpaca-en": NamedDataset(
        "instructions answered by GPT-4, English",
        "AI-ModelScope/alpaca-gpt4-data-en",
        "vicgalle/alpaca-gpt4",
        num_rows=52002,
        lengths=Lengths(176.2, 125.8, 26, 740),
    ),
    "alpaca-zh": NamedDataset(
        "instructions answered by GPT-4, Chinese",
        "AI-ModelScope/alpaca-gpt4-data-zh",
        "llm-wizard/alpaca-gpt4-data-zh",
        num_rows=48818,
        lengths=Lengths(162.1, 93.9, 26, 856),
    ),
    "ms-bench": NamedDataset(
        "general conversations",
        "iic/ms_bench",
        num_rows=316820,
        lengths=Lengths(346.9, 443.2, 22, 30960),
    ),
    "sharegpt-gpt4": NamedDataset(
        "conversations with GPT-4, many languages",
        "AI-ModelScope/sharegpt_gpt4",
        num_rows=72684,
        lengths=Lengths(1047.6, 1313.1, 22, 66412),
    ),
    "firefly-zh": NamedDataset(
        "23 kinds of Chinese tasks",
        "wyj123456/firefly",
        fields={"query": "{input}", "response": "{target}"},
        num_rows=1649399,
        lengths=Lengths(178.1, 260.4, 26, 12516),
    ),
    "cot-en": NamedDataset(
        "reasoning in steps, English",
        "YorickHe/CoT",
        num_rows=74771,
        lengths=Lengths(122.7, 64.8, 51, 8320),
    ),
    "cot-zh": NamedDataset(
        "reasoning in steps, Chinese",
        "YorickHe/CoT_zh",
        num_rows=74771,
        lengths=Lengths(117.5, 70.8, 43, 9636),
    ),
    "open-orca": NamedDataset(
        "answers with explanations, English",
        "AI-ModelScope/OpenOrca",
        num_rows=994896,
        lengths=Lengths(382.3, 417.4, 31, 8740),
    ),
    "tulu-v2-sft-mixture": NamedDataset(
        "a mixture of instructions",
        "AI-ModelScope/tulu-v2-sft-mixture",
        "allenai/tulu-v2-sft-mixture",
        num_rows=5119,
        lengths=Lengths(520.7, 437.6, 68, 2549),
    ),
    "long-alpaca-12k": NamedDataset(
        "long documents with questions",
        "AI-ModelScope/LongAlpaca-12k",
        "Yukang/LongAlpaca-12k",
        num_rows=11998,
        lengths=Lengths(9619.0, 8295.8, 36, 78925),
    ),
    "code-alpaca-en": NamedDataset(
        "programming instructions",
        "wyj123456/code_alpaca_en",
        "sahil2801/CodeAlpaca-20k",
        num_rows=20016,
        lengths=Lengths(100.2, 60.1, 29, 1776),
    ),
    "codefuse-python-en": NamedDataset(
        "exercises in Python",
        "codefuse-ai/CodeExercise-Python-27k",
        fields={"messages": "{chat_rounds}"},
        num_rows=27224,
        lengths=Lengths(483.6, 193.9, 45, 3082),
    ),
    "codefuse-evol-instruction-zh": NamedDataset(
        "programming instructions, Chinese",
        "codefuse-ai/Evol-instruction-66k",
        num_rows=66862,
        lengths=Lengths(439.6, 206.3, 37, 2983),
    ),
    "disc-med-sft-zh": NamedDataset(
        "medical conversations, Chinese",
        "AI-ModelScope/DISC-Med-SFT",
        "Flmc/DISC-Med-SFT",
        num_rows=441767,
        lengths=Lengths(354.1, 193.1, 25, 2231),
    ),
    "disc-law-sft-zh": NamedDataset(
        "legal questions, Chinese",
        "AI-ModelScope/DISC-Law-SFT",
        "ShengbinYue/DISC-Law-SFT",
        fields={"query": "{input}", "response": "{output}"},
        num_rows=166758,
        lengths=Lengths(533.7, 495.4, 30, 15169),
    ),
    "lawyer-llama-zh": NamedDataset(
        "legal questions, Chinese",
        "AI-ModelScope/lawyer_llama_data",
        "Skepsun/lawyer_llama_data",
        fields={"query": "{instruction}", "response": "{output}"},
        num_rows=21476,
        lengths=Lengths(194.4, 91.7, 27, 924),
    ),
    "school-math-zh": NamedDataset(
        "school mathematics, Chinese",
        "AI-ModelScope/school_math_0.25M",
        "BelleGroup/school_math_0.25M",
        num_rows=248480,
        lengths=Lengths(157.7, 72.2, 33, 3450),
    ),
    "open-platypus-en": NamedDataset(
        "science and logic, English",
        "AI-ModelScope/Open-Platypus",
        "garage-bAInd/Open-Platypus",
        num_rows=24926,
        lengths=Lengths(367.9, 254.8, 30, 3951),
    ),
    "sql-create-context-en": NamedDataset(
        "questions to SQL with the tables",
        "AI-ModelScope/sql-create-context",
        "b-mc2/sql-create-context",
        fields={"instruction": "{question}", "input": "{context}", "output": "{answer}"},
        num_rows=78577,
        lengths=Lengths(80.2, 17.8, 36, 456),
    ),
    "text2sql-en": NamedDataset(
        "questions to SQL",
        "AI-ModelScope/texttosqlv2_25000_v2",
        "Clinton/texttosqlv2_25000_v2",
        num_rows=25000,
        lengths=Lengths(274.6, 326.4, 38, 1975),
    ),
    "wikipedia-zh": NamedDataset(
        "Chinese Wikipedia as plain text",
        "AI-ModelScope/wikipedia-cn-20230720-filtered",
        "pleisto/wikipedia-cn-20230720-filtered",
        fields={"text": "{completion}"},
        num_rows=254547,
        lengths=Lengths(568.4, 713.2, 37, 78678),
    ),
    "gsm8k": NamedDataset(
        "grade-school mathematics, English",
        "modelscope/gsm8k",
        "openai/gsm8k",
        subsets=("main",),
        num_rows=7473,
        source="the dataset's card",
    ),
}


def by_id(hub_id: str) -> NamedDataset | None:
    """Return the named dataset with this id on either hub, None when there is none."""
    wanted = hub_id.lower()
    for row in DATASETS.values():
        if wanted in ((row.ms_id or "").lower(), (row.hf_id or "").lower()):
            return row
    return None
