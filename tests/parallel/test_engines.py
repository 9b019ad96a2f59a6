"""The contract of an engine: the summed gradient, clipping, state by name; and the small agreements of a world."""

import pytest
import torch
from ranks import on_ranks
from torch import nn

from swiftlet.parallel.ddp import build_ddp_engine
from swiftlet.parallel.engine import Trained, build_single_engine
from swiftlet.parallel.fsdp import build_fsdp_engine
from swiftlet.parallel.gradients import build_gradients, clip_factor, norm_of
from swiftlet.parallel.world import World


def net() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
    model[2].weight.requires_grad_(False)
    return model


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def rows() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(5))


def loss_of(model, x):
    return model(x).square().sum()


@pytest.mark.parametrize("norm", [0.0, 0.1, 0.5, 2.0, 1e6])
def test_clipping_makes_a_gradient_smaller_and_never_larger(norm):
    torchs = nn.Parameter(torch.zeros(1))
    torchs.grad = torch.tensor([norm])
    torch.nn.utils.clip_grad_norm_([torchs], 0.5)
    assert float(norm * clip_factor(torch.tensor(norm), 0.5)) == pytest.approx(float(torchs.grad))


def three_steps(engine, model, x):
    norms = []
    for step in range(3):
        half = len(x) // 2
        engine.backward(loss_of(model, x[:half]), is_last=False)
        engine.backward(loss_of(model, x[half:]), is_last=True)
        norms.append(float(engine.update(0.5 if step else 0.0)))
    return norms


def golden():
    model = net()
    optimizer = adamw(model)
    norms = []
    for step in range(3):
        loss_of(model, rows()).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 0.5 if step else 1e9)))
        optimizer.step()
        optimizer.zero_grad()
    return [p.flatten().tolist() for p in model.parameters()], norms


def on_one_rank_of(world):
    model = net()
    if world.rank:
        with torch.no_grad():
            model[0].weight.add_(1.0)  # rank 0's parameters count
    engine = build_ddp_engine(model, adamw(model), world)
    norms = three_steps(engine, model, rows()[world.rank :: world.world_size])
    state = {name: value.flatten().tolist() for name, value in engine.optimizer_tensors()}
    return [p.flatten().tolist() for p in model.parameters()], norms, state


