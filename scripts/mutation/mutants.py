"""Small faults of Python code, each of one kind in one place; the text around them stays as it is."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: what stands in `file` from byte `start` to `end` becomes `text`."""

    file: str
    line: int
    lines: tuple[int, int]
    """First and last line of the code that has to run for the fault to matter."""
    start: int
    end: int
    text: str
    operator: str

    def applied(self, source: bytes) -> bytes:
        """The file with the fault in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def change(self, source: bytes) -> tuple[str, str]:
        """The lines it touches, before and after, blanks at their ends removed."""
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        last = len(source) if last < 0 else last
        after = source[first : self.start] + self.text.encode() + source[self.end : last]
        return source[first:last].decode().strip(), after.decode().strip()


OPPOSITE: Mapping[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
COMMUTATIVE = {"max", "min", "maximum", "minimum"}
NOT_MUTATED = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)
"""f-strings are words for people, an assert tells the type checker what is known."""
UNSEEN = {"device", "strict"}
"""Arguments left alone: there is no second device to tell, and `strict=True` is an assertion."""


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """Every fault of one kind in one place that the operators below know, in the order of the file."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, statement in _places(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        lines = (min(statement.lineno, node.lineno), node.end_lineno or node.lineno)
        for operator, text in _faults(node):
            found.append(Mutant(file, node.lineno, lines, start, end, text, operator))
    return found


def _places(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, ast.stmt]]:
    """Nodes that may be mutated, each with the statement it is part of; no annotation, no docstring."""

    def walk(node: ast.AST, statement: ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, ast.stmt]]:
        if isinstance(node, NOT_MUTATED) or _is_text(node) or _is_literal_type(node):
            return
        if isinstance(node, ast.keyword) and node.arg in UNSEEN:
            return
        statement = node if isinstance(node, ast.stmt) else statement
        if isinstance(node, ast.expr | ast.stmt):
            yield node, statement
        if isinstance(node, ast.Raise):
            return
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from walk(child, statement)

    for statement in tree.body:
        yield from walk(statement, statement)


def _is_text(node: ast.AST) -> bool:
    """A docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_literal_type(node: ast.AST) -> bool:
    """`Literal[...]`, an annotation with a name."""
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal"


def _faults(node: ast.expr | ast.stmt) -> Iterator[tuple[str, str]]:
    """Name of the operator and the node's new text."""
    for operator, changed in _changed(node):
        text = ast.unparse(ast.fix_missing_locations(changed))
        yield operator, f"({text})" if isinstance(node, ast.expr) else text


def _changed(node: ast.expr | ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                ops = [*node.ops[:place], OPPOSITE[type(operator)](), *node.ops[place + 1 :]]
                yield "compare", ast.Compare(node.left, ops, node.comparators)  # type: ignore[arg-type]
        case ast.BinOp() if type(node.op) in OPPOSITE:
            yield "arithmetic", _with(node, op=OPPOSITE[type(node.op)]())
        case ast.BoolOp():
            yield "boolean", _with(node, op=OPPOSITE[type(node.op)]())
        case ast.UnaryOp():
            yield "sign or not", node.operand
        case ast.IfExp():
            yield "branches swapped", _with(node, body=node.orelse, orelse=node.body)
        case ast.Constant():
            yield from (("constant", ast.Constant(value)) for value in _other_values(node.value))
        case ast.Call():
            yield from _other_calls(node)
        case ast.Return() if node.value is not None and not _is_none(node.value):
            yield "return None", ast.Return(ast.Constant(None))
        case ast.Expr() | ast.AugAssign() | ast.Raise():
            yield "statement removed", ast.Pass()
        case ast.Continue():
            yield "loop", ast.Break()
        case ast.Break():
            yield "loop", ast.Continue()


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _other_values(value: object) -> Iterator[bool | int | float | str]:
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
        case float():
            yield 2 * value if value else 1.0
        case str():
            yield value + "XX"


def _other_calls(call: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    given = call.args
    commutes = ast.unparse(call.func).split(".")[-1] in COMMUTATIVE
    for place in range(0 if commutes else len(given) - 1):
        if not any(isinstance(given[at], ast.Starred) for at in (place, place + 1)):
            swapped = [*given[:place], given[place + 1], given[place], *given[place + 2 :]]
            yield "arguments swapped", _with(call, args=swapped)
    if len(given) > 1:
        yield "argument dropped", _with(call, args=given[:-1])
    for place, word in enumerate(call.keywords):
        if word.arg in UNSEEN:
            continue
        rest = [*call.keywords[:place], *call.keywords[place + 1 :]]
        yield "argument dropped", _with(call, keywords=rest)
