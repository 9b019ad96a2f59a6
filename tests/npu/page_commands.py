"""What the page on NPUs tells people to type, word for word: test_swift.py runs each line, test_docs.py compares."""

from __future__ import annotations

CHECK = (
    'python -c "from transformers.utils import is_torch_npu_available; import torch; print(is_torch_npu_available()); '
    "print(torch.npu.device_count()); print(torch.randn(10, device='npu:0'))\""
)
DOCTOR = "swift doctor"
SMI = ("npu-smi info -t topo", "npu-smi info")
DEVICES = ("swift npu", "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3 swift npu")
PLAN = (
    "NPROC_PER_NODE=4 swift plan --model_type qwen1half-7b-chat --dataset blossom-math-zh --sft_type lora "
    "--device npu"
)

TRAIN = "swift sft --model_type qwen1half-7b-chat --dataset blossom-math-zh --num_train_epochs 5 "
ONE = "ASCEND_RT_VISIBLE_DEVICES=0 " + TRAIN
FOUR = "NPROC_PER_NODE=4 ASCEND_RT_VISIBLE_DEVICES=0,1,2,3 " + TRAIN
SFT = {
    "one lora": ONE + "--sft_type lora --output_dir output",
    "four lora": FOUR + "--sft_type lora --output_dir output",
    "four lora zero2": FOUR + "--sft_type lora --output_dir output --deepspeed default-zero2",
    "four lora zero3": FOUR + "--sft_type lora --output_dir output --deepspeed default-zero3",
    "one full": ONE + "--sft_type full --output_dir output",
    "four full": FOUR + "--sft_type full --output_dir output",
    "four full zero2": FOUR + "--sft_type full --output_dir output --deepspeed default-zero2",
    "four full zero3": FOUR + "--sft_type full --output_dir output --deepspeed default-zero3",
}

INFER = "ASCEND_RT_VISIBLE_DEVICES=0 swift infer --model_type qwen1half-7b-chat"
INFER_CHECKPOINT = (
    "ASCEND_RT_VISIBLE_DEVICES=0 swift infer --ckpt_dir xxx/checkpoint-xxx --load_dataset_config true"
)
MERGE = "ASCEND_RT_VISIBLE_DEVICES=0 swift merge-lora --ckpt_dir xxx/checkpoint-xxx"
INFER_MERGED = INFER_CHECKPOINT.replace("checkpoint-xxx", "checkpoint-xxx-merged")
HUGGING_FACE = "USE_HF=1 " + INFER

TEN_MINUTES = (
    "swift sft --model_type tiny-math-chat --dataset demo-math-zh#500 --max_steps 20 --lora_dropout_p 0 --dtype fp32 "
    "--output_dir check"
)
TEN = (TEN_MINUTES + " --device cpu", TEN_MINUTES, "NPROC_PER_NODE=2 " + TEN_MINUTES)

ALL = (CHECK, DOCTOR, *SMI, *DEVICES, PLAN, *SFT.values(), INFER, INFER_CHECKPOINT, MERGE, INFER_MERGED, *TEN)
