"""Which names in an example are nowhere: found by reading it, without running it."""

import ast
import builtins
import types
from collections.abc import Iterator, Mapping
from typing import Any


def missing_names(source: str, scope: Mapping[str, Any]) -> list[str]:
    """Names that are nowhere bound, and attributes of modules that they do not have.

    Of the code only its imports run. `scope` is what it can see without them.
    """
    tree, scope, missing = ast.parse(source), dict(scope), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            import_into(scope, node)
    bound = {*bound_in(tree), *scope, *dir(builtins)}
    for node in ast.walk(tree):
        first, *attributes = dotted(node) or [""]
        if first and first not in bound:
            missing.append(first)
        value = scope.get(first)
        for attribute in attributes:
            if not isinstance(value, types.ModuleType):
                break
            if not hasattr(value, attribute):
                missing.append(f"{value.__name__}.{attribute}")
                break
            value = getattr(value, attribute)
    return missing


def import_into(scope: dict[str, Any], node: ast.Import | ast.ImportFrom) -> None:
    """Runs an import; another's package that is not installed has any attribute."""
    try:
        exec(compile(ast.Module([node], []), "<imports>", "exec"), scope)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fedjax_lite"):
            raise
        scope |= {name.asname or name.name.partition(".")[0]: None for name in node.names}


def bound_in(tree: ast.AST) -> Iterator[str]:
    """Names that a piece of code gives a value to, in any of its scopes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def dotted(node: ast.AST) -> list[str]:
    """The words of `a.b.c`; none of other expressions."""
    if isinstance(node, ast.Name):
        return [node.id]
    words = dotted(node.value) if isinstance(node, ast.Attribute) else []
    return [*words, node.attr] if words else []  # pyright: ignore[reportAttributeAccessIssue]
