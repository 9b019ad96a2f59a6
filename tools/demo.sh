#!/usr/bin/env bash
# make demo: ask the embedded model, fine-tune it with LoRA, ask again, and show both. Ends with 1 where the answers
# before are too good or those after are not good enough.
set -euo pipefail
bin=${1:-.venv/bin}
out=${2:-output/demo}
most_before=0.10
least_after=0.80
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
# The share of rows answered exactly, as the last line of such a file says it.
score() { sed -n '$s/.*exact_match \([0-9.]*\).*/\1/p' "$1"; }

say "1. Before: the embedded model is asked held-out word problems"
answer "$out/before.txt" --model_type tiny-math-chat --dataset demo-math-zh --dataset_test_ratio 0.01 \
    --result_dir "$out/before"
say "2. Fine-tune: LoRA on 4950 worked solutions"
run sft --model_type tiny-math-chat --dataset demo-math-zh --sft_type lora --learning_rate 4e-3 \
    --lora_target_modules ALL --lora_rank 16 --output_dir "$out" --add_output_dir_suffix false
say "3. After: the same held-out rows, read from the checkpoint"
checkpoint=$(ls -d "$out"/checkpoint-* | sort -V | tail -n 1)
answer "$out/after.txt" --ckpt_dir "$checkpoint" --load_dataset_config true --result_dir "$out/after"
say "Where everything is: $out"
ls "$out" "$checkpoint"
say "The share of held-out questions answered exactly"
before=$(score "$out/before.txt")
after=$(score "$out/after.txt")
echo "before: $before (below $most_before is right)"
echo "after:  $after (at least $least_after is right)"
awk -v before="$before" -v after="$after" -v most="$most_before" -v least="$least_after" \
    'BEGIN { exit !(before != "" && before < most && after != "" && after >= least) }' || {
    echo "the demo has missed its aim" >&2
    exit 1
}
