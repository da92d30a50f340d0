"""Conditions over columns equal a plain evaluation row by row, and what is no condition is refused, never run."""

import ast
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.errors import RecipeError, SessionError
from data_prep.expression import parse, passes

TABLE = {
    "result": np.array(["R", "F", "R", "R"]),
    "success": np.array([True, False, True, True]),
    "id": np.array([1, 2, 3, 4]),
    "id_text": np.array(["1", "2.0", "word", ""]),
    "tags": np.array(["task,early", "task", "rest, late", ""]),
    "go": np.array([2.0, 12.0, np.nan, 32.0]),
    "target.0": np.array([1.0, 5.0, np.nan, 2.0]),
    "target.1": np.array([1.0, np.nan, np.nan, 3.0]),
    "raw": np.array([b"R", b"A", b"", b"R"]),
    "odd name": np.array([1.0, 0.0, 1.0, 1.0]),
    "flag": np.array(["True", "False", "true", ""]),
}


@pytest.mark.parametrize(
    "text, truth",
    [
        ("", [1, 1, 1, 1]),
        ("result == 'R'", [1, 0, 1, 1]),
        ("result != 'R'", [0, 1, 0, 0]),
        ("result in ('F', 'A')", [0, 1, 0, 0]),
        ("result not in ['F', 'A']", [1, 0, 1, 1]),
        ("raw == 'R'", [1, 0, 0, 1]),
        ("success", [1, 0, 1, 1]),
        ("not success", [0, 1, 0, 0]),
        ("success == True and success != 0", [1, 0, 1, 1]),
        ("success == 'False'", [0, 1, 0, 0]),
        ("flag", [1, 0, 1, 0]),
        ("flag == True", [1, 0, 1, 0]),
        ("id in ('2', '3.0', 'word')", [0, 1, 1, 0]),
        ("id_text == 1 or id_text == 2", [1, 1, 0, 0]),
        ("id_text != 1", [0, 1, 1, 0]),  # a word differs from 1, an empty text is missing
        ("id_text != '1'", [0, 1, 1, 1]),
        ("id_text < 2", [1, 0, 0, 0]),
        ("'task' in tags", [1, 1, 0, 0]),
        ("'late' not in tags", [1, 1, 0, 1]),
        ("known(tags)", [1, 1, 1, 0]),
        ("known(go) and not known(target[1])", [0, 1, 0, 0]),
        ("go >= 12", [0, 1, 0, 1]),
        ("go != 2", [0, 1, 0, 1]),
        ("go not in (2, -2)", [0, 1, 0, 1]),
        ("1 < go <= 12", [1, 1, 0, 0]),
        ("go / id - 1 == 1 or abs(-go) > 30", [1, 0, 0, 1]),
        ("go / (id - 1) > 0", [0, 1, 0, 1]),
        ("target[0] == target[1]", [1, 0, 0, 0]),
        ("count(target) == 2", [1, 0, 0, 1]),
        ("count(go)", [1, 1, 0, 1]),
        ("get(split, 'train') == 'train'", [1, 1, 1, 1]),
        ("get(result, 'F') == 'F'", [0, 1, 0, 0]),
        ("get(target[7], -1) == -1", [1, 1, 1, 1]),
        ("'task' in get(tags, '')", [1, 1, 0, 0]),
        ("get('odd name')", [1, 0, 1, 1]),
        ("result >= 'G' and\n  id > 1", [0, 0, 1, 1]),
    ],
)
def test_the_language_by_example(text, truth):
    assert passes("here", TABLE, text).tolist() == [bool(bit) for bit in truth]


def test_a_column_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(SessionError, match="no column 'outcome'; choose from flag, go, id, id_text"):
        passes("here", TABLE, "outcome == 'R'")
    with pytest.raises(SessionError, match="no column 'target.2'"):
        passes("here", TABLE, "target[2] > 0")
    with pytest.raises(SessionError, match="no column 'goals'"):
        passes("here", TABLE, "count(goals) > 0")


