"""`swift sft` on a mixture of experts."""

import json
import shutil


def test_all_says_which_matrices_stay_frozen(fine_tune, experts_folder, model_folder, capsys):
    options = {"max_steps": 1, "lora_target_modules": ["ALL"]}
    fine_tune("dense", **options, model_id_or_path=str(model_folder), use_dora=True)
    assert "stay frozen" not in capsys.readouterr().err
    fine_tune("experts", **options, model_id_or_path=str(experts_folder))
    told = capsys.readouterr().err
    assert (
        "--lora_target_modules ALL: 4 matrices or stacks of matrices have no adapter and stay frozen" in told
    )
    assert ": model.layers.*.mlp.experts.down_proj, model.layers.*.mlp.experts.gate_up_proj\n" in told


def test_a_loss_of_the_router_that_is_not_added_is_said(fine_tune, experts_folder, tmp_path, capsys):
    shutil.copytree(experts_folder, tmp_path / "asking")
    path = tmp_path / "asking" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"output_router_logits": True}), "utf-8")
    said = {}
    for folder in (experts_folder, tmp_path / "asking"):
        fine_tune(folder.name, max_steps=1, model_id_or_path=str(folder))
        said[folder.name] = capsys.readouterr().err
    message = (
        "a loss that balances experts (output_router_logits, router_aux_loss_coef 0.001): it is not added"
    )
    assert [message in text for text in said.values()] == [False, True]
