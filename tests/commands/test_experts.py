"""`swift sft` on a mixture of experts."""


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
