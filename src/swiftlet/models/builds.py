"""What architectures are built of, by the model_type of their config.json, and their own names for sizes: data."""

QKV_BIAS = {"qwen2", "qwen2_moe", "glm", "chatglm"}
QK_NORM = {"qwen3", "qwen3_moe", "gemma3_text"}
FOUR_NORMS = {"gemma2", "gemma3_text", "glm4"}
ONE_NORM = {"phi"}
# Of x: x / 2, tanh and 1 + tanh, see transformers' NewGELUActivation.
STEPS_OF_GELU = 3
# Tied where config.json does not say: the library writes only what differs from its class.
TIED = {"gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "starcoder2", "smollm3", "gpt2"}
TIED |= {
    "gpt_bigcode",
    "bloom",
    "opt",
    "falcon",
    "cohere",
    "cohere2",
    "ernie4_5",
    "ernie4_5_moe",
    "lfm2",
    "zamba2",
}
EXPERTS = {"qwen2_moe", "qwen3_moe", "mixtral"}
# Whose counts of parameters follow from the sizes.
BUILT = (
    EXPERTS | QKV_BIAS | QK_NORM | FOUR_NORMS | {"gemma", "llama", "mistral", "ministral", "phi3", "smollm3"}
)
BUILT |= {"internlm2", "internlm3", "baichuan", "starcoder2", "granite", "deepseek_v2", "deepseek_v3"}
UNGATED = {"starcoder2", "phi", "gpt2", "gpt_neox", "gpt_bigcode", "gptj", "falcon", "opt", "bloom"}
UNGATED |= {"apertus", "arcee", "nemotron", "codegen", "persimmon", "jais2", "nanochat"}
FUSED_MLP = {"llama", "mistral", "ministral", "qwen2", "qwen2_moe", "qwen3", "smollm3", "granite"}
FUSED_MLP |= {"deepseek_v2", "deepseek_v3"}
JOINED_QKV = {"phi3"}
PLAIN_SCORES = {"gemma2"}
# Whose experts were modules of their own: peft takes names of these for the joint matrices.
ADAPTED_EXPERTS = {"deepseek_v2", "deepseek_v3", "dots1", "glm4_moe", "hunyuan_v1_moe", "olmoe", "qwen3_moe"}
OUT_BIAS = {"llama", "granite", "smollm3", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"}
NO_BIAS = {"mistral", "ministral", "mixtral", "phi3"}
MLP_BIAS = {"llama", "granite", "smollm3"}
LIST_OF_LAYERS = "mlp_only_layers"
OPTIONAL = (
    "num_key_value_heads", "intermediate_size", "head_dim", "num_experts", "num_local_experts", "n_routed_experts",
    "moe_intermediate_size", "shared_expert_intermediate_size", "num_experts_per_tok", "first_k_dense_replace",
    "n_shared_experts", "decoder_sparse_step", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim",
)  # fmt: skip
OWN_NAMES = {
    "num_layers": "num_hidden_layers",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "multi_query_group_num": "num_key_value_heads",
    "ffn_hidden_size": "intermediate_size",
    "padded_vocab_size": "vocab_size",
    "kv_channels": "head_dim",
    "ffn_dim": "intermediate_size",
    "moe_num_experts": "num_experts",
    "moe_k": "num_experts_per_tok",
    "moe_num_shared_experts": "n_shared_experts",
    "moe_layer_start_index": "first_k_dense_replace",
}
