"""`swift plan` as typed: steps, verdicts, what is dominated, and what must never be imported."""

import json
import shlex
import subprocess
import sys
import time

import pytest

from swiftlet.cli import main
from swiftlet.commands import sft
from swiftlet.commands.plan import number_of_processes
from swiftlet.config.parse import parse
from swiftlet.errors import UsageError
from swiftlet.plan.cards import find_card, host_card, parse_devices, read_cards
from swiftlet.plan.strategies import ENGINES

REFERENCE = (
    "--model_type qwen1half-7b-chat --dataset blossom-math-zh --num_train_epochs 5 --sft_type lora".split()
)


LEVELS = (False, "partial", True)  # of gradient_checkpointing
MEASURED = {"matrix_gflops": [[64, 50.0]], "launch_us": 5, "bandwidth_gb_s": 9, "date": "2026-11-26"}


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch):
    for name in ("MODELSCOPE_CACHE", "HF_HUB_CACHE", "SWIFTLET_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("NPROC_PER_NODE", "NNODES", "ASCEND_RT_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plan(capsys):
    def run(*words):
        assert main(["plan", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(("device", "steps"), [("1x910B3", 3090), ("4x910B3", 3090), ("8x910B3", 3095)])
def test_steps_of_the_reference_commands(plan, device, steps):
    found = plan(*REFERENCE, "--device", device)
    assert found["num_steps"] == steps
    assert (found["num_train_rows"], found["num_val_rows"]) == (9900, 100)
    assert "family table" in found["geometry_source"]
    assert "published statistics" in found["data_source"]


def test_replicas_win_on_four_cards_and_zero3_is_dominated(plan):
    found = plan(*REFERENCE, "--device", "4x910B3")
    assert found["best"]["engine"] == "none"
    assert found["best"]["command"].startswith("NPROC_PER_NODE=4 swift sft --model_type qwen1half-7b-chat")
    zero3 = [way for way in found["ways"] if way["engine"] == "zero3"]
    assert zero3
    assert all("DDP" in way["dominated_by"] for way in zero3)


def test_recomputing_a_part_lies_between_and_is_not_offered_with_zero3(plan):
    found = plan(*REFERENCE, "--device", "4x910B3", "--lora_target_modules", "ALL")
    levels = {
        way["gradient_checkpointing"]: way
        for way in found["ways"]
        if way["engine"] == "none" and way["micro_batch_tokens"] == found["best"]["micro_batch_tokens"]
    }
    activations, seconds = (
        [level[name] if name == "seconds" else level["components"][name] for level in map(levels.get, LEVELS)]
        for name in ("activations", "seconds")
    )
    # Of 60 k numbers a token and layer of 7B (4 H of norms, 4 H of attention, 2 I) up and two H are spared.
    assert 0.6 < activations[1] / activations[0] < 0.7
    assert activations == sorted(activations, reverse=True)
    assert seconds == sorted(seconds)
    assert levels["partial"]["command"].endswith("--gradient_checkpointing partial")
    zero3 = {way["gradient_checkpointing"] for way in found["ways"] if way["engine"] == "zero3"}
    assert zero3 == {False, True}


def test_a_part_that_is_asked_for_is_recomputed(plan, model_folder, rows_file):
    words = ["--model_id_or_path", str(model_folder), "--dataset", str(rows_file)]
    found = plan(*words, "--device", "1x910B3")["chosen"]
    assert found["gradient_checkpointing"] is False
    asked = plan(*words, "--device", "1x910B3", "--gradient_checkpointing", "partial")["chosen"]
    assert asked["gradient_checkpointing"] == "partial"
    assert asked["needed"] < found["needed"]


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--max_length", (200, 400, 563)),
        ("--micro_batch_tokens", (600, 1500, 6000)),
        ("--batch_size", (1, 2, 8)),
    ],
)
def test_more_of_a_flag_never_needs_less(plan, flag, values):
    words = [*REFERENCE, "--device", "1x910B3"] + (
        ["--packing", "false"] if flag != "--micro_batch_tokens" else []
    )
    needed = [plan(*words, flag, str(value))["chosen"]["needed"] for value in values]
    assert needed == sorted(needed)
    assert needed[-1] > needed[0] or flag == "--batch_size"  # of a step, whose samples go through one by one


def test_what_cannot_fit_is_told_what_it_needs(plan, capsys):
    words = ["--model_type", "qwen1half-72b-chat", "--dataset", "blossom-math-zh", "--device", "8x910B3"]
    found = plan(*words)
    assert not found["is_possible"]
    assert found["chosen"]["verdict"] == "does not fit"
    assert found["chosen"]["needed"] > 130 * 2**30
    assert found["best"]["engine"] in ("zero3", "fsdp2")
    assert found["best"]["verdict"] == "fits"
    assert main(["plan", *words]) == 0
    assert "the cheapest change that fits is" in capsys.readouterr().out
    assert main(["plan", *words[:-1], "1x910B3", "--sft_type", "full"]) == 0
    assert "in the memory of the host" in capsys.readouterr().out


def test_what_fits_with_the_memory_of_the_host_alone_is_told_how_many_devices_do_without(plan, capsys):
    words = ["--model_type", "qwen1half-110b-chat", "--dataset", "blossom-math-zh", "--sft_type", "full"]
    words += ["--device", "8x910B3", "--deepspeed", "zero3-offload"]
    found = plan(*words)
    assert found["is_possible"]
    assert found["chosen"]["components"]["gradients"] == 0  # gathered on the host too
    assert found["devices_needed"] == 64
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr().out
    assert "not checked here; without it 64 devices with --fsdp full_shard are enough" in shown


def test_an_architecture_whose_sizes_do_not_say_it_all_has_its_parameters_counted(
    plan, hybrid_folder, rows_file
):
    from transformers import AutoModelForCausalLM

    words = ["--model_id_or_path", str(hybrid_folder), "--dataset", str(rows_file), "--device", "1xH200"]
    found = plan(*words)
    model = AutoModelForCausalLM.from_pretrained(hybrid_folder)
    assert found["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert "counted in the model without weights: near, not exact" in found["geometry_source"]


@pytest.mark.parametrize("kind", ["starcoder2", "smollm3"])
def test_a_head_that_the_library_ties_without_a_word_is_planned_as_tied(kind):
    from transformers import AutoConfig

    from swiftlet.models.geometry import geometry_of_config

    said = AutoConfig.for_model(kind, hidden_size=64, num_attention_heads=4).to_dict()
    assert said.pop("tie_word_embeddings")
    assert geometry_of_config(said).tied


def test_three_figures_and_a_chart(plan, tmp_path):
    found = plan(*REFERENCE, "--device", "1xH200", "--chart", str(tmp_path / "chart.png"))
    chosen = found["chosen"]
    assert chosen["needed"] < chosen["reserved"] < chosen["visible"]
    assert sum(chosen["components"].values()) == pytest.approx(chosen["needed"], abs=10)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "start"), [("c.svg", b"<?xml"), ("c.html", b"<!DOCTYPE html>")])
