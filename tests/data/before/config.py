"""The runs in data.tar.xz, as the config that started them."""

import dataclasses

from pipeline.loading.data_config import DataConfig, DatasetConfig
from train.octo.octo_config import (
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
    VGGTTokenizerConfig,
)
from train.train_config import OptimizerConfig, TrainConfig

TOKENED = TrainConfig(
    data=DataConfig(
        datasets=(DatasetConfig("data/before"),),
        vocabulary="tests/data/vocabulary.model",
        observations=("image_primary", "proprio", "vggt_tiny"),
        num_threads=2,
    ),
    model=OctoConfig(
        embedding_dim=16,
        max_horizon=2,
        transformer=TransformerConfig(num_layers=1, mlp_dim=16, num_heads=2),
        images=(
            ImageTokenizerConfig(
                "primary", "image_primary", 32, stem_features=(32,) * 4, stem_dim=32
            ),
        ),
        lowdims=(LowdimTokenizerConfig("proprio", "proprio", 8),),
        language=LanguageConfig(
            t5=T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        head=RegressionConfig("l1"),
        vggt=VGGTTokenizerConfig(num_tokens=21, token_dim=64, observation_key="vggt_tiny"),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay_steps=20),
    batch_size=4,
    num_steps=4,
    save_interval=2,
    save_dir="runs/before_tokened",
    compilation_cache=None,
)

UNTOKENED = dataclasses.replace(
    TOKENED,
    data=dataclasses.replace(TOKENED.data, observations=("image_primary", "proprio")),
    model=dataclasses.replace(TOKENED.model, vggt=None),
    save_dir="runs/before_untokened",
)

VARIANTS = {"default": TOKENED, "untokened": UNTOKENED}