def test_one_device_equals_plain_torch():
    weights, norms = golden()
    model = net()
    engine = build_single_engine(model, adamw(model))
    assert three_steps(engine, model, rows()) == pytest.approx(norms, rel=1e-5)
    for mine, theirs in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(mine.flatten(), torch.tensor(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_replicas_equal_one_device(world_size):
    weights, norms = golden()
    for mine, mine_norms, state in on_ranks(on_one_rank_of, world_size):
        assert mine_norms == pytest.approx(norms, rel=1e-5)
        for a, b in zip(mine, weights, strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
        assert "exp_avg/0.weight" in state
        assert "exp_avg/2.weight" not in state


def changed_late(world):
    model = net()
    engine = build_ddp_engine(model, adamw(model), world)
    engine.reducer.arm()
    engine.reducer.ready(0, engine.reducer.buckets[0].names[0])
    try:
        engine.reducer.ready(0, engine.reducer.buckets[0].names[0])
    except RuntimeError as error:
        return str(error)


def test_a_gradient_that_changes_after_it_was_reduced_is_a_bug_that_is_seen():
    (message,) = on_ranks(changed_late, 1)
    assert "changed after it was complete" in message


class Adapted(nn.Module):
    """Layers in some type, and between them an adapter in fp32."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(3)
        first, last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.first, self.last = (layer.to(dtype).requires_grad_(False) for layer in (first, last))
        self.adapter = nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.first(x.to(self.first.weight.dtype))
        return self.last(self.adapter(hidden.float()).to(hidden.dtype)).float()


MANY = 10**6  # trained tokens; a mean over so many has no gradient in fp16


def gradient_over_many(model, engine, forward=None):
    forward = forward or model
    engine.backward(loss_of(forward, rows()[:5]), is_last=False, divisor=MANY)
    engine.backward(loss_of(forward, rows()[5:]), is_last=True, divisor=MANY)
    gradients = [p.grad for p in model.adapter.parameters()]
    assert float(engine.grad_norm()) == pytest.approx(
        float(torch.cat([g.flatten() for g in gradients]).norm())
    )
    return model.adapter.weight.grad.flatten().tolist()


def on_fp16_ranks(world):
    model = Adapted(torch.float16)
    return gradient_over_many(model, build_ddp_engine(model, adamw(model), world))


class WholeStep(nn.Module):
    """What an engine that shards a model takes: its forward pass is a step's, `model` names the parameters."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def on_sharded_fp16_ranks(world):
    model = Adapted(torch.float16)
    module, adapters = WholeStep(model), ["adapter.weight", "adapter.bias"]
    trained = Trained([{"params": adapters}], adapters, lambda groups: torch.optim.AdamW(groups, lr=0.1))
    engine = build_fsdp_engine(
        module, [model.first, model.last], {}, trained, world=world, dtype=torch.float16
    )
    return gradient_over_many(model, engine, module)


def arguments_sent_by_sharding(world):
    from torch.distributed.fsdp._fully_shard import _fsdp_state

    model, sent = Adapted(torch.float32), []
    module, adapters = WholeStep(model), ["adapter.weight", "adapter.bias"]
    trained = Trained([{"params": adapters}], adapters, lambda groups: torch.optim.AdamW(groups, lr=0.1))
    build_fsdp_engine(module, [model.first, model.last], {}, trained, world=world, dtype=torch.float32)
    torch._C._get_privateuse1_backend_name = lambda: world.device.type  # it is an accelerator now

    def send(inputs, options, *_):
        sent.append([one for one in inputs if isinstance(one, torch.Tensor)])
        return (inputs,), (options,)

    _fsdp_state._to_kwargs = send
    loss_of(module, rows()).backward()
    return list(map(len, sent))


def test_sharding_leaves_arguments_of_the_host_there():
    assert on_ranks(arguments_sent_by_sharding, 1) == [[0]]


def accelerator_of_deepspeed(world):
    from deepspeed.accelerator import real_accelerator

    from swiftlet.parallel import deepspeed

    real_accelerator.ds_accelerator = None
    torch.cuda.is_available = lambda: True  # the machine has a GPU, the run is on its processor
    deepspeed._import(world.device)
    return real_accelerator.get_accelerator()._name


def test_deepspeed_takes_the_device_of_the_run_and_not_the_best_of_the_machine(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert on_ranks(accelerator_of_deepspeed, 1) == ["cpu"]


def test_a_mean_over_many_tokens_keeps_its_gradient_in_fp16():
    expected, found = (
        gradient_over_many(model, build_single_engine(model, adamw(model)))
        for model in (Adapted(torch.float32), Adapted(torch.float16))
    )
    assert found == pytest.approx(expected, rel=2e-2, abs=1e-2 * max(map(abs, expected)))
    for ranks in (on_fp16_ranks, on_sharded_fp16_ranks):
        for of_rank in on_ranks(ranks, 2):  # which have the same rows
            assert of_rank == pytest.approx([2 * one for one in found], rel=1e-6)


def test_state_goes_from_one_engine_to_another():
    first, second = net(), net()
    engine = build_single_engine(first, adamw(first))
    three_steps(engine, first, rows())
    other = build_single_engine(second, adamw(second))
    second.load_state_dict(first.state_dict())
    other.load_optimizer({name: value.clone() for name, value in engine.optimizer_tensors()})
    assert three_steps(engine, first, rows()) == three_steps(other, second, rows())


def test_gradients_are_views_of_buckets_of_a_bounded_size():
    model = net()
    gradients = build_gradients(model.named_parameters(), bucket_bytes=100)
    assert len(gradients.buckets) > 1
    loss_of(model, rows()).backward()
    assert float(gradients.norm()) > 0
    gradients.clear()
    assert float(gradients.norm()) == 0
    for parameter in model.parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(0, torch.float32), (7, torch.float32), (2**21 + 5, torch.float32), (2**21 + 5, torch.bfloat16)],
)
def test_the_norm_is_exact_however_large_the_tensor(size, dtype):
    spread = torch.randn(size, generator=torch.Generator().manual_seed(0))
    spread[: size // 1000] *= 100.0  # what comes first must not swallow the rest
    tensor = spread.to(dtype)
    assert float(norm_of(tensor)) == pytest.approx(float(tensor.double().norm()), rel=1e-6)


def test_the_first_bad_gradient_is_named():
    model = net()
    engine = build_single_engine(model, adamw(model))
    engine.backward(loss_of(model, rows()), is_last=True)
    assert engine.bad_gradient() is None
    model[0].bias.grad[1] = float("nan")
    model[3].weight.grad[0, 0] = float("inf")
    assert engine.bad_gradient() == "0.weight" or engine.bad_gradient() == "0.bias"
    engine.drop()
    assert float(engine.grad_norm()) == 0


def test_rates_follow_each_groups_peak():
    model = net()
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.4}]
    engine = build_single_engine(model, torch.optim.SGD(groups))
    assert engine.set_learning_rate(0.5) == pytest.approx(0.05)
    assert [group["lr"] for group in engine.optimizer.param_groups] == pytest.approx([0.05, 0.2])
    engine.set_learning_rate(1.0)
    assert [group["lr"] for group in engine.optimizer.param_groups] == pytest.approx([0.1, 0.4])


def agreements(world):
    world.barrier()
    return {
        "gather": world.gather({"rank": world.rank, "text": "ä" * world.rank}),
        "broadcast": world.broadcast(["from", world.rank]),
        "any": world.agree(world.rank == 1),
        "none": world.agree(False),
        "sum": world.sum(torch.tensor([1.0, float(world.rank)])).tolist(),
        "main": world.is_main,
    }


def test_the_ranks_agree():
    found = on_ranks(agreements, 3)
    for rank, mine in enumerate(found):
        assert mine["gather"] == [{"rank": n, "text": "ä" * n} for n in range(3)]
        assert mine["broadcast"] == ["from", 0]
        assert (mine["any"], mine["none"]) == (True, False)
        assert mine["sum"] == [3.0, 3.0]
        assert mine["main"] == (rank == 0)


def test_alone_nothing_is_communicated():
    world = World()
    assert (world.gather(1), world.broadcast(2), world.agree(True)) == ([1], 2, True)
    world.barrier()
