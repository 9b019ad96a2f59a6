"""The rows of the family table that are Qwen's: ids on both hubs and sizes, as data; `families.py` makes the table.

A row without a geometry is one whose sizes were not certain when it was written; its config.json has them.
"""

from __future__ import annotations

from collections.abc import Iterator

from swiftlet.models.family import Family
from swiftlet.models.geometry import Geometry

G = Geometry
Q15 = {
    "0_5b": G(1024, 24, 16, 16, 2816, 151936, tied=True, qkv_bias=True),
    "1_8b": G(2048, 24, 16, 16, 5504, 151936, qkv_bias=True),
    "4b": G(2560, 40, 20, 20, 6912, 151936, qkv_bias=True),
    "7b": G(4096, 32, 32, 32, 11008, 151936, qkv_bias=True),
    "14b": G(5120, 40, 40, 40, 13696, 152064, qkv_bias=True),
    "32b": G(5120, 64, 40, 8, 27392, 152064, qkv_bias=True),
    "72b": G(8192, 80, 64, 64, 24576, 152064, qkv_bias=True),
    "110b": G(8192, 80, 64, 8, 49152, 152064, qkv_bias=True),
}
Q15_MOE = G(2048, 24, 16, 16, 5632, 151936, False, 0, True)._replace(
    experts=60, expert_intermediate=1408, shared_intermediate=5632, active_experts=4, has_shared_gate=True
)
CODEQWEN = G(4096, 32, 32, 4, 13440, 92416, qkv_bias=True)
Q2 = {
    "0_5b": G(896, 24, 14, 2, 4864, 151936, tied=True, qkv_bias=True),
    "1_5b": G(1536, 28, 12, 2, 8960, 151936, tied=True, qkv_bias=True),
    "3b": G(2048, 36, 16, 2, 11008, 151936, tied=True, qkv_bias=True),
    "7b": G(3584, 28, 28, 4, 18944, 152064, qkv_bias=True),
    "14b": G(5120, 48, 40, 8, 13824, 152064, qkv_bias=True),
    "32b": G(5120, 64, 40, 8, 27648, 152064, qkv_bias=True),
    "72b": G(8192, 80, 64, 8, 29568, 152064, qkv_bias=True),
}
Q2_MOE = G(3584, 28, 28, 4, 18944, 151936, qkv_bias=True)._replace(
    experts=64, expert_intermediate=2560, shared_intermediate=20480, active_experts=8, has_shared_gate=True
)
Q3 = {
    "0_6b": G(1024, 28, 16, 8, 3072, 151936, tied=True, head_dim=128, qk_norm=True),
    "1_7b": G(2048, 28, 16, 8, 6144, 151936, tied=True, head_dim=128, qk_norm=True),
    "4b": G(2560, 36, 32, 8, 9728, 151936, tied=True, head_dim=128, qk_norm=True),
    "8b": G(4096, 36, 32, 8, 12288, 151936, head_dim=128, qk_norm=True),
    "14b": G(5120, 40, 40, 8, 17408, 151936, head_dim=128, qk_norm=True),
    "32b": G(5120, 64, 64, 8, 25600, 151936, head_dim=128, qk_norm=True),
    "30b-a3b": G(2048, 48, 32, 4, 6144, 151936, head_dim=128, qk_norm=True)._replace(
        experts=128, expert_intermediate=768, active_experts=8
    ),
    "235b-a22b": G(4096, 94, 64, 4, 12288, 151936, head_dim=128, qk_norm=True)._replace(
        experts=128, expert_intermediate=1536, active_experts=8
    ),
}
QUANTISED = (("int4", "GPTQ-Int4", "gptq"), ("int8", "GPTQ-Int8", "gptq"), ("awq", "AWQ", "awq"))


def _written(size: str) -> str:
    """Return a size as it stands in an id: 0_5b -> 0.5B, 30b-a3b -> 30B-A3B."""
    return size.replace("_", ".").upper()


