"""Only the device room says which accelerator there is: no other room names one, its library or torch's module of it.

Flags have choices with these names, and their help, aliases and messages about flags speak of them: that is the config
room, which holds them as text. Comments and docstrings are free.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "swiftlet"
WORDS = re.compile(r"(?<![a-z])(?:cuda|npu|nccl|hccl|cann)(?![a-z])", re.IGNORECASE)
FILES = sorted(SRC.rglob("*.py"))
# What people type: a name of a command, of a flag's choice, of a package. None: a file whose subject they are.
ALLOWED = {
    "config/args.py": {"npu", "cuda", "hccl", "nccl", "adamw_torch_npu_fused"},
    "config/aliases.py": None,
    "config/commands.py": None,
    "config/elsewhere.py": None,
    "commands/npu.py": None,
    "commands/plan.py": {"npu", "cuda"},
    "launch.py": {"torch-npu"},
    "doctor/devices.py": {"npu"},  # the number by which the driver's program knows a card
    "train/optim.py": {"adamw_torch_npu_fused"},
}
OURS = [path for path in FILES if path.relative_to(SRC).parts[0] != "device"]


def place(path: Path) -> str:
    return str(path.relative_to(SRC))


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(
            node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        ) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def said(path: Path) -> list[tuple[int, str]]:
    """Return the lines and texts of a file that name an accelerator: names, attributes and strings of the code."""
    found = []
    for node in ast.walk(without_docstrings(ast.parse(path.read_text(encoding="utf-8")))):
        texts = [
            getattr(node, name)
            for name in ("id", "attr", "arg", "name", "module", "value", "asname")
            if isinstance(getattr(node, name, None), str)
        ]
        found += [(getattr(node, "lineno", 0), text) for text in texts if WORDS.search(text)]
    return found


@pytest.mark.parametrize("path", OURS, ids=place)
def test_no_other_room_names_an_accelerator(path):
    allowed = ALLOWED.get(place(path), set())
    strange = [(line, text) for line, text in said(path) if allowed is not None and text not in allowed]
    assert not strange, f"{place(path)} names a device: {strange}; ask device/ for what it is needed for"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_torch_of_one_accelerator_is_called_in_its_own_file(path):
    text = ast.unparse(without_docstrings(ast.parse(path.read_text(encoding="utf-8"))))
    calls = set(re.findall(r"\btorch\.(cuda|npu)\b(?!')", text))
    own = {"device/cuda.py": {"cuda"}, "device/npu.py": {"npu"}}.get(place(path), set())
    assert calls <= own, f"{place(path)} calls torch.{'/'.join(calls - own)}"


@pytest.mark.parametrize(
    "code, found",
    [
        ("x = torch.cuda.is_available()", ["cuda"]),
        ("backend = 'hccl'", ["hccl"]),
        ("import torch_npu", ["torch_npu"]),
        ("'''About cuda.'''\n# npu\nx = 1", []),
        ("x = 'input'; y = 'barracuda'; z = 'cannot'", []),
        ("device = 'npu:0'", ["npu:0"]),
    ],
)
def test_the_test_itself(tmp_path, code, found):
    file = tmp_path / "code.py"
    file.write_text(code)
    assert [text for _, text in said(file)] == found
