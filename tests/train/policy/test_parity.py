import collections
import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.samples.windows import history_indices
from pipeline.loading.transforms.action_transforms import PadActions, RelativeActions
from pipeline.loading.transforms.input_transforms import (
    ConvertObservationRotation,
    DropObservation,
    StateNoise,
)
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation, RelativePose
from tests.train.conftest import without_params
from train.octo.octo_config import VGGTTokenizerConfig
from train.policy import parity
from train.policy.parity import Comparison, compare_episode, main
from train.policy.policy_inputs import History, Task
from train.policy.policy_spec import PolicySpec


@pytest.fixture(scope="module")
def whole_config(policy_config, short_dataset):
    """A config whose model reads everything in the bundled set, of short episodes."""
    names = ("image_primary", "image_wrist", "proprio", "vggt_tokens")
    datasets = (DatasetConfig(str(short_dataset)),)
    data = dataclasses.replace(policy_config.data, datasets=datasets, observations=names)
    vggt = VGGTTokenizerConfig(num_tokens=21, token_dim=64)
    model = dataclasses.replace(policy_config.model, vggt=vggt)
    return dataclasses.replace(policy_config, data=data, model=model)


@pytest.fixture(scope="module")
def checkpoint(whole_config):
    return without_params(whole_config)


@pytest.fixture(scope="module")
def dataset(short_dataset):
    return open_dataset(str(short_dataset))


def differing(checkpoint, dataset, spec=None, episode=0):
    """{path: steps} of the arrays that differ."""
    spec = spec or PolicySpec.of(checkpoint)
    found = compare_episode(checkpoint, spec, dataset, episode)
    assert {one.key for one in found} >= {*spec.leaves}
    return {one.key: one.steps for one in found if one.steps}


def replaced(checkpoint, **data):
    config = checkpoint.config
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    return dataclasses.replace(checkpoint, config=config)


@pytest.mark.parametrize("episode", [0, 3])
def test_a_policy_sees_what_it_was_trained_on_bitwise_identical(checkpoint, dataset, episode):
    spec = PolicySpec.of(checkpoint)
    found = compare_episode(checkpoint, spec, dataset, episode)
    *inputs, action = found
    assert {one.key: (one.max_difference, one.steps) for one in inputs} == dict.fromkeys(
        spec.leaves, (0.0, [])
    )
    assert (action.key, action.steps) == ("action", [])
    assert action.max_difference < 1e-5
    types = {one.key: one.type for one in found}
    assert types["observation/image_wrist"] == "uint8[2,128,128,3]"
    assert types["observation/vggt_tokens"] == "float16[2,21,64]"
    assert types["observation/pad_mask_dict/proprio"] == "bool[2]"
    assert types["task/language_instruction/input_ids"] == "int32[16]"


@pytest.mark.parametrize(
    "data",
    [
        {"conditioning": "multimodal"},
        {"conditioning": "image_conditioned"},
        {"current_only": ("vggt_tokens",)},
        {"windows": (("vggt_tokens", 1), ("image_wrist", 1), ("proprio", 1))},
        {
            "transforms": (
                StateNoise("proprio", (("x_m", 0.1),)),
                DropObservation(("image_wrist", "proprio"), 0.5),
                ConvertObservationRotation(("rx_rad", "ry_rad", "rz_rad"), "axis_angle", "rot6d"),
            )
        },
        {
            "transforms": (
                RelativePose(
                    ("dx", "dy", "dz"),
                    ("drx", "dry", "drz"),
                    "axis_angle",
                    state_position=("x_m", "y_m", "z_m"),
                    state_rotation=("rx_rad", "ry_rad", "rz_rad"),
                ),
                PadActions(14),
            )
        },
        {
            "transforms": (
                RelativeActions(("dx", "dy", "dz"), state_dims=("x_m", "y_m", "z_m")),
                ConvertActionRotation(("drx", "dry", "drz"), "axis_angle", "quaternion_wxyz"),
            ),
            "window_size": 1,
        },
        {"window_size": 1},
        {"normalization": "bounds"},
        {"normalization": "quantile"},
        {"statistics": "mixture"},
    ],
)
def test_every_way_of_training_is_met(whole_config, dataset, data):
    config = dataclasses.replace(whole_config, data=dataclasses.replace(whole_config.data, **data))
    assert differing(without_params(config), dataset, episode=1) == {}


