"""Checking a parameter once misses no parameter that the model does not fit."""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from tests.flax_parameters import check_parameters_once

check_parameters_once()


class _Scaled(nn.Module):
    size: int
    init_scale: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x * self.param("scale", self.init_scale, (self.size,))


def _closure(copies: int) -> Callable[..., Any]:
    return lambda _, shape: np.zeros((copies, *shape), np.float32)


def _apply(module: nn.Module, shape: tuple[int, ...]) -> Any:
    params = {"scale": np.ones(shape, np.float32)}
    return jax.eval_shape(lambda: module.apply({"params": params}, np.ones(2, np.float32)))


def test_a_parameter_that_does_not_fit_is_an_error_after_one_that_does() -> None:
    module = _Scaled(2, nn.initializers.normal(0.1))
    for _ in range(2):
        assert _apply(module, (2,)).shape == (2,)
        with pytest.raises(ScopeParamShapeError, match=r"scale"):
            _apply(module, (1,))
    with pytest.raises(ScopeParamShapeError, match=r"scale"):
        _apply(_Scaled(1, module.init_scale), (2,))


def test_initializers_made_by_one_line_from_other_values_differ() -> None:
    assert _apply(_Scaled(2, _closure(1)), (1, 2)).shape == (1, 2)
    with pytest.raises(ScopeParamShapeError, match=r"scale"):
        _apply(_Scaled(2, _closure(3)), (1, 2))


def test_an_initializer_is_traced_once() -> None:
    traced = Mock(return_value=None)

    def make() -> Callable[..., Any]:
        return lambda _, shape: traced(shape) or np.zeros(shape, np.float32)

    for _ in range(3):
        _apply(_Scaled(2, make()), (2,))
    traced.assert_called_once_with((2,))
