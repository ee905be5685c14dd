"""What octograin exports; `__init__.py` reads this list, and so do editors and type checkers."""

from converters.job.convert_dataset import convert_dataset
from pipeline.data.conventions import restore_gripper
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError, RecordError, SchemaError, UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader, open_loader
from train.flags import load_config
from train.octo.octo_config import (
    DiffusionConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
    VGGTTokenizerConfig,
    octo_base,
    octo_small,
)
from train.policy import FirstActions, Policy, PolicyConfig, TemporalEnsemble
from train.run import finetune
from train.serve.in_thread import serving
from train.train_config import AugmentConfig, OptimizerConfig, TrainConfig, ValidationConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "DataError",
    "Dataset",
    "DatasetConfig",
    "DiffusionConfig",
    "FirstActions",
    "ImageTokenizerConfig",
    "LanguageConfig",
    "Loader",
    "LowdimTokenizerConfig",
    "OctoConfig",
    "OptimizerConfig",
    "Policy",
    "PolicyConfig",
    "RecordError",
    "RegressionConfig",
    "SchemaError",
    "T5Config",
    "TemporalEnsemble",
    "TrainConfig",
    "TransformerConfig",
    "UserError",
    "VGGTTokenizerConfig",
    "ValidationConfig",
    "__version__",
    "convert_dataset",
    "finetune",
    "load_config",
    "octo_base",
    "octo_small",
    "open_dataset",
    "open_loader",
    "restore_gripper",
    "serving",
]

__version__: str

def unpickled(content: bytes) -> object: ...
