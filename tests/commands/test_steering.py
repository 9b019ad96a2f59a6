"""What planning does to `swift sft`: nothing to its numbers, and it refuses what cannot fit before it loads."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from run_files import lines
from swiftlet.commands import engine_setup, model_setup
from swiftlet.commands.steering import card_of, steer
from swiftlet.device.cpu import open_this
from swiftlet.errors import OutOfMemoryError
from swiftlet.files import sha256
from swiftlet.parallel.engine import build_single_engine
from swiftlet.plan.cards import read_cards
from swiftlet.train.memory_trial import MemoryPlan, try_largest


@pytest.fixture
def with_memory(monkeypatch):
    def give(num_bytes):
        device = replace(open_this(0), memory=lambda: (num_bytes, num_bytes))
        monkeypatch.setattr("swiftlet.commands.device_setup.open_device", lambda *a, **k: device)

    return give


@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_trying_the_largest_micro_batch_changes_no_bit(fine_tune, monkeypatch, sft_type):
    """Dropout is on: its random numbers must be those of a run that tried nothing."""
    tried = []

    def noted(memory, *rest):
        tried.append(memory.largest)
        try_largest(memory, *rest)

    monkeypatch.setattr("swiftlet.train.loop.try_largest", noted)
    without = fine_tune("without", sft_type=sft_type)
    monkeypatch.setattr("swiftlet.commands.steering.ROOMY", 0.0)
    with_it = fine_tune("with", sft_type=sft_type)
    assert tried[0] is None and len(tried[1].input_ids_T) > 0
    name = "model.safetensors" if sft_type == "full" else "adapter_model.safetensors"
    weights = [sha256(Path(run.last_checkpoint) / name) for run in (with_it, without)]
    assert weights[0] == weights[1]
    keys = ("loss", "grad_norm")
    trajectories = [
        [[line.get(k) for k in keys] for line in lines(run.output_dir)] for run in (with_it, without)
    ]
    assert trajectories[0] == trajectories[1]


@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_partial_recomputing_changes_no_bit(fine_tune, sft_type):
    settings = {"sft_type": sft_type, "max_steps": 4}
    settings |= {"lora_target_modules": ["ALL"]} if sft_type == "lora" else {}
    found = [fine_tune(level, gradient_checkpointing=level, **settings) for level in ("false", "partial")]
    name = "model.safetensors" if sft_type == "full" else "adapter_model.safetensors"
    weights = [sha256(Path(run.last_checkpoint) / name) for run in found]
    assert weights[0] == weights[1]
    losses = [[line.get("loss") for line in lines(run.output_dir)] for run in found]
    assert losses[0] == losses[1]
    needed = [lines(run.output_dir)[-1]["predicted_needed_gib"] for run in found]
    assert needed[1] < needed[0]


class Tiny(torch.nn.Module):
    """One weight, dropout, and a count of how it was called."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.seen = []

    def forward(self, input_ids_T, position_ids_T, cu_seqlens, targets_T, prefixes=None, mask_seed=None):
        from swiftlet.models.causal import TokenLosses

        self.seen.append(len(input_ids_T))
        if len(input_ids_T) > 100:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        kept = torch.nn.functional.dropout(self.weight, 0.5)
        return TokenLosses(kept.sum(), torch.tensor(0), 1)


def batch(num_tokens):
    from swiftlet.data.batching import MicroBatch

    ids = torch.zeros(num_tokens, dtype=torch.long)
    return MicroBatch(ids, ids, ids, [0, num_tokens], [0])


def test_a_trial_restores_random_numbers_and_gradient():
    model = Tiny()
    engine = build_single_engine(model, torch.optim.AdamW(model.parameters()))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    try_largest(MemoryPlan(batch(50)), model, engine, torch.device("cpu"))
    assert model.seen == [50]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.weight, torch.ones(4))
    assert not model.weight.grad.any()
    assert not engine.optimizer.state