@pytest.mark.parametrize(
    ("fusion", "leaves"),
    [
        ("gated", {"image_primary", "image_wrist", "vggt_tokens"}),
        ("registers", {"image_primary", "image_wrist", "vggt_tokens"}),
        ("only", {"image_wrist", "vggt_tokens"}),
        ("align", {"image_primary", "image_wrist"}),
    ],
)
def test_every_use_of_tokens_is_met(whole_config, dataset, fusion, leaves):
    vggt = dataclasses.replace(whole_config.model.vggt, fusion=fusion)
    model = dataclasses.replace(whole_config.model, vggt=vggt)
    checkpoint = without_params(dataclasses.replace(whole_config, model=model))
    below = {f"observation/{name}" for name in (*leaves, "proprio")}
    found = {key for key in PolicySpec.of(checkpoint).leaves if "pad_mask" not in key}
    assert {key for key in found if key.startswith("observation/")} == below
    assert differing(checkpoint, dataset, episode=1) == {}


def test_what_a_dataset_lacked_is_met_too(whole_config, short_dataset, tmp_path):
    other = tmp_path / "other"
    other.symlink_to(short_dataset)
    parts = (
        DatasetConfig(str(short_dataset)),
        DatasetConfig(str(other), missing=("image_wrist", "proprio")),
    )
    for statistics in ("dataset", "mixture"):
        data = dataclasses.replace(whole_config.data, datasets=parts, statistics=statistics)
        checkpoint = without_params(dataclasses.replace(whole_config, data=data))
        spec = PolicySpec.of(checkpoint, str(other))
        lacking = open_dataset(str(other))
        assert differing(checkpoint, lacking, spec) == {}


def changed_steps(monkeypatch, change):
    """Makes the environment show something other than what was stored."""
    steps = parity._steps

    def changed(*args):
        for step in steps(*args):
            yield step | {"observation": change(dict(step["observation"]))}

    monkeypatch.setattr(parity, "_steps", changed)


NUM_STEPS = 15
ALL = list(range(NUM_STEPS))


def test_a_mirrored_image_is_named(checkpoint, dataset, monkeypatch):
    name = "image_primary"
    changed_steps(monkeypatch, lambda shown: shown | {name: shown[name][:, ::-1]})
    assert differing(checkpoint, dataset) == {f"observation/{name}": ALL}


def test_swapped_cameras_are_named(checkpoint, dataset, monkeypatch):
    one, two = "image_primary", "image_wrist"
    changed_steps(monkeypatch, lambda shown: shown | {one: shown[two], two: shown[one]})
    assert differing(checkpoint, dataset) == {f"observation/{name}": ALL for name in (one, two)}


def test_a_single_late_pixel_is_named(checkpoint, dataset, monkeypatch):
    calls = iter(ALL)

    def change(shown):
        if next(calls) == NUM_STEPS - 2:
            shown["image_wrist"][5, 6, 0] ^= 1
        return shown

    changed_steps(monkeypatch, change)
    # It stays in the window.
    assert differing(checkpoint, dataset) == {"observation/image_wrist": ALL[-2:]}


def test_other_statistics_are_named(checkpoint, dataset):
    spec = PolicySpec.of(checkpoint)
    statistics = dict(spec.statistics)
    proprio = statistics["observation/proprio"]
    shifted = dataclasses.replace(proprio, mean=proprio.mean + np.float32(1e-3))
    spec = dataclasses.replace(spec, statistics=statistics | {"observation/proprio": shifted})
    assert differing(checkpoint, dataset, spec) == {"observation/proprio": ALL}


