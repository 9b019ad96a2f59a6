"""docs/architecture.md says what the rooms hand each other: names, fields and parameters must be those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
Definition = ast.ClassDef | ast.FunctionDef


def promised() -> Iterator[tuple[str, Definition]]:
    """Yield (file, definition) of the page's blocks; a comment `# room/file.py` says where what follows stands."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        files = {
            number: found[1]
            for number, line in enumerate(block.splitlines(), start=1)
            if (found := re.match(r"# (\S+\.py)\b", line))
        }
        for node in ast.parse(block).body:
            assert isinstance(node, Definition), ast.unparse(node)
            yield files[max(number for number in files if number < node.lineno)], node


def named(body: list[ast.stmt], name: str) -> Definition:
    return next(node for node in body if isinstance(node, Definition) and node.name == name)


def fields(node: ast.ClassDef) -> list[str]:
    names = [
        item.target if isinstance(item, ast.AnnAssign) else item.value
        for item in node.body
        if field_like(item)
    ]
    return [name.id for name in names if isinstance(name, ast.Name)]


def field_like(item: ast.stmt) -> bool:
    return isinstance(item, ast.AnnAssign) or (
        isinstance(item, ast.Expr) and isinstance(item.value, ast.Name)
    )


def parameters(node: ast.FunctionDef) -> list[str]:
    return [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


CONTRACTS = list(promised())


@pytest.mark.parametrize(("file", "told"), CONTRACTS, ids=[f"{file}-{node.name}" for file, node in CONTRACTS])
def test_a_contract_of_the_page_is_that_of_the_code(file, told):
    real = named(ast.parse((ROOT / "src" / "swiftlet" / file).read_text(encoding="utf-8")).body, told.name)

    if isinstance(told, ast.FunctionDef):
        assert parameters(told) == parameters(real)
        return
    assert fields(told) == [] or fields(told) == fields(real)
    for method in told.body:
        if isinstance(method, ast.FunctionDef):
            assert parameters(method) == parameters(named(real.body, method.name)), method.name


def test_the_page_has_contracts():
    assert len(CONTRACTS) > 10
