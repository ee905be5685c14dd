import dataclasses

import pytest

from train.octo.config import (
    DiffusionConfig,
    ImageTokenizerConfig,
    OctoConfig,
    T5Config,
    VGGTTokenizerConfig,
    demo,
    octo_small,
)


def test_octo_small_has_the_tokens_of_the_paper() -> None:
    config = octo_small()
    assert [image.num_tokens for image in config.images] == [256, 64]
    assert config.head.flat_dim == 28


def test_presets_compose_with_geometry_tokens_and_another_head() -> None:
    vggt = VGGTTokenizerConfig(num_tokens=64, token_dim=512)
    for preset in (octo_small, demo):
        config = preset(head=DiffusionConfig(action_horizon=8), vggt=vggt)
        assert (config.vggt, config.head.action_horizon) == (vggt, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_dim": 65}, "embedding_dim 65 is no multiple of transformer.num_heads 2"),
        ({"images": ()}, "the model would see nothing"),
        ({"images": demo().images[:1] * 2}, "share one name: .'primary', 'primary'"),
        (
            {"vggt": VGGTTokenizerConfig(64, 512, observation_key="image_wrist")},
            "share one observation_key",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(demo(), **change)


def test_a_part_that_cannot_be_built_is_an_error() -> None:
    with pytest.raises(ValueError, match="image_size 100 of 'primary' is no multiple of 16"):
        ImageTokenizerConfig("primary", "image_primary", 100)
    with pytest.raises(ValueError, match=r"stem_features \[48\] .* 32 groups"):
        ImageTokenizerConfig("primary", "image_primary", 64, stem_features=(32, 48))
    with pytest.raises(ValueError, match=r"num_buckets 30 .* max_distance 128"):
        T5Config(num_buckets=30)
    with pytest.raises(ValueError, match="time_dim 31 must be even"):
        DiffusionConfig(time_dim=31)


def test_a_model_without_cameras_needs_geometry_tokens() -> None:
    config: OctoConfig = dataclasses.replace(demo(), images=(), vggt=VGGTTokenizerConfig(8, 16))
    assert config.images == ()