@pytest.mark.parametrize("text", ["result > 0", "result", "not result", "tags and success"])
def test_a_word_has_no_size_and_no_truth(text):
    with pytest.raises(SessionError, match="holds text .*; compare it with =="):
        passes("here", TABLE, text)


def test_a_table_without_rows():
    assert passes("here", {"a": np.zeros(0)}, "a > 1 and count(a) and a in (1, 2)").tolist() == []


# ------------------------------------------------------------------------------------------ equality

NAMES = {"n": st.floats(allow_infinity=False, width=16), "b": st.booleans(), "i": st.integers(-3, 3)}
NAMES |= {"t": st.sampled_from(["", "1", "2.0", "True", "a", "a,b", "nan"]), "u": st.sampled_from(["", "a", "b"])}
NUMBERS = st.sampled_from(["n", "b", "i", "1", "0", "2.5", "-1", "True", "abs(n)", "n + i", "i / b", "n * 2 - i"])
CONSTANT = st.sampled_from(["1", "0", "-1", "2.0", "True", "'a'", "'1'", "''", "'a,b'"])
VALUES = st.one_of(NUMBERS, st.sampled_from(["t", "u"]), CONSTANT)
LEAVES = st.one_of(
    st.tuples(NUMBERS, st.sampled_from(["<", "<=", ">", ">="]), NUMBERS).map(" ".join),
    st.tuples(NUMBERS, st.just("<"), NUMBERS, st.just("<="), NUMBERS).map(" ".join),
    st.tuples(VALUES, st.sampled_from(["==", "!="]), VALUES).map(" ".join),
    st.tuples(VALUES, st.sampled_from(["in", "not in"]), st.lists(CONSTANT, max_size=3)).map(
        lambda x: f"{x[0]} {x[1]} [{', '.join(x[2])}]"
    ),
    st.tuples(st.sampled_from(["'a'", "'1'"]), st.sampled_from(["in", "not in"]), st.sampled_from("tuni")).map(
        " ".join
    ),
    st.sampled_from(["b", "i", "n", "known(n)", "known(t)", "known(n + i)"]),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda x: f"({x[0]}) {x[1]} ({x[2]})"),
        inner.map(lambda x: f"not ({x})"),
    ),
    max_leaves=6,
)


@given(CONDITIONS, st.lists(st.fixed_dictionaries(NAMES), min_size=1, max_size=6))
@example("n", [{"n": math.nan, "b": False, "i": 0, "t": "", "u": ""}])  # a bare number is true where known and not 0
@example("i", [{"n": 0.0, "b": False, "i": 3, "t": "", "u": ""}])
def test_the_mask_equals_the_plain_loop_over_rows(text, rows):
    table = {name: np.array([row[name] for row in rows]) for name in NAMES}
    tree = ast.parse(text, mode="eval").body
    assert passes("here", table, text).tolist() == [truth(plainly(tree, row)) for row in rows]


def number(value) -> float:
    """The number a value is or spells; NaN for none."""
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.lower(), value)
        try:
            return float(value)
        except ValueError:
            return math.nan
    return float(value)


def missing(value) -> bool:
    return value in ("", "nan") if isinstance(value, str) else math.isnan(value)


def equal(one, other) -> bool:
    both = isinstance(one, str) and isinstance(other, str)
    return one == other if both else number(one) == number(other)


def compared(kind: type, one, other) -> bool:
    if kind in (ast.Eq, ast.NotEq):
        unlike = not (isinstance(one, str) and isinstance(other, str)) and (missing(one) or missing(other))
        return not unlike and equal(one, other) == (kind is ast.Eq)
    one, other = number(one), number(other)
    return {ast.Lt: one < other, ast.LtE: one <= other, ast.Gt: one > other, ast.GtE: one >= other}[kind]


