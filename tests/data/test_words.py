"""Token ids out of the cache of words are those of the tokenizer's library, or there are none."""

from __future__ import annotations

import sys

import pytest
import regex
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from swiftlet.data import words as words_module
from swiftlet.data.words import SETTLED, build_words, cut_words

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEXTS = [
    "the cat's 12 hats, isn't it?",
    "小明有十二个苹果，他给了朋友四个。",
    "x = [1, 2]\n\n\tprint(x)  # été",
    "Ａ１！ ещё да",
] * 4


def split(pattern, **options):
    return pre_tokenizers.Split(Regex(pattern), **{"behavior": "isolated", **options})


def byte_level(use_regex=False, prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def make(*steps, normalizer=None, model=None, added=("<|end|>", "<|end|>er")):
    """Return a tokenizer whose pre-tokenizer has these steps."""
    backend = Tokenizer(models.BPE() if model is None else model)
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(list(steps))
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    if model is None:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(
            TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
        )
    backend.add_special_tokens([one if isinstance(one, AddedToken) else AddedToken(one) for one in added])
    return backend


HANDLED = {
    "gpt2": make(byte_level(use_regex=True)),
    "qwen": make(split(QWEN), byte_level(), normalizer=normalizers.NFC()),
    "llama": make(split(LLAMA, behavior="removed", invert=True), byte_level()),
    "digits": make(pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)),
    "numbers": make(pre_tokenizers.Digits(), byte_level(use_regex=True)),
    "two": make(split(r"\p{N}{1,3}"), split(r"[一-龥ぁ-ー]+"), split(QWEN), byte_level()),
}


BUILT = {name: build_words(backend) for name, backend in HANDLED.items()}


@pytest.mark.parametrize("name", HANDLED)
@given(
    text=st.one_of(
        st.text(st.sampled_from("aéЯ中か7½ \t\n\r'’sS.，-_$<|end>")),
        st.text(st.characters(max_codepoint=0x17F)),
        st.lists(st.sampled_from([*TEXTS, " ", "\n", "<|end|>", "<|end|>er", "I'VE"])).map("".join),
    )
)
def test_ids_are_those_of_the_library(name, text):
    backend, words = HANDLED[name], BUILT[name]
    for _ in range(2):
        ids = words.encode(text)
        assert (ids is None) == (SETTLED.fullmatch(text) is None)
        assert ids is None or ids.tolist() == backend.encode(text, add_special_tokens=False).ids


def test_every_settled_character_is_cut_alike_by_both_libraries():
    characters = [chr(code) for code in range(sys.maxunicode + 1) if SETTLED.fullmatch(chr(code))]
    assert len(characters) > 21000
    text = "".join(f"a{character}{character} " for character in characters)
    patterns = [regex.compile(f"({QWEN})")]
    ours = cut_words(patterns, text)
    theirs = [piece for piece, _ in split(QWEN).pre_tokenize_str(text)]
    assert ours == theirs
    assert normalizers.NFC().normalize_str(text) == text


@pytest.mark.parametrize(
    "text", ["half \ud800", "nul \0nul", "e\u0301", "🙂", "\x1c", "\u212a", "soft\u00adhyphen", "ﬁ"]
)
def test_other_characters_are_left_to_the_library(text):
    assert build_words(HANDLED["qwen"]).encode(text) is None


@pytest.mark.parametrize(
    "backend",
    [
        make(pre_tokenizers.Whitespace()),
        make(byte_level(use_regex=True, prefix=True)),
        make(split(QWEN, behavior="merged_with_next"), byte_level()),
        make(split(r"\p{L}*"), byte_level()),
        make(split(r"(a)|b"), byte_level()),
        make(split(r"\h+|\H+"), byte_level()),
        make(pre_tokenizers.Split(" ", "isolated"), byte_level()),
        make(split(QWEN), byte_level(), normalizer=normalizers.Lowercase()),
        make(byte_level(use_regex=True), model=models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>")),
        make(byte_level(use_regex=True), model=models.WordLevel({"a": 0}, unk_token="a")),
        make(byte_level(use_regex=True), added=[AddedToken("<mask>", lstrip=True)]),
        make(byte_level(use_regex=True), added=["<a>", AddedToken("<b>", normalized=True)]),
    ],
)
def test_tokenizers_with_other_parts_are_left_to_the_library(backend):
    assert build_words(backend) is None


def test_a_tokenizer_without_a_pre_tokenizer_is_left_to_the_library():
    assert build_words(Tokenizer(models.BPE())) is None


def test_the_cache_stays_small(monkeypatch):
    monkeypatch.setattr(words_module, "MOST_WORDS", 10)
    words = build_words(HANDLED["gpt2"])
    for number in range(100):
        words.encode(f"word{number} and {'x' * 100}")
    assert len(words._pieces) <= 10 and len(words._pieces.words) <= 10
    assert tokenizers.Tokenizer.encode(HANDLED["gpt2"], "word7").ids == words.encode("word7").tolist()


@pytest.mark.parametrize(
    ("backend", "is_cut"),
    [
        *((backend, True) for backend in HANDLED.values()),
        (make(split(QWEN), byte_level(), added=["<|end|>", "two words"]), False),
        (make(split(r" ?\p{L}+ ?|[^\p{L}]"), byte_level()), False),
        (make(split(r"\p{N}+"), byte_level()), False),
        (make(split(r"\p{L}+$|" + QWEN), byte_level()), False),
        (make(split(r"(?<=\s)\p{L}|" + QWEN), byte_level()), False),
        (make(split(r"\p{L}+(?= \p{N})|" + QWEN), byte_level()), False),
    ],
)
def test_texts_are_looked_up_between_spaces_only_where_a_space_begins_a_word(backend, is_cut):
    words = build_words(backend)
    text = "two words and 3 numbers 45 <|end|> of  the\n line \n\tend\n"
    for _ in range(2):
        assert words.encode(text).tolist() == backend.encode(text, add_special_tokens=False).ids
    assert ("numbers" in words._pieces) is is_cut


def test_bytes_are_written_as_the_library_writes_them():
    text = "".join(chr(code) for code in range(0x250)) + "\u4e2d\U0010ffff"
    library = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert text.encode().decode("latin-1").translate(words_module.BYTE_CHARACTERS) == library[0][0]
