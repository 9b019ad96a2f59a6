"""Batched generation and the wait for the first token: swiftlet beside plain `generate` of transformers.

python benchmarks/inference.py --size 60m --prompts 32 --new_tokens 64

Plain generation takes prompts in the order of the file, `--batch` at a time, as a short script does; ours keeps up to
`--batch_tokens` going. Both are greedy and make exactly `--new_tokens` an answer; with `--unequal` both sample and an
answer ends at each token with a chance of one in `--new_tokens`, at four times as many at most. They run by turns.
Tokens are those of answers, seconds are those of the processor.
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

PAD = 2
Prompts = list[list[int]]


def draw_prompts(number: int) -> Prompts:
    """Return random prompts of the lengths of chats."""
    random = np.random.default_rng(0)
    return [random.integers(3, 300, length).tolist() for length in draw_lengths(number)]


def plain(model: Any, prompts: Prompts, batch: int, options: dict[str, Any]) -> list[list[int]]:
    """Return the answers of transformers' generate, with left padding."""
    answers = []
    ends = set(options["eos_token_id"] or ())
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[PAD] * (width - len(one)) + one for one in part])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part])
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                pad_token_id=PAD,
                **options,
            )
        for ids in found[:, width:].tolist():
            answers.append(ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))])
    return answers


def ours(generator: Any, prompts: Prompts, batch_tokens: int) -> list[list[int]]:
    """Return the answers of swiftlet, in the order of the prompts."""
    answers: list[list[int]] = [[] for _ in prompts]
    for index, reply in generator.replies_as_they_end(prompts, batch_tokens):
        answers[index] = [int(word) for word in reply.text.split()]
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
    parser.add_argument("--unequal", action="store_true")
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
    most = options.new_tokens * (4 if options.unequal else 1)
    ends = list(range(PAD + 1, options.vocabulary, options.new_tokens)) if options.unequal else []
    settings = Settings(most, options.unequal, temperature=1.0, top_k=0, top_p=1.0)
    generator = Generator(
        model=model,
        decode=lambda ids: " ".join(map(str, ids)),
        stop_token_ids=ends,
        settings=settings,
        pad_id=PAD,
    )
    asked = settings.to_json() | {"eos_token_id": ends or None}
    prompts = draw_prompts(options.prompts)
    seconds: dict[str, list[float]] = {"plain": [], "ours": [], "first_token": []}
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    calls = {
        "plain": lambda: plain(model, prompts, options.batch, asked),
        "ours": lambda: ours(generator, prompts, options.batch_tokens),
    }
    answers: dict[str, list[list[int]]] = {}
    for seed in range(options.repeats):
        for name, call in calls.items():
            torch.manual_seed(seed)
            spent, answers[name] = timed(call)
            seconds[name].append(spent)
            rates[name].append(sum(map(len, answers[name])) / spent)
        seconds["first_token"].append(first_token(generator, prompts[0]))
    agreeing = statistics.fmean(a == b for a, b in zip(answers["plain"], answers["ours"], strict=True))
    plain_rate, our_rate = (statistics.median(rates[name]) for name in ("plain", "ours"))
    print(f"plain {plain_rate:.0f} tokens/s, ours {our_rate:.0f} ({our_rate / plain_rate:.2f}x)")
    print(f"equal answers {agreeing:.0%}, first token {statistics.median(seconds['first_token']):.3f} s")
    result = {"facts": facts(options), "seconds": seconds, "tokens_per_s": rates, "equal_answers": agreeing}
    write(options.out, result)


if __name__ == "__main__":
    main()
