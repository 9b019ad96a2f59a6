"""The rows of the family table beside Qwen, as data: name, id on ModelScope, id on Hugging Face, sizes.

Gemma 3 from 4B on also takes pictures; its sizes are left to its config.json. Where one hub's id is not certain it
is left out, and the other hub is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from swiftlet.models.families_qwen import Q2, Q3
from swiftlet.models.family import Family
from swiftlet.models.geometry import Geometry

G = Geometry
# One matrix for gate and up, another activation than SiLU, or code of its own.
other_mlp = partial(Geometry, has_fused_mlp=False)
capped = partial(other_mlp, tied=True, norms=4, has_plain_scores=True, has_capped_logits=True)
LLAMA2 = {
    "7b": G(4096, 32, 32, 32, 11008, 32000),
    "13b": G(5120, 40, 40, 40, 13824, 32000),
    "70b": G(8192, 80, 64, 8, 28672, 32000),
}
LLAMA3_8B = G(4096, 32, 32, 8, 14336, 128256)
LLAMA3_70B = G(8192, 80, 64, 8, 28672, 128256)
LLAMA3_2 = {
    "1b": G(2048, 16, 32, 8, 8192, 128256, tied=True),
    "3b": G(3072, 28, 24, 8, 8192, 128256, tied=True),
}
LLAMA3_405B = G(16384, 126, 128, 8, 53248, 128256)
MISTRAL = G(4096, 32, 32, 8, 14336, 32000)
MIXTRAL_8X7B = MISTRAL._replace(experts=8, expert_intermediate=14336, active_experts=2)
MIXTRAL_8X22B = G(6144, 56, 48, 8, 16384, 32768, experts=8, expert_intermediate=16384, active_experts=2)
GEMMA2 = {
    "2b": capped(2304, 26, 8, 4, 9216, 256000, head_dim=256),
    "9b": capped(3584, 42, 16, 8, 14336, 256000, head_dim=256),
    "27b": capped(4608, 46, 32, 16, 36864, 256000, head_dim=128),
}
GEMMA3 = {
    "270m": other_mlp(640, 18, 4, 1, 2048, 262144, tied=True, head_dim=256, norms=4, qk_norm=True),
    "1b": other_mlp(1152, 26, 4, 1, 6912, 262144, tied=True, head_dim=256, norms=4, qk_norm=True),
    "4b": None,
    "12b": None,
    "27b": None,
}
PHI3_MINI = other_mlp(3072, 32, 32, 32, 8192, 32064, has_joined_qkv=True)
PHI3_MEDIUM = other_mlp(5120, 40, 40, 10, 17920, 32064, has_joined_qkv=True)
GLM4_9B = other_mlp(4096, 40, 32, 2, 13696, 151552, qkv_bias=True)
INTERNLM2 = {
    "1_8b": other_mlp(2048, 24, 16, 8, 8192, 92544),
    "7b": other_mlp(4096, 32, 32, 8, 14336, 92544),
    "20b": other_mlp(6144, 48, 48, 8, 16384, 92544),
}
YI = {
    "6b": G(4096, 32, 32, 4, 11008, 64000),
    "9b": G(4096, 48, 32, 4, 11008, 64000),
    "34b": G(7168, 60, 56, 8, 20480, 64000),
}
BAICHUAN2 = {
    "7b": other_mlp(4096, 32, 32, 32, 11008, 125696),
    "13b": other_mlp(5120, 40, 40, 40, 13696, 125696),
}
SMOLLM = {
    "135m": G(576, 30, 9, 3, 1536, 49152, tied=True),
    "360m": G(960, 32, 15, 5, 2560, 49152, tied=True),
    "1_7b": G(2048, 24, 32, 32, 8192, 49152, tied=True),
}
META, LR = "meta-llama", "LLM-Research"


def _llama() -> Iterator[Family]:
    for size, geometry in LLAMA2.items():
        yield Family(f"llama2-{size}", f"modelscope/Llama-2-{size}-ms", f"{META}/Llama-2-{size}-hf", geometry)
        hf_id = f"{META}/Llama-2-{size}-chat-hf"
        yield Family(f"llama2-{size}-chat", f"modelscope/Llama-2-{size}-chat-ms", hf_id, geometry)
    for suffix, end in (("", ""), ("-instruct", "-Instruct")):
        for size, geometry in (("8B", LLAMA3_8B), ("70B", LLAMA3_70B)):
            repo = f"Meta-Llama-3-{size}{end}"
            yield Family(f"llama3-{size.lower()}{suffix}", f"{LR}/{repo}", f"{META}/{repo}", geometry)
        for size, geometry in (("8B", LLAMA3_8B), ("70B", LLAMA3_70B), ("405B", LLAMA3_405B)):
            ms_id, hf_id = f"{LR}/Meta-Llama-3.1-{size}{end}", f"{META}/Llama-3.1-{size}{end}"
            yield Family(f"llama3_1-{size.lower()}{suffix}", ms_id, hf_id, geometry)
        for size, tied in LLAMA3_2.items():
            repo = f"Llama-3.2-{size.upper()}{end}"
            yield Family(f"llama3_2-{size}{suffix}", f"{LR}/{repo}", f"{META}/{repo}", tied)
    repo = "Llama-3.3-70B-Instruct"
    yield Family("llama3_3-70b-instruct", f"{LR}/{repo}", f"{META}/{repo}", LLAMA3_70B)


def _mistral() -> Iterator[Family]:
    ms, hf, v3 = "AI-ModelScope", "mistralai", MISTRAL._replace(vocab=32768)
    yield Family("mistral-7b", f"{ms}/Mistral-7B-v0.1", f"{hf}/Mistral-7B-v0.1", MISTRAL)
    yield Family("mistral-7b-v3", f"{LR}/Mistral-7B-v0.3", f"{hf}/Mistral-7B-v0.3", v3)
    for short, version, geometry in (("", "v0.1", MISTRAL), ("-v2", "v0.2", MISTRAL), ("-v3", "v0.3", v3)):
        repo = f"Mistral-7B-Instruct-{version}"
        owner = LR if version == "v0.3" else ms
        yield Family(f"mistral-7b-instruct{short}", f"{owner}/{repo}", f"{hf}/{repo}", geometry)
    nemo = G(5120, 40, 32, 8, 14336, 131072, head_dim=128)
    for suffix, end in (("", "-Base-2407"), ("-instruct", "-Instruct-2407")):
        repo = f"Mistral-Nemo{end}"
        yield Family(f"mistral-nemo-12b{suffix}", f"{ms}/{repo}", f"{hf}/{repo}", nemo)
    small = "Mistral-Small-24B-Instruct-2501"
    sizes = G(5120, 40, 32, 8, 32768, 131072, head_dim=128)
    yield Family("mistral-small-24b-instruct", f"mistralai/{small}", f"{hf}/{small}", sizes)
    for suffix, end in (("", "-v0.1"), ("-instruct", "-Instruct-v0.1")):
        repo = f"Mixtral-8x7B{end}"
        yield Family(f"mixtral-moe-7b{suffix}", f"{ms}/{repo}", f"{hf}/{repo}", MIXTRAL_8X7B)
    repo = "Mixtral-8x22B-Instruct-v0.1"
    yield Family("mixtral-moe-8x22b-instruct", f"{ms}/{repo}", f"{hf}/{repo}", MIXTRAL_8X22B)


def _gemma() -> Iterator[Family]:
    for size, geometry in GEMMA2.items():
        for suffix, end in (("", ""), ("-instruct", "-it")):
            repo = f"gemma-2-{size}{end}"
            yield Family(f"gemma2-{size}{suffix}", f"{LR}/{repo}", f"google/{repo}", geometry)
    for size, text_only in GEMMA3.items():
        for suffix, end in (("", "" if size == "270m" else "-pt"), ("-instruct", "-it")):
            repo = f"gemma-3-{size}{end}"
            yield Family(f"gemma3-{size}{suffix}", f"{LR}/{repo}", f"google/{repo}", text_only)


def _phi() -> Iterator[Family]:
    for size, geometry in (("mini", PHI3_MINI), ("medium", PHI3_MEDIUM)):
        for context in ("4k", "128k"):
            repo = f"Phi-3-{size}-{context}-instruct"
            yield Family(f"phi3-{size}-{context}-instruct", f"{LR}/{repo}", f"microsoft/{repo}", geometry)
    phi4, mini = (
        PHI3_MEDIUM._replace(vocab=100352),
        PHI3_MINI._replace(heads=24, kv_heads=8, vocab=200064, tied=True),
    )
    for name, repo, geometry in (
        ("phi3_5-mini-instruct", "Phi-3.5-mini-instruct", PHI3_MINI),
        ("phi4", "phi-4", phi4),
        ("phi4-mini-instruct", "Phi-4-mini-instruct", mini),
    ):
        yield Family(name, f"{LR}/{repo}", f"microsoft/{repo}", geometry)


def _chinese_labs() -> Iterator[Family]:
    for suffix, end in (("", ""), ("-chat", "-chat")):
        yield Family(f"glm4-9b{suffix}", f"ZhipuAI/glm-4-9b{end}-hf", f"THUDM/glm-4-9b{end}-hf", GLM4_9B)
    for size, sizes in (("9B", GLM4_9B._replace(norms=4)), ("32B", None)):
        for kind, name in (("GLM-4", "glm4-{}-0414"), ("GLM-Z1", "glm4-z1-{}-0414")):
            repo = f"{kind}-{size}-0414"
            yield Family(name.format(size.lower()), f"ZhipuAI/{repo}", f"zai-org/{repo}", sizes)
    lab = "Shanghai_AI_Laboratory"
    for size, internlm in INTERNLM2.items():
        written = size.replace("_", ".")
        for old, tag in (("internlm2", "2"), ("internlm2_5", "2_5")):
            for suffix, middle, end in (("", "", ""), ("-chat", "-chat" if tag == "2" else "", "-chat")):
                repo = f"{old}{middle}-{written}{end if tag != '2' else ''}"
                ids = (f"{lab}/{repo}", f"internlm/{repo}")
                yield Family(f"internlm{tag}-{size}{suffix}", *ids, internlm, needs_code=True)
    sizes3 = other_mlp(4096, 48, 32, 2, 10240, 128512, head_dim=128)
    repo = "internlm3-8b-instruct"
    yield Family(repo, f"{lab}/{repo}", f"internlm/{repo}", sizes3)
    for size, yi in YI.items():
        for name, middle in (("yi", ""), ("yi-1_5", "-1.5")):
            for suffix, end in (("", ""), ("-chat", "-Chat")):
                if (name, size, suffix) != ("yi", "9b", "-chat"):
                    repo = f"Yi{middle}-{size.upper()}{end}"
                    yield Family(f"{name}-{size}{suffix}", f"01ai/{repo}", f"01-ai/{repo}", yi)
    for size, baichuan in BAICHUAN2.items():
        for suffix, end in (("", "-Base"), ("-chat", "-Chat")):
            repo = f"Baichuan2-{size.upper()}{end}"
            ids = (f"baichuan-inc/{repo}", f"baichuan-inc/{repo}")
            yield Family(f"baichuan2-{size}{suffix}", *ids, baichuan, needs_code=True, is_bin_only=True)


def _deepseek_and_smollm() -> Iterator[Family]:
    r1 = "deepseek-ai/DeepSeek-R1-Distill"
    distilled = {size: Q2[size] for size in ("1_5b", "7b", "14b", "32b")}
    distilled["1_5b"] = Q2["1_5b"]._replace(tied=False)
    for size, geometry in distilled.items():
        repo = f"{r1}-Qwen-{size.replace('_', '.').upper()}"
        yield Family(f"deepseek-r1-distill-qwen-{size}", repo, repo, geometry)
    for size, geometry in (("8b", LLAMA3_8B), ("70b", LLAMA3_70B)):
        repo = f"{r1}-Llama-{size.upper()}"
        yield Family(f"deepseek-r1-distill-llama-{size}", repo, repo, geometry)
    repo = "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"
    yield Family("deepseek-r1-0528-qwen3-8b", repo, repo, Q3["8b"])
    for size, geometry in SMOLLM.items():
        written = size.replace("_", ".").upper()
        for name, middle in (("smollm", ""), ("smollm2", "2")):
            for suffix, end in (("", ""), ("-instruct", "-Instruct")):
                repo = f"HuggingFaceTB/SmolLM{middle}-{written}{end}"
                yield Family(f"{name}-{size}{suffix}", repo, repo, geometry)
    smollm3 = G(2048, 36, 16, 4, 11008, 128256, tied=True)
    for suffix, end in (("", ""), ("-base", "-Base")):
        repo = f"HuggingFaceTB/SmolLM3-3B{end}"
        yield Family(f"smollm3-3b{suffix}", repo, repo, smollm3)


def other_rows() -> Iterator[Family]:
    """Yield the rows of all families but Qwen."""
    yield from _llama()
    yield from _mistral()
    yield from _gemma()
    yield from _phi()
    yield from _chinese_labs()
    yield from _deepseek_and_smollm()
