from pathlib import Path

import numpy as np
import pytest

from swiftlet.data.store import (
    FILES,
    ROW,
    ROWS,
    SEAL,
    TOKENS,
    Numbered,
    TokenStore,
    pack,
    tokens_hash,
    write_split,
)
from swiftlet.errors import DataError
from swiftlet.faults import damage


def store_of(folder: Path, samples: list[list[int]]) -> TokenStore:
    ids = [np.array(sample, np.int32) for sample in samples]
    rows = np.zeros(len(ids), ROW)
    rows["length"] = [len(one) for one in ids]
    rows["offset"] = np.cumsum([0, *rows["length"][:-1]])
    rows["line"] = np.arange(len(ids)) + 1
    rows["tokens"] = [np.frombuffer(tokens_hash(pack(one, one)), "<u8") for one in ids]
    rows.tofile(folder / ROWS)
    np.concatenate([pack(one, one) for one in ids]).tofile(folder / TOKENS)
    (folder / FILES).write_text('["a.jsonl"]', encoding="utf-8")
    write_split(folder, "train", [Numbered(np.arange(len(ids)), rows)])
    return TokenStore(folder, "train")


def test_samples_are_what_was_written(tmp_path):
    samples = [[5, 6, 7], [8], [9, 1]]
    store = store_of(tmp_path, samples)
    assert [store[number].input_ids.tolist() for number in range(3)] == samples
    assert [store[number].labels.tolist() for number in range(3)] == samples
    assert store.origin(2) == "a.jsonl:3"


@pytest.mark.parametrize("number", [-1, 3])
def test_a_sample_that_is_not_there_is_an_index_error(tmp_path, number):
    with pytest.raises(IndexError, match=f"sample {number} of 3"):
        store_of(tmp_path, [[5], [6], [7]])[number]


def test_tokens_and_rows_are_read_and_not_mapped(tmp_path):
    store = store_of(tmp_path, [[number] * 64 for number in range(4096)])
    assert sum(int(store[number].input_ids[0]) for number in range(4096)) == 4095 * 4096 // 2
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert sorted(Path(line.split()[-1]).name for line in mapped) == ["train.labels.bin", "train.lengths.bin"]


def test_a_file_that_was_cut_short_is_said(tmp_path):
    store = store_of(tmp_path, [[5, 6, 7], [8, 9]])
    with (tmp_path / TOKENS).open("r+b") as file:
        file.truncate(16)
    assert len(store[0].input_ids) == 3
    with pytest.raises(DataError, match=r"tokens\.bin has 4 entries and 5 were written.*\n.*start again"):
        store[1]


def test_a_bit_flipped_in_the_tokens_is_said_where_it_is_read_and_unseals_the_store(tmp_path):
    store = store_of(tmp_path, [[5, 6, 7], [8, 9]])
    (tmp_path / SEAL).touch()
    damage(tmp_path / TOKENS, "bitflip")
    with pytest.raises(DataError, match=r"tokens\.bin is damaged: the tokens of a\.jsonl:.*\n.*start again"):
        [store[number] for number in range(2)]
    assert not (tmp_path / SEAL).exists()
