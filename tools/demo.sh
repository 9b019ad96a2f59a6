#!/usr/bin/env bash
# make demo: ask the embedded model, fine-tune it with LoRA, ask again, and show both.
set -euo pipefail
bin=${1:-.venv/bin}
out=${2:-output/demo}
rm -rf "$out"
mkdir -p "$out"
say() { printf '\n== %s\n' "$*"; }
run() { printf '$ swift %s\n' "$*"; "$bin/swift" "$@"; }
# Answers all held-out rows; shows the first three and the score, keeps the rest in a file.
answer() {
    local file=$1
    shift
    printf '$ swift infer %s\n' "$*"
    "$bin/swift" infer "$@" --show_dataset_sample -1 --do_sample false --max_new_tokens 64 > "$file"
    awk '/^-----/ && ++rows == 3 { print; exit } { print }' "$file"
    tail -n 1 "$file"
}

say "1. Before: the embedded model answers held-out word problems in its own way"
answer "$out/before.txt" --model_type tiny-math-chat --dataset demo-math-zh --result_dir "$out/before"
say "2. Fine-tune: LoRA on 4950 worked solutions"
run sft --model_type tiny-math-chat --dataset demo-math-zh --sft_type lora --learning_rate 1e-3 \
    --output_dir "$out" --add_output_dir_suffix false
say "3. After: the same held-out rows, read from the checkpoint"
checkpoint=$(ls -d "$out"/checkpoint-* | sort -t- -k2 -n | tail -n 1)
answer "$out/after.txt" --ckpt_dir "$checkpoint" --load_dataset_config true --result_dir "$out/after"
say "The share of held-out questions answered exactly"
echo "before: $(tail -n 1 "$out/before.txt")"
echo "after:  $(tail -n 1 "$out/after.txt")"
say "Where everything is: $out"
ls "$out" "$checkpoint"
