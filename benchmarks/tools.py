"""The tools that are compared: how each is installed, and the command line of the same fine-tuning in each.

`default` is the tool as it comes, with only what makes the runs equal: LoRA r 8 on all linear layers, precision,
samples a step, learning rate, and a log line a step. `best` adds what the tool's documents recommend for speed and
memory where it runs on this device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent / ".venv-peers"
TORCH = "torch==2.13.0"


class Job(NamedTuple):
    """One fine-tuning, the same for every tool; `rows` is JSON Lines of `messages` of one question and answer."""

    model: Path
    rows: Path
    batch: int
    accumulation: int
    steps: int
    dtype: str  # fp32, bf16, or auto: nothing is said
    max_length: int = 2048
    learning_rate: float = 1e-4
    dropout: float = 0.05
    warmup_steps: int | None = None  # as the tool comes when not given
    device: str = "cpu"


class Tool(NamedTuple):
    """A tool and its two ways of running; `arguments(job, out)` are those that make the runs equal."""

    name: str
    packages: tuple[str, ...]
    arguments: Callable[[Job, Path], list[str]]
    variants: dict[str, list[str]]

    @property
    def python(self) -> str:
        """The interpreter of the environment of this tool."""
        return sys.executable if self.name == "swiftlet" else str(ROOT / self.name / "bin" / "python")

    @property
    def is_installed(self) -> bool:
        """Whether `install` has finished."""
        return self.name == "swiftlet" or (ROOT / self.name / ".installed").is_file()

    def command(self, variant: str, job: Job, out: Path, python: str | None = None) -> list[str]:
        """Return the command line of a job, in an interpreter other than the tool's own where one is given."""
        start = (
            ["-m", "swiftlet.cli", "sft"]
            if self.name == "swiftlet"
            else [str(HERE / "peer_entry.py"), self.name]
        )
        words = [word.replace("OUT", str(out)) for word in self.variants[variant]]
        return [python or self.python, *start, *self.arguments(job, out), *words]


def flags_of(values: dict[str, Any]) -> list[str]:
    """Return the words of a command line that give flags their values."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _swiftlet(job: Job, out: Path) -> list[str]:
    values = {
        "model_id_or_path": job.model,
        "dataset": job.rows,
        "sft_type": "lora",
        "lora_target_modules": "ALL",
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout_p": job.dropout,
        "batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "max_length": job.max_length,
        "learning_rate": job.learning_rate,
        "dataset_test_ratio": 0,
        "evaluation_strategy": "no",
        "logging_steps": 1,
        "output_dir": out,
    }
    return flags_of(values | _schedule(job) | ({} if job.dtype == "auto" else {"dtype": job.dtype}))


def _schedule(job: Job) -> dict[str, object]:
    if job.warmup_steps is None:
        return {}
    return {"lr_scheduler_type": "linear", "warmup_steps": job.warmup_steps}


def _trl(job: Job, out: Path) -> list[str]:
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for line in job.rows.read_text(encoding="utf-8").splitlines():
            question, answer = json.loads(line)["messages"]
            file.write(json.dumps({"prompt": [question], "completion": [answer]}, ensure_ascii=False) + "\n")
    # Padding-free asks for no limit, which only a file can say; all rows are below the tool's own limit.
    (out / "best.yaml").write_text("max_length: null\n", encoding="utf-8")
    values = _trainer(job, out) | {
        "model_name_or_path": job.model,
        "dataset_name": folder,
        "use_peft": "true",
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_dropout": job.dropout,
        "lora_target_modules": "all-linear",
    }
    if job.device == "cpu":  # its own precision, bf16, is refused otherwise
        values["use_cpu"] = "true"
    return flags_of(values | _precision(job, "dtype"))


def _trainer(job: Job, out: Path) -> dict[str, object]:
    """Return the arguments of transformers' Trainer, which all peers pass on; it refuses bf16 on an unnamed CPU."""
    return {
        **({"use_cpu": "true"} if job.device == "cpu" and job.dtype == "bf16" else {}),
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "learning_rate": job.learning_rate,
        "logging_steps": 1,
        "report_to": "none",
        "output_dir": out / "run",
        **_schedule(job),
    }


def _precision(job: Job, name: str) -> dict[str, object]:
    if job.dtype == "auto":
        return {}
    is_short = job.dtype == "bf16"
    return {"bf16": str(is_short).lower(), name: "bfloat16" if is_short else "float32"}


