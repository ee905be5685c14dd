"""What octograin exports; `__init__.py` reads this list, and so do editors and type checkers."""

from pipeline.data.conventions import restore_gripper
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError, RecordError, SchemaError, UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader, open_loader
from train.flags import load_config
from train.octo.octo_config import (
    DiffusionConfig,
    ImageTokenizerConfig,
    LowdimTokenizerConfig,
    RegressionConfig,
    VGGTTokenizerConfig,
    octo_base,
    octo_small,
)
from train.policy import FirstActions, Policy, PolicyConfig, TemporalEnsemble
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
    "Loader",
    "LowdimTokenizerConfig",
    "OptimizerConfig",
    "Policy",
    "PolicyConfig",
    "RecordError",
    "RegressionConfig",
    "SchemaError",
    "TemporalEnsemble",
    "TrainConfig",
    "UserError",
    "VGGTTokenizerConfig",
    "ValidationConfig",
    "__version__",
    "load_config",
    "octo_base",
    "octo_small",
    "open_dataset",
    "open_loader",
    "restore_gripper",
]

__version__: str

def unpickled(content: bytes) -> object: ...
