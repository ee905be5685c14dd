import numpy as np
import pytest

from train.octo.octo_config import OctoConfig
from train.octo.released.position_resize import Layout, layout_of, resize_positions


@pytest.mark.parametrize(
    ("group", "layout"),
    [
        ("obs_wrist", "grid"),
        ("obs_wris", "fixed"),
        ("obs_vggt", "fixed"),
        ("obs_proprio", "fixed"),
        ("readout_action", "fixed"),
        ("task_language", "sequence"),
    ],
)
def test_only_a_cameras_tokens_are_a_grid(config: OctoConfig, group: str, layout: Layout) -> None:
    assert layout_of(f"octo_transformer/{group}_pos_embedding", config) == layout


def test_smooth_positions_stay_what_they_were_on_another_grid() -> None:
    # A plane over the grid is reproduced inside it.
    def plane(side: int) -> np.ndarray:
        center = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid(center, center)
        return np.stack([x, y, x + y], axis=-1).reshape(1, 1, side**2, 3).astype(np.float32)

    resized, how = resize_positions(plane(8), (1, 1, 256, 3), "grid")
    inside = np.asarray(resized).reshape(16, 16, 3)[1:-1, 1:-1]
    np.testing.assert_allclose(inside, plane(16).reshape(16, 16, 3)[1:-1, 1:-1], atol=1e-5)
    assert how == "8x8 tokens to 16x16, bilinear"


def test_of_a_shorter_text_the_first_positions_are_kept() -> None:
    values = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
    resized, how = resize_positions(values, (1, 9, 1), "sequence")
    np.testing.assert_array_equal(resized[0, :, 0], np.arange(9))
    assert how == "the first 9 of 16 tokens"


def test_of_a_shorter_window_the_first_steps_are_kept_whatever_the_tokens_are() -> None:
    values = np.arange(10, dtype=np.float32).reshape(1, 10, 1, 1)
    resized, how = resize_positions(values, (1, 4, 1, 1), "fixed")
    np.testing.assert_array_equal(resized.ravel(), np.arange(4))
    assert how == "the first 4 of 10 steps"


@pytest.mark.parametrize(
    ("layout", "ours", "theirs", "message"),
    [
        ("grid", (1, 12, 4, 8), (1, 10, 4, 8), "12 steps are wanted, 10 were trained"),
        ("grid", (1, 10, 5, 8), (1, 10, 4, 8), "4 and 5 tokens are not square grids"),
        ("grid", (1, 10, 4, 9), (1, 10, 4, 8), "differ in more than steps and tokens"),
        ("sequence", (1, 25, 8), (1, 16, 8), "25 tokens are wanted, 16 were trained"),
        ("fixed", (1, 10, 9, 8), (1, 10, 4, 8), "9 tokens are wanted, 4 were trained, and only"),
        ("fixed", (1, 10, 1, 8), (1, 10, 4, 8), "only those of a camera or an instruction"),
    ],
)
def test_positions_that_cannot_be_fitted_say_why(
    layout: Layout, ours: tuple, theirs: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resize_positions(np.ones(theirs, np.float32), ours, layout)
