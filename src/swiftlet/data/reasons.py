"""Why a row was left out and what was done to a row that was kept: every code with its explanation, as data."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "json": "the line is not JSON",
    "utf8": "the bytes are not UTF-8",
    "nul": "the line holds NUL bytes: the file is damaged",
    "nesting": "the row is nested too deep",
    "surrogate": "half of a surrogate pair, which no UTF-8 text can hold",
    "repeated_key": "one object has two values under one name, and either could be meant",
    "cells": "the row has more or fewer cells than the header, or is the header once more",
    "schema": "a column is missing or holds something else than text",
    "columns": "two columns could be the answer or the question",
    "tokenized": "the row holds token ids, and text is expected",
    "role_unknown": "a turn has a role that is not known",
    "role_order": "the turns are in an order that no chat has",
    "no_answer": "the conversation ends before an answer",
    "empty_assistant": "an answer is empty: only the end token would be learnt",
    "empty_user": "a question is empty",
    "no_label_tokens": "no token of the row would be trained on",
    "over_length": "the row is longer than max_length",
    "duplicate_id": "the row was there before",
    "special_token_in_text": "the text holds a control token of the model",
    "preference": "the row holds chosen and rejected answers, which supervised fine-tuning cannot use",
    "multimodal": "the row holds images, videos or audio, and only text is trained on",
    "template": "the chat template cannot render the row as it is",
}

NOTES: dict[str, str] = {
    "no_prompt": "a text without a question: all of it is trained on",
    "label_unused": "a label is not used: where it says good or bad (KTO), both are learnt alike",
    "context_unused": "a context column is not used; add it to the question with --columns context=input, and with "
    "--columns QUESTION=instruction where the question's column is not named instruction",
    "weight_unused": "a weight between 0 and 1 is not used: the answer counts in full",
    "calls_as_text": "the chat template prints no tool calls: they are written as text into the answer",
    "call_ids_made": "the chat template wants ids of tool calls, and those of the row are missing or refused: the "
    "calls are numbered",
    "results_as_text": "the chat template prints no answers of tools: they are questions between <tool_response> tags",
    "tools_as_text": "the chat template prints no tools: they are described in the system message",
    "tools_left_out": "the chat template prints neither tools nor a system message: they are left out",
    "reasoning_unused": "a reasoning_content, reasoning or thinking beside the answer is not used, as the chat "
    "template does not print it; to have it learnt, write it into the answer, as in <think>...</think>",
    "reasoning_left_out": "the chat template does not print what was thought before some answers, such as earlier ones",
    "template_inputs_unused": "chat_template_kwargs or documents beside the turns do not go to the chat template",
    "truncated": "a row longer than max_length lost its beginning",
    "prompt_left_out": "the chat template does not print a turn before the answer",
    "prompt_stripped": "the chat template takes white space off a turn before the answer",
    "prompt_altered": "the chat template prints a turn before the answer in other words",
    "answer_left_out": "the chat template does not print an answer: nothing of it is learnt",
    "answer_stripped": "the chat template takes white space off an answer: it is learnt without",
    "answer_altered": "the chat template prints an answer in other words: these are learnt",
}


class RowFault(Exception):
    """A row cannot be trained on; caught where the row becomes a sample, and never seen by the user as such.

    Args:
        reason: a key of REASONS.
        detail: names fields and positions, and never holds the text of the row.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
