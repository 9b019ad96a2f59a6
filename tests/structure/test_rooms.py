"""The house rules that a machine can check: who imports whom, how large files grow, words that stay in one room."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "swiftlet"
FILES = sorted(SRC.rglob("*.py"))
LEVEL = {
    "errors": 0,
    "log": 0,
    "faults": 1,
    "startup": 0,
    "stopping": 0,
    "files": 0,
    "hub": 3,
    "reach": 1,
    "heartbeat": 1,
    "config": 2,
    "device": 3,
    "data": 4,
    "models": 4,
    "parallel": 4,
    "plan": 4,
    "doctor": 4,
    "train": 5,
    "inference": 5,
    "commands": 6,
    "hang": 5,
    "watchdog": 6,
    "elastic": 6,
    "preflight": 6,
    "ranks": 6,
    "launch": 7,
    "cli": 8,
    "__init__": 9,
    "__main__": 9,
}
BUDGETS = {"config/args.py": 400, "train/loop.py": 200}
LARGEST_FILE, LARGEST_FUNCTION = 300, 60
FORBIDDEN_NAMES = {"utils.py", "common.py", "misc.py", "helpers.py", "constants.py"}


def place(path: Path) -> str:
    return str(path.relative_to(SRC))


def room(path: Path) -> str:
    first = path.relative_to(SRC).parts[0]
    return first.removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_rooms(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.split(".")[1] for name in names if name.startswith("swiftlet.") and name.count(".")}
    return {name for name in ours if name in ROOMS}


ROOMS = {room(path) for path in FILES}


def test_every_room_has_its_level():
    assert set(LEVEL) == ROOMS


@pytest.mark.parametrize("path", FILES, ids=place)
def test_a_room_imports_only_lower_rooms(path):
    mine = room(path)
    if mine == "__init__":
        return
    for other in imported_rooms(path) - {mine}:
        assert LEVEL[other] < LEVEL[mine], f"{place(path)} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= BUDGETS.get(place(path), LARGEST_FILE), f"{place(path)} has {lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = node.end_lineno - node.lineno + 1
            assert size <= LARGEST_FUNCTION, f"{place(path)}:{node.lineno} {node.name} has {size} lines"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_no_broad_except_no_leftovers_and_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    tree = tree_of(path)
    assert path.name not in FORBIDDEN_NAMES
    assert ast.get_docstring(tree), f"{place(path)} does not say what it is"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            name = getattr(node.type, "id", None)
            assert node.type is not None, f"{place(path)}:{node.lineno} bare except"
            assert name not in ("Exception", "BaseException"), f"{place(path)}:{node.lineno} broad except"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_no_pickle_no_shell_no_code_from_files(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load"), (
                place(path)
            )
            shell = [keyword.value for keyword in node.keywords if keyword.arg == "shell"]
            assert not any(getattr(value, "value", False) for value in shell), f"{place(path)} uses a shell"
            if name == "torch.load":
                flags = {keyword.arg: keyword.value for keyword in node.keywords}
                assert getattr(flags.get("weights_only"), "value", None) is True, (
                    f"{place(path)} reads pickle"
                )


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "train"], ids=place)
def test_the_train_room_names_no_library_of_models_and_no_arguments(path):
    for node in ast.walk(tree_of(path)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            assert not module.startswith(("transformers", "peft", "swiftlet.config")), (
                f"{place(path)}: {module}"
            )


LIGHT = """
import sys
import swiftlet.cli, swiftlet.config.args, swiftlet.config.check, swiftlet.config.help, swiftlet.config.resolve
import swiftlet.commands.sft, swiftlet.commands.infer, swiftlet.commands.export, swiftlet.launch
import swiftlet.models.families, swiftlet.hub
import swiftlet.data.sources, swiftlet.data.formats, swiftlet.data.template, swiftlet.data.encode
import swiftlet.device.visible
import swiftlet.commands.doctor, swiftlet.doctor.examine, swiftlet.doctor.live, swiftlet.doctor.live_child
heavy = {"torch", "transformers", "peft", "datasets", "matplotlib", "modelscope"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_runs_before_the_launch_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


QUIET = """
import sys
import torch, transformers
before = dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS)
handlers = {number: __import__("signal").getsignal(number) for number in (2, 15)}
import importlib, pkgutil, swiftlet
for found in pkgutil.walk_packages(swiftlet.__path__, "swiftlet."):
    if found.name != "swiftlet.device.npu_kernels":  # of the operators of torch_npu, which is not everywhere
        importlib.import_module(found.name)
assert dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS) == before
assert {number: __import__("signal").getsignal(number) for number in (2, 15)} == handlers
"""


def test_importing_everything_registers_and_patches_nothing():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_picture_of_the_rooms_shows_every_room():
    picture = (SRC.parents[1] / "docs" / "architecture.svg").read_text(encoding="utf-8")
    rooms = sorted(path.parent.name for path in SRC.glob("*/__init__.py"))
    assert rooms and [name for name in rooms if f">{name}<" not in picture] == []


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports them by their name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
