"""Generation: batches give what single prompts give, answers end where they should."""

import copy

import pytest
import torch

from swiftlet.errors import DataError
from swiftlet.inference import running
from swiftlet.inference.generate import Generator, Settings
from swiftlet.inference.stopping import SaysWord
from swiftlet.inference.streaming import WINDOW
from swiftlet.models.load import load_model
from swiftlet.models.rope import forget_lengths

PROMPTS = [[2, 5, 7, 8, 3], [2, 5, 9], [7], [2, 5, 9, 10, 11, 12, 3, 6]]


def generator(model, tokenizer, stop=(), **settings):
    return Generator(
        model=model,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        pad_id=tokenizer.pad_token_id,
        stop_token_ids=stop,
        settings=Settings(**{"max_new_tokens": 6, "do_sample": False, **settings}),
        context_length=64,
    )


def answers(engine, prompts):
    return [reply.text for _, reply in sorted(engine.replies_as_they_end(prompts))]


def ids_of(engine, prompts, **options):
    return [ids for _, ids in sorted(engine._ids(prompts, **options))]


def greedy(model, prompt, num):
    ids = list(prompt)
    for _ in range(num):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_with_padding_answers_as_each_prompt_alone(tiny_qwen2, tiny_tokenizer):
    engine = generator(tiny_qwen2, tiny_tokenizer)
    expected = [engine.text(greedy(tiny_qwen2, prompt, 6)) for prompt in PROMPTS]
    assert answers(engine, PROMPTS) == expected


@pytest.mark.parametrize("settings", ['{"return_dict_in_generate": true}', '{"num_return_sequences": 2}'])
def test_a_folder_that_asks_generate_for_more_than_tokens_answers_all_the_same(
    settings, tiny_qwen2, tiny_tokenizer, tmp_path
):
    tiny_qwen2.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(settings)
    model = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    expected = answers(generator(tiny_qwen2, tiny_tokenizer), PROMPTS)
    assert answers(generator(model, tiny_tokenizer), PROMPTS) == expected


def test_a_model_that_sees_padding_answers_prompts_of_one_length_together(tiny_tokenizer, capsys):
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    torch.manual_seed(0)
    config = MiniMaxConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        layer_types=["linear_attention", "full_attention"],
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    engine = generator(MiniMaxForCausalLM(config).eval(), tiny_tokenizer)
    prompts = [*PROMPTS, [2, 5, 10]]
    assert answers(engine, prompts) == [answers(engine, [prompt])[0] for prompt in prompts]
    answers(engine, prompts)
    assert capsys.readouterr().err.count("only prompts of one length go together (slower)") == 1


def test_an_answer_ends_before_its_end_token(tiny_qwen2, tiny_tokenizer):
    free = greedy(tiny_qwen2, PROMPTS[0], 6)
    stop = free[2]
    engine = generator(tiny_qwen2, tiny_tokenizer, stop=[stop])
    assert answers(engine, [PROMPTS[0]]) == [engine.text(free[: free.index(stop)])]


def test_an_answer_ends_where_the_model_itself_says_so(tiny_qwen2, tiny_tokenizer):
    free = [greedy(tiny_qwen2, prompt, 6) for prompt in PROMPTS]
    ends = [free[0][2], free[1][3]]
    first = [next((at for at, token in enumerate(ids) if token in ends), 6) for ids in free]
    assert len(set(first)) > 1
    model = copy.deepcopy(tiny_qwen2)
    model.generation_config.eos_token_id = ends
    for stop in ([], [free[2][4]]):
        engine = generator(model, tiny_tokenizer, stop=stop)
        expected = [ids[:at] for ids, at in zip(free, first, strict=True)]
        expected = [ids[: min([*(ids.index(one) for one in stop if one in ids), 6])] for ids in expected]
        assert ids_of(engine, PROMPTS) == expected
        pieces = []
        assert engine.answer(PROMPTS[0], pieces.append).text == "".join(pieces) == engine.text(expected[0])


def test_streamed_pieces_add_up_to_the_answer(tiny_qwen2, tiny_tokenizer):
    engine = generator(tiny_qwen2, tiny_tokenizer)
    pieces = []
    answer = engine.answer(PROMPTS[0], pieces.append).text
    assert "".join(pieces) == answer == answers(engine, [PROMPTS[0]])[0]
    assert len(pieces) > 1


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(tiny_qwen2, tiny_tokenizer, monkeypatch):
    engine = generator(tiny_qwen2, tiny_tokenizer)
    made = list("a你b好".encode()) + list("é".encode()[:1])  # the last one stays cut

    def ids(prompts, streamer):
        for token in [prompts[0], *made]:
            streamer.put(torch.tensor(token))
        return [(0, made)]

    monkeypatch.setattr(engine, "decode", lambda ids: bytes(ids).decode("utf-8", "replace"))
    monkeypatch.setattr(engine, "_ids", ids)
    pieces = []
    assert engine.answer(PROMPTS[0], pieces.append).text == "a你b好\ufffd"
    assert pieces == ["a", "你", "b", "好", "\ufffd"]


LONG = "one 你好 😀 naïve, " * 40