def test_too_little_memory_is_told_with_the_breakdown_and_the_next_command():
    model = Tiny()
    engine = build_single_engine(model, torch.optim.AdamW(model.parameters()))
    memory = MemoryPlan(batch(200), "3.00 GiB needed (weights 2.00)", "add --gradient_checkpointing true")
    with pytest.raises(OutOfMemoryError, match="before the first step.*200 tokens.*weights 2.00") as raised:
        try_largest(memory, model, engine, torch.device("cpu"))
    assert raised.value.hint == "add --gradient_checkpointing true"


def test_what_cannot_fit_is_refused_before_loading(fine_tune, with_memory, monkeypatch):
    with_memory(2**20)
    monkeypatch.setattr(
        "swiftlet.commands.training.build_model", lambda *a: pytest.fail("a model was loaded")
    )
    with pytest.raises(OutOfMemoryError, match="this run needs .* GiB a device") as raised:
        fine_tune()
    assert "--force true" in raised.value.hint
    assert raised.value.exit_code == 7


def test_force_starts_it_anyway(fine_tune, with_memory):
    with_memory(2**20)
    assert fine_tune(force=True, max_steps=1).num_steps == 1


def test_a_run_is_compared_with_its_plan(fine_tune):
    outcome = fine_tune(max_steps=3)
    last = lines(outcome.output_dir)[-1]
    assert last["predicted_needed_gib"] > 0
    assert last["predicted_step_seconds"] > 0
    assert last["step_seconds"] > 0


def test_the_pace_is_told_after_twenty_steps(fine_tune, capfd):
    fine_tune(max_steps=22, num_train_epochs=100, eval_steps=50, save_steps=50)
    assert "after 20 steps:" in capfd.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_plan_says_is_said_by_one_process(fine_tune, with_memory, monkeypatch, capfd, rank):
    with_memory(2**20)
    monkeypatch.setattr(
        "swiftlet.commands.training.steer",
        lambda setup: steer(setup._replace(world=replace(setup.world, rank=rank))),
    )
    fine_tune(force=True, max_steps=1)
    assert capfd.readouterr().err.count("warning: memory is tight") == (1 if rank == 0 else 0)


@pytest.mark.parametrize(
    ("asked", "pays", "shared"), [("AUTO", True, True), ("AUTO", False, False), ("true", False, True)]
)
def test_beginnings_are_computed_for_each_sample_where_launches_take_the_time(
    fine_tune, monkeypatch, capfd, asked, pays, shared
):
    built = []
    real = model_setup.build_causal
    monkeypatch.setattr(
        model_setup, "build_causal", lambda *given, **more: built.append(real(*given, **more)) or built[0]
    )
    monkeypatch.setattr("swiftlet.commands.steering.pays_to_share", lambda job, way: pays)
    fine_tune("run", share_prefixes=asked, max_steps=1)
    assert built[0].shares_prefixes is shared
    told = "a step waits for its launches" in "".join(capfd.readouterr())
    assert told is (not shared)


@pytest.mark.parametrize(
    ("zero", "said"),
    [({"stage": 2}, "is off"), ({"stage": 3}, "is on by"), ({"stage": 3, "overlap_comm": False}, "is off")],
)
def test_collectives_that_spoil_values_are_told(zero, said, capfd):
    engine_setup._tell_overlap(zero)
    assert f"overlap_comm {said}" in capfd.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_fails_leaves_the_terminal_as_it_was(fine_tune, monkeypatch, error):
    closed = []

    def fails(run, state):
        raise error

    monkeypatch.setattr("swiftlet.commands.training.train", fails)
    monkeypatch.setattr("swiftlet.train.progress.Lines.close", lambda lines: closed.append(1))
    with pytest.raises(error):
        fine_tune()
    assert closed == [1]


@pytest.mark.parametrize(
    ("kind", "name", "like"), [("npu", "Ascend910_9392", "910B3"), ("cuda", "NVIDIA A10", "A100-80G")]
)
def test_a_card_that_is_not_in_the_table_is_planned_like_one_of_its_kind(kind, name, like):
    device = SimpleNamespace(kind=kind, name=name, memory=lambda: (1, 24 * 2**30))
    card = card_of(device, 1)
    assert (card.name, card.memory_gib) == (name, 24)
    assert card.sources == f"not in the table: rates of {like}"
    assert card.idle_gib == read_cards()[like].idle_gib
