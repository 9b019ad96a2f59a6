"""Losses, gradient norms and weights do not depend on ranks, engine and accumulation."""

import pytest
from shapes import check_same

KINDS = ("lora", "full")
SLOW = pytest.mark.slow
QUICK = [
    ("zero2", 2, "lora", 4),
    ("zero3", 2, "full", 4),
    ("fsdp2", 2, "full", 1),
    ("ddp", 2, "lora", 4),
    ("fsdp2", 2, "lora", 4),
]
ALL = [
    (engine, ranks, kind, accumulation)
    for ranks in (1, 2, 4)
    for engine in ("ddp", "zero2", "zero3", "fsdp2")
    for kind in KINDS
    for accumulation in (1, 4)
]


@pytest.mark.parametrize(
    "engine, ranks, kind, accumulation",
    [*QUICK, *(pytest.param(*shape, marks=SLOW) for shape in ALL if shape not in QUICK)],
)
def test_every_shape_has_the_trajectory_of_one_process(shapes, engine, ranks, kind, accumulation):
    golden = shapes.golden(f"golden-{kind}", sft_type=kind)
    runs = shapes.run(f"{engine}-{ranks}-{kind}-{accumulation}", engine, ranks, accumulation, sft_type=kind)
    found = check_same(runs, golden)
    print(f"figure: {engine}, {ranks} ranks, {kind}, accumulation {accumulation}: {found}")


@pytest.mark.parametrize(
    "engine, kind",
    [
        ("zero3", "full"),
        ("fsdp2", "lora"),
        *(
            pytest.param(*shape, marks=SLOW)
            for shape in (("zero3", "lora"), ("fsdp2", "full"), ("zero2", "full"))
        ),
    ],
)
def test_a_mixture_of_experts_has_the_trajectory_of_one_process(shapes, experts_folder, engine, kind):
    options = {"sft_type": kind, "model_id_or_path": experts_folder}
    golden = shapes.golden(f"experts-golden-{kind}", **options)
    check_same(shapes.run(f"experts-{engine}-{kind}", engine, 2, **options), golden)