def _bytes_of(text):
    from tokenizers import pre_tokenizers

    return list(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    )


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("ByteLevel", _bytes_of(LONG)),
        ("ByteFallback", [f"<0x{one:02X}>" for one in LONG.encode()]),
        ("Metaspace", ["\u2581" + word for word in LONG.split()]),
        ("WordPiece", LONG.split()),
    ],
)
@pytest.mark.parametrize("stop_words", [(), ("naïve, one naïve",)])  # begun again and again, never said
def test_a_long_answer_is_streamed_without_decoding_all_of_it_at_each_token(
    kind, tokens, stop_words, tiny_qwen2, tiny_tokenizer, monkeypatch
):
    from tokenizers import decoders

    decoder, sizes = getattr(decoders, kind)(), []
    engine = generator(tiny_qwen2, tiny_tokenizer, stop_words=stop_words)

    def decode(ids):
        sizes.append(len(ids))
        return decoder.decode([tokens[at] for at in ids])

    def ids(prompts, streamer):
        streamer.put(torch.tensor(prompts[0]))
        for at in range(len(tokens)):
            streamer.put(torch.tensor([at]))
        return [(0, list(range(len(tokens))))]

    engine.decode = decode
    monkeypatch.setattr(engine, "_ids", ids)
    pieces = []
    assert engine.answer(PROMPTS[0], pieces.append).text == "".join(pieces) == decoder.decode(tokens)
    assert len(pieces) > 100
    assert max(sizes[:-1]) <= 2 * WINDOW + 32  # the last one is of the whole answer


def test_stop_words_cut_the_text(tiny_qwen2, tiny_tokenizer):
    engine = generator(tiny_qwen2, tiny_tokenizer)
    full = answers(engine, [PROMPTS[0]])[0]
    word = full.split()[-1] if full.split() else "x"
    cut = answers(generator(tiny_qwen2, tiny_tokenizer, stop_words=(word,)), [PROMPTS[0]])[0]
    assert word not in cut
    assert full.startswith(cut)


def test_nothing_of_a_stop_word_is_streamed(tiny_qwen2, tiny_tokenizer):
    full = answers(generator(tiny_qwen2, tiny_tokenizer), [PROMPTS[0]])[0].split()
    for word in (" ".join(full[2:5]), full[-1] + " and more"):  # the second one is begun and never ended
        engine = generator(tiny_qwen2, tiny_tokenizer, stop_words=(word,))
        pieces = []
        answer = engine.answer(PROMPTS[0], pieces.append).text
        assert "".join(pieces) == answer == answers(engine, [PROMPTS[0]])[0]
        assert len(pieces) > 1


def test_a_stop_word_of_single_bytes_ends_an_answer_behind_other_characters():
    from tokenizers import decoders

    decoder = decoders.ByteFallback()
    said = SaysWord(lambda ids: decoder.decode([f"<0x{one:02X}>" for one in ids]), ["好"], [1])
    for text, is_said in (("你好", True), ("éé好", True), ("😀好", True), ("好", True), ("你你", False)):
        assert said(torch.tensor([[0, *text.encode()]])).tolist() == [is_said], text


def test_a_stop_word_is_looked_for_in_the_last_tokens_alone(monkeypatch):
    said = SaysWord(lambda ids: " ".join(map(str, ids)), ["2000 2001"], [5, 5])
    is_said, sizes = said._is_said, []
    monkeypatch.setattr(said, "_is_said", lambda answer: sizes.append(len(answer)) or is_said(answer))
    rows = torch.tensor([[2000, 2001, *range(1000)], [*range(1000), 2000, 2001]])
    assert said(rows).tolist() == [False, True]
    assert max(sizes) <= said.most_tokens + 3
    assert said(rows[:, -5:]).tolist() == [False, False]  # no more than the prompt


def test_sampling_follows_the_seed(tiny_qwen2, tiny_tokenizer):
    engine = generator(tiny_qwen2, tiny_tokenizer, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)

    def run(seed):
        torch.manual_seed(seed)
        return answers(engine, PROMPTS)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_temperature_zero_is_greedy(tiny_qwen2, tiny_tokenizer):
    cold = generator(tiny_qwen2, tiny_tokenizer, do_sample=True, temperature=0.0)
    assert answers(cold, PROMPTS) == answers(generator(tiny_qwen2, tiny_tokenizer), PROMPTS)
    # transformers and vLLM complain of a generation_config.json that says how to sample and not to
    assert set(cold.settings.to_json()) == {"max_new_tokens", "do_sample", "repetition_penalty"}
    assert Settings(temperature=0.5, top_k=7).to_json() == {
        "max_new_tokens": 2048,
        "do_sample": True,
        "repetition_penalty": 1.0,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.7,
    }


def test_the_context_bounds_the_answer_and_a_full_one_is_said(tiny_qwen2, tiny_tokenizer):
    engine = generator(tiny_qwen2, tiny_tokenizer, max_new_tokens=1000)
    assert engine.room(60) == 4
    with pytest.raises(DataError, match="a prompt of 64 tokens leaves no room in a context of 64"):
        answers(engine, [[7] * 64])