def test_charts_of_other_kinds(plan, tmp_path, name, start):
    plan(*REFERENCE, "--device", "1xH200", "--chart", str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    assert content.startswith(start)
    assert b"<svg" in content


def test_a_chart_that_is_no_picture_is_a_mistake(capsys):
    assert main(["plan", *REFERENCE, "--device", "1xH200", "--chart", "chart.gif"]) == 2
    assert "--chart chart.gif: a chart is .png, .svg, .html" in capsys.readouterr().err


def test_each_part_says_where_it_is_from(plan, capsys):
    found = plan(*REFERENCE, "--device", "4x910B3", "--deepspeed", "default-zero3")
    chosen = found["chosen"]
    assert set(chosen["sources"]) == set(chosen["components"])
    assert chosen["sources"]["weights"] == "7,721,324,544 parameters x 2 bytes / 4 devices"
    assert chosen["sources"]["adapters"].startswith("6,291,456 parameters x 4 bytes: rank 8 on k, q, v")
    assert main(["plan", *REFERENCE, "--device", "4x910B3"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "table of devices",
        "the family table",
        "published statistics",
        "an estimate, +-50%",
        "as long",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("name", "offloaded"),
    [("default-zero2", None), ("default-zero3", None), ("zero3-offload", ["optimizer", "param"])],
)  # fmt: skip
def test_a_file_of_settings_is_planned_as_the_engine_it_asks_for(plan, tmp_path, name, offloaded):
    zero = {f"offload_{part}": {"device": "cpu"} for part in offloaded or ()}
    zero |= {"stage": 2 if name == "default-zero2" else 3, "offload_param": zero.get("offload_param", {})}
    zero |= dict.fromkeys(("reduce_bucket_size", "overlap_comm", "stage3_max_live_parameters"), "auto")
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    words = (*REFERENCE, "--device", "4x910B3", "--deepspeed")
    own, named = (plan(*words, asked)["chosen"] for asked in (str(tmp_path / "own.json"), name))
    assert own["engine"] == named["engine"]
    assert (own["sources"], own["components"]) == (named["sources"], named["components"])


def test_the_command_of_a_way_with_settings_of_ones_own_has_these_and_its_figures(plan, tmp_path):
    settings = tmp_path / "my settings.json"
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    settings.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    words = ["--model_type", "qwen1half-14b-chat", "--dataset", "blossom-math-zh", "--sft_type", "full"]
    found = plan(*words, "--device", "4x910B3", "--deepspeed", str(settings))
    kept = {way["engine"]: way for way in found["ways"]}
    for engine in ("zero2", "zero3"):
        _, _, _, *typed = shlex.split(kept[engine]["command"])
        assert typed[typed.index("--deepspeed") + 1] == (
            str(settings) if engine == "zero2" else "default-zero3"
        )
        again = plan(*typed, "--device", "4x910B3")["chosen"]
        assert again["visible"] == kept[engine]["visible"]


@pytest.mark.parametrize(
    ("settings", "numbers", "live"),
    [
        ({"stage": 2, "reduce_bucket_size": 5e7, "overlap_comm": True}, 2 * 5e7, 0),
        ({"stage": 2}, 5e8, 0),  # what DeepSpeed does where nothing is said
        ({"stage": 2, "contiguous_gradients": False, "overlap_comm": True}, 0, 0),
        ({"stage": 3, "reduce_bucket_size": "auto", "stage3_max_live_parameters": 1e8}, 4096**2, 1e8),
        ({"stage": 3}, 5e8, 1e9),
    ],
    ids=str,
)
def test_buffers_are_those_that_a_file_of_settings_asks_for(plan, settings, numbers, live):
    def memory(asked):
        return plan(*REFERENCE, "--device", "4x910B3", "--deepspeed", asked)["chosen"]["components"]

    own = memory(json.dumps({"zero_optimization": settings}))
    assert own["buckets"] == 2 * numbers
    if live:
        assert memory("default-zero3")["gathered"] - own["gathered"] == 2 * (1e9 - live)


def test_a_budget_that_was_asked_for_is_made_smaller_before_weights_are_sharded(plan):
    words = (*REFERENCE, "--device", "2x910B4", "--batch_size", "64", "--micro_batch_tokens", "65536")
    found = plan(*words, "--gradient_checkpointing", "false")
    assert not found["is_possible"]
    assert found["best"]["engine"] == "none"
    assert f"--micro_batch_tokens {found['best']['micro_batch_tokens']} " in found["best"]["command"]
    assert found["best"]["micro_batch_tokens"] < 65536


def test_the_command_to_paste_keeps_the_variables_of_devices_and_machines(plan, monkeypatch):
    for name, value in (("NPROC_PER_NODE", "4"), ("NNODES", "2"), ("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")):
        monkeypatch.setenv(name, value)
    command = plan(*REFERENCE, "--device", "8x910B3")["best"]["command"]
    assert command.startswith(
        "NPROC_PER_NODE=4 ASCEND_RT_VISIBLE_DEVICES=0,1,2,3 NNODES=2 swift sft --model_type"
    )


def test_the_command_to_paste_keeps_every_digit(plan):
    command = plan(*REFERENCE, "--device", "1x910B3", "--learning_rate", "1.23456789e-4")["best"]["command"]
    assert "--num_train_epochs 5 " in command
    assert " --learning_rate 0.000123456789" in command


def test_processes_of_all_machines_are_counted_as_the_launcher_does(
    plan, monkeypatch, model_folder, rows_file
):
    words = ["--model_id_or_path", str(model_folder), "--dataset", str(rows_file), "--device", "cpu"]
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")
    memory = plan(*words)["device_memory_bytes"]
    monkeypatch.setenv("NNODES", "2")
    found = plan(*words)
    assert (found["world_size"], found["device_memory_bytes"]) == (8, memory)
    assert found["best"]["command"].startswith("NPROC_PER_NODE=4 ")
    monkeypatch.setenv("NNODES", "two")
    with pytest.raises(UsageError, match="NNODES is a whole number of at least 1, found 'two'"):
        number_of_processes({"NNODES": "two"}, None)


@pytest.mark.parametrize("dataset", ["blossom-math-zh", "MS::AI-ModelScope/blossom-math-v2"])
def test_rows_of_the_other_hub_are_not_at_hand(plan, model_folder, tmp_path, dataset):
    snapshot = tmp_path / "HF_HUB_CACHE" / "datasets--Azure99--blossom-math-v2" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").write_text('{"input": "w1", "output": "w2", "answer": "w3"}\n' * 200)
    words = ["--model_id_or_path", str(model_folder), "--device", "1xH200"]
    assert "not read" in plan(*words, "--dataset", dataset)["data_source"]
    other = plan(*words, "--dataset", "HF::Azure99/blossom-math-v2")
    assert other["data_source"] == "the tokenised rows"


def test_a_config_and_rows_at_hand_take_precedence(plan, model_folder, rows_file):
    found = plan("--model_id_or_path", str(model_folder), "--dataset", str(rows_file), "--device", "1xH200")
    assert str(model_folder) in found["geometry_source"]
    assert found["data_source"] == "the tokenised rows"


def test_a_processor_has_no_other_memory_and_keeps_its_flag(plan, model_folder, rows_file):
    words = ["--model_id_or_path", str(model_folder), "--dataset", str(rows_file), "--device", "cpu"]
    found = plan(*words)
    assert {way["engine"] for way in found["ways"]} == {"none"}
    assert " --device cpu " in found["best"]["command"]
    assert "guesses" in found["device_sources"]
    assert "guesses" not in host_card(16, MEASURED).sources


def test_the_trace_agrees(plan, model_folder, rows_file):
    words = ["--model_id_or_path", str(model_folder), "--dataset", str(rows_file), "--device", "cpu"]
    found = plan(*words, "--dtype", "fp32", "--trace")
    assert found["traced_bytes"] == pytest.approx(found["chosen"]["needed"], rel=0.1)


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("8x910B3", 8, "910B3"),
        ("1xH200", 1, "H200"),
        ("4xA100-80G", 4, "A100-80G"),
        ("NVIDIA A100-SXM4-40GB", None, "A100-40G"),
        ("Ascend910B4", None, "910B4"),
        ("h100", None, "H100-80G"),
        ("NVIDIA H100 PCIe", None, "H100-80G"),
        ("NVIDIA GeForce RTX 4090", None, "RTX4090"),
        ("Tesla V100-SXM2-32GB", None, "V100-32G"),
        ("2xhuawei ascend 910B3", 2, "910B3"),
        ("8x910B", 8, "910B1"),
        ("1xL40", 1, "L40S"),
    ],
)
def test_devices_as_users_and_drivers_write_them(text, number, name):
    found = parse_devices(text)
    assert (found[0], found[1].name) == (number, name)