def test_a_flipped_gripper_is_named(checkpoint, dataset):
    spec = PolicySpec.of(checkpoint)
    flipped = dataclasses.replace(spec.conventions, gripper_open=1.0, gripper_close=-1.0)
    found = differing(checkpoint, dataset, dataclasses.replace(spec, conventions=flipped))
    assert found == {"action": ALL}


def test_an_instruction_in_other_words_is_named(checkpoint, dataset, monkeypatch):
    monkeypatch.setattr(parity, "_task", lambda *_: Task("bowl pick up", {}))
    assert list(differing(checkpoint, dataset)) == [
        "task/language_instruction/attention_mask",
        "task/language_instruction/input_ids",
    ]


def test_a_start_that_is_padded_otherwise_is_named(checkpoint, dataset, monkeypatch):
    monkeypatch.setattr(History, "mask", lambda self, length: np.ones(length, bool))
    assert differing(checkpoint, dataset) == {"observation/timestep_pad_mask": [0]}


def test_arrays_that_cannot_be_compared_differ_infinitely():
    ones = np.ones((1, 2), np.float32)
    for theirs, ours in (
        (ones, None),
        (None, ones),
        (ones, ones.astype(np.float16)),
        (ones, ones[None]),
        (ones, np.array([1, np.nan], np.float32)),
    ):
        found = Comparison("a")
        found.add(3, theirs, ours)
        assert (found.max_difference, found.steps) == (np.inf, [3])
    found = Comparison("a")
    found.add(0, ones, ones + np.float32(0.25))
    found.add(1, ones, ones)
    assert found == Comparison("a", "float32[2]", 0.25, [0])


def test_the_history_of_a_policy_is_that_of_the_loader():
    for window in (1, 2, 3, 5):
        history = History(Task("", {}), collections.deque(maxlen=window))
        for t in range(7):
            history.steps.append({"t": np.array(t)})
            indices, mask = history_indices(np.array([t]), window)
            np.testing.assert_array_equal(history.window("t", window), indices[0])
            np.testing.assert_array_equal(history.mask(window), mask[0])


def command(monkeypatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["parity", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_prints_a_line_an_array(policy_run, monkeypatch, capsys):
    assert command(monkeypatch, policy_run, "--episode", "2") == 0
    printed = capsys.readouterr().out.splitlines()
    line = r"observation/image_primary +uint8\[2,128,128,3\] +0 +0 of 123"
    assert re.fullmatch(r"array +type +largest difference +steps that differ", printed[0])
    assert re.fullmatch(line, printed[1])
    assert re.match(
        r"bitwise identical: 10 arrays, and actions return to \S+ standard deviations; episode 2",
        printed[-1],
    )


def test_the_command_ends_with_1_where_the_data_is_other_data(
    policy_run, mini_dataset, tmp_path, reseal, monkeypatch, capsys
):
    other = tmp_path / "other"
    other.mkdir()
    for path in mini_dataset.iterdir():
        (other / path.name).symlink_to(path)
    statistics = json.loads((mini_dataset / "statistics.json").read_text())
    statistics["observation/proprio"]["mean"][0] += 1.0
    (other / "statistics.json").unlink()
    (other / "statistics.json").write_text(json.dumps(statistics))
    reseal(other)
    assert command(monkeypatch, policy_run, "--dataset", other) == 1
    printed = capsys.readouterr().out
    assert "observation/proprio" in printed
    assert f"1 of 11 arrays differ; episode 0 of {other}, step 2" in printed
    (line,) = [line for line in printed.splitlines() if "/proprio " in line and "102 of" in line]
    assert line.endswith("102 of 102, the first 0")


def test_the_command_tells_mistakes(policy_run, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, policy_run, "--episode", "4") == 2
    assert "episode: expected 0 to 3; found 4" in capsys.readouterr().err
    assert command(monkeypatch, tmp_path) == 2
    assert "expected the directory of a run" in capsys.readouterr().err


def test_an_episode_that_is_not_there_is_reported(checkpoint, dataset):
    with pytest.raises(UserError, match="expected 0 to 3; found -1"):
        compare_episode(checkpoint, PolicySpec.of(checkpoint), dataset, -1)
