"""S01 to S08, S10, S11: no model, checkpoint, file of arguments or name makes the program run or tell anything."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from cases import check_golden

from swiftlet.train.manifest import NAME as MANIFEST


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(runs):
    """What must not be there after a test."""
    runs.folder.mkdir(parents=True)
    path = runs.folder / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def model(runs, canary, model_folder):
    """A copy of the model that may be spoiled."""
    return Path(shutil.copytree(model_folder, runs.folder / "model"))


def spoil_config(model, **fields):
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_s01_weights_that_are_pickles_are_refused_unread(runs, canary, model, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Canary(canary)))
    done = runs.run(model_id_or_path=model)
    assert done.code == 1, done.text
    assert f"has its weights only as {name}" in done.text


PICKLES = ("optimizer.pt", "rng_state.pth", "training_args.bin", ".mdl", ".metadata")


def test_s02_pickles_in_a_checkpoint_are_never_read(runs, canary, golden, stopped_at_8):
    shutil.copytree(stopped_at_8, runs.output)
    for name in PICKLES:
        (runs.output / "checkpoint-8" / name).write_bytes(pickle.dumps(Canary(canary)))
    check_golden(runs, golden)
    chosen = {"ckpt_dir": runs.output / "checkpoint-8", "device": "cpu"}
    asked = runs.another("asked")
    asked.options = chosen
    done = asked.run("infer", load_dataset_config="true", do_sample="false", max_new_tokens=2)
    assert done.code == 0, done.text
    done = asked.run("export", merge_lora="true")
    assert done.code == 0, done.text


CODE = {
    "auto_map": {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_x.Model"}},
    "nested": {"trust_remote_code": True, "auto_map": {"AutoConfig": "modeling_x.Config"}},
    "hub": {"_attn_implementation": "someone/kernels", "attn_implementation": "someone/kernels"},
}


@pytest.mark.parametrize("name", CODE)
def test_s03_a_config_cannot_choose_code_to_run(runs, canary, model, name):
    (model / "modeling_x.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    spoil_config(model, **CODE[name])
    done = runs.run(model_id_or_path=model, max_steps=1, save_steps=1, eval_steps=1)
    if name == "auto_map":
        assert done.code in (1, 2), done.text
        assert "--trust_remote_code true" in done.text
    else:
        assert done.code == 0, done.text


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/hostname.safetensors", "%2e%2e/x.safetensors"]
)
def test_s04_an_index_that_leads_out_of_the_folder_is_refused(runs, canary, model, name):
    (model / "model.safetensors").rename(model.parent / "outside.safetensors")
    index = {"weight_map": {"lm_head.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    done = runs.run(model_id_or_path=model)
    assert done.code == 1, done.text
    assert "names a file outside of itself" in done.text


def test_s04_a_manifest_that_leads_out_of_the_checkpoint_is_not_believed(runs, golden, stopped_at_8):
    shutil.copytree(stopped_at_8, runs.output)
    folder = runs.output / "checkpoint-8"
    (folder / "trainer_state.json").rename(runs.output / "state.json")
    (folder / "trainer_state.json").symlink_to(runs.output / "state.json")
    done = runs.run(resume_from_checkpoint="auto")
    assert done.code == 0, done.text
    assert "trainer_state.json leads out of the checkpoint" in done.text
    assert f"continuing {runs.output}/checkpoint-4 after step 4" in done.text


def yaml_texts(canary):
    levels = "\n".join(f"x{n + 1}: &x{n + 1} [{', '.join([f'*x{n}'] * 9)}]" for n in range(12))
    return {
        "object": f"seed: !!python/object/apply:os.mkdir ['{canary}']\n",
        "bomb": f"x0: &x0 [a]\n{levels}\n",
        "huge": "seed: 1 #" + "x" * 2**21 + "\n",
    }


@pytest.mark.parametrize("name", ["object", "bomb", "huge"])
def test_s05_a_file_of_arguments_is_plain(runs, canary, name):
    file = runs.folder / "args.yaml"
    file.write_text(yaml_texts(canary)[name], encoding="utf-8")
    done = runs.run(config=file)
    assert done.code == 2, done.text
    said = {"object": "uses the YAML tag", "bomb": "uses YAML anchors", "huge": "keep it below 1 MB"}
    assert said[name] in done.text


def test_s06_the_arguments_of_a_checkpoint_choose_no_code(runs, canary, model, stopped_at_8):
    """What the file of a checkpoint says about code is not taken over by infer."""
    (model / "modeling_x.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    spoil_config(model, **CODE["auto_map"])
    folder = Path(shutil.copytree(stopped_at_8 / "checkpoint-8", runs.folder / "checkpoint-8"))
    args = json.loads((folder / "sft_args.json").read_text("utf-8"))
    args |= {"trust_remote_code": True, "model_dir": str(model), "external_plugins": "modeling_x.py"}
    (folder / "sft_args.json").write_text(json.dumps(args), encoding="utf-8")
    (folder / MANIFEST).unlink()
    runs.options = {"ckpt_dir": folder, "device": "cpu"}
    done = runs.run("infer", load_dataset_config="true", max_new_tokens=2)
    assert done.code == 1, done.text
    assert "--trust_remote_code true" in done.text


NAMES = (
    "$(touch canary)",
    "a; touch canary",
    "with space",
    "line\nbreak",
    "目录",
    "`touch canary`",
    "-rf",
    "%s%n",
)


@pytest.mark.parametrize("name", [*NAMES[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[2:])])
def test_s07_the_name_of_a_folder_is_only_a_name(runs, canary, name):
    folder = runs.folder / name
    done = runs.run(output_dir=folder, max_steps=1, save_steps=1, eval_steps=1)
    assert done.code == 0, done.text
    assert (folder / "checkpoint-1" / MANIFEST).is_file()
    assert not Path("canary").exists()


def test_s08_secrets_are_nowhere_in_what_a_run_writes(runs):
    secrets = [
        "hf_" + "Abc123" * 5,
        "sk-" + "q7w8e9r0" * 4,
        "swordfish-of-the-proxy",
        'w"\\1-quoted',
        "w7hunt",
    ]
    variables = {
        "HF_TOKEN": secrets[0],
        "MY_API_KEY": secrets[1],
        "https_proxy": f"http://user:{secrets[2]}@proxy:1",
        "MY_SECRET": secrets[3],
        "DB_PASSWORD": secrets[4],
    }
    system = " ".join(secrets[i] for i in (0, 3, 4))
    run = runs.start(variables=variables, fault="opt:step=10=exc", report_to="tensorboard", system=system)
    done = run.wait()
    assert done.code == 1, done.text
    more = runs.run(model_id_or_path=f"/nowhere/{secrets[0]}")
    assert more.code != 0
    text = done.text + more.text
    for path in runs.folder.rglob("*"):
        if path.is_file():
            text += path.read_bytes().decode("utf-8", "replace")
    spellings = [*secrets, json.dumps(secrets[3])[1:-1]]
    assert [secret for secret in spellings if secret in text] == []


def test_s10_code_that_others_can_change_is_not_run(runs, canary, model):
    (model / "modeling_x.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    spoil_config(model, **CODE["auto_map"])
    model.chmod(0o777)
    done = runs.run(model_id_or_path=model, trust_remote_code="true")
    assert done.code == 1, done.text
    assert f"others can write to {model}, so its code is not run" in done.text


def test_s11_a_header_of_any_size_takes_no_memory(runs, canary, model):
    path = model / "model.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(2**40)
    done = runs.run(model_id_or_path=model)
    assert done.code == 1, done.text
    assert "is not a safetensors file" in done.text
