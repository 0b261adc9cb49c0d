"""The settings of engines, as the library describes them."""

from __future__ import annotations

import json
import os
from ctypes import create_string_buffer
from typing import TypedDict, cast

from kvferry._command.declaration import CommandError
from kvferry._ffi import last_error
from kvferry._library import VARIABLE, LibraryError, load


class Setting(TypedDict):
    """A variable of docs/configuration.md."""

    name: str
    value: str  # in effect; asterisks for a secret
    default: str
    source: str  # environment or default
    problem: str  # why the value in the environment is not in effect


class Unknown(TypedDict):
    """A variable that looks like a setting."""

    name: str
    nearest: str  # the setting that was probably meant
    own: bool  # it begins with KVFERRY_


class Settings(TypedDict):
    """All of them."""

    settings: list[Setting]
    unknown: list[Unknown]


def read() -> Settings:
    """The settings that an engine made now would have. CommandError where there is no library."""
    try:
        functions = load()
    except LibraryError as e:
        raise CommandError(str(e)) from e
    length = functions.kvferry_settings_json(None, 0)
    text = create_string_buffer(max(length, 0) + 1)
    if length < 0 or functions.kvferry_settings_json(text, len(text)) != length:
        raise CommandError(f"the settings cannot be read: {last_error(functions)}")
    found = cast(Settings, json.loads(text.value))
    if named := os.environ.get(VARIABLE):
        found["settings"].append(
            {"name": VARIABLE, "value": named, "default": "", "source": "environment", "problem": ""}
        )
    return found


def value(found: Settings, *names: str) -> str:
    """The value in effect of a setting, by its names: one of them is in the description."""
    return next(setting["value"] for setting in found["settings"] if setting["name"] in names)
