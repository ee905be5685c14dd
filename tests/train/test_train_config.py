import dataclasses
import math
import pathlib

import pytest

from pipeline.bundled import presets
from pipeline.config_checks import ConfigError
from pipeline.files import dump_json, to_json_values
from pipeline.parts.part_files import run_file
from train.flags import load_config
from train.octo.octo_config import demo
from train.octo.released.weight_loading import Pretrained
from train.train_config import AugmentConfig, parse_config

MY_ROBOT = pathlib.Path(__file__).parents[2] / "examples" / "my_robot" / "my_robot.py"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"max_text_length": 8},
            "max_text_length: expected 16, the model.language.max_length; found 8",
        ),
        (
            {"observations": ("proprio",)},
            "data.observations: expected image_primary, vggt_tokens, which the model reads",
        ),
    ],
)
def test_data_and_model_must_fit(tiny_config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, **change))


def test_precomputed_tokens_are_not_cropped_away_from(tiny_config):
    assert tiny_config.cropped == ()
    message = "model reads precomputed vggt_tokens; found image_primary. Tokens of the whole image"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_config, augment=AugmentConfig(cropped=("image_primary",)))


@pytest.mark.parametrize(
    ("augment", "cropped"),
    [
        (AugmentConfig(), ("image_primary",)),
        (AugmentConfig(cropped=()), ()),
        (AugmentConfig(enabled=False, cropped=("image_primary",)), ()),
    ],
)
def test_without_tokens_the_main_camera_is_cropped(tiny_config_path, augment, cropped):
    config = load_config(f"{tiny_config_path}:untokened")
    assert dataclasses.replace(config, augment=augment).cropped == cropped


def test_camera_that_is_not_read_cannot_be_cropped(tiny_config_path):
    config = load_config(f"{tiny_config_path}:untokened")
    with pytest.raises(
        ValueError, match=r"cropped: expected some of data.observations: .*; found image_wrist"
    ):
        dataclasses.replace(config, augment=AugmentConfig(cropped=("image_wrist",)))


def test_any_input_may_have_a_shorter_window(tiny_config):
    data = dataclasses.replace(tiny_config.data, windows=(("image_primary", 1),))
    config = dataclasses.replace(tiny_config, data=data)
    assert config.data.window_of("image_primary") == 1


@pytest.mark.parametrize(
    ("variant", "dim", "tokens"),
    [("small", 384, 261), ("base", 768, 261), ("demo", 64, 21), ("baseline", 384, None)],
)
def test_the_configs_of_the_project_load(variant, dim, tokens, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    config = load_config(f"configs/libero_vggt.py:{variant}")
    assert config.model.embedding_dim == dim
    assert (config.model.vggt and config.model.vggt.num_tokens) == tokens
    key = config.model.vggt.observation_key if config.model.vggt else "vggt_tokens"
    assert (key in config.data.observations) == (tokens is not None)
    assert config.data.validation_fraction > 0


def test_the_real_config_is_octo_small_on_four_suites(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    config = load_config("configs/libero_vggt.py")
    assert [d.path for d in config.data.datasets] == [
        "data/libero_spatial",
        "data/libero_object",
        "data/libero_goal",
        "data/libero_10",
    ]
    assert config.pretrained_path == "hf://rail-berkeley/octo-small-1.5"
    assert config.model.embedding_dim == 384


@pytest.mark.parametrize("path", [*presets().values(), MY_ROBOT])
def test_variants_of_a_config_file_share_no_save_dir(path):
    configs = set(run_file(path).VARIANTS.values())
    assert len({config.save_dir for config in configs}) == len(configs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"finetuning_mode": "head_mlp_only"},
            "head_mlp_only, which keeps an attention pooling. Use head_only",
        ),
        (
            {"keep_every": 7},
            "keep_every: expected a multiple of save_interval, which is 5; found 7",
        ),
        ({"keep_every": 0}, "keep_every: expected at least 1"),
        ({"fsdp_devices": 0}, "fsdp_devices: expected at least 1"),
        (
            {"save_dir": "runs/a\udcff"},
            r"save_dir: expected a name in UTF-8.*runs/a\\udcff\. Rename",
        ),
        ({"seed": 2**63}, r"seed: expected -2\*\*63 to 2\*\*63 - 1; found 9223372036854775808"),
    ],
)
def test_settings_of_a_run_that_cannot_be_are_named(tiny_config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_config, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"accumulation_steps": 3},
            "batch_size: expected a multiple of optimizer.accum.*; found 4",
        ),
        (
            {"schedule": "rsqrt"},
            "decay_steps: expected None for the schedule 'rsqrt', which does not end; found 100",
        ),
        ({"ema_decay": 1.0}, r"ema_decay: expected more than 0 and less than 1; found 1.0"),
        ({"clip_norm": 0.0}, "clip_norm: expected a finite number above 0"),
        ({"max_skipped": -1}, "max_skipped: expected at least 0"),
        ({"weight_decay": math.nan}, "weight_decay: expected at least 0, and finite; found nan"),
    ],
)
def test_settings_of_an_optimizer_that_cannot_be_are_named(tiny_config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(
            tiny_config, optimizer=dataclasses.replace(tiny_config.optimizer, **change)
        )


@dataclasses.dataclass(frozen=True)
class Downloaded:
    """A source of weights of one's own."""

    revision: str = "main"

    def load(self) -> Pretrained:
        return Pretrained(demo(), {})


def test_weights_have_one_source(tiny_config):
    config = dataclasses.replace(tiny_config, pretrained=Downloaded())
    assert (tiny_config.weights_source, config.weights_source) == (None, "Downloaded")
    again = parse_config(dump_json(to_json_values(config)), where="config.json", remedy="")
    assert again == config
    message = "pretrained: expected None where pretrained_path is octo; found Downloaded. Keep one"
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, pretrained_path="octo")
