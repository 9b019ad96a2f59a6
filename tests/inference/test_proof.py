"""The proof of a merge notices one changed weight and accepts rounding."""

import copy

import pytest
import torch

from swiftlet.inference.proof import MergeError, check, compare, log_probabilities

PROMPTS = [[2, 5, 7, 8, 3], [7, 8, 9]]


def test_a_model_agrees_with_itself(tiny_qwen2):
    proof = compare(log_probabilities(tiny_qwen2, PROMPTS), log_probabilities(tiny_qwen2, PROMPTS))
    assert (proof.max_difference, proof.token_agreement, proof.num_positions) == (0.0, 1.0, 8)
    check(proof, 1e-6)


def test_one_changed_weight_is_noticed(tiny_qwen2):
    other = copy.deepcopy(tiny_qwen2)
    with torch.no_grad():
        other.model.layers[0].self_attn.v_proj.weight[0] += 1.0
    proof = compare(log_probabilities(tiny_qwen2, PROMPTS), log_probabilities(other, PROMPTS))
    with pytest.raises(MergeError, match="differs from the adapter by .* hint|differs from the adapter"):
        check(proof, 1e-3)


def test_weights_that_are_not_finite_are_refused(tiny_qwen2):
    other = copy.deepcopy(tiny_qwen2)
    with torch.no_grad():
        other.model.norm.weight[0] = float("nan")
    proof = compare(log_probabilities(tiny_qwen2, PROMPTS), log_probabilities(other, PROMPTS))
    with pytest.raises(MergeError):
        check(proof, 1e9)


def test_a_vocabulary_in_which_no_token_is_likely_is_compared():
    even = [torch.log_softmax(torch.zeros(2, 20_000), dim=-1)]
    assert compare(even, even).max_difference == 0.0


def test_no_prompt_is_no_proof():
    with pytest.raises(MergeError, match="no prompt to compare"):
        check(compare([], []), 1.0)