@pytest.mark.parametrize(
    "name", ["B200", "A10", "NVIDIA A10", "H20", "A100-24G", "V100-16G", "-1x910B3", "x910B3", ""]
)
def test_another_device_is_not_taken_for_one_of_the_table(name):
    assert find_card(name) is None


def test_unknown_devices_and_sources():
    with pytest.raises(UsageError, match="no such device in the table"):
        parse_devices("2xB200")
    assert all(card.sources for card in read_cards().values())


def test_more_processes_than_devices(monkeypatch, capsys):
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    assert main(["plan", *REFERENCE, "--device", "4x910B3"]) == 2
    assert "8 processes do not have a device each of 4" in capsys.readouterr().err


def test_what_sft_refuses_is_not_planned(capsys, model_folder, tmp_path):
    data = ["--dataset", "blossom-math-zh", "--device", "1x910B3"]
    assert main(["plan", "--model_type", "qwen1half-7b-chat-int4", *data, "--template_type", "foo"]) == 2
    told = capsys.readouterr().err
    assert "is quantised with gptq: such a model is for swift infer, not for training" in told
    assert "unknown --template_type 'foo'" in told
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["plan", "--model_id_or_path", str(tmp_path), *data]) == 2
    assert f"{tmp_path} is quantised: such a model is for swift infer" in capsys.readouterr().err


