from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.vggt.blocks import turn, view_angles, view_positions


def test_patches_count_from_one_and_special_tokens_are_at_zero() -> None:
    assert view_positions(2, 3).tolist() == [
        *[[0, 0]] * 5,
        *[[1, 1], [1, 2], [1, 3]],
        *[[2, 1], [2, 2], [2, 3]],
    ]


def test_frequencies_fall_from_one_to_a_hundredth() -> None:
    angles = view_angles(1, 2, head_dim=64)
    assert angles.shape == (7, 2, 16)
    assert angles.dtype == np.float32
    np.testing.assert_allclose(angles[6, 1, [0, 8]], [2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(angles[6, 0], angles[6, 1] / 2, rtol=1e-6)
    assert not angles[:5].any()


@pytest.mark.parametrize("case", ["dino518_s1_56", "dino518_s2_70", "eps_s2_56"])
def test_heads_turn_as_recorded(case: str, golden_case: Callable) -> None:
    recorded = golden_case(case)
    positions = recorded["frame0/pos"]
    side = int(np.sqrt(positions.shape[1] - 5))
    np.testing.assert_array_equal(view_positions(side, side), positions[0])
    for part in ("q", "k"):
        heads = recorded[f"frame0/{part}_after_norm"].swapaxes(1, 2)
        turned = turn(jnp.asarray(heads), view_angles(side, side, heads.shape[-1]))
        expected = recorded[f"frame0/{part}_after_rope"].swapaxes(1, 2)
        np.testing.assert_allclose(turned, expected, atol=2e-6, rtol=0)
