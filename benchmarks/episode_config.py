"""The smallest run of a dataset of `benchmarks.episode_sets`, for what its size costs."""

from pipeline.loading.data_config import DataConfig, DatasetConfig
from train.octo.octo_config import (
    ImageTokenizerConfig,
    LanguageConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
)
from train.train_config import OptimizerConfig, TrainConfig, ValidationConfig

DEFAULT = TrainConfig(
    data=DataConfig(
        datasets=(DatasetConfig("data/episodes"),),
        vocabulary="octograin://vocabulary.model",
        observations=("image_primary",),
        validation_fraction=0.02,
    ),
    model=OctoConfig(
        embedding_dim=32,
        max_horizon=2,
        transformer=TransformerConfig(num_layers=1, mlp_dim=32, num_heads=2),
        images=(
            ImageTokenizerConfig("primary", "image_primary", 4, stem_features=(32,), stem_dim=32),
        ),
        language=LanguageConfig(
            t5=T5Config(vocab_size=2048, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
        ),
        head=RegressionConfig("l1"),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay_steps=100),
    validation=ValidationConfig(interval=4, num_batches=2),
    batch_size=8,
    num_steps=4,
    save_interval=4,
    save_dir="runs/episodes",
    compilation_cache=None,
)

VARIANTS = {"default": DEFAULT}