LONG = [5, 7, 9] * 20  # leaves four tokens of 64


@pytest.mark.parametrize("num_tokens", [3, 4, 30, 1000])
def test_a_long_row_takes_no_room_from_the_others(tiny_qwen2, tiny_tokenizer, num_tokens):
    engine = generator(tiny_qwen2, tiny_tokenizer, max_new_tokens=num_tokens)
    prompts = [LONG, *PROMPTS, LONG[:50]]
    expected = [greedy(tiny_qwen2, prompt, min(num_tokens, 64 - len(prompt))) for prompt in prompts]
    assert ids_of(engine, prompts) == expected
    assert answers(engine, prompts) == [engine.text(ids) for ids in expected]


def test_an_answer_that_goes_on_alone_ends_where_it_would(tiny_qwen2, tiny_tokenizer):
    settings = {"max_new_tokens": 30, "repetition_penalty": 5.0}
    free = ids_of(generator(tiny_qwen2, tiny_tokenizer, **settings), [PROMPTS[0]])[0]
    stop = next(token for token in free[6:] if token not in free[:6])
    engine = generator(tiny_qwen2, tiny_tokenizer, stop=[stop], **settings)
    assert ids_of(engine, [LONG, PROMPTS[0]])[1] == free[: free.index(stop)]
    text = engine.text(free)
    word = text.split()[-1]
    said = generator(tiny_qwen2, tiny_tokenizer, stop_words=(word,), **settings)
    assert answers(said, [LONG, PROMPTS[0]])[1] == text[: text.index(word)]


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


@pytest.mark.parametrize(
    "rope", [LONGROPE, {"rope_type": "dynamic", "factor": 4.0}], ids=["longrope", "dynamic"]
)
def test_rows_of_a_rotation_that_follows_the_length_answer_as_alone(rope, tiny_qwen2, tiny_tokenizer):
    config = copy.deepcopy(tiny_qwen2.config)
    config.rope_parameters = {"rope_theta": 10000.0, "original_max_position_embeddings": 8, **rope}
    config.max_position_embeddings = 8
    model = type(tiny_qwen2)(config).eval()
    model.load_state_dict(tiny_qwen2.state_dict())
    forget_lengths(model)
    engine = generator(model, tiny_tokenizer, max_new_tokens=12)
    prompts = [[5, 7, 9] * 8, *PROMPTS, [9, 7, 5]]
    assert answers(engine, prompts) == [answers(engine, [prompt])[0] for prompt in prompts]


class Thinking:
    """Thoughts of a model whose token 4 ends them, and answers as well: 5 opens a thought."""

    markers = (4,)

    def ends_answer(self, ids):
        start = ids[:-1].index(4) + 1 if 4 in ids[:-1] else 0
        return 5 not in ids[start:]

    def answer(self, ids):
        return f"{len(ids)} tokens" if 4 in ids else None


def test_a_marker_that_ends_thoughts_too_ends_an_answer_behind_one(tiny_qwen2, monkeypatch):
    says = [[5, 7, 4, 8, 9, 4, 7, 7, 7], [8, 4, 7, 7, 7, 7, 7, 7, 7], [8, 8, 8, 8, 8, 8, 8, 8, 8]]
    model, step = copy.deepcopy(tiny_qwen2), iter(range(99))

    def write(module, inputs, output):
        at = next(step)
        output.logits[:] = 0
        for row in range(len(output.logits)):
            output.logits[row, -1, says[row][at]] = 1

    model.register_forward_hook(write)
    engine = Generator(
        model=model,
        decode=lambda ids: " ".join(map(str, ids)),
        pad_id=0,
        stop_token_ids=[],
        settings=Settings(max_new_tokens=9, do_sample=False),
        thoughts=Thinking(),
    )
    model.generation_config.eos_token_id = None
    monkeypatch.setattr(running, "SHARE_OF_ENDED", 1)  # no row leaves, so that rows stay those of `says`
    replies = dict(engine.replies_as_they_end([[2, 5], [2, 6], [2, 7]]))
    assert replies == {0: ("5 7 4 8 9", "5 tokens"), 1: ("8", None), 2: (" ".join("8" * 9), None)}
    assert [replies[at].said for at in range(2)] == ["5 tokens", "8"]


def test_an_answer_behind_a_long_thought_is_shown_as_it_is_written(tiny_qwen2, tiny_tokenizer, monkeypatch):
    engine = generator(tiny_qwen2, tiny_tokenizer)
    made = [5, *[7] * (3 * WINDOW), 4, *range(100, 140)]
    seen: list[int] = []

    def ids(prompts, streamer):
        for token in [prompts[0], *made]:
            streamer.put(torch.tensor(token))
            seen.append(len(pieces))
        return [(0, made)]

    engine.thoughts, engine.decode = Thinking(), lambda ids: "".join(f"<{token}>" for token in ids)
    monkeypatch.setattr(engine, "_ids", ids)
    pieces: list[str] = []
    assert engine.answer(PROMPTS[0], pieces.append).text == "".join(pieces)
    assert seen == list(range(len(made) + 1))  # one piece a token