def belongs(kind: type, value, among) -> bool:
    if isinstance(among, list):
        hit, unlike = any(equal(value, one) for one in among), not isinstance(value, str) and missing(value)
    else:
        hit = value in among.split(",") or value == among if isinstance(among, str) else equal(value, among)
        unlike = not isinstance(among, str) and missing(among)
    return hit if kind is ast.In else not hit and not unlike


def plainly(node: ast.expr, row: dict):
    """What a person would say of one row; the slow reference."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return row[node.id]
        case ast.List():
            return [plainly(part, row) for part in node.elts]
        case ast.Call():
            value = plainly(node.args[0], row)
            return abs(number(value)) if node.func.id == "abs" else not missing(value)
        case ast.UnaryOp(op=ast.USub()):
            return -number(plainly(node.operand, row))
        case ast.UnaryOp():
            return not truth(plainly(node.operand, row))
        case ast.BoolOp():
            parts = [truth(plainly(part, row)) for part in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        case ast.BinOp():
            one, other = number(plainly(node.left, row)), number(plainly(node.right, row))
            if isinstance(node.op, ast.Div):
                return one / other if other else math.nan
            return {ast.Add: one + other, ast.Sub: one - other, ast.Mult: one * other}[type(node.op)]
        case ast.Compare():
            values = [plainly(part, row) for part in (node.left, *node.comparators)]
            steps = zip(map(type, node.ops), values, values[1:])
            return all((belongs if k in (ast.In, ast.NotIn) else compared)(k, a, b) for k, a, b in steps)


def truth(value) -> bool:
    return bool(value) and not (isinstance(value, float) and math.isnan(value))


# ------------------------------------------------------------------------------------------- refusal

HOSTILE = [
    "__import__('os').system('true')",
    "result.__class__",
    "().__class__.__bases__[0].__subclasses__()",
    "[x for x in (1, 2)]",
    "{x: 1 for x in (1,)} == 1",
    "(lambda: 1)()",
    "(x := 1) > 0",
    "9 ** 9 ** 9 > 0",
    "1 << 99999999",
    "go if success else id",
    "f'{result}' == 'R'",
    "print(result)",
    "known(result, 1)",
    "known(x=result)",
    "known(*result)",
    "eval('1')",
    "get('a' + 'b', 1)",
    "get(result, id)",
    "target[id] == 1",
    "target[-1] == 1",
    "target[0:2] == 1",
    "result is 'R'",
    "result in result",
    "id in 5",
    "'a' in ('a', ('b',))",
    "1j == id",
    "b'R' == result",
    "None == result",
    "... == id",
    "id == 1e999",
    "'R'",
    "result == 'R' and 'task'",
    "1, 2",
    "result = 'R'",
    "result == 'R",
    "import os",
    "result == 'R'; import os",
    "id == " + "9" * 400,
    "(" * 150 + "id" + ")" * 150 + " == " + "(" * 250 + "id" + ")" * 250,
    "not " * 300 + "success",
    "-" * 1500 + "id",
    "id" + " + id" * 200,
    "id == 1 or " * 500 + "success",
    "result == '\\d'",
    "id\x00 == 1",
]


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:30] for text in HOSTILE])
def test_what_is_no_condition_is_refused_in_one_line(text):
    with pytest.raises(RecipeError) as refusal:
        parse("recipe small trials.valid", text)
    line = str(refusal.value)
    assert line.startswith("recipe small trials.valid: ") and "\n" not in line and len(line) < 400
    with pytest.raises(RecipeError):
        passes("here", TABLE, text)


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_refused(text):
    try:
        mask = passes("here", TABLE, text)
    except (RecipeError, SessionError):
        return
    assert mask.shape == (4,) and mask.dtype == bool


def test_the_place_of_a_fault_is_told():
    with pytest.raises(RecipeError, match=r"a call of 'float' at character 18 of the condition; use known, abs"):
        parse("here", "result == 'R' or float(go) > 1")
