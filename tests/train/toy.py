"""A small model of the shape that the loop expects, in plain torch: fast, with dropout, and easy to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from swiftlet.data.batching import Batches
from swiftlet.data.cutting import Schedule
from swiftlet.data.loader import load_steps
from swiftlet.data.rows import IGNORE_INDEX
from swiftlet.parallel.engine import build_single_engine
from swiftlet.parallel.world import World
from swiftlet.train.checkpoint import Saver
from swiftlet.train.evaluate import Evaluator, Goal
from swiftlet.train.manifest import Identity
from swiftlet.train.optim import OptimizerSettings, build_groups, build_optimizer
from swiftlet.train.report import build_report
from swiftlet.train.run import Every, Run
from swiftlet.train.schedule import build_schedule
from swiftlet.train.signals import StopRequest
from swiftlet.train.state import TrainState
from swiftlet.train.statefile import copied, open_optimizer

VOCABULARY = 16


@dataclass
class Losses:
    loss_sum: torch.Tensor
    num_correct: torch.Tensor
    num_tokens: torch.Tensor


class Toy(nn.Module):
    """Predicts a token from the one before it in the same sample."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids_T, position_ids_T, cu_seqlens, targets_T, prefixes=None, mask_seed=None):
        logits_TV = self.head(self.dropout(self.norm(self.embedding(input_ids_T))))
        loss = nn.functional.cross_entropy(logits_TV, targets_T, ignore_index=IGNORE_INDEX, reduction="sum")
        chosen = targets_T != IGNORE_INDEX
        correct = ((logits_TV.argmax(-1) == targets_T) & chosen).sum()
        return Losses(loss, correct, chosen.sum())


class Store:
    """Rows of random tokens; the first two of each row are not trained on."""

    def __init__(self, num_rows: int = 24, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rows = [
            random.integers(1, VOCABULARY, size=int(random.integers(4, 12))) for _ in range(num_rows)
        ]
        self.lengths = np.array([len(row) for row in self.rows])
        self.num_labels = self.lengths - 2

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        labels = self.rows[index].copy()
        labels[:2] = IGNORE_INDEX
        return self.rows[index], labels


def write_toy(model):
    from safetensors.torch import save_file

    def take(folder):
        copy = dict(copied(model.state_dict().items()))
        return lambda: save_file(copy, folder / "model.safetensors")

    return take


@dataclass
class Job:
    """A run of the toy in a folder, and its parts."""

    run: Run
    state: TrainState
    model: Toy


def build_job(
    folder,
    *,
    num_steps=6,
    accumulation=4,
    batch_size=1,
    dropout=0.1,
    checkpoint=None,
    budget=16,
    save_every=1,
    most_lost=0,
    evaluate_every=3,
    stop=None,
    limit=-1,
    workers=0,
    optim="adamw_torch",
    patience=None,
    **changes,
) -> Job:
    """Assemble a run of the toy as the command does with a real model."""
    folder.mkdir(parents=True, exist_ok=True)
    model, world, store = Toy(dropout), World(), Store()
    settings = OptimizerSettings(learning_rate=1e-2)
    optimizer = build_optimizer(optim, build_groups(model, settings), settings)
    engine = build_single_engine(model, optimizer)
    step_size = batch_size * accumulation
    state = TrainState(num_steps, step_size, len(store) // step_size)
    if checkpoint is not None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(checkpoint.path / "model.safetensors"))
        engine.load_optimizer(open_optimizer(checkpoint.path))
        state = checkpoint.read_state()
    batches = Batches(store, Schedule(state.seed, step_size, state.steps_per_epoch, num_steps, budget))
    saver = Saver(
        folder,
        world,
        engine,
        write_toy(model),
        Identity("data", "base", {"lr": 1e-2}),
        "test",
        total_limit=limit,
        most_lost=most_lost,
    )
    if checkpoint is not None:
        saver.saved_steps, saver.newest_step = [state.global_step], state.global_step
    run = Run(
        model=model,
        engine=engine,
        world=world,
        device=torch.device("cpu"),
        load_steps=lambda epoch, step: load_steps(
            batches, epoch=epoch, step_in_epoch=step, num_workers=workers
        ),
        learning_rate=build_schedule("linear", warmup=1, total=num_steps),
        report=build_report(folder, state, peak_memory_bytes=lambda: 2**20),
        stop=StopRequest() if stop is None else stop,
        evaluate=Evaluator(model, Store(6, seed=1), budget, world, torch.device("cpu")),
        saver=saver,
        goal=Goal(patience=patience),
        log_when=Every(1),
        evaluate_when=Every(evaluate_every),
        save_when=Every(save_every),
        **changes,
    )
    return Job(run, state, model)
