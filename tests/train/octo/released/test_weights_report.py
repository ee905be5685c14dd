import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pipeline.errors import UserError
from train.octo.functional import init_params
from train.octo.octo_config import (
    DiffusionConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
    VGGTTokenizerConfig,
)
from train.octo.released.octo_checkpoint import OctoCheckpoint
from train.octo.released.weight_loading import Pretrained, account

HEAD = DiffusionConfig(hidden_dim=64)
T5 = T5Config(vocab_size=200, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)


def find_mismatches(golden_dir: Path, config: OctoConfig) -> list[str]:
    """Returns the lines in which a model and the genuine checkpoint do not agree."""
    pretrained = OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load()
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    with pytest.raises(UserError) as caught:
        account(config, shapes, pretrained)
    return [line.strip() for line in caught.value.found.splitlines()[1:]]


def ends(lines: list[str]) -> set[str]:
    """Returns the causes: what stands in the last brackets of each line."""
    return {line.rpartition(" (")[2].removesuffix(")") for line in lines}


@pytest.mark.parametrize(
    ("change", "causes"),
    [
        (
            {"lowdims": (LowdimTokenizerConfig("proprio", "proprio", 8),)},
            {"the model has lowdims.proprio, the checkpoint has not"},
        ),
        (
            {"vggt": VGGTTokenizerConfig(6, 16)},
            {"the model has vggt.vggt, the checkpoint has not"},
        ),
        (
            {"head": RegressionConfig()},
            {"head is RegressionConfig, the checkpoint has DiffusionConfig"},
        ),
        (
            {"head": dataclasses.replace(HEAD, pooling="map")},
            {"head.pooling is map, the checkpoint has mean"},
        ),
        (
            {"head": dataclasses.replace(HEAD, num_blocks=4)},
            {"head.num_blocks is 4, the checkpoint has 3"},
        ),
        (
            {"head": dataclasses.replace(HEAD, num_blocks=2)},
            {"head.num_blocks is 2, the checkpoint has 3"},
        ),
        (
            {"head": dataclasses.replace(HEAD, hidden_dim=96)},
            {"head.hidden_dim is 96, the checkpoint has 64"},
        ),
        (
            {"head": dataclasses.replace(HEAD, time_dim=16)},
            {"head.time_dim is 16, the checkpoint has 32"},
        ),
        (
            {"head": dataclasses.replace(HEAD, action_horizon=2)},
            {"head.action_horizon is 2, the checkpoint has 4"},
        ),
        (
            {"head": dataclasses.replace(HEAD, hidden_dim=96, num_blocks=4), "max_horizon": 12},
            {
                "head.hidden_dim is 96, the checkpoint has 64",
                "head.num_blocks is 4, the checkpoint has 3",
                "max_horizon is 12, the checkpoint has 5",
            },
        ),
        ({"num_readouts": 2}, {"num_readouts is 2, the checkpoint has 1"}),
        ({"max_horizon": 12}, {"max_horizon is 12, the checkpoint has 5"}),
        ({"embedding_dim": 32}, {"embedding_dim is 32, the checkpoint has 64"}),
        (
            {"transformer": TransformerConfig(3, 128, 2)},
            {"transformer.num_layers is 3, the checkpoint has 2"},
        ),
        (
            {"transformer": TransformerConfig(2, 96, 2)},
            {"transformer.mlp_dim is 96, the checkpoint has 128"},
        ),
        (
            {"transformer": TransformerConfig(2, 128, 4)},
            {"transformer.num_heads is 4, the checkpoint has 2"},
        ),
        (
            {"language": None},
            {"the checkpoint has language, the model has not"},
        ),
        (
            {"language": LanguageConfig(T5, 20)},
            {"language.max_length is 20, the checkpoint has 16"},
        ),
        (
            {"language": LanguageConfig(dataclasses.replace(T5, num_layers=1))},
            {"language.t5.num_layers is 1, the checkpoint has 2"},
        ),
        (
            {"language": LanguageConfig(dataclasses.replace(T5, vocab_size=300))},
            {"language.t5.vocab_size is 300, the checkpoint has 200"},
        ),
        (
            {"language": LanguageConfig(dataclasses.replace(T5, d_ff=256))},
            {"language.t5.d_ff is 256, the checkpoint has 128"},
        ),
    ],
)
def test_a_mismatch_is_reported_with_its_cause(
    golden_dir: Path, config: OctoConfig, change: dict, causes: set[str]
) -> None:
    assert ends(find_mismatches(golden_dir, dataclasses.replace(config, **change))) == causes


@pytest.mark.parametrize("name", ["wris", "wrist_left", "rist"])
def test_inputs_are_distinguished_by_their_whole_names(
    golden_dir: Path, config: OctoConfig, name: str
) -> None:
    primary, wrist = config.images
    images = (primary, dataclasses.replace(wrist, name=name))
    assert ends(find_mismatches(golden_dir, dataclasses.replace(config, images=images))) == {
        f"the model has images.{name}, the checkpoint has not",
        "the checkpoint has images.wrist, the model has not",
    }


def test_a_camera_of_another_size_is_reported_by_its_tokens(
    golden_dir: Path, config: OctoConfig
) -> None:
    primary, wrist = config.images
    images = (dataclasses.replace(primary, image_size=96), wrist)
    (line,) = find_mismatches(golden_dir, dataclasses.replace(config, images=images))
    assert line == (
        "octo_transformer/obs_primary_pos_embedding: mismatched shape, (1, 5, 36, 64) here, "
        "(1, 5, 16, 64) in the checkpoint (images.primary.image_size "
        "is 96, the checkpoint has 64)"
    )


def test_another_stem_is_reported_by_its_camera(golden_dir: Path, config: OctoConfig) -> None:
    primary, wrist = config.images
    images = (dataclasses.replace(primary, stem_dim=96), wrist)
    lines = find_mismatches(golden_dir, dataclasses.replace(config, images=images))
    assert ends(lines) == {"images.primary.stem_dim is 96, the checkpoint has 64"}
    assert len(lines) == 2


def test_tensors_of_one_module_and_cause_are_reported_in_one_line(
    golden_dir: Path, config: OctoConfig
) -> None:
    changed = dataclasses.replace(config, head=dataclasses.replace(HEAD, num_blocks=4))
    (line,) = find_mismatches(golden_dir, changed)
    assert line == (
        "heads_action/diffusion_model/reverse_network/MLPResNetBlock_3/*: 6 new, such as "
        "Dense_0/bias: (256,) here, none in the checkpoint "
        "(head.num_blocks is 4, the checkpoint has 3)"
    )
    assert len(find_mismatches(golden_dir, dataclasses.replace(config, embedding_dim=32))) <= 12


def test_a_model_with_nothing_in_common_is_reported_in_a_few_lines(config: OctoConfig) -> None:
    names = [f"{top}/{module}/{i}" for top in "ab" for module in "cd" for i in range(30)]
    tree: dict[str, Any] = {}
    for name in names:
        top, module, leaf = name.split("/")
        tree.setdefault(top, {}).setdefault(module, {})[leaf] = np.ones(2)
    with pytest.raises(UserError) as caught:
        account(config, tree, Pretrained(config, {}))
    assert caught.value.found.splitlines() == [
        "120 others:",
        "  a/c/*: 30 new, such as 0: (2,) here, none in the checkpoint",
        "  a/d/*: 30 new, such as 0: (2,) here, none in the checkpoint",
        "  b/c/*: 30 new, such as 0: (2,) here, none in the checkpoint",
        "  b/d/*: 30 new, such as 0: (2,) here, none in the checkpoint",
    ]
