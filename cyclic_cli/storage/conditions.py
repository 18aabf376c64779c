"""Parses the conditions of `--where` into expressions that Arrow evaluates.

Conditions are written like Python expressions, such as `split == 'test' and nodule > 0`. They are parsed and never
executed as Python.
"""

import ast
import functools
import operator
from collections.abc import Callable
from typing import Any

from cyclic_cli.errors import UsageError
from cyclic_cli.registry import check

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda column, values: column.isin(values),
    ast.NotIn: lambda column, values: ~column.isin(values),
}  # fmt: skip
EXAMPLE = "Write it like \"split == 'test' and kind in ['image', 'text']\", the column first."


def parse_condition(text: str, columns: list[str]) -> tuple[Any, list[str]]:
    """Parse a condition on some columns.

    Allowed are comparisons of a column with a constant or with a list of constants, joined by `and`, `or`, `not` and
    brackets.

    Returns:
        The condition as an Arrow expression, and the names of the columns in it.

    Raises:
        UsageError: the text contains anything else, or names an unknown column.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    names: dict[str, None] = {}
    invalid = UsageError(f"--where {text!r} is not a condition.", EXAMPLE)

    def is_scalar(node: ast.expr) -> bool:
        return not isinstance(node, ast.List | ast.Tuple)

    def constant(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=str() | int() | float() | bool()):
                return node.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.List(elts=several) | ast.Tuple(elts=several) if all(map(is_scalar, several)):
                return [constant(one) for one in several]
        raise UsageError(f"--where {text!r} compares a column with something that is not a constant.", EXAMPLE)

    def expression(node: ast.expr) -> Any:
        match node:
            case ast.BoolOp(op=ast.And(), values=several):
                return functools.reduce(operator.and_, map(expression, several))
            case ast.BoolOp(op=ast.Or(), values=several):
                return functools.reduce(operator.or_, map(expression, several))
            case ast.UnaryOp(op=ast.Not(), operand=one):
                return ~expression(one)
            case ast.Compare(left=ast.Name(id=name), ops=[kind], comparators=[other]) if type(kind) in COMPARISONS:
                check(name, columns, "column of the file")
                names[name] = None
                wanted = constant(other)
                if isinstance(wanted, list) != isinstance(kind, ast.In | ast.NotIn):
                    raise invalid
                return COMPARISONS[type(kind)](compute.field(name), wanted)
        raise invalid

    try:
        tree = ast.parse(text.strip(), mode="eval")
        return expression(tree.body), list(names)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError, pa.ArrowException):
        raise invalid from None