def test_unknown_lengths_are_an_error(capsys):
    assert (
        main(["plan", "--model_type", "qwen1half-7b-chat", "--dataset", "some/thing", "--device", "910B3"])
        == 4
    )
    assert "nothing is known of its lengths" in capsys.readouterr().err


FRUGAL = """
import resource, sys
from swiftlet.cli import main
main(["plan", *sys.argv[1:]])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
"""


def test_a_plan_of_14b_takes_seconds_and_no_weights():
    words = "--model_type qwen1half-14b-chat --dataset blossom-math-zh --device 8x910B3".split()
    done = subprocess.run([sys.executable, "-c", FRUGAL, *words], capture_output=True, text=True, check=True)
    seconds, num_bytes = map(float, done.stdout.splitlines()[-1].split())
    assert seconds < 15
    assert num_bytes < 2 * 2**30


LIGHT = """
import sys
from swiftlet.cli import main
main(["plan", *sys.argv[1:]])
assert not {"torch", "transformers", "peft"} & set(sys.modules)
"""


def test_a_plan_imports_no_torch():
    words = [*REFERENCE, "--device", "4x910B3"]
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3090" in done.stdout


@pytest.mark.parametrize(
    "words", [["--num_train_epochs", "1e9"], ["--batch_size", "100000"],
              ["--gradient_accumulation_steps", "1000000"]]
)  # fmt: skip
def test_absurd_numbers_are_planned_too(plan, words):
    began = time.process_time()
    assert plan("--device", "4x910B3", *REFERENCE[:4], *words)["ways"]
    assert time.process_time() - began < 60, (
        "some seconds on an idle machine; hours when it grows with the numbers"
    )


