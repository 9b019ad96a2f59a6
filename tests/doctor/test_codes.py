"""Codes of logs: the many ways in which they are written, and numbers that are none."""

from __future__ import annotations

import pytest
from explaining import explained

from swiftlet.doctor.text import needed_words
from swiftlet.doctor.wording import as_json, in_words


@pytest.mark.parametrize(
    "spelling",
    [
        "aclrtSetDevice failed. ERROR: {}",
        "错误码：{}",
        "错误码为{}",
        "f failed, ret {}",
        "f returned {}",
        "error_code={}",
        "aclError:{}",
        "errNo[{}]",
        "code:{}",
        "error code is {}",
        "训练报错{}",
        "aclrtSynchronizeStream ({})",
        "aclnnAdd failed {}",
        "RuntimeError: {}",
    ],
)
def test_spellings_of_a_number(spelling):
    assert [one.shown for one in explained(spelling.format(507033)).symptoms] == ["507033"]
    assert explained(spelling.format("507033.5") + "1").first is None


@pytest.mark.parametrize(
    "spelling",
    [
        "{}: a",
        "Not_There({}): a",
        "Error[{}] a",
        "a error code is {} b",
        "报 {}，在 rank 2",
        "训练报错{}",
        "【bug】{} a",
        "{}报错",
        " {}  Inner",
    ],
)
def test_spellings_of_a_message_code(spelling):
    assert [one.shown for one in explained(spelling.format("EI0006")).symptoms] == ["EI0006"]


def test_a_number_before_the_word_error():
    assert [one.shown for one in explained("运行时 507018 报错").symptoms] == ["507018"]


@pytest.mark.parametrize(
    "text",
    ["it returned 100000 rows", "status 200000", "ret 5070331", "step 507014 of 600000", "size=507014"],
)
def test_round_numbers_are_no_codes(text):
    assert not explained(text).symptoms


def test_codes_are_shown_as_logs_write_them():
    found = explained(
        "ERR02200 DIST call hccl api failed, hcclRet -> 19\nretCode=0X26, drvRetCode=7\nretCode=0X7020010"
    )
    shown = {one.shown for one in found.symptoms}
    assert shown == {"ERR02200", "HCCL 19", "0x26", "drvRetCode=7", "0x7020010"}
    assert {one["code"] for one in as_json(found, "en")["codes"]} == shown


def test_codes_of_collectives_are_written_in_hexadecimal():
    for written, code in (("0b", 11), ("0d", 13), ("13", 19), ("04", 4)):
        found = explained(f"[ERROR] HCCL(7,python): [Recv]errNo[0x00000000050000{written}] recv fail")
        assert [one.shown for one in found.symptoms] == [f"HCCL {code}"]


def test_a_number_that_onnxruntime_says():
    text = "[E:onnxruntime:Default, cann_call.cc:9 CannCall] CANN failure {}: ACL_ERROR_X ; NPU=0"
    for code in ("500001", "507013", "100002"):
        assert [one.shown for one in explained(text.format(code)).symptoms] == [code]


def test_the_port_is_named_with_what_helps():
    for text in (
        "RuntimeError: The server socket has failed to listen on [::]:29511 (errno: 98 - Address already in use)",
        "torch.distributed.DistNetworkError: The server socket has failed to bind. port: 29511, "
        "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    ):
        said = in_words(explained(text), "en")
        assert "the port (29511)" in said and "MASTER_PORT" in said and "IF_BASE_PORT" not in said


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"ab.* Cde (?P<n>\w+) fg\.h", (" cde ",)),
        (r"(?i:one|two)[^\n]*x?", ("",)),
        (r"Abcd|ef(?:g|h)", ("abcd", "ef")),
        (r"abcd|(?:ef)?", ("abcd", "")),
        (r"abc(?:d|e)fgh*", ("abc",)),
        (r"ab?c{2}defg+", ("defg",)),
        (r"(?x) a b c", ("",)),
        (r"\bERR\d\d007\b[(|]", ("err",)),
    ],
)
def test_the_words_of_which_a_pattern_needs_one(pattern, words):
    assert needed_words(pattern) == words
