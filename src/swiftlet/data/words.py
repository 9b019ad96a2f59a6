"""Token ids of ordinary text, word by word out of a cache.

A byte-level BPE cuts a text into words by regular expressions and encodes each word for itself, so equal words have
equal ids, and most words of a text have been seen before. This is done only where it is certain to give what the
tokenizer's library gives: for tokenizers made of nothing but the parts handled here, whose expressions cut a probe in
the same places in both libraries; and for texts of characters that have had their Unicode properties since before
either library was written. Everything else is left to the tokenizer's library.
"""

from __future__ import annotations

import json
import re
from itertools import chain, product
from typing import Any

import regex
import tokenizers

MOST_WORDS, LONGEST_WORD = 50_000, 64
# ASCII, Latin, Greek, Cyrillic, general punctuation, Chinese and Japanese, full-width ASCII: none of them changes under
# NFC, joins the character before it, or is another character's other case by Unicode's exceptions
SETTLED = re.compile(
    "[\t\n\r -~\u00a1-\u00ac\u00ae-\u017e\u0391-\u03a1\u03a3-\u03ce\u0400-\u045f\u2010-\u2027\u2030-\u203a"
    "\u3000-\u301c\u3041-\u3094\u30a1-\u30fa\u30fc-\u30fe\u4e00-\u9fa5\uff01-\uff5e]*"
)
PROBE_CHARACTERS = "aSé中7½ \u3000\t\n\r'.，_$"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WHOLE = ({"behavior": "Isolated", "invert": False}, {"behavior": "Removed", "invert": True})
_BYTES = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


class _Known(dict[str, list[int]]):
    """Ids of words; one that is not there is encoded when it is looked up."""

    def __init__(self, model: tokenizers.models.Model) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, word: str) -> list[int]:
        ((characters, _),) = _BYTES.pre_tokenize_str(word)
        ids = [token.id for token in self._model.tokenize(characters)]
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


class Words:
    """Encodes ordinary text of one tokenizer.

    Args:
        patterns: regular expressions that cut a text into words, one after the other; each has one group.
        added: finds, in a group, the tokens that are recognised before a text is cut.
        added_ids: their ids.
    """

    def __init__(
        self,
        model: tokenizers.models.Model,
        patterns: list[regex.Pattern[str]],
        added: re.Pattern[str],
        added_ids: dict[str, int],
    ) -> None:
        self._known = _Known(model)
        self._patterns = patterns
        self._added = added
        self._added_ids = added_ids

    def encode(self, text: str) -> list[int] | None:
        """Return the token ids of a text without BOS or EOS; None for a text that the library must encode."""
        if not SETTLED.fullmatch(text):
            return None
        ids: list[int] = []
        for number, part in enumerate(self._added.split(text)):
            if number % 2:
                ids.append(self._added_ids[part])
            else:
                ids.extend(chain.from_iterable(map(self._known.__getitem__, cut_words(self._patterns, part))))
        return ids


def build_words(backend: tokenizers.Tokenizer) -> Words | None:
    """Return the encoder of a tokenizer, None for one that has parts which are not handled here."""
    patterns = _patterns_of(backend)
    added = list(backend.get_added_tokens_decoder().items())
    is_plain = len({token.normalized for _, token in added}) < 2 and not any(
        token.lstrip or token.rstrip or token.single_word for _, token in added
    )
    if (
        patterns is None
        or not is_plain
        or not _is_byte_level_bpe(backend)
        or not _cuts_alike(backend, patterns)
    ):
        return None
    texts = sorted((token.content for _, token in added if token.content), key=len, reverse=True)
    finder = re.compile(f"({'|'.join(map(re.escape, texts)) or '(?!)'})")
    return Words(backend.model, patterns, finder, {token.content: number for number, token in added})


def cut_words(patterns: list[regex.Pattern[str]], text: str) -> list[str]:
    """Return the words of a text, of which it is the whole."""
    words = [text]
    for pattern in patterns:
        words = list(filter(None, chain.from_iterable(map(pattern.split, words))))
    return words


def _is_byte_level_bpe(backend: tokenizers.Tokenizer) -> bool:
    model, normalizer = backend.model, backend.normalizer
    return (
        isinstance(model, tokenizers.models.BPE)
        and not (model.dropout or model.byte_fallback or model.unk_token)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and (normalizer is None or isinstance(normalizer, tokenizers.normalizers.NFC))
    )


def _patterns_of(backend: tokenizers.Tokenizer) -> list[regex.Pattern[str]] | None:
    """Return the expressions of a pre-tokenizer that ends in a byte-level one, None for any other."""
    if backend.pre_tokenizer is None:
        return None
    described = json.loads(backend.pre_tokenizer.__getstate__())
    *steps, last = described["pretokenizers"] if described["type"] == "Sequence" else [described]
    texts = [_pattern_of(step) for step in steps]
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or None in texts:
        return None
    if last["use_regex"]:
        texts.append(_GPT2)
    try:
        patterns = [regex.compile(f"({text})") for text in texts]
    except regex.error:
        return None
    return patterns if all(one.groups == 1 and not one.search("") for one in patterns) else None


def _pattern_of(step: dict[str, Any]) -> str | None:
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    is_split = step["type"] == "Split" and {name: step[name] for name in ("behavior", "invert")} in _WHOLE
    return step["pattern"].get("Regex") if is_split else None


def _cuts_alike(backend: tokenizers.Tokenizer, patterns: list[regex.Pattern[str]]) -> bool:
    """Return whether both libraries cut every triple of kinds of characters, and the usual contractions, alike."""
    triples = "a中".join("".join(triple) for triple in product(PROBE_CHARACTERS, repeat=3))
    probe = f"I've it's we'LL he'd 'Tis don't 12345 3.14  x\n\n y \r\n z{triples}"
    starts = [start for _, (start, _) in backend.pre_tokenizer.pre_tokenize_str(probe)]
    ours, at = [], 0
    for word in cut_words(patterns, probe):
        ours.append(at)
        at += len(word)
    return ours == starts
