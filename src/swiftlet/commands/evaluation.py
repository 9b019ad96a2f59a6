"""Evaluation during training: loss and accuracy over the held-out rows, and generated answers where asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from swiftlet import heartbeat, log
from swiftlet.commands.model_setup import needs_even_passes
from swiftlet.commands.model_source import context_length
from swiftlet.commands.sft import Setup
from swiftlet.config.check_engines import is_sharded
from swiftlet.data.chat import THOUGHT
from swiftlet.data.formats import Sample
from swiftlet.data.held_out import read_split
from swiftlet.data.rows import IGNORE_INDEX
from swiftlet.data.template import Template, TemplateError
from swiftlet.errors import UsageError
from swiftlet.inference.answers import Row, answer_rows, compared, row_of
from swiftlet.inference.generate import Generator, Settings
from swiftlet.inference.metrics import score
from swiftlet.models.causal import CausalLM
from swiftlet.train.evaluate import Asked, Evaluator, Scores


def build_evaluator(setup: Setup, model: CausalLM, token_budget: int) -> Evaluator | None:
    """Return what evaluates the model, None where there is nothing to evaluate on or no wish to."""
    args, val = setup.args, setup.ready.data.val
    if args.output.evaluation_strategy == "no":
        return None
    if val is None or len(val) == 0:
        log.info("there are no validation rows: nothing is evaluated")
        return None
    budget = 0 if needs_even_passes(args, model) else max(int(val.lengths.max()), token_budget)
    generate = _generated_scores(setup, model) if args.train.predict_with_generate else None
    device = setup.device.torch_device
    return Evaluator(
        model, val, budget, setup.world, device, more_scores=generate, is_in_step=is_sharded(args)
    )


def generation_settings(generation: Any) -> Settings:
    """Return how answers are chosen, from the arguments."""
    return Settings(**vars(generation))


def build_generator(
    model: Any, template: Template, generation: Any, *, stops: list[int], context_length: int | None
) -> Generator:
    """Return what answers with a model, as the arguments say.

    Args:
        stops: the ids that end an answer, of `stop_ids`.
    """
    tokenizer = template.tokenizer
    return Generator(
        model=model,
        decode=lambda ids: tokenizer.decode(ids, skip_special=True),
        pad_id=tokenizer.pad_id,
        stop_token_ids=stops,
        settings=generation_settings(generation),
        context_length=context_length,
        thoughts=template.thoughts,
    )


def stop_ids(template: Template, words: Sequence[str]) -> list[int]:
    """Return the ids that end an answer: the template's, and those of stop words that are control tokens.

    Raises:
        UsageError: a stop word has a control token and more, which the text of an answer never shows.
    """
    tokenizer = template.tokenizer
    for word in words:
        found = tokenizer.control_pattern.search(word)
        if found is not None and word not in tokenizer.control:
            raise UsageError(
                f"--stop_words {word!r} has the control token {found[0]} in it, which no answer's text shows",
                f"type the token alone: --stop_words '{found[0]}'",
            )
    controls = (tokenizer.id_of(word) for word in words if word in tokenizer.control)
    return [*template.stop_token_ids, *(token for token in controls if token is not None)]


def sample_rows(samples: Sequence[Sample], template: Template, bad_rows: str) -> list[Row]:
    """Return the last turn of each sample as a question, but for those that the template refuses.

    Args:
        bad_rows: `skip` to leave those out, `error` to stop at the first.

    Raises:
        TemplateError: the template refuses a sample that may not be left out.
    """
    rows, refused = [], []
    for sample in samples:
        try:
            rows.append(sample_row(sample, template))
        except TemplateError as error:
            refused.append(f"{sample.origin}: {error.message}")
            if bad_rows == "error":
                raise TemplateError(refused[0], error.hint) from error
    if refused and log.rank() == 0:
        log.warning(f"{len(refused)} of {len(samples)} rows are not asked, such as {refused[0]}")
    return rows


def sample_row(sample: Sample, template: Template) -> Row:
    """Return the last turn of a sample as a question, whose prompt has the sample's tools.

    The label of an answer that calls tools is what the template prints of it, as the model writes it.
    """
    row = row_of(sample.messages, lambda messages: template.encode_prompt(messages, sample.tools))
    if not (sample.messages or [{}])[-1].get("tool_calls"):
        return row
    return row._replace(label=_printed_answer(sample, template))


def _printed_answer(sample: Sample, template: Template) -> str | None:
    """Return what the template prints of the last answer but its thought, None where it cannot be told."""
    *before, last = sample.messages
    messages = [{**message, "loss": False} for message in before]
    messages.append({key: value for key, value in last.items() if key not in (THOUGHT, "loss")})
    try:
        labels = template.encode(replace(sample, messages=messages)).labels
    except TemplateError:
        return None
    ends = {IGNORE_INDEX, *template.stop_token_ids}
    return template.tokenizer.decode([one for one in labels if one not in ends], skip_special=True).strip()


def _generated_scores(setup: Setup, model: CausalLM) -> Callable[[Asked], Scores | None]:
    args, ready, _, world = setup
    _, samples = read_split(args.data)
    rows = sample_rows([sample for sample in samples if sample.messages], ready.template, args.data.bad_rows)
    length = ready.max_length + args.generation.max_new_tokens
    generator = build_generator(
        model.model,
        ready.template,
        args.generation,
        stops=stop_ids(ready.template, args.generation.stop_words),
        context_length=min(length, context_length(ready.source.folder) or length),
    )

    def scores(is_asked: Asked) -> Scores | None:
        results = answer_rows(
            generator, rows, batch_tokens=4096, rank=world.rank, world_size=world.world_size
        )
        mine = []
        for _, result in results:
            if is_asked():
                break
            mine.append((compared(result, ready.template.thoughts.closing), result["label"]))
            heartbeat.tick()
        if world.agree(is_asked()):
            return None
        pairs = [tuple(pair) for part in world.gather(mine) for pair in part]
        return score([answer for answer, _ in pairs], [label for _, label in pairs])

    return scores