def test_a_length_that_no_row_has_is_named(capsys):
    assert main(["plan", "--device", "1x910B3", *REFERENCE, "--max_length", "10"]) == 4
    told = capsys.readouterr().err
    assert "no row of blossom-math-zh is as short as --max_length 10: the shortest has 35 tokens" in told
    assert "hint: type --max_length 2048" in told


@pytest.mark.parametrize("text", ["1x910B3@x", "1x910B3;", "2xA100/80G", "1x@"])
def test_a_name_with_odd_characters_is_no_device(text):
    with pytest.raises(UsageError, match="no such device in the table"):
        parse_devices(text)


@pytest.mark.parametrize("model", ["qwen1half-7b-chat", "qwen1half-72b-chat"])
def test_no_largest_micro_batch_is_below_the_longest_row(plan, model):
    answer = plan("--device", "1x910B3", "--model_type", model, *REFERENCE[2:])
    assert (
        min(way["largest_micro_batch_tokens"] for way in answer["ways"])
        >= answer["longest_row_tokens"]
        == 563
    )


def test_a_wrong_device_is_told_with_the_other_mistakes(capsys):
    assert main(["plan", *REFERENCE, "--device", "8x910B9", "--sft_type", "lorra"]) == 2
    said = capsys.readouterr().err
    assert "no such device in the table" in said and "'lorra' is not known" in said


