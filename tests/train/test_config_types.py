"""A value of another type in any field of any config, refused alike in Python and in JSON."""

import contextlib
import copy
import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any, get_type_hints

import numpy as np
import pydantic
import pytest

from pipeline.config_checks import Checked, ConfigError
from pipeline.loading.transforms.action_transforms import MaskActions, PadActions, RelativeActions
from pipeline.loading.transforms.gripper_rules import (
    ContinuousGripper,
    GripperHysteresis,
    GripperThreshold,
)
from pipeline.loading.transforms.input_transforms import (
    ConvertObservationRotation,
    DropObservation,
    StateNoise,
)
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation, RelativePose
from tests.data.tiny_config import TINY
from train.exported.policy_export import ExportConfig
from train.octo.octo_config import BinsConfig, LowdimTokenizerConfig, RegressionConfig
from train.policy.policy import PolicyConfig
from train.serve.client_session import ServeConfig

POSE = tuple("xyzrpq")
CONFIGS: tuple[Any, ...] = (
    TINY,
    TINY.data,
    TINY.data.datasets[0],
    TINY.model,
    TINY.model.transformer,
    TINY.model.images[0],
    TINY.model.language,
    TINY.model.language and TINY.model.language.t5,
    TINY.model.head,
    TINY.model.vggt,
    TINY.augment,
    TINY.optimizer,
    TINY.validation,
    TINY.wandb,
    LowdimTokenizerConfig("proprio", "proprio", 8),
    BinsConfig(),
    RegressionConfig(),
    RelativeActions(("x",)),
    MaskActions(("x",)),
    PadActions(8),
    StateNoise("proprio", (("x", 0.1),)),
    DropObservation(("image_wrist",), 0.5),
    ConvertObservationRotation(POSE[3:], "euler_xyz", "axis_angle"),
    ConvertActionRotation(POSE[3:], "euler_xyz", "axis_angle"),
    RelativePose(POSE[:3], POSE[3:], "axis_angle"),
    GripperThreshold("gripper"),
    GripperHysteresis("gripper"),
    ContinuousGripper("gripper"),
    PolicyConfig(),
    ServeConfig(),
    ExportConfig(),
)
IN_JSON = (None, "x", 3, 2.5, True, [], ["x"], [1, 2], [3, None], [[1]], [["x", 1]])
NEVER = (
    {"x": 3},
    object(),
    dataclasses,
    int,
    TINY,
    np.arange(2),
    pathlib.Path("x"),
    b"x",
    1j,
    {"x"},
)


def changed(config: Any, field: str, value: Any) -> Any:
    """A config made in Python with another value, past the constructor that the tests check."""
    made = copy.copy(config)
    object.__setattr__(made, field, value)
    made.__post_init__()
    return made


@functools.cache
def adapter(hint: Any) -> Any:
    return pydantic.TypeAdapter(hint)


def refused(config: Any, field: str, value: Any) -> ConfigError:
    """The error of such a config, one line for each problem, at least one of them of this field."""
    with pytest.raises(ConfigError) as caught:
        changed(config, field, value)
    error = caught.value
    assert field in {problem.field.split(".")[0] for problem in error.problems}
    assert len(str(error).splitlines()) == len(error.problems) + (len(error.problems) > 1)
    return error


def test_every_config_is_among_these() -> None:
    modules = [
        module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in ("pipeline", "train")
    ]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and issubclass(value, Checked)
    }
    assert {type(config) for config in CONFIGS} == found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_python_refuses_what_json_refuses_and_converts_as_json_does(config: Any) -> None:
    hints = get_type_hints(type(config), include_extras=True)
    for field in (field.name for field in dataclasses.fields(config)):
        for value in IN_JSON:
            try:
                expected = adapter(hints[field]).validate_json(json.dumps(value), strict=True)
            except pydantic.ValidationError:
                refused(config, field, value)
                continue
            # Values of the right type may be out of range, or not fit the other fields.
            with contextlib.suppress(ConfigError):
                made = getattr(changed(config, field, value), field)
                assert repr(made) == repr(expected), field


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_value_that_no_field_has_is_one_line(config: Any) -> None:
    for field in (field.name for field in dataclasses.fields(config)):
        for value in NEVER:
            assert str(refused(config, field, value)).startswith(type(config).__name__)


def test_no_settings_in_the_place_of_some_is_said_in_words() -> None:
    assert str(refused(TINY, "validation", None)) == (
        "TrainConfig, validation: expected an instance of ValidationConfig; found None. Write "
        "ValidationConfig(...)."
    )


def test_scalars_of_numpy_become_those_of_python() -> None:
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if type(value) in (int, float, bool):
                made = changed(config, field.name, np.asarray(value)[()])
                assert made == config
                assert type(getattr(made, field.name)) is type(value), field.name
