"""What does not go together with sharding is refused before anything is loaded, with what to type instead."""

import json

import pytest

from swiftlet.config.args import SftArgs
from swiftlet.config.check import check_sft
from swiftlet.config.deepspeed import Facts, deepspeed_settings, zero_stage
from swiftlet.config.parse import parse_mapping
from swiftlet.errors import UsageError

FACTS = Facts(
    batch_size=2,
    accumulation=4,
    world_size=2,
    max_grad_norm=0.5,
    dtype="bf16",
    hidden_size=64,
    can_overlap=True,
)


def messages(**options):
    parsed = parse_mapping(SftArgs, {"model_type": "m", "dataset": "d", **options})
    return [str(mistake) for mistake in check_sft(parsed)]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"optim": "adafactor", "deepspeed": "default-zero2"}, "--optim adafactor needs whole matrices"),
        ({"optim": "adafactor", "fsdp": "full_shard", "sft_type": "full"}, "--fsdp gives it parts"),
        (
            {"init_lora_weights": "pissa", "fsdp": "full_shard"},
            "--init_lora_weights pissa is computed from whole",
        ),
        ({"use_dora": True, "deepspeed": "default-zero3"}, "--use_dora is computed from whole weights"),
        ({"predict_with_generate": True, "fsdp": "full_shard"}, "does not go with --fsdp"),
        ({"dtype": "fp16", "deepspeed": "default-zero2"}, "--dtype fp16 does not go with --deepspeed"),
        ({"dtype": "fp16", "sft_type": "full"}, "--dtype fp16 does not go with --sft_type full"),
        ({"dtype": "fp16", "sft_type": "full", "fsdp": "full_shard"}, "does not go with --sft_type full"),
        (
            {"dtype": "fp16", "lora_modules_to_save": "lm_head", "lora_bias_trainable": "all"},
            "--dtype fp16 does not go with --lora_modules_to_save, --lora_bias_trainable",
        ),
        (
            {"gradient_checkpointing": "partial", "deepspeed": "default-zero3"},
            "--gradient_checkpointing partial does not go with --deepspeed default-zero3",
        ),
    ],
)
def test_what_does_not_go_together(options, said):
    (text,) = messages(**options)
    message, hint = text.split("\nhint: ")
    assert said in message
    assert hint


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "adafactor", "fsdp": "full_shard"},
        {"init_lora_weights": "pissa", "deepspeed": "default-zero2"},
        {"use_dora": True},
        {"dtype": "fp16"},
        {"dtype": "fp16", "lora_modules_to_save": "lm_head", "fsdp": "full_shard"},
        {"predict_with_generate": True, "deepspeed": "default-zero2"},
        {"gradient_checkpointing": "partial", "deepspeed": "default-zero2"},
        {"gradient_checkpointing": "partial", "fsdp": "full_shard"},
    ],
)
def test_what_does(options):
    assert messages(**options) == []


def test_the_names_are_the_settings_of_the_contract():
    two = deepspeed_settings("default-zero2", FACTS)
    zero = two["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["contiguous_gradients"]) == (2, True, True)
    assert zero["allgather_bucket_size"] == zero["reduce_bucket_size"] == 2e8
    assert (
        two["train_batch_size"] == 16 and two["gradient_clipping"] == 0.5 and two["bf16"] == {"enabled": True}
    )
    assert not {"optimizer", "scheduler"} & set(two)
    three = deepspeed_settings("default-zero3", FACTS)["zero_optimization"]
    assert (three["stage"], three["sub_group_size"], three["stage3_max_live_parameters"]) == (3, 10**9, 10**9)
    assert three["stage3_param_persistence_threshold"] == 640
    assert not any("offload" in name for name in three)
    offloaded = deepspeed_settings("zero3-offload", FACTS)["zero_optimization"]
    assert offloaded["offload_param"]["device"] == offloaded["offload_optimizer"]["device"] == "cpu"


def test_between_nodes_of_some_devices_nothing_overlaps():
    for name in ("default-zero2", "default-zero3"):
        settings = deepspeed_settings(name, FACTS._replace(can_overlap=False))
        assert settings["zero_optimization"]["overlap_comm"] is False


def test_a_users_settings_are_taken_and_auto_is_filled_in(tmp_path):
    given = {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": "auto", "sub_group_size": 7},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "wall_clock_breakdown": True,
    }
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    settings = deepspeed_settings(str(file), FACTS)
    assert settings["zero_optimization"] == {
        "stage": 3,
        "stage3_param_persistence_threshold": 640,
        "sub_group_size": 7,
    }
    assert settings["train_micro_batch_size_per_gpu"] == 2 and settings["gradient_clipping"] == 0.5
    assert settings["wall_clock_breakdown"] is True
    assert (zero_stage(str(file)), zero_stage(json.dumps(given)), zero_stage("{")) == (3, 3, 0)


@pytest.mark.parametrize(
    "given, said",
    [
        (
            {"scheduler": {"type": "WarmupLR"}},
            "have a section 'scheduler', and --lr_scheduler_type say the same",
        ),
        ({"optimizer": {"type": "Adam"}}, "have a section 'optimizer'"),
        (
            {"gradient_clipping": 1.0},
            "gradient_clipping is 1.0 in the settings of --deepspeed, 0.5 by --max_grad_norm",
        ),
        ({"train_batch_size": 8}, "train_batch_size is 8 in the settings of --deepspeed, 16 by --batch_size"),
        (
            {"fp16": {"enabled": True}},
            "fp16.enabled is True in the settings of --deepspeed, the run is in bf16",
        ),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage is 1"),
        ({"zero_optimization": None}, "zero_optimization.stage is None"),
    ],
)
def test_settings_that_contradict_the_arguments_are_refused(given, said):
    text = json.dumps({"zero_optimization": {"stage": 2}, **given})
    with pytest.raises(UsageError) as caught:
        deepspeed_settings(text, FACTS)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "text, said", [("{", "--deepspeed is not JSON"), ("{}[]", "--deepspeed is not JSON")]
)
def test_settings_that_are_not_json(text, said):
    with pytest.raises(UsageError, match=said):
        deepspeed_settings(text, FACTS)
