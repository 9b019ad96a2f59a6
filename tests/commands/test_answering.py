"""What the processes of `swift infer` and of a generated evaluation say while they answer."""

import pytest

from swiftlet import heartbeat, infer
from swiftlet.commands import answering
from swiftlet.commands.answering import _shown
from swiftlet.commands.checkpoint_source import CHECKED
from swiftlet.inference.answers import PROGRESS_BAR_ABOVE
from swiftlet.parallel.world import World


def test_many_answers_are_printed_by_no_process(capsys):
    pairs = [(at, {"query": "q", "response": "r", "label": "l"}) for at in range(3)]
    for rank in (0, 1):
        assert list(_shown(iter(pairs), PROGRESS_BAR_ABOVE + 1, World(rank, 2))) == pairs
        assert capsys.readouterr().out == ""
        assert list(_shown(iter(pairs), PROGRESS_BAR_ABOVE, World(rank, 2))) == pairs
        assert capsys.readouterr().out.count("[RESPONSE] r") == 3


def test_a_row_without_an_answer_says_why(capsys):
    list(
        _shown(
            iter([(0, {"query": "q", "response": None, "label": None, "error": "too long"})]), 1, World(0, 1)
        )
    )
    assert "[QUERY] q\n[NO RESPONSE] too long\n---" in capsys.readouterr().out


def test_a_log_without_a_terminal_tells_each_tenth_of_many_answers(capsys):
    pairs = [(at, {}) for at in range(150)]
    assert list(_shown(iter(pairs), 300, World(0, 2))) == pairs
    said = capsys.readouterr().err.splitlines()
    assert said == [f"answered {count} of 150, 0:00:00 left" for count in range(15, 150, 15)]


def test_a_process_of_several_does_not_say_what_their_launcher_has_said(fine_tune, monkeypatch, capfd):
    checkpoint = fine_tune(max_steps=1).last_checkpoint
    asked = {"ckpt_dir": checkpoint, "load_dataset_config": True, "max_new_tokens": 2, "device": "cpu"}
    for is_told in (False, True):
        capfd.readouterr()
        infer(**asked)
        said = capfd.readouterr().err
        assert ("(from the checkpoint)" in said) is not is_told
        assert "rows are answered" in said
        monkeypatch.setenv(CHECKED, str(checkpoint))


def test_a_process_that_has_answered_has_not_gone(fine_tune, tmp_path, monkeypatch):
    checkpoint = fine_tune(max_steps=1).last_checkpoint
    (tmp_path / "beats").mkdir()
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path / "beats"))
    infer(ckpt_dir=checkpoint, load_dataset_config=True, max_new_tokens=2, device="cpu")
    (beat,) = heartbeat.read_beats(tmp_path / "beats")
    assert beat.phase == "end"


def test_each_answer_of_an_evaluation_is_a_sign_of_life(fine_tune, monkeypatch):
    ticks = []
    monkeypatch.setattr(heartbeat, "tick", lambda: ticks.append(1))
    numbers = []
    for by_text in (False, True):
        options = {"max_new_tokens": 2, "do_sample": False} if by_text else {}
        fine_tune(f"run{by_text}", max_steps=1, eval_steps=1, predict_with_generate=by_text, **options)
        numbers.append(len(ticks))
        ticks.clear()
    assert numbers[1] == numbers[0] + 4


def test_a_process_that_fails_waits_for_no_other(fine_tune, monkeypatch):
    closed = []
    monkeypatch.setattr(answering, "close_world", lambda world, is_failed=False: closed.append(is_failed))
    checkpoint = fine_tune(max_steps=1).last_checkpoint
    asked = {"ckpt_dir": checkpoint, "load_dataset_config": True, "max_new_tokens": 2, "device": "cpu"}
    infer(**asked)
    monkeypatch.setattr(answering, "_finish", lambda *a: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        infer(**asked)
    assert closed == [False, True]
