#!/usr/bin/env python3
"""Writes python/kvferry/_bindings.py from the C headers, so that no declaration is typed by hand.

    generate_bindings.py            write it
    generate_bindings.py --check    exit 1 when it is not what the headers say

Reads the subset of C that our headers are written in: #define of a number or of a type, structs and unions of plain
members, typedefs of structs and of void *, and prototypes. Anything else is an error that quotes the declaration.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADERS = [ROOT / "capi/include/transfer_engine_c.h", ROOT / "capi/include/transfer_engine_ext.h"]
OUTPUT = ROOT / "python/kvferry/_bindings.py"

# C type: (ctypes type, Python type).
SCALARS = {
    "int": ("ctypes.c_int", "int"),
    "int32_t": ("ctypes.c_int32", "int"),
    "int64_t": ("ctypes.c_int64", "int"),
    "uint64_t": ("ctypes.c_uint64", "int"),
    "size_t": ("ctypes.c_size_t", "int"),
    "double": ("ctypes.c_double", "float"),
    "char": ("ctypes.c_char", "bytes"),
}
NUMBERS = {"UINT64_MAX": 2**64 - 1}


class UnsupportedError(Exception):
    """A declaration outside the subset."""


@dataclass
class CType:
    """A type as a declaration names it: the base name without qualifiers, and what is around it."""

    base: str
    stars: int
    const: bool


@dataclass
class Member:
    """One field of a struct or union, or one parameter of a function."""

    name: str
    type: CType
    length: int | None = None  # of an array


@dataclass
class Record:
    """A struct or union."""

    name: str
    union: bool
    members: list[Member]


@dataclass
class Function:
    name: str
    result: CType
    parameters: list[Member]


@dataclass
class Header:
    """What was read so far, in the order of the headers."""

    constants: dict[str, int] = field(default_factory=dict)
    type_macros: dict[str, str] = field(default_factory=dict)
    handles: set[str] = field(default_factory=set)  # typedefs of void *
    records: list[Record] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # struct tag or typedef: the record's Python name
    functions: list[Function] = field(default_factory=list)


def parse(header: Header, text: str) -> None:
    """Add what one header declares."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"#ifdef __cplusplus\n.*?#endif", "", text, flags=re.S)
    for name, value in re.findall(r"^[ \t]*#define[ \t]+(\w+)(?:[ \t]+|(?=\())(\S.*)$", text, flags=re.M):
        parse_macro(header, name, value.strip())
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.M)
    for declaration in split_declarations(text):
        parse_declaration(header, declaration)


def parse_macro(header: Header, name: str, value: str) -> None:
    bare = value.strip("() ")
    if bare in SCALARS:
        header.type_macros[name] = bare
    elif bare in NUMBERS:
        header.constants[name] = NUMBERS[bare]
    elif re.fullmatch(r"-?\d+", bare):
        header.constants[name] = int(bare)
    else:
        raise UnsupportedError(f"#define {name} {value}")


def split_declarations(text: str) -> list[list[str]]:
    """The token lists between the semicolons outside braces."""
    declarations: list[list[str]] = []
    current: list[str] = []
    depth = 0
    for token in re.findall(r"\w+|[^\s\w]", text):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if token == ";" and depth == 0:
            declarations.append(current)
            current = []
        else:
            current.append(token)
    if current:
        raise UnsupportedError(" ".join(current))
    return declarations


def parse_declaration(header: Header, tokens: list[str]) -> None:
    if tokens[:3] == ["typedef", "void", "*"] and len(tokens) == 4:
        header.handles.add(tokens[3])
    elif tokens[:2] == ["typedef", "struct"]:
        parse_typedef(header, tokens)
    elif tokens[0] == "struct" and "{" in tokens and tokens[-1] == "}":
        parse_record(header, tokens, tokens[1] + "_t")
        header.names[tokens[1]] = tokens[1] + "_t"
    elif tokens[-1] == ")":
        parse_function(header, tokens)
    else:
        raise UnsupportedError(" ".join(tokens))


def parse_typedef(header: Header, tokens: list[str]) -> None:
    """typedef struct TAG NAME; or typedef struct TAG { ... } NAME;"""
    tag, name = tokens[2], tokens[-1]
    if "{" in tokens:
        parse_record(header, tokens[1:-1], name)
    elif header.names.get(tag) != name:
        raise UnsupportedError(" ".join(tokens))
    header.names[tag] = header.names[name] = name


def parse_record(header: Header, tokens: list[str], name: str) -> None:
    """struct|union [TAG] { members }; records inside it get a name of their own and come before it."""
    body = tokens[tokens.index("{") + 1 : -1]
    members = []
    for declaration in split_declarations(" ".join(body)):
        if declaration[0] in ("struct", "union") and "{" in declaration:
            member = declaration[-1]
            inner = f"{name.removesuffix('_t')}_{member.strip('_')}_t"
            parse_record(header, declaration[:-1], inner)
            header.names[inner] = inner
            members.append(Member(member, CType(inner, 0, False)))
        else:
            members.extend(parse_members(header, declaration))
    header.records.append(Record(name, tokens[0] == "union", members))


def parse_members(header: Header, tokens: list[str]) -> list[Member]:
    """TYPE NAME, TYPE *NAME, *NAME or TYPE NAME[N]."""
    length = None
    if tokens[-1] == "]":
        length = int(tokens[-2])
        tokens = tokens[:-3]
    first, *others = split_at_commas(tokens)
    members = [parse_parameter(header, first)]
    for other in others:
        base = members[0].type
        members.append(Member(other[-1], CType(base.base, other.count("*"), base.const)))
    members[-1].length = length
    return members


