"""A run goes on by another engine on another number of ranks; a bad gradient changes nothing on any rank."""

import json

import pytest
from harness import Runs
from shapes import NUM_STEPS, check_same, figures, finish, weights

SLOW = pytest.mark.slow
CHAINS = [
    ("lora", [("ddp", 2), ("zero3", 2)]),
    ("full", [("fsdp2", 2), ("ddp", 1)]),
    pytest.param("lora", [("zero3", 4), ("fsdp2", 2), ("zero2", 2), ("ddp", 1)], marks=SLOW),
    pytest.param("full", [("ddp", 4), ("zero3", 2), ("fsdp2", 1)], marks=SLOW),
    pytest.param("full", [("zero3", 2), ("zero2", 4), ("ddp", 2)], marks=SLOW),
    pytest.param("full", [("zero2", 2), ("fsdp2", 4), ("zero3", 1)], marks=SLOW),
    pytest.param("lora", [("ddp", 1), ("zero2", 4), ("zero3-offload", 2)], marks=SLOW),
    pytest.param("full", [("fsdp2", 4), ("zero3-offload", 2), ("fsdp2-offload", 2)], marks=SLOW),
]


def start(shapes, name, engine, ranks, **options) -> Runs:
    folder = shapes.folder / name
    return Runs(
        folder, {**shapes.options(engine, ranks, 1, **options), "output_dir": folder / "run"}, shapes.environ
    )


@pytest.mark.parametrize("kind, chain", CHAINS, ids=str)
def test_a_run_goes_on_by_another_engine_on_other_ranks(shapes, kind, chain):
    golden = shapes.golden(f"golden-{kind}", sft_type=kind)
    name = f"chain-{kind}-" + "-".join(f"{engine}{ranks}" for engine, ranks in chain)
    for number, (engine, ranks) in enumerate(chain):
        is_last = number == len(chain) - 1
        runs = start(shapes, name, engine, ranks, sft_type=kind, save_steps=1)
        dones = finish(
            runs,
            ranks,
            fault="" if is_last else f"opt:step={number + 2}=exc",
            resume_from_checkpoint="auto" if number else None,
        )
        for done in dones:
            assert done.code == (0 if is_last else 1), done.text
    check_same(runs, golden)


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=SLOW)])
@pytest.mark.parametrize(
    "engine",
    ["fsdp2", *(pytest.param(engine, marks=SLOW) for engine in ("ddp", "zero2", "zero3", "zero3-offload"))],
)
def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(shapes, engine, kind):
    golden = shapes.golden(f"golden-{kind}", sft_type=kind)
    runs = start(shapes, f"nan-{engine}-{kind}", engine, 2, sft_type=kind)
    for done in finish(runs, 2, fault="fwd:rank=1:step=3=nan"):
        assert done.code == 6, done.text
        assert "the loss of step 3 is not finite; nothing was updated. rank 1, rows" in done.text
    assert runs.valid_steps() == [2]
    mine, theirs = weights(runs, 2), weights(golden, 2)
    assert all(float((mine[name] - theirs[name]).abs().max()) < 1e-5 for name in theirs)


@SLOW
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "zero3-offload", "fsdp2"])
def test_a_gradient_that_is_not_finite_stops_all_ranks_before_the_update(shapes, engine, kind):
    runs = start(shapes, f"inf-{engine}-{kind}", engine, 2, sft_type=kind)
    for done in finish(runs, 2, fault="bwd:rank=1:step=3=inf"):
        assert done.code == 6, done.text
        assert "the gradient of step 3 is not finite; nothing was updated. parameter " in done.text
    assert runs.valid_steps() == [2]


@SLOW
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("engine", ["zero2", "zero3", "zero3-offload", "fsdp2"])
def test_a_step_that_is_skipped_leaves_nothing_behind(shapes, engine, kind):
    options = {"sft_type": kind, "spike_policy": "skip", "max_steps": 24, "eval_steps": 24, "save_steps": 24}
    fault = "bwd:step=22=spike=100000"
    golden = start(shapes, f"skip-golden-{kind}", "ddp", 1, **options)
    if not golden.output.exists():
        assert golden.run(fault=fault).code == 0
    runs = start(shapes, f"skip-{engine}-{kind}", engine, 2, **options)
    dones = finish(runs, 2, fault=fault)
    assert all(done.code == 0 for done in dones), dones[0].text
    assert any("step 22 was skipped" in done.text for done in dones)
    assert figures(runs, "loss") == pytest.approx(figures(golden, "loss"), rel=1e-4)


@SLOW
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize(
    "more",
    [{"gradient_checkpointing": "true"}, {"max_grad_norm": 0.05}, {"dtype": "bf16"}],
    ids=lambda more: next(iter(more)),
)
def test_other_settings_keep_the_trajectory(shapes, engine, kind, more):
    tolerance = 3e-2 if "dtype" in more else 1e-5
    golden = shapes.golden(f"golden-{kind}-{next(iter(more))}", sft_type=kind, **more)
    runs = shapes.run(f"{engine}-{kind}-{next(iter(more))}", engine, 2, 4, sft_type=kind, **more)
    if "dtype" not in more:
        check_same(runs, golden, tolerance)
    assert figures(runs, "loss") == pytest.approx(figures(golden, "loss"), rel=tolerance)
    assert {n: t.dtype for n, t in weights(runs).items()} == {n: t.dtype for n, t in weights(golden).items()}
    assert len(figures(runs, "loss")) == NUM_STEPS
    assert saved_dtype(runs) == saved_dtype(golden)


@SLOW
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("engine", ["ddp", "zero2", "fsdp2", "fsdp2-offload"])
def test_recomputing_a_part_keeps_the_trajectory(shapes, engine, kind):
    golden = shapes.golden(f"golden-{kind}", sft_type=kind)
    more = {"sft_type": kind, "gradient_checkpointing": "partial"}
    check_same(shapes.run(f"partial-{engine}-{kind}", engine, 2, 4, **more), golden)


def saved_dtype(runs):
    config = runs.output / f"checkpoint-{NUM_STEPS}" / "config.json"
    return json.loads(config.read_text("utf-8"))["dtype"] if config.exists() else None


@SLOW
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_modules_that_are_trained_whole_beside_adapters(shapes, engine):
    more = {"sft_type": "lora", "lora_target_modules": "ALL", "lora_modules_to_save": "lm_head"}
    golden = shapes.golden("golden-saved", **more)
    check_same(shapes.run(f"saved-{engine}", engine, 2, 4, **more), golden)