REFUSED = {
    ("--use_dora", "true"): {"zero3", "zero3-offload", "fsdp2", "fsdp2-offload"},
    ("--init_lora_weights", "pissa"): {"zero3", "zero3-offload", "fsdp2", "fsdp2-offload"},
    ("--predict_with_generate", "true"): {"zero3", "zero3-offload", "fsdp2", "fsdp2-offload"},
    ("--dtype", "fp16"): {"zero2", "zero3", "zero3-offload"},
    ("--optim", "adafactor"): {"zero2", "zero3", "zero3-offload"},
    ("--sft_type", "full", "--optim", "adafactor"): set(ENGINES[1:]),
    ("--lora_rank", "16"): set(),
}


@pytest.mark.parametrize(("words", "refused"), REFUSED.items())
def test_what_sft_refuses_is_not_offered(plan, words, refused):
    typed = [*REFERENCE[:4], *words]
    found = plan(*typed, "--device", "8x910B3")
    assert {way["engine"] for way in found["ways"]} == set(ENGINES) - refused
    for way in found["ways"]:
        given = shlex.split(way["command"])
        parsed = parse(sft.ARGS, given[given.index("sft") + 1 :])
        assert not sft.check(parsed, {}), way["command"]


def test_modules_trained_whole_and_ends_with_adapters_count(plan):
    def memory(*words):
        parts = plan(*REFERENCE, "--device", "1x910B3", *words)["chosen"]["components"]
        return parts["adapters"] + parts["gradients"] + parts["optimizer"]

    plain, table, matrix = memory(), 151936 * 4096, 4096 * 4096
    each = 2 + 2 + 4  # a copy in bf16, its gradient, and AdamW's two numbers, all of its type
    for name in ("EMBEDDING", "embedding", "model.embed_tokens", "lm_head"):
        assert memory("--lora_modules_to_save", name) - plain == pytest.approx(each * table, rel=0.01)
    assert memory("--lora_modules_to_save", "q_proj") - plain == pytest.approx(32 * each * matrix, rel=0.01)
    one = memory("--lora_modules_to_save", "model.layers.3.self_attn.q_proj")
    assert one - plain == pytest.approx(each * matrix, rel=0.01)
    ends = memory("--lora_target_modules", "DEFAULT", "EMBEDDING", "lm_head")
    assert ends - plain == pytest.approx(2 * 16 * 8 * (151936 + 4096), rel=0.01)


def test_frozen_names_are_not_trained(plan):
    def trained(*words):
        return plan(*REFERENCE[:4], "--sft_type", "full", "--device", "8x910B3", *words)["chosen"][
            "components"
        ]

    whole, ends = trained()["gradients"], 2 * 2 * 151936 * 4096
    assert trained("--freeze_parameters", "model.layers")["gradients"] == pytest.approx(ends, rel=0.01)
    half = trained("--freeze_parameters", *(f"model.layers.{number}." for number in range(16)))["gradients"]
    assert half == pytest.approx((whole + ends) / 2, rel=0.01)
    below = trained("--freeze_parameters", "model.embed_tokens", "--freeze_parameters_ratio", "0.5")[
        "gradients"
    ]
    assert below == pytest.approx(whole / 2, rel=0.01)
    assert trained("--freeze_parameters", "visual.")["gradients"] == whole


def test_a_type_that_the_device_lacks_is_refused(capsys):
    assert main(["plan", *REFERENCE, "--device", "1x910A", "--dtype", "bf16"]) == 2
    told = capsys.readouterr().err
    assert "910A does not have bf16; it has fp16, fp32" in told
    assert "type --dtype fp32" in told


def test_machines_have_equally_many_devices(monkeypatch, capsys, plan):
    monkeypatch.setenv("NNODES", "2")
    assert main(["plan", *REFERENCE, "--device", "15x910B3"]) == 2
    told = capsys.readouterr().err
    assert "15 devices are not as many on each of NNODES=2 machines" in told
    assert "type --device 16x..." in told
    assert plan(*REFERENCE, "--device", "16x910B3")["best"]["command"].startswith(
        "NPROC_PER_NODE=8 NNODES=2 "
    )
