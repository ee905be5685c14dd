"""Annotations checked while the tests run, without jaxtyping's price where no shape is named."""

import functools
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(violation_type=TypeError, is_pep484_tower=True))
"""Raises the error that jaxtyping raises, too: the code under test may catch it. As for the type
checker, a whole number is a float."""
_check_shapes = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_shapes_where_they_are_named() -> None:
    """Leaves functions without array shapes in their annotations to the type checker alone.

    jaxtyping binds the arguments of every call again, to know the shapes it compares: 80 % of the
    CPU time of comparing an episode's arrays, whose functions name none. To be called before the
    packages are imported.
    """
    with_shapes = jaxtyping.jaxtyped

    def jaxtyped(fn: Any = None, *, typechecker: Callable[..., Any]) -> Any:
        if fn is None:
            return functools.partial(jaxtyped, typechecker=typechecker)
        if inspect.isfunction(fn) and not any(map(_names_shape, fn.__annotations__.values())):
            return _check(fn)
        return with_shapes(fn, typechecker=_check_shapes)

    for module in ("jaxtyping", "jaxtyping._decorator"):  # the second for methods, dataclasses
        setattr(sys.modules[module], "jaxtyped", jaxtyped)  # noqa: B010


def _names_shape(hint: Any) -> bool:
    """Whether a hint holds one of jaxtyping's types; text may."""
    if isinstance(hint, str) or getattr(hint, "__module__", "").startswith("jaxtyping"):
        return True
    parts = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(map(_names_shape, parts))
