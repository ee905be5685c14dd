"""Reports wrong arguments of the functions that `import octograin` gives like other mistakes."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pipeline.errors import UserError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


def named_arguments(more: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator: a call with arguments that a function lacks is a `UserError`.

    Args:
      more: What the error says last, such as where further settings are made.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                taken = [name for name in signature.parameters if name not in ("self", "cls")]
                unknown = [name for name in kwargs if name not in signature.parameters]
                hint = "".join(did_you_mean(name, taken) for name in unknown)
                raise UserError(
                    where=function.__qualname__,
                    expected=f"the arguments {', '.join(taken)}",
                    found=str(error).removeprefix("got "),
                    remedy=hint + (more or f"help({function.__name__}) explains them."),
                ) from error
            return function(*args, **kwargs)

        return call

    return decorate


def check_path(value: object, where: str, expected: str = "a path, as a string or a Path") -> None:
    """Raises a `UserError` if a value is no path.

    Args:
      value: The argument.
      where: Function and argument, for the error.
      expected: What the argument may be, for the error.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(
            where=where,
            expected=expected,
            found=f"{value!r:.60}" if value is None else f"a {type(value).__name__}",
            remedy="Name it in quotes.",
        )
