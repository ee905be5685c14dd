import pathlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.loading.samples.windows import keeps_goal_images, uniform_goals

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "data"


@pytest.mark.parametrize("name", ["w2h4_goal", "w2h4_goal_nolang"])
def test_goals_and_conditioning_are_those_of_the_original_for_its_draws(name: str) -> None:
    with np.load(GOLDEN / f"traj_{name}.npz") as stored:
        arrays = dict(stored)
    length = len(arrays["in/action"])
    goals = uniform_goals(np.arange(length), np.full(length, length), arrays["3_rand"])
    np.testing.assert_array_equal(goals, arrays["3_goal_uniform/task/timestep"])
    for key in ("image_primary", "image_wrist", "proprio"):
        wanted = arrays[f"3_goal_uniform/task/{key}"]
        np.testing.assert_array_equal(arrays[f"in/observation/{key}"][goals], wanted)

    texts = arrays["in/task/language_instruction"]
    keeps = keeps_goal_images(texts != b"", 0.5, arrays["4_rand"])
    kept = arrays["4_delete_task/task/timestep"]
    np.testing.assert_array_equal(np.where(keeps, goals, length - 1), kept)
    images = arrays["in/observation/image_primary"][goals]
    np.testing.assert_array_equal(
        np.where(keeps, images, b""), arrays["4_delete_task/task/image_primary"]
    )
    np.testing.assert_array_equal(
        np.where(keeps, b"", texts), arrays["4_delete_task/task/language_instruction"]
    )
    masks = "4_delete_task/task/pad_mask_dict"
    np.testing.assert_array_equal(keeps & (images != b""), arrays[f"{masks}/image_primary"])
    np.testing.assert_array_equal(~keeps & (texts != b""), arrays[f"{masks}/language_instruction"])


@settings(max_examples=100)
@given(length=st.integers(1, 40), data=st.data())
def test_goal_lies_between_its_step_and_the_end(length: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, length - 1))
    draws = np.array([0.0, data.draw(st.floats(0, 1, exclude_max=True)), 1 - 2**-53])
    goals = uniform_goals(np.full(3, t), np.full(3, length), draws)
    assert goals[0] == t
    assert t <= goals[1] < length
    assert goals[2] == length - 1


def test_goals_are_uniform() -> None:
    draws = np.random.default_rng(0).random(60_000)
    goals = uniform_goals(np.full(60_000, 4), np.full(60_000, 10), draws)
    counts = np.bincount(goals, minlength=10)
    assert not counts[:4].any()
    np.testing.assert_allclose(counts[4:], 10_000, rtol=0.05)


@pytest.mark.parametrize(("probability", "kept"), [(0.0, 0), (0.25, 250), (1.0, 1000)])
def test_share_of_samples_keeps_its_goal_images(probability: float, kept: int) -> None:
    draws = np.arange(1000) / 1000
    assert keeps_goal_images(np.ones(1000, bool), probability, draws).sum() == kept


def test_sample_without_an_instruction_keeps_its_goal_images() -> None:
    assert keeps_goal_images(np.array([False]), 0.0, np.array([0.5])).all()
