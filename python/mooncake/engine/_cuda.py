"""Methods that are there where CUDA is: a build of Mooncake has them or lacks them, and programs ask by hasattr."""

from __future__ import annotations

from typing import Any, Callable

from kvferry import gpu


class OnlyWithCuda:
    """A method that its class has where there is a CUDA driver with a GPU."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = self.__wrapped__ = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type) -> Any:
        if not gpu.available():
            raise AttributeError(f"{owner.__name__}.{self._function.__name__}: there is no CUDA driver with a GPU here")
        return self._function.__get__(instance, owner)
