import jax.numpy as jnp
import numpy as np
import pytest

from train.octo.attention import Kind
from train.octo.token_groups import (
    TokenGroup,
    assemble,
    concatenate,
    repeat_over_window,
    spans,
    split,
)


def group(kind: Kind, *shape: int, start: int = 0) -> TokenGroup:
    tokens = start + jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    return TokenGroup(tokens, jnp.ones(shape[:-1], dtype=bool), kind)


@pytest.mark.parametrize("window", [1, 3])
def test_split_is_the_inverse_of_assemble(window: int) -> None:
    prefix = {"task": group(Kind.TASK, 2, 3, 4)}
    timestep = {
        "obs_a": group(Kind.OBSERVATION, 2, window, 5, 4, start=1000),
        "readout": group(Kind.READOUT, 2, window, 1, 4, start=2000),
    }
    tokens, mask = assemble(prefix, timestep)
    assert tokens.shape == (2, 3 + window * 6, 4)
    assert mask.shape == tokens.shape[:2]
    again = split(tokens, prefix, timestep)
    assert list(again) == ["task", "obs_a", "readout"]
    for name, before in {**prefix, **timestep}.items():
        np.testing.assert_array_equal(again[name].tokens, before.tokens)
        assert again[name].kind is before.kind


def test_assemble_puts_the_steps_one_after_the_other() -> None:
    prefix = {"task": group(Kind.TASK, 1, 1, 1, start=-1)}
    timestep = {
        "a": group(Kind.OBSERVATION, 1, 2, 2, 1),
        "b": group(Kind.READOUT, 1, 2, 1, 1, start=10),
    }
    tokens, _ = assemble(prefix, timestep)
    np.testing.assert_array_equal(tokens[0, :, 0], [-1, 0, 1, 10, 2, 3, 11])


def test_spans_count_the_tokens_of_a_step() -> None:
    assert spans({"a": group(Kind.OBSERVATION, 1, 2, 5, 4)})[0].num_tokens == 5


def test_a_repeated_group_is_an_observation_of_every_step() -> None:
    task = group(Kind.TASK, 2, 3, 4)
    repeated = repeat_over_window(task, 2)
    assert repeated.kind is Kind.OBSERVATION
    np.testing.assert_array_equal(repeated.tokens[:, 1], task.tokens)
    joined = concatenate([repeated, repeated])
    assert joined.tokens.shape == (2, 2, 6, 4)
    assert joined.mask.shape == (2, 2, 6)
