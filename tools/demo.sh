#!/usr/bin/env bash
# make demo: ask the embedded model, fine-tune it with LoRA, ask again, and show both.
set -euo pipefail
bin=${1:-.venv/bin}
out=${2:-output/demo}
rm -rf "$out"
say() { printf '\n== %s\n' "$*"; }
run() { printf '$ swift %s\n' "$*"; "$bin/swift" "$@"; }

say "1. Before: the embedded model answers held-out word problems"
run infer --model_type tiny-math-chat --dataset demo-math-zh --show_dataset_sample 3 --do_sample false \
    --max_new_tokens 64 --result_dir "$out/before"
say "2. Fine-tune: LoRA on the embedded model"
run sft --model_type tiny-math-chat --dataset demo-math-zh --sft_type lora --output_dir "$out" \
    --add_output_dir_suffix false
say "3. After: the same held-out rows, read from the checkpoint"
checkpoint=$(ls -d "$out"/checkpoint-* | sort -t- -k2 -n | tail -n 1)
run infer --ckpt_dir "$checkpoint" --load_dataset_config true --show_dataset_sample -1 --do_sample false \
    --max_new_tokens 64 --result_dir "$out/after"
say "Where everything is"
ls "$out" "$checkpoint"
