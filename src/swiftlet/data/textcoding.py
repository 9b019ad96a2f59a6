"""In which encoding a text is that is not UTF-8, by its bytes."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

UTF8_BOM = b"\xef\xbb\xbf"
CANDIDATES = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252")
MOST_LINES = 200
_ASCII = bytes(range(128))


def wide_encoding(head: bytes) -> str | None:
    """Return the encoding of two or four bytes a character that a head is in; none has NUL bytes but these.

    Bytes of other texts, taken as pairs, can be rare characters; so few NUL bytes count only where the head is neither
    UTF-8 nor nearly ASCII, as with a Chinese text whose only NUL bytes are those of its line feeds.
    """
    is_damaged = len(head.translate(None, _ASCII)) * 20 < len(head) or _is_utf8(head)
    if b"\0" not in head or (head.count(0) * 4 < len(head) and is_damaged):
        return None
    little, big = ("UTF-32LE", "UTF-16LE"), ("UTF-32BE", "UTF-16BE")
    for encoding in little + big if head[1::2].count(0) > head[0::2].count(0) else big + little:
        try:
            # It bears with half a character at the end.
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        if text and all(character.isprintable() or character.isspace() for character in text):
            return encoding
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end == len(head) and error.reason == "unexpected end of data"
    return True


def is_cesu8(raw: bytes) -> bool:
    """Return whether bytes that are not UTF-8 would be, but for characters such as emoji as two halves of a pair."""
    try:
        raw.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return False
    return True


def encoding_of(lines: Sequence[bytes], is_row: Callable[[str], bool] | None = None) -> str | None:
    """Return the encoding that a file as a whole seems to be in, None when it is UTF-8 with damaged places.

    A file is of another encoding when lines with bytes above 127 exist, none of them is UTF-8 (halves of surrogate
    pairs would be), and in that encoding they are text.

    Args:
        is_row: says whether a line, once decoded, is a row; one of the lines must be.
    """
    foreign = []
    for line in lines:
        text = line.removeprefix(UTF8_BOM)
        if text.isascii():
            continue
        try:
            text.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            foreign.append(line)
        else:
            return None
    return _best_encoding(foreign[:MOST_LINES], is_row) if foreign else None


def _best_encoding(lines: list[bytes], is_row: Callable[[str], bool] | None) -> str | None:
    decoded = {}
    for name in CANDIDATES:
        try:
            texts = [line.decode(name) for line in lines]
        except UnicodeDecodeError:
            continue
        if is_row is None or any(is_row(text) for text in texts):
            decoded[name] = _strangeness("".join(texts))
    return min(decoded, key=lambda name: decoded[name]) if decoded else None


def _strangeness(text: str) -> float:
    """Return how unlike written language the characters above 127 are: 0 for common letters, 1 for rare signs."""
    high = [character for character in text if ord(character) > 127]
    common = sum(_is_common(character) for character in high)
    return 1 - common / max(1, len(high))


def _is_common(character: str) -> bool:
    code = ord(character)
    if 0x4E00 <= code <= 0x9FFF:
        return _is_frequent(character, "gb2312", range(0xB0, 0xD8)) or _is_frequent(
            character, "big5", range(0xA4, 0xC7)
        )
    latin_or_punctuation = 0xC0 <= code <= 0x17F or 0x2010 <= code <= 0x2026
    return (
        latin_or_punctuation
        or 0x3000 <= code <= 0x30FF
        or 0xAC00 <= code <= 0xD7A3
        or 0xFF01 <= code <= 0xFF5E
    )


def _is_frequent(character: str, encoding: str, first_bytes: range) -> bool:
    """Return whether a Chinese character lies in the part of an encoding that holds the frequent ones."""
    try:
        return character.encode(encoding)[0] in first_bytes
    except UnicodeEncodeError:
        return False