def _llama_factory(job: Job, out: Path) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    table = {
        "rows": {
            "file_name": str(job.rows.resolve()),
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": tags,
        }
    }
    (out / "dataset_info.json").write_text(json.dumps(table), encoding="utf-8")
    values = _trainer(job, out) | {
        "stage": "sft",
        "do_train": "true",
        "model_name_or_path": job.model,
        "dataset_dir": out,
        "dataset": "rows",
        "template": "chatml",
        "cutoff_len": job.max_length,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": job.dropout,
        "lora_target": "all",
    }
    return flags_of(values | ({"bf16": "true"} if job.dtype == "bf16" else {}))


def _ms_swift(job: Job, out: Path) -> list[str]:
    values = _trainer(job, out) | {
        "model": job.model,
        "model_type": json.loads((job.model / "config.json").read_text(encoding="utf-8"))["model_type"],
        "template": "chatml",
        "dataset": job.rows,
        "split_dataset_ratio": 0,
        "max_length": job.max_length,
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": job.dropout,
        "target_modules": "all-linear",
    }
    return flags_of(values | ({} if job.dtype == "auto" else _precision(job, "torch_dtype")))


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "swiftlet",
            (),
            _swiftlet,
            {
                "default": [],
                "partial": flags_of({"gradient_checkpointing": "partial"}),
                "lean": flags_of({"gradient_checkpointing": "true"}),
                "each": flags_of({"share_prefixes": "false"}),
                "graphs": flags_of({"share_prefixes": "false", "graph_capture": "true"}),
            },
        ),
        Tool(
            "trl",
            ("trl", "peft"),
            _trl,
            # Padding-free asks for flash attention; on a CPU transformers masks by positions with SDPA instead.
            {
                "default": [],
                "best": flags_of(
                    {
                        "config": "OUT/best.yaml",
                        "padding_free": "true",
                        "gradient_checkpointing": "false",
                        "loss_type": "chunked_nll",
                    }
                ),
                "best-liger": flags_of(
                    {
                        "config": "OUT/best.yaml",
                        "padding_free": "true",
                        "gradient_checkpointing": "false",
                        "use_liger_kernel": "true",
                    }
                ),
            },
        ),
        Tool(
            "llama-factory",
            ("llamafactory",),
            _llama_factory,
            {"default": [], "best": flags_of({"disable_gradient_checkpointing": "true"})},
        ),
        Tool(
            "ms-swift",
            ("ms-swift",),
            _ms_swift,
            {
                "default": [],
                "best": flags_of({"gradient_checkpointing": "false", "use_logits_to_keep": "true"}),
            },
        ),
    )
}


def install(tool: Tool) -> None:
    """Make the environment of a peer, with the same torch for the CPU as ours."""
    if tool.is_installed:
        return
    folder = ROOT / tool.name
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, *tool.packages], check=True)
    if tool.name == "llama-factory":  # it brings builds for CUDA, and imports torchaudio only for sound
        subprocess.run([*pip, "--force-reinstall", "--no-deps", TORCH], check=True)
        uninstall = [pip[0], "-m", "pip", "uninstall", "-q", "-y", "torchvision", "torchaudio"]
        subprocess.run(uninstall, check=True)
        site = next((folder / "lib").glob("python*")) / "site-packages"
        (site / "torchaudio.py").write_text("", encoding="utf-8")
    (folder / ".installed").touch()


def environment(threads: int, device: str) -> dict[str, str]:
    """Return the environment that every tool gets; accelerators are hidden from a run on the CPU.

    Each keeps its compiled modules, as on a user's machine: pip compiles those of the tools that it installs, but not
    ours, which are run from their sources.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_DISABLED": "true", "USE_HF": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        **quiet,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}),
    }


def last_figures(out: Path) -> dict[str, Any]:
    """Return the last figures of the memory of an accelerator that a run of swift has logged, none where it has not."""
    log = next(out.rglob("logging.jsonl"), None)
    lines = log.read_text(encoding="utf-8").splitlines() if log else []
    return next((row for row in map(json.loads, reversed(lines)) if "reserved_gib" in row), {})


def device_peak(out: Path) -> tuple[int, int] | None:
    """Return the bytes of an accelerator that a run of swift says it had at most: allocated, reserved."""
    found = last_figures(out)
    return (int(found["memory_gib"] * 2**30), int(found["reserved_gib"] * 2**30)) if found else None