def parse_function(header: Header, tokens: list[str]) -> None:
    opening = tokens.index("(")
    head, inside = tokens[:opening], tokens[opening + 1 : -1]
    if "(" in inside or opening < 2:
        raise UnsupportedError(" ".join(tokens))
    parameters = [] if inside == ["void"] else [parse_parameter(header, p) for p in split_at_commas(inside)]
    header.functions.append(Function(head[-1], parse_type(header, head[:-1]), parameters))


def parse_parameter(header: Header, tokens: list[str]) -> Member:
    if len(tokens) < 2 or not tokens[-1].isidentifier():
        raise UnsupportedError(" ".join(tokens))
    return Member(tokens[-1], parse_type(header, tokens[:-1]))


def parse_type(header: Header, tokens: list[str]) -> CType:
    names = [t for t in tokens if t not in ("const", "struct", "*")]
    if len(names) != 1:
        raise UnsupportedError(" ".join(tokens))
    base = header.type_macros.get(names[0], names[0])
    if base in header.handles:
        return CType("void", tokens.count("*") + 1, "const" in tokens)
    if base != "void" and base not in SCALARS and base not in header.names:
        raise UnsupportedError(" ".join(tokens))
    return CType(base, tokens.count("*"), "const" in tokens)


def split_at_commas(tokens: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def ctypes_name(header: Header, t: CType) -> str:
    """The ctypes type of a member, parameter or result."""
    if t.base == "void" and t.stars == 0:
        return "None"
    if t.base == "void":
        return pointer_to("ctypes.c_void_p", t.stars - 1)
    if t.base == "char" and t.stars == 1:
        return "ctypes.c_char_p"
    if t.base in SCALARS and t.stars == 1 and t.const:
        return "ctypes.c_void_p"  # an array that is only read is passed by its address
    base = SCALARS[t.base][0] if t.base in SCALARS else header.names[t.base]
    return pointer_to(base, t.stars)


def pointer_to(name: str, stars: int) -> str:
    return f"ctypes.POINTER({pointer_to(name, stars - 1)})" if stars else name


def python_type(header: Header, t: CType, role: str) -> str:
    """The annotation of a value; role is "member", "parameter" or "result"."""
    name = ctypes_name(header, t)
    if name == "None":
        return "None"
    if name == "ctypes.c_void_p":
        return "Address" if role == "parameter" else "int | None"
    if name == "ctypes.c_char_p":
        return "Text" if role == "parameter" else "bytes | None"
    if t.stars:
        return "Any"
    return SCALARS[t.base][1] if t.base in SCALARS else header.names[t.base]


PREAMBLE = '''"""Written by scripts/generate_bindings.py from the C headers. Not to be edited.

The headers say what each function does. Structs keep their names; a function is an attribute of Functions. An array
that a function only reads is passed by its address, or as bytes; other pointers as ctypes.byref() or an array.
"""

# ruff: noqa: E501
# fmt: off
from __future__ import annotations

import ctypes
from typing import Any, Callable, ClassVar, Union

Address = Union[int, bytes, None]
Text = Union[bytes, "ctypes.Array[ctypes.c_char]", None]
'''

FUNCTIONS = '''

class Functions:
    """Every function of the headers, as one loaded copy of the library has it."""

{annotations}

    def __init__(self, library: ctypes.CDLL) -> None:
        """Bind the functions of library. AttributeError when it lacks one."""
        for name, (result, parameters) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = parameters
            setattr(self, name, function)


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {{
{prototypes}
}}
'''


def render(header: Header) -> str:
    constants = "".join(f"{name} = {value}\n" for name, value in header.constants.items())
    records = "".join(render_record(header, record) for record in header.records)
    annotations = "\n".join(f"    {f.name}: {callable_type(header, f)}" for f in header.functions)
    prototypes = "\n".join(f"    {render_prototype(header, f)}" for f in header.functions)
    return f"{PREAMBLE}\n{constants}{records}" + FUNCTIONS.format(annotations=annotations, prototypes=prototypes)


def render_record(header: Header, record: Record) -> str:
    base = "ctypes.Union" if record.union else "ctypes.Structure"
    annotations = "".join(f"    {m.name}: {python_type(header, m.type, 'member')}\n" for m in record.members)
    fields = "".join(f'        ("{m.name}", {render_field(header, m)}),\n' for m in record.members)
    return f"\n\nclass {record.name}({base}):\n{annotations}    _fields_: ClassVar = [\n{fields}    ]\n"


def render_field(header: Header, member: Member) -> str:
    name = ctypes_name(header, member.type)
    return name if member.length is None else f"{name} * {member.length}"


def callable_type(header: Header, function: Function) -> str:
    parameters = ", ".join(python_type(header, p.type, "parameter") for p in function.parameters)
    return f"Callable[[{parameters}], {python_type(header, function.result, 'result')}]"


def render_prototype(header: Header, function: Function) -> str:
    parameters = ", ".join(ctypes_name(header, p.type) for p in function.parameters)
    return f'"{function.name}": ({ctypes_name(header, function.result)}, [{parameters}]),'


def main() -> int:
    arguments = argparse.ArgumentParser(description="Write python/kvferry/_bindings.py from the C headers.")
    arguments.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file is not current")
    check = arguments.parse_args().check
    header = Header()
    for path in HEADERS:
        try:
            parse(header, path.read_text(encoding="utf-8"))
        except UnsupportedError as e:
            print(f"{path.name}: cannot read this declaration: {e}", file=sys.stderr)
            return 1
    text = render(header)
    if not check:
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        print(f"{OUTPUT.name} is not what the headers say; run scripts/generate_bindings.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
