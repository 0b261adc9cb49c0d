"""Methods that are there where CUDA is: a build of Mooncake has them or lacks them, and programs ask by hasattr."""

from __future__ import annotations

from typing import Any, Callable

from kvferry import gpu


class OnlyWithCuda:
    """A method that its class has where there is a CUDA driver with a GPU; that is not asked again once it is so."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self._available = False
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type) -> Any:
        self._available = self._available or gpu.available()
        if not self._available:
            raise AttributeError(f"{owner.__name__}.{self._function.__name__}: there is no CUDA driver with a GPU here")
        return self._function.__get__(instance, owner)
