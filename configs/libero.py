"""Finetunes octo-small-1.5 on the four published LIBERO suites, without VGGT tokens.

octograin train --config configs/libero.py
"""

import dataclasses

from pipeline.loading.data_config import DataConfig, DatasetConfig
from train.octo.octo_config import octo_small
from train.train_config import TrainConfig

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
DOWNLOAD = (
    "hf download openvla/modified_libero_rlds --repo-type dataset --local-dir data/rlds"
    " --include '{suite}_no_noops/*'"
)
CONVERT = "octograin convert data/rlds/{suite}_no_noops data/{suite}"


def suite_dataset(suite: str) -> DatasetConfig:
    """One suite, with the commands that fetch and convert it."""
    commands = (DOWNLOAD.format(suite=suite), CONVERT.format(suite=suite))
    return DatasetConfig(f"data/{suite}", commands=commands)


DEFAULT = TrainConfig(
    data=DataConfig(
        datasets=tuple(map(suite_dataset, SUITES)),
        vocabulary="hf://google-t5/t5-base/spiece.model",
        validation_fraction=0.02,
    ),
    model=dataclasses.replace(octo_small(), compute_dtype="bfloat16", remat=True),
    pretrained_path="hf://rail-berkeley/octo-small-1.5",
    pretrained_step=300000,
    batch_size=64,
    save_dir="runs/libero",
)

VARIANTS = {"default": DEFAULT}
