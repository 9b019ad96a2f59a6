"""What pages name in passing: commands and flags between backquotes, targets of make, files, links."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from swiftlet.cli import COMMANDS, find_command
from swiftlet.config.aliases import ALIASES
from swiftlet.config.fields import flags_of

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
INLINE = re.compile(r"`([^`]+)`")
FENCED = re.compile(r"```.*?```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)")
FLAG = re.compile(r"(?<![\w-])--([a-z_]+)")
FILE = re.compile(r"(?:src|tests|tools|benchmarks|requirements)/[\w./-]*\w")
OF_ALL = {"help", "config"}
OF_OTHERS = {
    "logdir",
    "cpus",
    "signal",
    "quantization_bit",
}  # TensorBoard's, Docker's, Slurm's, and one that a page calls refused


def flags_here(name: str) -> set[str]:
    module = importlib.import_module(f"swiftlet.commands.{COMMANDS[name].module}")
    return {*flags_of(module.ARGS), *ALIASES, *OF_ALL}


def inline(page: Path) -> list[str]:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in INLINE.findall(text)]


def flags_of_tools() -> set[str]:
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    told = {flag for script in scripts for flag in FLAG.findall(script.read_text(encoding="utf-8"))}
    return told | OF_OTHERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_are_there(page):
    of_commands = set().union(*(flags_here(name) for name in COMMANDS))
    for code in inline(page):
        words = code.split()
        known = of_commands | flags_of_tools()
        if words[0] == "swift" and len(words) > 1 and not words[1].startswith("-"):
            known = flags_here(find_command(words[1])[0])
        assert set(FLAG.findall(code)) <= known, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_files_and_links_are_there(page):
    text = page.read_text(encoding="utf-8")
    targets = {
        word
        for line in re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
        for word in line.split()
    }
    for code in inline(page):
        if code.startswith("make "):
            assert code.split()[1] in targets, code
        for path in FILE.findall(code) if not code.startswith("docs/") else ():
            assert (ROOT / path).exists(), code
    for link in LINK.findall(text):
        assert "://" in link or (page.parent / link).exists(), link
