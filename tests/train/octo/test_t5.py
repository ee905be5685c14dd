from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rounding import assert_equal_but_for_rounding
from train.octo.octo_config import OctoConfig
from train.octo.t5 import T5Encoder, relative_buckets

INSTRUCTION = "language_instruction"


def encode(config: OctoConfig, weights: dict[str, Any], ids: Any, mask: Any) -> Any:
    return jax.jit(T5Encoder(config.language.t5).apply)(weights, ids, mask)


@pytest.fixture(scope="module")
def weights(params: dict[str, Any]) -> dict[str, Any]:
    return {"params": params["octo_transformer"]["task_tokenizers_language"]["hf_model"]}


def test_buckets_are_exact_when_near_and_shared_when_far() -> None:
    buckets = relative_buckets(256, num_buckets=32, max_distance=128)
    before = buckets[255, ::-1]  # keys at distance 0, 1, 2, ... before the last query
    np.testing.assert_array_equal(before[:13], [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9])
    np.testing.assert_array_equal(
        before[[15, 16, 32, 64, 127, 128, 255]], [9, 10, 12, 14, 15, 15, 15]
    )
    after = buckets[0]  # keys after the first query
    np.testing.assert_array_equal(after[1:], before[1:] + 16)


def test_encoder_gives_the_recorded_states(
    config: OctoConfig, weights: dict[str, Any], batch: dict[str, Any], recorded: dict[str, Any]
) -> None:
    ids, mask = (batch["task"][INSTRUCTION][name] for name in ("input_ids", "attention_mask"))
    states = encode(config, weights, ids, mask)
    transformer = recorded["intermediates"]["octo_transformer"]
    expected = transformer["task_tokenizers_language"]["hf_model"]["__call__"]
    np.testing.assert_allclose(states, expected, atol=1e-5, rtol=0)


def test_real_tokens_do_not_see_padding(config: OctoConfig, weights: dict[str, Any]) -> None:
    mask = jnp.array([[1, 1, 1, 0, 0]], dtype=jnp.int32)
    ids = jnp.array([[5, 9, 1, 0, 0], [5, 9, 1, 77, 78]], dtype=jnp.int32)
    states = encode(config, weights, ids, jnp.repeat(mask, 2, axis=0))
    assert_equal_but_for_rounding(states[0, :3], states[1, :3])
    assert not np.allclose(states[0, 3:], states[1, 3:], atol=1e-3)
