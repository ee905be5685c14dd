import dataclasses
import math

import pytest

from pipeline.loading.batch import LeafSpec
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
    with_unused_dims,
)


def test_octo_small_has_the_tokens_of_the_paper() -> None:
    config = octo_small()
    assert [image.tokens_per_step for image in config.images] == [256, 64]
    assert config.head.flat_dim == 28


def test_presets_compose_with_geometry_tokens_and_another_head() -> None:
    vggt = VGGTTokenizerConfig(num_tokens=64, token_dim=512)
    for preset in (octo_small, demo):
        config = preset(head=DiffusionConfig(action_horizon=8), vggt=vggt)
        assert (config.vggt, config.head.action_horizon) == (vggt, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embedding_dim": 65},
            "embedding_dim: expected a multiple of transformer.num_heads, which is 2; found 65",
        ),
        ({"images": ()}, "The model would see nothing"),
        (
            {"images": demo().images[:1] * 2},
            "expected one name for each; found .'primary', 'primary'",
        ),
        (
            {"vggt": VGGTTokenizerConfig(64, 512, observation_key="image_wrist")},
            "expected one observation_key for each",
        ),
        ({"embedding_dim": 0}, "embedding_dim: expected at least 1; found 0"),
        ({"max_horizon": 0}, "max_horizon: expected at least 1; found 0"),
        ({"num_readouts": 0}, "num_readouts: expected at least 1; found 0"),
        (
            {"embedding_dim": 12, "head": RegressionConfig()},
            "embedding_dim: expected a multiple of 8, the heads of head.pooling 'map'; found 12",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(demo(), **change)


def test_a_part_that_cannot_be_built_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match=r"image_size: expected a multiple of 16, .* found 100 for 'primary'. Use 96 or 112",
    ):
        ImageTokenizerConfig("primary", "image_primary", 100)
    with pytest.raises(
        ValueError, match=r"stem_features: expected multiples of 32, .* found \[48\]"
    ):
        ImageTokenizerConfig("primary", "image_primary", 64, stem_features=(32, 48))
    with pytest.raises(ValueError, match=r"num_buckets: .* max_distance 128; found 30"):
        T5Config(num_buckets=30)
    with pytest.raises(ValueError, match="time_dim: expected an even number; found 31"):
        DiffusionConfig(time_dim=31)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (TransformerConfig, (0, 8, 2), "num_layers: expected at least 1; found 0"),
        (TransformerConfig, (2, 0, 2), "mlp_dim: expected at least 1; found 0"),
        (TransformerConfig, (2, 8, 0), "num_heads: expected at least 1; found 0"),
        (ImageTokenizerConfig, ("a", "a", 0), "image_size: expected at least 1; found 0"),
        (ImageTokenizerConfig, ("a", "a", 16, (32, 0)), r"stem_features: .* found \[0\] for 'a'"),
        (ImageTokenizerConfig, ("a", "a", 16, ()), r"stem_features: .* found none for 'a'"),
        (VGGTTokenizerConfig, (0, 8), "num_tokens: expected at least 1; found 0"),
        (LowdimTokenizerConfig, ("a", "a", 0), "num_dims: expected at least 1; found 0"),
        (BinsConfig, (0,), "num_bins: expected at least 1; found 0"),
        (
            BinsConfig,
            (8, "uniform", 1.0, 1.0),
            "low: expected less than high, which is 1.0; found 1.0",
        ),
        (T5Config, (32128, 768, -1), "d_kv: expected at least 1; found -1"),
        (LanguageConfig, (T5Config(), 0), "max_length: expected at least 1; found 0"),
        (DiffusionConfig, (4, 7, 0), "diffusion_steps: expected at least 1; found 0"),
        (DiffusionConfig, (4, 7, 20, 32, 0), "hidden_dim: expected at least 1; found 0"),
        (DiffusionConfig, (4, 7, 20, 32, 8, 3, 5.0, 0), "n_diffusion_samples: expected at least 1"),
        (DiffusionConfig, (4, 7, 20, 32, 8, 3, 0.0), "max_action: expected more than 0; found 0.0"),
        (DiffusionConfig, (4, 7, 20, 32, 8, 3, math.nan), "max_action: .* than 0; found nan"),
        (RegressionConfig, ("l1", 0), "action_horizon: expected at least 1; found 0"),
    ],
)
def test_a_number_out_of_its_range_is_named(part: type, settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(*settings)


def test_a_model_without_cameras_needs_geometry_tokens() -> None:
    config: OctoConfig = dataclasses.replace(demo(), images=(), vggt=VGGTTokenizerConfig(8, 16))
    assert config.images == ()


def test_a_head_knows_the_dimensions_that_it_did_not_learn() -> None:
    model = octo_small()
    action = LeafSpec("float32", (1, 2, 4, 3), ("a", "b", "c"), unused=frozenset({"c", "a"}))
    known = with_unused_dims(model, action)
    assert known == dataclasses.replace(
        model, head=dataclasses.replace(model.head, unused_dims=(0, 2))
    )
    assert with_unused_dims(model, LeafSpec("float32", (1, 2, 4, 3), ("a", "b", "c"))) is model
    other = dataclasses.replace(model, head=RegressionConfig())
    assert with_unused_dims(other, action) is other
