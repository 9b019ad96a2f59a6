"""Batched generation and the wait for the first token: swiftlet beside plain `generate` of transformers.

python benchmarks/inference.py --size 60m --prompts 32 --new_tokens 64

Plain generation takes prompts in the order of the file, `--batch` at a time, as a short script does; ours batches by
length up to `--batch_tokens`. Both are greedy and make exactly `--new_tokens` an answer; they run by turns. Tokens are
those of answers, seconds are those of the processor.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import facts, parser_of, write
from workload import SIZES, draw_lengths, make_model

Prompts = list[list[int]]


def draw_prompts(number: int) -> Prompts:
    """Return random prompts of the lengths of chats."""
    random = np.random.default_rng(0)
    return [random.integers(3, 300, length).tolist() for length in draw_lengths(number)]


def plain(model: Any, prompts: Prompts, batch: int, new_tokens: int) -> list[list[int]]:
    """Return the answers of transformers' generate, with left padding."""
    answers = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[2] * (width - len(one)) + one for one in part])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part])
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new_tokens,
                eos_token_id=None,
                pad_token_id=2,
            )
        answers += found[:, width:].tolist()
    return answers


def ours(generator: Any, prompts: Prompts, batch_tokens: int) -> list[list[int]]:
    """Return the answers of swiftlet, in the order of the prompts."""
    from swiftlet.inference.generate import batches_by_length

    answers: list[list[int]] = [[] for _ in prompts]
    for batch in batches_by_length([len(one) for one in prompts], batch_tokens):
        texts = generator.answers([prompts[index] for index in batch])
        for index, text in zip(batch, texts, strict=True):
            answers[index] = [int(word) for word in text.split()]
    return answers


def first_token(generator: Any, prompt: list[int]) -> float:
    """Return the seconds from a question to the first text of its answer."""
    start, seen = time.process_time(), []
    generator.answer(prompt, lambda text: seen.append(time.process_time()))
    return seen[0] - start


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return processor seconds and what a call gives."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def main() -> None:
    """Measure by turns and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="2m")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from transformers import AutoModelForCausalLM

    from swiftlet.inference.generate import Generator, Settings

    with tempfile.TemporaryDirectory(prefix="swiftlet-inference-") as folder:
        path = make_model(Path(folder) / "model", SIZES[options.size], options.vocabulary)
        model = AutoModelForCausalLM.from_pretrained(path).eval()
    generator = Generator(
        model=model,
        decode=lambda ids: " ".join(map(str, ids)),
        stop_token_ids=[],
        settings=Settings(max_new_tokens=options.new_tokens, do_sample=False),
        pad_id=2,
    )
    prompts = draw_prompts(options.prompts)
    seconds: dict[str, list[float]] = {"plain": [], "ours": [], "first_token": []}
    for _ in range(options.repeats):
        spent, expected = timed(lambda: plain(model, prompts, options.batch, options.new_tokens))
        seconds["plain"].append(spent)
        spent, found = timed(lambda: ours(generator, prompts, options.batch_tokens))
        seconds["ours"].append(spent)
        seconds["first_token"].append(first_token(generator, prompts[0]))
    agreeing = statistics.fmean(a == b for a, b in zip(expected, found, strict=True))
    tokens = options.prompts * options.new_tokens
    rates = {name: tokens / statistics.median(seconds[name]) for name in ("plain", "ours")}
    print(
        f"plain {rates['plain']:.0f} tokens/s, ours {rates['ours']:.0f} ({rates['ours'] / rates['plain']:.2f}x)"
    )
    print(f"equal answers {agreeing:.0%}, first token {statistics.median(seconds['first_token']):.3f} s")
    result = {"facts": facts(options), "seconds": seconds, "tokens_per_s": rates, "equal_answers": agreeing}
    write(options.out, result)


if __name__ == "__main__":
    main()
