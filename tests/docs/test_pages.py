"""Commands of the pages on planning and on the doctor: the same in both languages, taken as written, and run."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from swiftlet.cli import COMMANDS, find_command
from swiftlet.config.parse import parse

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```shell\n(.*?)```", re.DOTALL)
COMMENT = re.compile(r"\s+#.*$", re.MULTILINE)
SLOW = ("swift plan --calibrate", "swift doctor")  # a minute and more: tests/plan and tests/doctor run them


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [line for block in BLOCK.findall(text) for line in COMMENT.sub("", block).splitlines()]


TYPED = [line for page in ("planning.md", "doctor.md") for line in commands(page)]


@pytest.mark.parametrize("page", ["planning", "doctor"])
def test_both_languages_have_the_same_commands(page):
    assert commands(f"{page}.md") == commands(f"{page}_CN.md") != []


@pytest.mark.parametrize("line", SLOW)
def test_a_slow_command_stands_on_a_page_and_is_taken_as_written(line):
    assert line in TYPED
    _, word, *words = shlex.split(line)
    module = importlib.import_module(f"swiftlet.commands.{COMMANDS[find_command(word)[0]].module}")
    assert module.check(parse(module.ARGS, words), {}) == []


@pytest.mark.parametrize("line", [line for line in TYPED if line not in SLOW])
def test_a_command_runs(line, tmp_path):
    (tmp_path / "ascend" / "log").mkdir(parents=True)
    for log in (tmp_path / "rank-0.log", tmp_path / "ascend" / "log" / "plog-1.log"):
        log.write_text("RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB\n", encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path)}

    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert done.stdout and not done.stderr.count("Traceback"), done.stderr[-3000:]
    assert done.returncode == 0, done.stdout + done.stderr