def _qwen1half() -> Iterator[Family]:
    moe = {"moe-a2_7b": Q15_MOE}
    for size, geometry in {**Q15, **moe}.items():
        written = "MoE-A2.7B" if size == "moe-a2_7b" else _written(size)
        for suffix, end in (("", ""), ("-chat", "-Chat")):
            repo = f"Qwen1.5-{written}{end}"
            yield Family(f"qwen1half-{size}{suffix}", f"qwen/{repo}", f"Qwen/{repo}", geometry)
        for short, end, method in QUANTISED:
            if _is_published(size, short):
                repo = f"Qwen1.5-{written}-Chat-{end}"
                name = f"qwen1half-{size}-chat-{short}"
                yield Family(name, f"qwen/{repo}", f"Qwen/{repo}", geometry, method)
    for suffix, end in (("", ""), ("-chat", "-Chat")):
        repo = f"CodeQwen1.5-7B{end}"
        yield Family(f"codeqwen1half-7b{suffix}", f"qwen/{repo}", f"Qwen/{repo}", CODEQWEN)
    repo = "CodeQwen1.5-7B-Chat-AWQ"
    yield Family("codeqwen1half-7b-chat-awq", f"qwen/{repo}", f"Qwen/{repo}", CODEQWEN, "awq")


def _is_published(size: str, short: str) -> bool:
    if size == "moe-a2_7b":
        return short == "int4"
    if size in ("32b", "110b"):
        return short in ("int4", "awq")
    return True


def _qwen2() -> Iterator[Family]:
    for size in ("0_5b", "1_5b", "7b", "72b"):
        for suffix, end in (("", ""), ("-instruct", "-Instruct")):
            repo = f"Qwen2-{_written(size)}{end}"
            yield Family(f"qwen2-{size}{suffix}", f"qwen/{repo}", f"Qwen/{repo}", Q2[size])
        for short, tail, method in QUANTISED:
            repo = f"Qwen2-{_written(size)}-Instruct-{tail}"
            yield Family(f"qwen2-{size}-instruct-{short}", f"qwen/{repo}", f"Qwen/{repo}", Q2[size], method)
    for suffix, end in (("", ""), ("-instruct", "-Instruct")):
        repo = f"Qwen2-57B-A14B{end}"
        yield Family(f"qwen2-57b-a14b{suffix}", f"qwen/{repo}", f"Qwen/{repo}", Q2_MOE)


def _qwen2_5() -> Iterator[Family]:
    kinds = {
        "": tuple(Q2),
        "-coder": ("0_5b", "1_5b", "3b", "7b", "14b", "32b"),
        "-math": ("1_5b", "7b", "72b"),
    }
    for kind, sizes in kinds.items():
        for size in sizes:
            for suffix, end in (("", ""), ("-instruct", "-Instruct")):
                repo = f"Qwen2.5{kind.title()}-{_written(size)}{end}"
                yield Family(f"qwen2_5{kind}-{size}{suffix}", f"Qwen/{repo}", f"Qwen/{repo}", Q2[size])
            if kind == "-math":
                continue
            for short, tail, method in QUANTISED:
                repo = f"Qwen2.5{kind.title()}-{_written(size)}-Instruct-{tail}"
                name = f"qwen2_5{kind}-{size}-instruct-{'gptq-' if method == 'gptq' else ''}{short}"
                yield Family(name, f"Qwen/{repo}", f"Qwen/{repo}", Q2[size], method)
    yield Family("qwq-32b", "Qwen/QwQ-32B", "Qwen/QwQ-32B", Q2["32b"])


def _qwen3() -> Iterator[Family]:
    for size, geometry in Q3.items():
        repo = f"Qwen/Qwen3-{_written(size)}"
        yield Family(f"qwen3-{size}", repo, repo, geometry)
        if size not in ("32b", "235b-a22b"):
            yield Family(f"qwen3-{size}-base", f"{repo}-Base", f"{repo}-Base", geometry)
    for size in ("4b", "30b-a3b", "235b-a22b"):
        for suffix, end in (("-instruct-2507", "-Instruct-2507"), ("-thinking-2507", "-Thinking-2507")):
            repo = f"Qwen/Qwen3-{_written(size)}{end}"
            yield Family(f"qwen3-{size}{suffix}", repo, repo, Q3[size])
    repo = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    yield Family("qwen3-coder-30b-a3b-instruct", repo, repo, Q3["30b-a3b"])


def qwen_rows() -> Iterator[Family]:
    """Yield the rows of Qwen 1.5 to 3."""
    yield from _qwen1half()
    yield from _qwen2()
    yield from _qwen2_5()
    yield from _qwen3()
