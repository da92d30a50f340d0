"""A condition in a recipe, `result == 'R' and 0.5 < duration < 6`, and a table -> which rows meet it; never `eval`.

The text is parsed into a tree of which only the node types below are let through, and the tree is walked over whole
columns. There are column names, `column[k]` for part k of a column with several values a row, numbers, texts, True and
False; `and or not`, chained comparisons, `in` and `not in` against (constants) or `'tag' in column` (texts joined by
commas); + - * /; and the functions

    known(x)            neither NaN nor empty text
    abs(x)              size of a number
    get(column, other)  the column, or the constant `other` where the file lacks it; `get('odd name')` for odd names
    count(column)       number of known parts column[0], column[1] ...

A NaN fails every comparison, != and `not in` too. A text beside a number counts as the number it spells (True is 1).
"""

import ast
import operator
import warnings

import numpy as np

from data_prep.columns import Table, as_number, as_truth, column, equal, has_tag, holds_text, known, plain
from data_prep.errors import RecipeError

_LONGEST, _DEEPEST = 2000, 30  # characters, and nodes within nodes: far beyond what a person writes
_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
_EQUALITY, _MEMBERSHIP = (ast.Eq, ast.NotEq), (ast.In, ast.NotIn)
_FUNCTIONS = {"known": (1, 1), "abs": (1, 1), "get": (1, 2), "count": (1, 1)}  # fewest and most arguments


def passes(where: str, table: Table, text: str) -> np.ndarray:
    """Boolean mask (n,): which rows of the table meet the condition; all of them where it is "".

    Raises RecipeError for a text that is none, SessionError for a column that is not there or cannot be compared so.
    """
    rows = len(next(iter(table.values()), ()))
    if not text.strip():
        return np.ones(rows, dtype=bool)
    tree = parse(where, text)
    with np.errstate(all="ignore"):
        return as_truth(where, _told(tree), _value(where, tree, table, rows))


def parse(where: str, text: str) -> ast.expr:
    """The checked tree of a condition; raises RecipeError that names the place of what is not in the language."""
    if len(text) > _LONGEST:
        raise RecipeError(where, f"a condition of {len(text)} characters", f"write at most {_LONGEST}")
    line = text.replace("\n", " ").strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a bad escape in a text
            tree = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        fault = f"{line[:80]!r} is no condition (character {error.offset or 0}: {error.msg})"
        raise RecipeError(where, fault, "write it like result == 'R' and duration < 6") from None
    except (ValueError, RecursionError, MemoryError):
        raise RecipeError(where, f"{line[:80]!r} is no condition", "write it simpler") from None
    _check_truth(where, tree, 0)
    return tree


# ------------------------------------------------------------------------------- what the language has


def _refuse(where: str, node: ast.AST, what: str, do: str) -> RecipeError:
    return RecipeError(where, f"{what} at character {getattr(node, 'col_offset', 0) + 1} of the condition", do)


def _check_truth(where: str, node: ast.expr, depth: int) -> None:
    """What `and`, `or`, `not` and the whole condition stand on: anything but a constant text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        raise _refuse(where, node, f"a bare text {node.value[:40]!r}", "compare a column with it")
    _check(where, node, depth)


def _check(where: str, node: ast.expr, depth: int) -> None:
    """Raise RecipeError unless node is in the language."""
    if depth > _DEEPEST:
        raise _refuse(where, node, f"more than {_DEEPEST} levels", "write it flatter")
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            _check_truth(where, part, depth + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_truth(where, node.operand, depth + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _check_truth(where, node.operand, depth + 1)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        _check_truth(where, node.left, depth + 1)
        _check_truth(where, node.right, depth + 1)
    elif isinstance(node, ast.Compare):
        _check_comparison(where, node, depth)
    elif isinstance(node, ast.Call):
        _check_call(where, node, depth)
    elif isinstance(node, ast.Constant):
        _check_constant(where, node)
    elif isinstance(node, ast.Name) or (isinstance(node, ast.Subscript) and _name(node)):
        return
    else:
        kind = "[...] that is not column[k]" if isinstance(node, ast.Subscript) else type(node).__name__
        words = "use columns, numbers, texts, and/or/not, comparisons, + - * /, known, abs, get, count"
        raise _refuse(where, node, kind, words)


def _check_constant(where: str, node: ast.expr) -> None:
    fine = isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str)
    if fine and isinstance(node.value, int | float):
        fine = -1e300 < node.value < 1e300  # an int of any length compares; float(it) would not
    if not fine:
        raise _refuse(where, node, f"{ast.unparse(node)[:40]!r}", "use numbers, texts, True and False")


def _check_comparison(where: str, node: ast.Compare, depth: int) -> None:
    left = node.left
    _check(where, left, depth + 1)
    for kind, right in zip(map(type, node.ops), node.comparators):
        if kind in _MEMBERSHIP and isinstance(right, ast.Tuple | ast.List):
            for part in right.elts:
                _check_constant(where, _signless(part))
        elif kind in _MEMBERSHIP:
            tag = isinstance(left, ast.Constant) and isinstance(left.value, str)
            if not (tag and isinstance(right, ast.Name | ast.Subscript | ast.Call)):
                raise _refuse(where, right, "`in`", "write column in (1, 2) or 'tag' in column")
        elif kind not in _ORDER and kind not in _EQUALITY:
            raise _refuse(where, right, f"the comparison {kind.__name__}", "use == != < <= > >= in, not in")
        if not (kind in _MEMBERSHIP and isinstance(right, ast.Tuple | ast.List)):
            _check(where, right, depth + 1)
        left = right


def _check_call(where: str, node: ast.Call, depth: int) -> None:
    known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if not known or node.keywords:
        raise _refuse(where, node, f"a call of {ast.unparse(node.func)[:40]!r}", f"use {', '.join(_FUNCTIONS)}")
    fewest, most = _FUNCTIONS[node.func.id]
    if not fewest <= len(node.args) <= most:
        raise _refuse(where, node, f"{node.func.id} of {len(node.args)} values", f"give it {most}")
    if node.func.id in ("get", "count") and not _name(node.args[0]):
        raise _refuse(where, node, f"{node.func.id} of no column", f"write {node.func.id}(column...)")
    for argument in node.args[:1] if node.func.id != "get" else ():
        _check(where, argument, depth + 1)
    for argument in node.args[1:]:
        _check_constant(where, _signless(argument))


def _signless(node: ast.expr) -> ast.expr:
    """The number behind a minus."""
    signed = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)
    return node.operand if signed and not isinstance(node.operand.value, str) else node


def _name(node: ast.expr) -> str:
    """The column a node names: `a` a, `a[2]` a.2, 'odd name'; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant):
        part = node.slice.value
        return f"{node.value.id}.{part}" if type(part) is int and 0 <= part < 1000 else ""
    return ""


