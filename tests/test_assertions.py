"""Assertions of this suite that could not fail."""

import ast
from pathlib import Path

HERE = Path(__file__).parent
CERTAIN = (ast.IfExp, ast.Tuple, ast.Constant)
"""``assert a if b else c`` asserts one of two things only; the others are always true or false."""


def test_every_assertion_can_fail():
    found = [
        f"{path.relative_to(HERE)}:{node.lineno}: assert {ast.unparse(node.test)}"
        for path in sorted(HERE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and isinstance(node.test, CERTAIN)
    ]

    assert not found, "\n".join(found)
