"""Every command of both READMEs runs, or, where it needs devices, is accepted as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from swiftlet.cli import find_command
from swiftlet.commands import infer, sft
from swiftlet.config.parse import parse

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README_CN.md")
BLOCK = re.compile(r"<!-- (run|parse) -->\n```(\w+)\n(.*?)```", re.DOTALL)
ANY_BLOCK = re.compile(r"(<!-- (?:run|parse) -->\n)?```(\w+)\n")


def blocks(readme: str, how: str, language: str) -> list[str]:
    text = (ROOT / readme).read_text(encoding="utf-8")
    return [body for found, kind, body in BLOCK.findall(text) if (found, kind) == (how, language)]


@pytest.mark.parametrize("readme", READMES)
def test_no_command_escapes_the_tests(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    for mark, language in ANY_BLOCK.findall(text):
        assert mark or language in ("text", "json"), (
            f"a {language} block without <!-- run --> or <!-- parse -->"
        )


def test_both_languages_have_the_same_commands():
    for how, language in (("run", "shell"), ("parse", "shell"), ("run", "python")):
        assert blocks(READMES[0], how, language) == blocks(READMES[1], how, language)


@pytest.mark.parametrize(
    "line", "".join(blocks("README.md", "parse", "shell")).replace("\\\n", " ").splitlines()
)
def test_commands_for_devices_are_accepted(line):
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    assert words.pop(0) == "swift"
    name, extra = find_command(words.pop(0))
    module = {"sft": sft, "infer": infer}[name]
    assert module.check(parse(module.ARGS, [*extra, *words]), {}) == []


@pytest.fixture
def environment(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SWIFTLET_CACHE": str(tmp_path / "cache"), "CI": "true"}


def test_the_first_commands_run(tmp_path, environment):
    (script,) = blocks("README.md", "run", "shell")
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "output" / "checkpoint-20" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "output" / "checkpoint-20-merged" / "model.safetensors").is_file()
    assert list((tmp_path / "output" / "checkpoint-20" / "infer_result").glob("*.jsonl"))


def test_the_python_example_runs(tmp_path, environment):
    (script,) = blocks("README.md", "run", "python")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert " -> " in done.stdout
