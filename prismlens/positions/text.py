"""Reads a role back from its text; evaluates nothing and knows no batch."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable

from prismlens.errors import RoleError
from prismlens.positions.named import NAMES, latent
from prismlens.positions.role import Role
from prismlens.positions.stage import Stage

SYMBOLS: dict[type[ast.operator], Callable[[Role, Role], Role]] = {
    ast.BitOr: lambda left, right: left | right,
    ast.BitAnd: lambda left, right: left & right,
    ast.Sub: lambda left, right: left - right,
}
OF_STAGE: dict[str, Callable[[Stage], Role]] = {"source": lambda stage: stage.source, "end": lambda stage: stage.end}
"""What can stand after ``latent.stage("name")``."""


def parse(text: str) -> Role:
    """The role whose text this is: ``parse(str(role)) == role``.

    Args:
        text: names, indices, ``|``, ``&``, ``-``, ``~`` and parentheses, for example ``"latent[-1] | answer.source"``.

    Raises:
        RoleError: a name is unknown (the three closest are given), or the text is not a role at all.
    """
    try:
        return _role(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, AttributeError) as error:
        if isinstance(error, RoleError):
            raise
        raise _unreadable(text, repr(text)) from error


def _role(node: ast.expr, text: str) -> Role:
    """The role that one node of the syntax tree stands for."""
    reader = READERS.get(type(node))
    if reader is None:
        raise _unreadable(text, ast.unparse(node))
    return reader(node, text)


def _named(node: ast.expr, text: str) -> Role:
    """A name, or a name with an attribute."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
        return _of_stage(node, text)
    name = ast.unparse(node)
    if name in NAMES:
        return NAMES[name]
    closest = difflib.get_close_matches(name, [*NAMES, "latent.stage"], n=3, cutoff=0.0)
    raise RoleError(
        f"the text {text!r} has the unknown role {name!r}",
        needed=f"one of {', '.join(NAMES)}, latent.stage('...')",
        cause="a misspelt name",
        fix=f"closest: {', '.join(closest)}",
    )


def _indexed(node: ast.expr, text: str) -> Role:
    """A role with a number or a slice in brackets."""
    assert isinstance(node, ast.Subscript)
    role, key = _role(node.value, text), node.slice
    if isinstance(key, ast.Slice):
        return role[slice(*(_number(part, text) for part in (key.lower, key.upper, key.step)))]
    number = _number(key, text)
    assert number is not None
    return role[number]


def _joined(node: ast.expr, text: str) -> Role:
    """Two roles with an operator between."""
    assert isinstance(node, ast.BinOp)
    join = SYMBOLS.get(type(node.op))
    if join is None:
        raise _unreadable(text, ast.unparse(node))
    return join(_role(node.left, text), _role(node.right, text))


def _inverted(node: ast.expr, text: str) -> Role:
    """A role with ``~`` before it."""
    assert isinstance(node, ast.UnaryOp)
    if not isinstance(node.op, ast.Invert):
        raise _unreadable(text, ast.unparse(node))
    return ~_role(node.operand, text)


def _of_stage(node: ast.Attribute, text: str) -> Role:
    """``latent.stage("name").source`` or ``.end``."""
    stage = _stage(node.value, text)
    if node.attr not in OF_STAGE:
        raise _unreadable(text, ast.unparse(node))
    return OF_STAGE[node.attr](stage)


def _stage(node: ast.expr, text: str) -> Stage:
    """``latent.stage("name")``, the only call there is."""
    assert isinstance(node, ast.Call)
    values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    known = ast.unparse(node.func) == "latent.stage" and not node.keywords and len(node.args) == 1
    if not known or len(values) != 1 or not isinstance(values[0], str):
        raise _unreadable(text, ast.unparse(node))
    return latent.stage(values[0])


def _number(node: ast.expr | None, text: str) -> int | None:
    """The whole number that a node spells, None for an absent one."""
    if node is None:
        return None
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    digits = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if not isinstance(digits, ast.Constant) or type(digits.value) is not int:
        raise _unreadable(text, ast.unparse(node))
    return -digits.value if negative else digits.value


def _unreadable(text: str, part: str) -> RoleError:
    """The error for what is not a role, with the part that could not be read."""
    return RoleError(
        f"the text {text!r} is not a role: cannot read {part}",
        needed="names, [i], [i:j], |, &, -, ~ and parentheses",
        fix="write it as in Python, for example latent[-1] | answer.source",
    )


READERS: dict[type[ast.expr], Callable[[ast.expr, str], Role]] = {
    ast.Name: _named,
    ast.Attribute: _named,
    ast.Subscript: _indexed,
    ast.BinOp: _joined,
    ast.UnaryOp: _inverted,
    ast.Call: _stage,
}
