"""The loss and the gradient of a step, with settings drawn at random: they are those of its samples one by one."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import save

from swiftlet.data.batching import Batches
from swiftlet.data.cutting import Schedule
from swiftlet.data.loader import load
from swiftlet.models.causal import CausalLM, build_causal
from swiftlet.models.load import load_plain
from swiftlet.models.tuner import LoraSettings, apply_full, apply_lora
from swiftlet.parallel.engine import build_single_engine
from swiftlet.parallel.world import World
from swiftlet.train.objective import compute_gradient
from swiftlet.train.optim import OptimizerSettings, build_groups, build_optimizer

CPU, TOLERANCE = torch.device("cpu"), 1e-5
LORA = LoraSettings(target_modules=("ALL",), dropout=0.2)
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
# our own decoder, models of transformers that pack, with a window and with experts, and one that takes a pass a sample
BUILDS = {
    "decoder": ("llama", {}, None),
    "decoder-lora": ("qwen2", {}, LORA),
    "window": ("gemma2", WINDOW, None),
    "window-lora": ("gemma3_text", WINDOW, LORA),
    "experts": ("qwen3_moe", {}, None),
    "state": ("mamba2", {}, None),
}


class Rows:
    """Rows that begin with one of two prompts; some of their tokens are not trained on."""

    def __init__(self, sizes: list[tuple[int, int]], seed: int) -> None:
        random = np.random.default_rng(seed)
        prompts = random.integers(3, 120, (2, 9))
        self.rows = []
        for shared, length in sizes:
            own = random.integers(3, 120, length)
            ids = np.concatenate([prompts[int(random.integers(2))][:shared], own])
            labels = np.where(random.random(len(ids)) < 0.7, ids, -100)
            labels[: shared + 1], labels[-1] = -100, ids[-1]
            self.rows.append((ids, labels))
        self.lengths = np.array([len(ids) for ids, _ in self.rows])
        self.num_labels = np.array([(labels != -100).sum() for _, labels in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rows[index]


class Cut(NamedTuple):
    """How a step is computed."""

    seed: int = 0
    budget: int = 0
    num_ranks: int = 1
    shares: bool = False
    is_recomputed: bool = False
    row_multiple: int = 1


@pytest.fixture(scope="module", params=BUILDS)
def model(request, tmp_path_factory):
    """A model with what is trained in it, whose adapters give something already."""
    kind, sizes, lora = BUILDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    save(folder, kind, **sizes)
    made = load_plain(folder, dtype=torch.float32, device=CPU)
    if lora is None:
        apply_full(made)
        return made
    made = apply_lora(made, lora)
    torch.manual_seed(2)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def step_of(model: torch.nn.Module, rows: Rows, cut: Cut) -> tuple[float, torch.Tensor]:
    """Return the mean loss and the gradient of all rows as one step, summed over ranks one after another."""
    causal: CausalLM = build_causal(
        copy.deepcopy(model), gradient_checkpointing=cut.is_recomputed, share_prefixes=cut.shares
    )
    causal.row_multiple = cut.row_multiple if causal.is_packed else 1
    causal.train()
    given = OptimizerSettings(learning_rate=0.0)
    engine = build_single_engine(
        causal.model, build_optimizer("sgd", build_groups(causal.model, given), given)
    )
    loss = 0.0
    for rank in range(cut.num_ranks):
        schedule = Schedule(cut.seed, len(rows), 1, 1, cut.budget, cut.num_ranks)
        batches = Batches(rows, schedule, rank, token_cost=causal.token_cost)
        loaded = load(batches, next(batches.places(0, 0)))
        # the order of an epoch follows from the seed, as masks do: those of one seed, in the order of another
        parts = [part._replace(mask_seed=5) for part in loaded.micro_batches]
        loaded = loaded._replace(micro_batches=parts)
        found = compute_gradient(causal, engine, World(), loaded, device=CPU, step=1, is_stop_requested=False)
        loss += found.loss_sum / loaded.step.num_label_tokens
    trained = [p for p in causal.model.parameters() if p.requires_grad]
    return loss, torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


CUTS = st.builds(
    Cut,
    seed=st.integers(0, 99),
    budget=st.sampled_from([0, 12, 30, 64, 999]),
    num_ranks=st.integers(1, 3),
    shares=st.booleans(),
    is_recomputed=st.booleans(),
    row_multiple=st.sampled_from([1, 32]),
)
SIZES = st.lists(st.tuples(st.integers(0, 9), st.integers(2, 15)), min_size=2, max_size=7)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sizes=SIZES, seed=st.integers(0, 99), cut=CUTS)
def test_a_step_is_the_sum_of_its_samples_however_it_is_computed(model, sizes, seed, cut):
    rows = Rows(sizes, seed)
    loss, gradient = step_of(model, rows, Cut())
    again, other = step_of(model, rows, cut)
    assert again == pytest.approx(loss, rel=TOLERANCE)
    assert other.shape == gradient.shape
    assert float((other - gradient).norm()) <= TOLERANCE * float(gradient.norm())
