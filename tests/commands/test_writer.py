"""What is written beside the next step leaves the model alone."""

import threading

import pytest
import torch

from swiftlet.commands import saving


@pytest.mark.parametrize(
    "settings", [{"lora_modules_to_save": ["LN"]}, {"sft_type": "full"}, {}], ids=["LN", "full", "lora"]
)
def test_the_writer_asks_no_module_for_its_state(fine_tune, monkeypatch, settings):
    """FSDP2 shards a module again when it is asked, and the next step's pass may be in it."""
    written, real_write, real_state = [], saving.write_model, torch.nn.Module.state_dict

    def write(*given, **more):
        writer = threading.get_ident()

        def state_dict(module, *args, **kwargs):
            assert threading.get_ident() != writer
            return real_state(module, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Module, "state_dict", state_dict)
            real_write(*given, **more)
        written.append(writer)

    monkeypatch.setattr(saving, "write_model", write)
    fine_tune(max_steps=2, eval_steps=2, save_steps=2, **settings)
    assert len(written) == 1
