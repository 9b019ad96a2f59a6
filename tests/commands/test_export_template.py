"""The chat template of a merged model: that of its run with its system message, read from its files alone."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from swiftlet import export
from swiftlet.commands.export_template import check_template, write_template
from swiftlet.commands.model_source import open_template
from swiftlet.commands.side_files import QUESTIONS, chats, read_chats
from swiftlet.config.args import GenerationArgs
from swiftlet.errors import CheckpointError

SYSTEM = 'Say "w1"\n{{ w2 }} %} 海盗 🏴'


def rendered(folder, messages):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def question(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def copy(model_folder, tmp_path):
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def test_a_system_message_is_carried_and_one_of_the_user_wins(copy):
    own = rendered(copy, question("w1"))
    _, template = open_template(copy, template_type=None, system=SYSTEM)
    (copy / "chat_template.jinja").write_text("an older place", encoding="utf-8")
    write_template(template, copy)
    assert rendered(copy, question("w1")) == f"<|im_start|> system {SYSTEM} <|im_end|> {own}"
    named = [{"role": "system", "content": "w3"}, *question("w1")]
    assert rendered(copy, named) == f"<|im_start|> system w3 <|im_end|> {own}"
    check_template(copy, chats(template))


def test_a_named_template_is_carried(copy):
    _, template = open_template(copy, template_type="default-generation", system=None)
    write_template(template, copy)
    assert rendered(copy, question("w1 w2")) == "w1 w2"


def test_a_template_for_tools_keeps_its_name(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = [
        {"name": "default", "template": config["chat_template"]},
        {"name": "tool_use", "template": "{{ messages[0].content }} with {{ tools | length }}"},
    ]
    (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    _, template = open_template(copy, template_type=None, system="w5")
    write_template(template, copy)
    _, again = open_template(copy, template_type=None, system=None)
    assert again.tool_use.render(question("w1"), [{}]) == "w5 with 1"
    assert again.chat.render(question("w1")).startswith("<|im_start|> system w5")


def test_files_that_have_the_template_stay_as_they_are(copy):
    before = (copy / "tokenizer_config.json").read_bytes()
    _, template = open_template(copy, template_type=None, system=None)
    write_template(template, copy)
    assert (copy / "tokenizer_config.json").read_bytes() == before


def test_another_system_message_than_that_of_the_run_is_named(copy):
    _, template = open_template(copy, template_type=None, system="w1 w2")
    write_template(template, copy)
    _, of_run = open_template(copy, template_type=None, system="w3 w4")
    with pytest.raises(
        CheckpointError, match=r"trained on chats such as .*system w3 w4.* make .*system w1 w2"
    ):
        check_template(copy, chats(of_run))


def test_an_export_renders_what_the_run_rendered(fine_tune, capfd):
    checkpoint = Path(fine_tune(max_steps=3, system="w7 w8", temperature=0.5).last_checkpoint)
    kept = read_chats(checkpoint)
    assert [chat.query for chat in kept] == list(QUESTIONS)
    merged = export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu")
    said = capfd.readouterr().err
    assert "the exported chat template is that of the run with the system message 'w7 w8'\n" in said
    assert "the exported chat template renders 4 chats to the ids of the run\n" in said
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(merged)
    for query, input_ids in kept:
        ids = tokenizer.apply_chat_template(question(query), add_generation_prompt=True, return_dict=False)
        assert ids == input_ids
    assert rendered(merged, question("w1")).startswith("<|im_start|> system w7 w8 <|im_end|>")
    settings = GenerationConfig.from_pretrained(merged)
    assert (settings.do_sample, settings.temperature, settings.max_new_tokens) == (True, 0.5, 2048)
    assert settings.eos_token_id == [3]


def test_a_checkpoint_says_how_its_run_answers_and_not_how_its_base_did(tmp_path):
    from swiftlet.commands.side_files import generation_config

    own = {"min_p": 0.1, "max_length": 4096, "num_beams": 4, "eos_token_id": [7, 3], "pad_token_id": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    template = SimpleNamespace(stop_token_ids=[3, 9])
    found = generation_config(tmp_path, template, GenerationArgs(do_sample=False))
    kept = {"pad_token_id": 0, "eos_token_id": [7, 3, 9]}
    assert found == kept | {"max_new_tokens": 2048, "do_sample": False, "repetition_penalty": 1.0}
