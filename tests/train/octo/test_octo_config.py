import dataclasses

import pytest

from train.octo.octo_config import (
    BinsConfig,
    DiffusionConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
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
        ({"embedding_dim": 65}, "embedding_dim 65 is not a multiple of transformer.num_heads 2"),
        ({"images": ()}, "the model would see nothing"),
        ({"images": demo().images[:1] * 2}, "share one name: .'primary', 'primary'"),
        (
            {"vggt": VGGTTokenizerConfig(64, 512, observation_key="image_wrist")},
            "share one observation_key",
        ),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, not 0"),
        ({"max_horizon": 0}, "max_horizon must be at least 1, not 0"),
        ({"num_readouts": 0}, "num_readouts must be at least 1, not 0"),
        (
            {"embedding_dim": 12, "head": RegressionConfig()},
            "embedding_dim 12 is not a multiple of the 8 heads of the head's pooling 'map'",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(demo(), **change)


def test_a_part_that_cannot_be_built_is_an_error() -> None:
    with pytest.raises(ValueError, match="image_size 100 of 'primary' is not a multiple of 16"):
        ImageTokenizerConfig("primary", "image_primary", 100)
    with pytest.raises(ValueError, match=r"stem_features \[48\] .* 32 groups"):
        ImageTokenizerConfig("primary", "image_primary", 64, stem_features=(32, 48))
    with pytest.raises(ValueError, match=r"num_buckets 30 .* max_distance 128"):
        T5Config(num_buckets=30)
    with pytest.raises(ValueError, match="time_dim 31 must be even"):
        DiffusionConfig(time_dim=31)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (TransformerConfig, (0, 8, 2), "num_layers must be at least 1, not 0"),
        (TransformerConfig, (2, 0, 2), "mlp_dim must be at least 1, not 0"),
        (TransformerConfig, (2, 8, 0), "num_heads must be at least 1, not 0"),
        (ImageTokenizerConfig, ("a", "a", 0), "image_size must be at least 1, not 0"),
        (ImageTokenizerConfig, ("a", "a", 16, (32, 0)), r"stem_features \[0\] of 'a'"),
        (ImageTokenizerConfig, ("a", "a", 16, ()), r"stem_features \[\] of 'a'"),
        (VGGTTokenizerConfig, (0, 8), "num_tokens must be at least 1, not 0"),
        (LowdimTokenizerConfig, ("a", "a", 0), "num_dims must be at least 1, not 0"),
        (BinsConfig, (0,), "num_bins must be at least 1, not 0"),
        (BinsConfig, (8, "uniform", 1.0, 1.0), "low 1.0 must be less than high 1.0"),
        (T5Config, (32128, 768, -1), "d_kv must be at least 1, not -1"),
        (LanguageConfig, (T5Config(), 0), "max_length must be at least 1, not 0"),
        (DiffusionConfig, (4, 7, 0), "diffusion_steps must be at least 1, not 0"),
        (DiffusionConfig, (4, 7, 20, 32, 0), "hidden_dim must be at least 1, not 0"),
        (DiffusionConfig, (4, 7, 20, 32, 8, 3, 5.0, 0), "n_diffusion_samples must be at least 1"),
        (DiffusionConfig, (4, 7, 20, 32, 8, 3, 0.0), "max_action must be above 0, not 0.0"),
        (RegressionConfig, ("l1", 0), "action_horizon must be at least 1, not 0"),
    ],
)
def test_a_number_out_of_its_range_is_named(part: type, settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(*settings)


def test_a_model_without_cameras_needs_geometry_tokens() -> None:
    config: OctoConfig = dataclasses.replace(demo(), images=(), vggt=VGGTTokenizerConfig(8, 16))
    assert config.images == ()
