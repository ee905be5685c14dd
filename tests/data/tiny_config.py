"""The demo of configs/libero_vggt.py, shrunk until it compiles in seconds; for tests."""

import dataclasses
import pathlib

from pipeline.loading.data_config import DataConfig, DatasetConfig
from train.octo.octo_config import (
    DiffusionConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    OctoConfig,
    T5Config,
    TransformerConfig,
    VGGTTokenizerConfig,
)
from train.train_config import OptimizerConfig, TrainConfig

TINY = TrainConfig(
    data=DataConfig(
        datasets=(DatasetConfig("data/libero_mini"),),
        vocabulary=str(pathlib.Path(__file__).with_name("vocabulary.model")),
        observations=("image_primary", "proprio", "vggt_tokens"),
        num_threads=2,
    ),
    model=OctoConfig(
        embedding_dim=32,
        max_horizon=2,
        transformer=TransformerConfig(num_layers=1, mlp_dim=32, num_heads=2),
        images=(
            ImageTokenizerConfig(
                "primary", "image_primary", 32, stem_features=(32,) * 4, stem_dim=32
            ),
        ),
        language=LanguageConfig(
            t5=T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
        ),
        head=DiffusionConfig(hidden_dim=32, num_blocks=1),
        vggt=VGGTTokenizerConfig(num_tokens=21, token_dim=64),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay_steps=100),
    batch_size=4,
    num_steps=20,
    save_interval=5,
    save_dir="runs/tiny",
    compilation_cache=None,
)

UNTOKENED = dataclasses.replace(
    TINY,
    data=dataclasses.replace(TINY.data, observations=("image_primary",)),
    model=dataclasses.replace(TINY.model, vggt=None),
)

_STEM = dataclasses.replace(TINY.model.images[0], image_size=4, stem_features=(32,))
SHALLOW = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, images=(_STEM,)))
"""As many tokens from a stem of one layer instead of four: the step compiles in half the time."""

VARIANTS = {"default": TINY, "untokened": UNTOKENED, "shallow": SHALLOW}
