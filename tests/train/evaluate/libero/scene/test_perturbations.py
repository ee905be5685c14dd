"""What a trial draws, and which sizes are refused."""

import colorsys
import sys

import numpy as np
import pytest

from pipeline.errors import UserError
from train.evaluate import evaluate_command
from train.evaluate.libero.scene.perturbations import NONE, Draws, Perturbations

HELD_OUT = range(40, 50)
# May change only if results stored earlier are of other scenes.
JOINTS_OF_TASK_2_STATE_41 = [0.005349553738907786, -0.011539119773579982, 0.054159952594652803]


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({}, "none"),
        ({"camera": 10.0}, "camera 10"),
        ({"start": 0.05, "light": 0.5}, "light 0.5, start 0.05"),
    ],
)
def test_sizes_are_named(sizes: dict[str, float], text: str) -> None:
    assert str(Perturbations(**sizes)) == text
    assert (Perturbations(**sizes) == NONE) == (not sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"camera": 91}, "--perturb.camera: expected 0 to 90; found 91"),
        ({"camera": -5}, "--perturb.camera: expected 0 to 90; found -5"),
        ({"light": float("nan")}, "--perturb.light: expected 0 to 1; found nan"),
        (
            {"texture": 2, "start": 1},
            "--perturb.texture, --perturb.start: expected 0 to 1 and 0 to 0.5; found 2, 1",
        ),
    ],
)
def test_a_size_out_of_range_is_refused(sizes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Perturbations(**sizes)
    assert str(refused.value).startswith(message)


def test_the_command_line_exits_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.evaluate", "run", "--perturb.start", "3"])
    with pytest.raises(SystemExit) as stopped:
        evaluate_command.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --perturb.start: expected 0 to 0.5; found 3. "
        "Choose a size in this range; 0 means none.\n"
    )


def test_both_sides_and_brightnesses_occur_equally_in_all_combinations() -> None:
    draws = [Draws(0, 3, init) for init in HELD_OUT]
    turns = [round(np.degrees(one.camera_rad(10))) for one in draws]
    assert turns == [10, -10] * 5
    is_brighter = [one.light(0.2).gain.mean() > 1 for one in draws]
    assert is_brighter == [True, True, False, False] * 2 + [True, True]


def test_a_light_keeps_to_its_size() -> None:
    for size in (0.25, 0.5, 1.0):
        lights = [Draws(0, 0, init).light(size) for init in range(100)]
        for init, light in enumerate(lights):
            brightness = 1 + size if init // 2 % 2 == 0 else 1 / (1 + size)
            assert np.abs(light.gain / brightness - 1).max() <= size / 4
        turns = np.degrees([light.turn_rad for light in lights])
        assert 170 * size < np.abs(turns).max() <= 180 * size
        assert abs(turns.mean()) < 20


def test_a_displacement_has_its_length_and_every_direction() -> None:
    found = np.array([Draws(0, 0, init).joints_rad(0.1) for init in range(200)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 0.1)
    assert np.abs(found.mean(axis=0)).max() < 0.01
    np.testing.assert_allclose(found.std(axis=0), 0.1 / np.sqrt(7), rtol=0.2)


def test_draws_depend_on_seed_task_and_initial_state_alone() -> None:
    draws = Draws(0, 2, 41)
    np.testing.assert_allclose(
        draws.joints_rad(0.1)[:3], JOINTS_OF_TASK_2_STATE_41, rtol=0, atol=1e-12
    )
    again = Draws(0, 2, 41).joints_rad(0.2)
    # A larger displacement goes in the same direction.
    np.testing.assert_allclose(again, 2 * draws.joints_rad(0.1))
    for other in (Draws(1, 2, 41), Draws(0, 3, 41), Draws(0, 2, 42)):
        assert np.abs(other.joints_rad(0.2) - again).max() > 0.01


def test_a_texture_has_one_hue_and_continues_at_its_edges() -> None:
    patterns = set()
    for init in range(12):
        texture = Draws(0, 0, init).texture(1, 96, 48)
        assert (texture.dtype, texture.shape) == (np.uint8, (96, 48, 3))
        assert np.array_equal(texture[:48], texture[48:])
        bright = texture.reshape(-1, 3)[texture.sum(axis=2).argmax()] / 255
        assert 0.39 < bright.max() < 0.96
        assert colorsys.rgb_to_hsv(*bright)[1] < 0.42
        darkest = texture.max(axis=2).min() / 255 / bright.max()
        assert 0.6 < darkest <= 1
        patterns.add(round(darkest, 1))
    assert len(patterns) > 1
    others = [Draws(0, 0, 0).texture(number, 8, 8) for number in range(3)]
    assert not np.array_equal(others[0], others[1])