# ------------------------------------------------------------------------------- what it means


def _value(where: str, node: ast.expr, table: Table, rows: int) -> np.ndarray:
    """Values (n,) of a checked node: bool, float64 or text."""
    if isinstance(node, ast.Constant):
        return np.full(rows, node.value if isinstance(node.value, bool | str) else float(node.value))
    if isinstance(node, ast.Name | ast.Subscript):
        return plain(where, column(where, table, _name(node)))
    if isinstance(node, ast.Call):
        return _call(where, node, table, rows)
    if isinstance(node, ast.Compare):
        return _compare(where, node, table, rows)
    if isinstance(node, ast.BoolOp):
        parts = [as_truth(where, _told(part), _value(where, part, table, rows)) for part in node.values]
        return np.all(parts, axis=0) if isinstance(node.op, ast.And) else np.any(parts, axis=0)
    if isinstance(node, ast.UnaryOp):
        operand = _value(where, node.operand, table, rows)
        if isinstance(node.op, ast.Not):
            return ~as_truth(where, _told(node.operand), operand)
        return -as_number(operand) if isinstance(node.op, ast.USub) else as_number(operand)
    left, right = (as_number(_value(where, side, table, rows)) for side in (node.left, node.right))
    if isinstance(node.op, ast.Div):  # nothing sensible comes of a division by zero
        right = np.where(right == 0, np.nan, right)
    return _ARITHMETIC[type(node.op)](left, right)


def _call(where: str, node: ast.Call, table: Table, rows: int) -> np.ndarray:
    function, first = node.func.id, node.args[0]
    if function == "get":
        name = _name(first)
        if name in table or len(node.args) == 1:
            return plain(where, column(where, table, name))
        return _value(where, node.args[1], table, rows)
    if function == "count":
        name = _name(first)
        parts = [key for key in table if key.startswith(f"{name}.") and key[len(name) + 1 :].isdigit()]
        parts = parts or ([name] if name in table else [])
        if not parts:
            column(where, table, name)
        return np.sum([known(plain(where, table[key])) for key in parts], axis=0).astype(np.float64)
    values = _value(where, first, table, rows)
    return known(values) if function == "known" else np.abs(as_number(values))


def _compare(where: str, node: ast.Compare, table: Table, rows: int) -> np.ndarray:
    """Truth (n,) of a chain of comparisons."""
    mask, left_node = np.ones(rows, dtype=bool), node.left
    left = _value(where, left_node, table, rows)
    for kind, right_node in zip(map(type, node.ops), node.comparators):
        if kind in _MEMBERSHIP and isinstance(right_node, ast.Tuple | ast.List):
            hits = [equal(left, _value(where, part, table, rows)) for part in right_node.elts]
            hit, right = np.any(hits, axis=0) if hits else np.zeros(rows, dtype=bool), left
        else:
            right = _value(where, right_node, table, rows)
            if kind in _MEMBERSHIP:
                hit = has_tag(left, right)
            elif kind in _EQUALITY:
                hit = equal(left, right)
            else:
                mask &= _ordered(where, kind, (left_node, left), (right_node, right))
        if kind in (ast.In, ast.Eq):
            mask &= hit
        elif kind in (ast.NotIn, ast.NotEq):
            mask &= ~hit & _comparable(left, right)
        left_node, left = right_node, right
    return mask


def _comparable(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where neither side is missing; beside a text an empty one is a text like others."""
    if left.dtype.kind == right.dtype.kind == "U":
        return np.ones(len(left), dtype=bool)
    return known(left) & known(right)


def _ordered(where: str, kind: type, left: tuple, right: tuple) -> np.ndarray:
    low, high = left[1], right[1]
    if low.dtype.kind == high.dtype.kind == "U":
        return np.asarray(_ORDER[kind](low, high))
    for node, values in (left, right):
        if values.dtype.kind == "U" and known(values).any() and np.isnan(as_number(values)).all():
            raise holds_text(where, _told(node), values, "compare it with ==")
    return _ORDER[kind](as_number(low), as_number(high))


def _told(node: ast.expr) -> str:
    return ast.unparse(node)
