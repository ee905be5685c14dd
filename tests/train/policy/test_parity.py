import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.transforms.action_transforms import PadActions, RelativeActions
from pipeline.loading.transforms.input_transforms import (
    ConvertObservationRotation,
    DropObservation,
    StateNoise,
)
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation, RelativePose
from tests.train.conftest import with_data, without_params
from train.octo.octo_config import VGGTTokenizerConfig
from train.policy.parity import Comparison, compare_episode, main
from train.policy.policy_spec import PolicySpec

CAMERAS = PRIMARY, WRIST = "image_primary", "image_wrist"
NUM_STEPS = 15
ALL = list(range(NUM_STEPS))
"""Steps of the first episode."""
POSITION, ROTATION = ("dx", "dy", "dz"), ("drx", "dry", "drz")
STATE_POSITION, STATE_ROTATION = ("x_m", "y_m", "z_m"), ("rx_rad", "ry_rad", "rz_rad")


@pytest.fixture(scope="module")
def whole_config(policy_config, short_dataset):
    """A config whose model reads everything in the bundled set, of short episodes."""
    return with_data(
        policy_config,
        datasets=(DatasetConfig(str(short_dataset)),),
        observations=(*CAMERAS, "proprio", "vggt_tokens"),
        model={"vggt": VGGTTokenizerConfig(num_tokens=21, token_dim=64)},
    )


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


@pytest.mark.parametrize("episode", [0, 3])
def test_a_policy_sees_what_it_was_trained_on_bitwise_identical(checkpoint, dataset, episode):
    spec = PolicySpec.of(checkpoint)
    *inputs, action = found = compare_episode(checkpoint, spec, dataset, episode)
    differences = {one.key: (one.max_difference, one.steps) for one in inputs}
    assert differences == dict.fromkeys(spec.leaves, (0.0, []))
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
        {"windows": (("vggt_tokens", 1), (WRIST, 1), ("proprio", 1))},
        {
            "transforms": (
                StateNoise("proprio", (("x_m", 0.1),)),
                DropObservation((WRIST, "proprio"), 0.5),
                ConvertObservationRotation(STATE_ROTATION, "axis_angle", "rot6d"),
            )
        },
        {
            "transforms": (
                RelativePose(
                    POSITION,
                    ROTATION,
                    "axis_angle",
                    state_position=STATE_POSITION,
                    state_rotation=STATE_ROTATION,
                ),
                PadActions(14),
            )
        },
        {
            "transforms": (
                RelativeActions(POSITION, state_dims=STATE_POSITION),
                ConvertActionRotation(ROTATION, "axis_angle", "quaternion_wxyz"),
            ),
            "window_size": 1,
        },
        {"window_size": 1},
        {"window_size": 5, "model": {"max_horizon": 5}},
        {"normalization": "bounds"},
        {"normalization": "quantile"},
        {"statistics": "mixture"},
    ],
)
def test_every_way_of_training_is_met(whole_config, dataset, data):
    assert differing(without_params(with_data(whole_config, **data)), dataset, episode=1) == {}


@pytest.mark.parametrize(
    ("fusion", "leaves"),
    [
        ("gated", {*CAMERAS, "vggt_tokens"}),
        ("registers", {*CAMERAS, "vggt_tokens"}),
        ("only", {WRIST, "vggt_tokens"}),
        ("align", {*CAMERAS}),
    ],
)
def test_every_use_of_tokens_is_met(whole_config, dataset, fusion, leaves):
    vggt = dataclasses.replace(whole_config.model.vggt, fusion=fusion)
    checkpoint = without_params(with_data(whole_config, model={"vggt": vggt}))
    below = {f"observation/{name}" for name in (*leaves, "proprio")}
    found = {key for key in PolicySpec.of(checkpoint).leaves if "pad_mask" not in key}
    assert {key for key in found if key.startswith("observation/")} == below
    assert differing(checkpoint, dataset, episode=1) == {}


@pytest.mark.parametrize("statistics", ["dataset", "mixture"])
def test_what_a_dataset_lacked_is_met_too(whole_config, short_dataset, tmp_path, statistics):
    other = str(tmp_path / "other")
    (tmp_path / "other").symlink_to(short_dataset)
    parts = (DatasetConfig(str(short_dataset)), DatasetConfig(other, missing=(WRIST, "proprio")))
    checkpoint = without_params(with_data(whole_config, datasets=parts, statistics=statistics))
    spec = PolicySpec.of(checkpoint, other)
    assert differing(checkpoint, open_dataset(other), spec) == {}


