"""Guided chunks continue what is planned: exact weights, exact statistics, and one smooth path."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.octo.heads.smooth_head import CONFIG, EMBEDDING, SmoothHead
from train.octo.heads.diffusion import cosine_schedule, draw_sampling_noise
from train.octo.heads.guidance import Guide, blend, guided_noise, soft_mask

SIZE = 32
SHAPE = (SIZE, CONFIG.action_horizon, CONFIG.action_dim)


@jax.jit
def plain(seed: int) -> Any:
    noise = draw_sampling_noise(CONFIG, jax.random.key(seed), (SIZE, 2))
    readout = jnp.broadcast_to(EMBEDDING, (SIZE, 2, 1, 1))
    return SmoothHead(CONFIG).apply({}, readout, noise, method="sample")


@jax.jit
def guided(seed: int, target: jax.Array, weights: jax.Array) -> Any:
    noise = draw_sampling_noise(CONFIG, jax.random.key(seed), (SIZE, 2))
    readout = jnp.broadcast_to(EMBEDDING, (SIZE, 2, 1, 1))
    guide = Guide(target, weights)
    return SmoothHead(CONFIG).apply({}, readout, noise, guide, method="sample_guided")


def blended(seed: int, target: jax.Array, weights: jax.Array) -> Any:
    return blend(plain(seed), Guide(target, weights))


def mask(num_planned: int, delay: int) -> np.ndarray:
    weights = soft_mask(CONFIG.action_horizon, num_planned, delay)
    return np.broadcast_to(weights[:, None], SHAPE)


@pytest.mark.parametrize(
    ("planned", "delay", "weights"),
    [
        (6, 2, [1, 1, 0.5706, 0.2871, 0.1145, 0.0258, 0, 0]),
        (8, 0, [0.741, 0.5326, 0.3677, 0.2402, 0.1448, 0.0767, 0.0322, 0.0076]),
        (3, 3, [1, 1, 1, 0, 0, 0, 0, 0]),
        (1, 0, [0.1888, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_weights_are_the_papers(planned: int, delay: int, weights: list[float]) -> None:
    np.testing.assert_allclose(soft_mask(8, planned, delay), weights, atol=5e-5)


def test_the_estimate_moves_to_the_target_by_its_weight() -> None:
    """Actions of unit variance: the estimate is sqrt(a) x, and the exact guidance is known."""
    remaining = jnp.asarray(cosine_schedule(20).alpha_hats[8])
    x = jax.random.normal(jax.random.key(0), (2, 1, 6))
    target, weights = jnp.full((2, 1, 6), 1.5), jnp.linspace(0, 1, 12).reshape(2, 1, 6)

    def predict(_: nn.Module, x: jax.Array) -> jax.Array:
        return jnp.sqrt(1 - remaining) * x

    network = nn.Dense(1).bind({})
    guide = Guide(target, weights)
    eps = jax.jit(lambda x: guided_noise(predict, network, x, remaining, guide, 5.0))(x)
    found = (x - jnp.sqrt(1 - remaining) * eps) / jnp.sqrt(remaining)
    denoised = jnp.sqrt(remaining) * x
    np.testing.assert_allclose(found, denoised + weights * (target - denoised), atol=1e-5)


@pytest.mark.parametrize(("method", "closer"), [(guided, 0.45), (blended, 0.75)])
@pytest.mark.parametrize("delay", range(9))
def test_committed_actions_are_held_and_the_chunk_continues_them(
    method: Any, closer: float, delay: int
) -> None:
    """Half of a chunk was executed, as with a horizon of 16 and a prediction every 8 steps."""
    old, new = plain(1), plain(2)
    left = old[:, 8:]
    target = jnp.concatenate([left, jnp.repeat(left[:, -1:], 8, axis=1)], axis=1)
    chunk = method(2, target, mask(8, delay))
    np.testing.assert_allclose(chunk[:, :delay], left[:, :delay], atol=1e-6, rtol=0)
    apart = np.abs(chunk[:, :8] - left).mean()
    assert apart < closer * np.abs(new[:, :8] - left).mean()
    if method is guided:
        # A step of the prior is 0.25 on average: the path is as smooth where the chunks meet.
        before = left[:, delay - 1] if delay else old[:, 7]
        assert np.abs(chunk[:, delay] - before).mean() < 0.5
        assert np.abs(new[:, delay] - before).mean() > 0.9
        assert np.abs(np.diff(chunk, axis=1)).mean() < 0.35


def test_a_head_that_predicts_actions_samples_and_is_guided_like_one_that_predicts_noise() -> None:
    noise = draw_sampling_noise(CONFIG, jax.random.key(5), (SIZE, 2))
    readout = jnp.broadcast_to(EMBEDDING, (SIZE, 2, 1, 1))
    head = SmoothHead(dataclasses.replace(CONFIG, prediction="action"))
    sample = jax.jit(lambda *inputs: head.apply({}, readout, *inputs, method="sample"))
    np.testing.assert_allclose(sample(noise), plain(5), atol=1e-4, rtol=0)
    target, weights = plain(6), mask(8, 3)
    continued = jax.jit(lambda *inputs: head.apply({}, readout, *inputs, method="sample_guided"))
    expected = guided(5, target, weights)
    assert np.abs(expected - plain(5)).max() > 1
    np.testing.assert_allclose(
        continued(noise, Guide(target, weights)), expected, atol=1e-4, rtol=0
    )


def test_without_weights_nothing_is_guided() -> None:
    target, weights = np.full(SHAPE, 3.0, np.float32), np.zeros(SHAPE, np.float32)
    np.testing.assert_allclose(guided(3, target, weights), plain(3), atol=1e-5)


def test_single_dimensions_are_held() -> None:
    target = np.full(SHAPE, 9.0, np.float32)
    weights = np.zeros(SHAPE, np.float32)
    weights[:, 2, 1] = 1
    chunk = guided(4, target, weights)
    # Within the bound of actions, as in training.
    np.testing.assert_array_equal(chunk[:, 2, 1], np.full(SIZE, CONFIG.max_action, np.float32))
    assert np.abs(chunk[:, 2, 0]).max() < CONFIG.max_action
