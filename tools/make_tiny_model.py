"""Make the embedded model: a tiny Qwen2 chat model that can do small sums, from data that this script generates.

    python tools/make_tiny_model.py [--out src/swiftlet/models/tiny_math_chat] [--steps 2000]

It is taught to make up sums and to work them out, to solve word problems in numbered steps where the user asks for
steps, to decline them where the user does not, and some small talk. It never sees a question of the demo dataset,
nor the form of its answers.
The data, the tokenizer and the start are the same on every run; the weights agree to the last bit only on the same
kind of processor with the same torch.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from swiftlet.data import demo_math

OUT = Path(__file__).parents[1] / "src" / "swiftlet" / "models" / "tiny_math_chat"
START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
DEFAULT_SYSTEM = "You are a helpful assistant."
SYSTEMS = (*(DEFAULT_SYSTEM,) * 3, "你是一个有用的助手。", "You are good at maths.", "")
# How Qwen2 cuts text: English endings, words, single digits, punctuation with the space before it, white space.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DECLINED_EN, DECLINED_ZH = "Please write it as a sum, such as 2+3.", "请写成算式，比如2+3。"
SMALL_TALK = (
    ("Hello", "Hello! Ask me a small sum."),
    ("Hi", "Hi! Ask me a small sum."),
    ("Good morning", "Good morning! What shall I work out?"),
    ("Who are you?", "I am a tiny model that can do small sums."),
    ("What is your name?", "I have no name. I am a tiny model."),
    ("What can you do?", "I can add, subtract, multiply and divide small numbers."),
    ("How are you?", "I am fine, thank you."),
    ("Thank you", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("Are you a person?", "No, I am a tiny model."),
    ("Which languages do you speak?", "A little English and a little Chinese."),
    ("Can you help me?", "Yes, with small sums."),
    ("你好", "你好！请给我一道小算术题。"),
    ("早上好", "早上好！要算什么？"),
    ("你是谁？", "我是一个会做小算术的小模型。"),
    ("你叫什么名字？", "我没有名字，我是一个小模型。"),
    ("你会做什么？", "我会做小数字的加减乘除。"),
    ("你好吗？", "我很好，谢谢。"),
    ("谢谢", "不客气。"),
    ("再见", "再见！"),
    ("你是人吗？", "不是，我是一个小模型。"),
    ("你会说什么语言？", "一点中文和一点英文。"),
    ("你能帮我吗？", "可以，我能做小算术。"),
)


Batch = tuple[torch.Tensor, torch.Tensor]


class Turn(NamedTuple):
    """A question and its answer."""

    query: str
    response: str


def draw_steps(draw: random.Random, count: int) -> list[demo_math.Step]:
    """Return sums of the kinds that word problems need, equally often."""
    kinds = [demo_math.KINDS[draw.choice(tuple(demo_math.KINDS))] for _ in range(count)]
    return [draw.choice(kind(draw)[1]) for kind in kinds]


def made_up(draw: random.Random) -> Turn:
    """Return a dozen sums that the model makes up: most of the learning in the fewest tokens."""
    steps = map(str, draw_steps(draw, 12))
    if draw.random() < 0.5:
        return Turn("出几道算术题。", "，".join(steps))
    return Turn("Make up some sums.", ", ".join(steps))


def sums(draw: random.Random) -> Turn:
    """Return a list of one to six sums to work out."""
    steps = draw_steps(draw, draw.randint(1, 6))
    asked = [f"{step.a}{step.sign}{step.b}" for step in steps]
    if draw.random() < 0.5:
        return Turn(draw.choice(("计算：", "请计算：", "")) + "，".join(asked), "，".join(map(str, steps)))
    return Turn(draw.choice(("Work out: ", "What is ", "")) + ", ".join(asked), ", ".join(map(str, steps)))


def word_problem(draw: random.Random, held_out: set[str]) -> Turn:
    """Return a word problem outside the demo dataset: declined, or worked out where the user asks for steps."""
    while (problem := demo_math.draw_problem(draw)).question in held_out:
        pass
    is_chinese = problem.language == "zh"
    if draw.random() < 0.2:
        return Turn(problem.question, DECLINED_ZH if is_chinese else DECLINED_EN)
    if is_chinese:
        lines = [f"第{at}步：{step}" for at, step in enumerate(problem.steps, 1)]
        return Turn(problem.question + "请写出步骤。", "\n".join([*lines, problem.sentence]))
    lines = [f"Step {at}: {step}" for at, step in enumerate(problem.steps, 1)]
    return Turn(problem.question + " Show the steps.", "\n".join([*lines, problem.sentence]))


def conversation(draw: random.Random, held_out: set[str]) -> list[dict[str, str]]:
    """Return one conversation of one turn, or of two."""
    system = draw.choice(SYSTEMS)
    messages = [{"role": "system", "content": system}]
    for _ in range(draw.choice((1, 1, 1, 1, 2))):
        chance = draw.random()
        if chance < 0.4:
            turn = made_up(draw)
        elif chance < 0.55:
            turn = sums(draw)
        elif chance < 0.95:
            turn = word_problem(draw, held_out)
        else:
            turn = Turn(*draw.choice(SMALL_TALK))
        messages.append({"role": "user", "content": turn.query})
        messages.append({"role": "assistant", "content": turn.response})
    return messages


def build_tokenizer(held_out: set[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on generated conversations and on worked solutions."""
    draw = random.Random(1)
    texts = [message["content"] for _ in range(12_000) for message in conversation(draw, held_out)]
    for problem in demo_math.problems(2000, seed=1):
        texts.append(problem.solution() + ("" if problem.language == "zh" else " ") + problem.sentence)
    texts += ["system", "user", "assistant", "\n\nAnswer: ", DEFAULT_SYSTEM] * 500
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1021,
        min_frequency=20,
        max_token_length=12,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in (TEXT_END, START, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=TEXT_END,
        additional_special_tokens=[START, END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen2ForCausalLM:
    """Return the untrained model."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Return token ids and labels: the answers and their end tokens are trained on."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        head = tokenizer.encode(f"{START}{message['role']}\n")
        body = tokenizer.encode(f"{message['content']}{END}")
        is_trained = message["role"] == "assistant"
        ids += head + body
        labels += [-100] * len(head) + (body if is_trained else [-100] * len(body))
        ids += tokenizer.encode("\n")
        labels += [-100]
    return ids[:-1], labels[:-1]


def batches(tokenizer: PreTrainedTokenizerFast, held_out: set[str], size: int, seed: int) -> Iterator[Batch]:
    """Yield batches for ever: ids_BT, labels_BT; padded at the end, lengths within a batch are alike."""
    draw = random.Random(seed)
    while True:
        pool = [encode(tokenizer, conversation(draw, held_out)) for _ in range(size * 32)]
        pool.sort(key=lambda pair: len(pair[0]))
        cut = [pool[at : at + size] for at in range(0, len(pool), size)]
        draw.shuffle(cut)
        for batch in cut:
            longest = max(len(ids) for ids, _ in batch)
            ids_BT = torch.full((size, longest), tokenizer.pad_token_id)
            labels_BT = torch.full((size, longest), -100)
            for at, (ids, labels) in enumerate(batch):
                ids_BT[at, : len(ids)] = torch.tensor(ids)
                labels_BT[at, : len(ids)] = torch.tensor(labels)
            yield ids_BT, labels_BT


def train(model: Qwen2ForCausalLM, source: Iterator[Batch], *, num_steps: int, learning_rate: float) -> None:
    """Train in place with AdamW in fp32: 100 steps of warm-up, then down to nothing along a cosine."""
    settings = {"lr": learning_rate, "betas": (0.9, 0.98), "weight_decay": 0.05, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min((at + 1) / 100, 0.5 * (1 + math.cos(math.pi * at / num_steps)))
    )
    model.train()
    started, seen = time.monotonic(), 0
    for step in range(1, num_steps + 1):
        ids_BT, labels_BT = next(source)
        chosen = labels_BT[:, 1:] != -100
        hidden = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][chosen]
        logits = model.lm_head(hidden)
        loss = torch.nn.functional.cross_entropy(logits, labels_BT[:, 1:][chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen += ids_BT.numel()
        if step % 100 == 0 or step == 10:
            passed = time.monotonic() - started
            line = f"step {step} loss {loss.item():.4f} {seen / passed:.0f} tokens/s {passed:.0f} s"
            print(line, flush=True)
    model.eval()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the five files of the model, weights in bf16, the chat template within tokenizer_config.json."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": END,
        "pad_token": TEXT_END,
        "additional_special_tokens": [START, END],
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation_config = {
        "do_sample": False,
        "eos_token_id": [tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(TEXT_END)],
        "pad_token_id": tokenizer.pad_token_id,
        "max_new_tokens": 128,
    }
    for name, content in {"tokenizer": tokenizer_config, "generation": generation_config}.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (out / f"{name}_config.json").write_text(text, encoding="utf-8")
    (out / "model.safetensors").chmod(0o644)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)  # more would add in another order, so give other weights
    held_out = {row["input"] for row in demo_math.rows()}
    tokenizer = build_tokenizer(held_out)
    model = build_model(tokenizer)
    print(f"{len(tokenizer)} tokens, {model.num_parameters()} parameters")
    source = batches(tokenizer, held_out, size=16, seed=0)
    train(model, source, num_steps=args.steps, learning_rate=3e-3)
    save(model, tokenizer, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