def seen(shown, **images):
    return shown | {"observation": shown["observation"] | images}


def with_late_pixel(t, shown):
    shown["observation"][WRIST][5, 6, 0] ^= t == NUM_STEPS - 2
    return shown


SHOWN = {
    "a mirrored image": (
        lambda t, shown: seen(shown, image_primary=shown["observation"][PRIMARY][:, ::-1]),
        {f"observation/{PRIMARY}": ALL},
    ),
    "swapped cameras": (
        lambda t, shown: seen(
            shown,
            image_primary=shown["observation"][WRIST],
            image_wrist=shown["observation"][PRIMARY],
        ),
        {f"observation/{name}": ALL for name in CAMERAS},
    ),
    # It stays in the window.
    "a single late pixel": (with_late_pixel, {f"observation/{WRIST}": ALL[-2:]}),
    "an instruction in other words": (
        lambda t, shown: shown | {"instruction": "bowl pick up"},
        {f"task/language_instruction/{name}": ALL for name in ("attention_mask", "input_ids")},
    ),
}


@pytest.mark.parametrize(("change", "found"), SHOWN.values(), ids=SHOWN)
def test_what_an_environment_shows_otherwise_is_named(checkpoint, dataset, change, found):
    class Shown(Dataset):
        def step(self, episode, step, keys=None):
            return change(step, super().step(episode, step, keys))

    shown = Shown(dataset.path, dataset.manifest, dataset.statistics)
    assert differing(checkpoint, shown) == found


@dataclasses.dataclass(frozen=True)
class UnmaskedStart:
    """Makes the padding before an episode's first step real."""

    def spec_after(self, spec):
        return spec

    def apply(self, batch, spec, draws):
        key = "observation/timestep_pad_mask"
        return batch | {key: np.ones_like(batch[key])}


def shifted(statistics):
    proprio = statistics["observation/proprio"]
    mean = proprio.mean + np.float32(1e-3)
    return {**statistics, "observation/proprio": dataclasses.replace(proprio, mean=mean)}


READ = {
    "other statistics": ("statistics", shifted, {"observation/proprio": ALL}),
    "a flipped gripper": (
        "conventions",
        lambda found: dataclasses.replace(found, gripper_open=1.0, gripper_close=-1.0),
        {"action": ALL},
    ),
    "a start that is padded otherwise": (
        "data",
        lambda data: dataclasses.replace(data, transforms=(UnmaskedStart(),)),
        {"observation/timestep_pad_mask": [0]},
    ),
}


@pytest.mark.parametrize(("field", "change", "found"), READ.values(), ids=READ)
def test_what_a_policy_reads_otherwise_is_named(checkpoint, dataset, field, change, found):
    spec = PolicySpec.of(checkpoint)
    spec = dataclasses.replace(spec, **{field: change(getattr(spec, field))})
    assert differing(checkpoint, dataset, spec) == found


ONES = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (ONES, None),
        (None, ONES),
        (ONES, ONES.astype(np.float16)),
        (ONES, ONES[None]),
        (ONES, np.array([[1, np.nan]], np.float32)),
    ],
)
def test_arrays_that_cannot_be_compared_differ_infinitely(theirs, ours):
    found = Comparison("a")
    found.add(3, theirs, ours)
    assert (found.max_difference, found.steps) == (np.inf, [3])


def test_the_largest_difference_and_the_steps_that_differ_are_kept():
    found = Comparison("a")
    found.add(0, ONES, ONES + np.float32(0.25))
    found.add(1, ONES, ONES)
    assert found == Comparison("a", "float32[2]", 0.25, [0])


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


def test_a_policy_observes_what_its_training_left_out_of_an_episode(
    whole_config, short_dataset, dataset
):
    part = DatasetConfig(str(short_dataset), trim=(3, 2), task_weights=(("*", 2.0),))
    config = with_data(whole_config, datasets=(part,), statistics="mixture")
    assert differing(without_params(config), dataset) == {}


def test_statistics_after_transforms_are_without_the_records_that_training_excluded(
    whole_config, short_dataset, dataset
):
    shard = dataset.manifest.shards["episodes"][0].file
    part = DatasetConfig(str(short_dataset), excluded=(f"{shard}:0",))
    transforms = (RelativeActions(POSITION, state_dims=STATE_POSITION),)
    config = with_data(whole_config, datasets=(part,), transforms=transforms)
    assert differing(without_params(config), dataset, episode=1) == {}
