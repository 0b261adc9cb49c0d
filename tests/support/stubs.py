"""What a stub file declares, without types: one line for each name, with its parameters and their defaults."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Union

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]


def declarations(path: Path) -> list[str]:
    """The lines of a stub file, in alphabetical order. Names that begin with one underscore are left out."""
    return sorted(_declared(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def _declared(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{statement.name}{_parameters(statement)}"
        elif isinstance(statement, ast.ClassDef):
            yield f"{prefix}{statement.name}"
            yield from _declared(statement.body, f"{prefix}{statement.name}.")
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield f"{prefix}{statement.target.id}"
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    yield f"{prefix}{target.id}"


def _parameters(function: Function) -> str:
    """(self, a, b=1, /), or nothing for a property."""
    kinds = {ast.unparse(decorator) for decorator in function.decorator_list}
    if "property" in kinds:
        return ""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    static = "@staticmethod " if "staticmethod" in kinds else ""
    return f"({static}{ast.unparse(arguments)})"
