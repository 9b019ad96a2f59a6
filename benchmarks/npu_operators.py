"""What an optimizer step asks of an NPU, ours and the usual way, counted on a simulated one.

    NPUSIM=1 .venv-npu/bin/python benchmarks/npu_operators.py [--layers 4] [--json FILE]

A step has 16 samples. Ours is `swift sft` with its defaults. The usual way is one forward and backward pass a sample
with transformers and peft, then torch's AdamW, as the reference system trains by default. Small operators cost a host
more than the NPU, so their number is what a short-sample run on a card waits for. Counts depend on the number of
layers, not on their size; nothing here is a time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from report import parser_of, write

SAMPLES = 16
HIDDEN = 64


def make_model(folder: Path, layers: int) -> None:
    """Write a random Qwen2 with this many layers and the embedded tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from swiftlet.models.families import EMBEDDED

    source = EMBEDDED["tiny-math-chat"]
    words = json.loads((source / "config.json").read_text("utf-8"))["vocab_size"]
    sizes: dict[str, Any] = {"vocab_size": words, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=layers, **sizes, **heads)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)


def facts(trace: Any) -> dict[str, Any]:
    """Return the counts of a step."""
    names = sorted(trace.operators, key=trace.operators.__getitem__, reverse=True)
    operators = {name: trace.operators[name] for name in names}
    return {"launches": trace.launches, "waits": trace.waits, "copies": trace.copies, "operators": operators}


def count_ours(model: Path, folder: Path) -> dict[str, Any]:
    """Return the counts of the last of three steps of `swift sft`."""
    from simnpu.trace import trace

    import swiftlet
    from swiftlet.train import loop

    traces, make_step = [], loop.make_step

    def traced(*arguments: Any) -> bool:
        with trace() as counts:
            answer = make_step(*arguments)
        traces.append(counts)
        return answer

    loop.make_step = traced
    try:
        swiftlet.sft(
            model_id_or_path=str(model),
            dataset="demo-math-zh#100",
            output_dir=str(folder),
            max_steps=3,
            save_strategy="no",
            evaluation_strategy="no",
            bind_cpu=False,
        )
    finally:
        loop.make_step = make_step
    return facts(traces[-1])


def count_usual(model_folder: Path) -> dict[str, Any]:
    """Return the counts of the second of two steps of one sample a pass."""
    import torch
    from peft import LoraConfig, get_peft_model
    from simnpu.trace import trace
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    adapters = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj"]
    )
    model = get_peft_model(model.to("npu"), adapters).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
    samples = [torch.randint(3, 900, (1, 40 + 2 * number)) for number in range(SAMPLES)]

    def step() -> None:
        for sample in samples:
            ids = sample.to("npu")
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
            (loss / SAMPLES).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    step()
    with trace() as counts:
        step()
    return facts(counts)


def main() -> int:
    """Count both and print them."""
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write all counts here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SWIFTLET_CACHE"] = scratch
        model = Path(scratch) / "model"
        make_model(model, options.layers)
        ours, usual = count_ours(model, Path(scratch) / "run"), count_usual(model)
    ratio = usual["launches"] / ours["launches"]
    found = {"ours": ours, "usual": usual}
    for name, counts in found.items():
        print(f"{name}: {counts['launches']} operators and copies a step, {counts['waits']} waits")
    print(f"{ratio:.1f} times fewer (simulated NPU, {options.layers} layers)")
    write(options.json, {"layers": options.layers, "samples": SAMPLES, **found, "ratio": round(ratio, 2)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
