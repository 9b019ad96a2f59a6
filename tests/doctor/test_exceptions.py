"""Exceptions and crashes: which is why a program ended, and which only follows or tells of something elsewhere."""

from __future__ import annotations

import pytest
from explaining import cause_of, explained

from swiftlet.doctor.tables import LANGUAGES
from swiftlet.doctor.wording import in_words


def traceback(ending):
    return f'Traceback (most recent call last):\n  File "train.py", line 8, in main\n    go(x)\n{ending}\n'


def class_code(number, module="01"):
    return f"[ERROR] 2026-01-01-10:00:00 (PID:7, Device:0, RankID:-1) ERR{module}{number} OPS of some class\n"


SHAPES = "RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x512 and 768x3)"


@pytest.mark.parametrize("number", ["001", "002", "003", "004", "007"])
@pytest.mark.parametrize("module", ["00", "01", "02"])
def test_of_a_code_that_is_only_a_class_the_exception_above_it_is_quoted(number, module):
    text = "RuntimeError: the mask of the NPU must be 2048x2048\n"
    found = explained(text + class_code(number, module))
    assert found.first.cause.id == "program.exception"
    assert "the mask of the NPU must be 2048x2048" in in_words(found, "en")
    assert cause_of(class_code(number, module)) == "unknown"


def test_a_code_of_an_inner_call_makes_no_cause_of_the_exception_above_it():
    assert cause_of(traceback(SHAPES) + class_code("100")) == "unknown"


def test_an_operator_is_missing_only_where_the_log_says_so():
    fallback = (
        "[W x.ts:5] Warning: CAUTION: The operator 'aten::a' is not currently supported on the NPU backend\n"
    )
    failed = "RuntimeError: copy of unequal sizes\n"
    assert cause_of(fallback + failed + class_code("007")) == "operator.unsupported"
    assert cause_of(failed + class_code("007")) == "program.exception"
    assert cause_of(fallback + failed + class_code("007", "00")) == "program.exception"
    warned = "[rank0]:[2026-01-01 10:00:00,1] torch._dynamo.x: [WARNING] "
    assert cause_of(f"{warned}AssertionError: no npu\n{warned}{class_code('007')}") == "unknown"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_runtime_error_that_says_all_is_the_cause(language):
    said = in_words(explained(traceback(SHAPES)), language)
    assert SHAPES in said and "train.py:8" in said


@pytest.mark.parametrize(
    "ending",
    [
        "RuntimeError: The Inner error is reported as above.",
        "RuntimeError: Engine initialization failed. See root cause above.",
        "RuntimeError: NPU function error: aclrtX",
        "RuntimeError: [2] got: Connection reset by somebody",
        "mytool.StrangeError: 7",
    ],
)
def test_an_exception_that_tells_of_something_elsewhere_is_only_known(ending):
    found = explained(traceback(ending))
    assert found.first is None or found.first.cause.id != "program.exception"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("error code is 507015", "unknown"),
        ("EI0006: Getting socket times out.", "collective.socket"),
        ("EI0004: The ranktable is invalid", "collective.ranktable"),
    ],
)
def test_a_runtime_error_yields_to_what_its_process_says_below(line, cause):
    assert cause_of(traceback("RuntimeError: it did not work") + line) == cause


def test_what_is_ignored_while_objects_are_deleted_ends_nothing():
    ignored = "Exception ignored in: <function A.__del__>\n" + traceback(
        "AttributeError: 'A' object has no b"
    )
    found = explained(traceback("RuntimeError: Error building extension 'a'") + ignored)
    assert found.first.fields["what"] == "RuntimeError: Error building extension 'a'"
    assert cause_of(ignored) == "unknown" and explained(ignored).raised is None
    assert cause_of(ignored + traceback("KeyError: 'a'")) == "program.exception"


def test_an_exception_of_any_name_ends_a_traceback():
    found = explained(traceback("mytool.errors.Oops_NotFound: no library"))
    assert found.first is None and "known: mytool.errors.Oops_NotFound: no library" in in_words(found, "en")
    assert explained("    an indented text\nNote: nothing").raised is None


@pytest.mark.parametrize(
    "text",
    [
        "Fatal Python error: Segmentation fault",
        "run.sh: line 12: 12345 Segmentation fault      (core dumped) python train.py",
        "free(): invalid pointer\nAborted (core dumped)",
        "terminate called after throwing an instance of 'E'\n  what():  bad pointer",
    ],
)
def test_a_crash_is_a_cause_where_nothing_else_is_known(text):
    assert cause_of(text) == "program.crash"
    for known in ("error code is 507015", traceback("mytool.StrangeError: 7")):
        assert cause_of(f"{known}\n{text}") == "unknown"
    assert cause_of(f"Watchdog caught collective operation timeout\n{text}") == "collective.torch_timeout"


def test_of_many_ranks_with_nearly_equal_tracebacks_the_line_of_each_is_known():
    said = ""
    for rank in range(8):
        last, what = (77, "KeyError: 'label'") if rank == 7 else (80, "x.Strange: see the other ranks")
        frames = (
            f'  File "run.py", line 12, in main\n    step()\n  File "run.py", line {last}, in step\n    f()\n'
        )
        text = f"Traceback (most recent call last):\n{frames}{what}"
        said += "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())
    assert "KeyError: 'label' (at run.py:77)" in in_words(explained(said), "en")


def test_a_crash_that_says_no_rank_follows_from_what_a_rank_said():
    uncaught = "terminate called after throwing an instance of 'std::runtime_error'\n"
    waited = (
        "[rank3]:[E1 a.cpp:7] [Rank 3] Watchdog caught collective operation timeout: WorkHCCL(SeqNum=7)\n"
    )
    assert cause_of(waited + uncaught) == "collective.torch_timeout"
    # of two threads the one that ends may print before the one that says why
    assert cause_of(uncaught + "\n[rank1]:[E1 a.cpp:7] call failed, error code is 507011") == "unknown"
    assert cause_of("Segmentation fault (core dumped)\n\n\n" + waited) == "program.crash"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_crash_says_what_and_where(language):
    text = "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n"
    frames = '  File "/x/site-packages/a/b.py", line 6 in c\n  File "run.py", line 3 in main\n'
    said = in_words(explained(text + frames), language)
    assert "Segmentation fault" in said and "run.py:3" in said
    text = "terminate called after throwing an instance of 'E'\n  what():  bad pointer"
    assert "an instance of 'E', what():  bad pointer" in in_words(explained(text), language)


def test_the_text_of_an_error_that_could_not_be_fetched_is_not_the_error():
    failed = "EE1001: [PID: 7] The argument is invalid.Reason: rtGetDevMsg execute failed, reason=[null]"
    assert cause_of(f"error code is 507018\n{failed}") == "unknown"
    assert cause_of(failed) == "unknown"
