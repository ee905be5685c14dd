"""Finetunes Octo with VGGT tokens on the four LIBERO suites.

    octograin train --config configs/libero_vggt.py

reads data/libero_{spatial,object,goal,10}, converted from RLDS sets, with the column `vggt_tokens`
that `octograin tokens` adds (float16 261x2048 per step), and starts from the released
weights on the hub. `--dry_run` after it checks all of that in seconds and trains nothing. One flag
sets how the tokens are used, such as --config.model.vggt.fusion=gated (docs/reference/model.md).
`only` also needs
--config.pretrained_differs "octo_transformer/*vggt*" "octo_transformer/*primary*".

Variants, after a colon:

    small      octo-small-1.5 (the default): 28.8 M trained parameters, in bfloat16 with remat. One
               GPU of 24 GB: about 9.5 GB by the dry run's estimate. A sample of two steps is 2.6
               MB, a batch 166 MB; the loader takes 1.2 GB of the host's memory.
    base       octo-base-1.5: 96.4 M trained parameters, about 17 GB: one GPU of 24 GB.
    baseline   octo-small-1.5 on the same data without tokens, for comparison: 27.0 M trained
               parameters, about 5 GB.
    demo       a laptop's size: the bundled set, with 21 tokens per step from untrained weights
               of VGGT's architecture (`vggt_tiny`), a random Octo of one layer, and an L1 head,
               which learns in 200 steps what diffusion needs thousands for: the mean loss of 20
               steps falls from 5.4 to 1.8, the action error on the held-out episode to 0.45.

50,000 training steps at batch 64 are 3.2 million samples. No GPU was measured; on two CPU cores a
training step of octo-small takes 0.6 s per sample.
"""

import dataclasses

from pipeline.loading.data_config import DataConfig, DatasetConfig
from train.octo.octo_config import (
    ImageTokenizerConfig,
    RegressionConfig,
    TransformerConfig,
    VGGTTokenizerConfig,
    demo,
    octo_base,
    octo_small,
)
from train.train_config import OptimizerConfig, TrainConfig, ValidationConfig

OBSERVATIONS = ("image_primary", "image_wrist", "proprio", "vggt_tokens")
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
TOKENS = VGGTTokenizerConfig(num_tokens=261, token_dim=2048)
TINY_TOKENS = VGGTTokenizerConfig(num_tokens=21, token_dim=64, observation_key="vggt_tiny")
DOWNLOAD = (
    "hf download openvla/modified_libero_rlds --repo-type dataset --local-dir data/rlds"
    " --include '{suite}_no_noops/*'"
)
CONVERT = "octograin convert data/rlds/{suite}_no_noops data/{suite}"
COMPUTE_TOKENS = "octograin tokens data/{suite} --weights hf://facebook/VGGT-1B"


def suite_dataset(suite: str) -> DatasetConfig:
    """One suite, with the commands that fetch it, convert it and compute its tokens."""
    commands = tuple(text.format(suite=suite) for text in (DOWNLOAD, CONVERT, COMPUTE_TOKENS))
    return DatasetConfig(f"data/{suite}", commands=commands)


SMALL = TrainConfig(
    data=DataConfig(
        datasets=tuple(map(suite_dataset, SUITES)),
        vocabulary="hf://google-t5/t5-base/spiece.model",
        observations=OBSERVATIONS,
        validation_fraction=0.02,
    ),
    model=dataclasses.replace(octo_small(vggt=TOKENS), compute_dtype="bfloat16", remat=True),
    pretrained_path="hf://rail-berkeley/octo-small-1.5",
    pretrained_step=300000,
    pretrained_differs=("octo_transformer/*vggt*",),
    batch_size=64,
    save_dir="runs/libero_vggt",
)

BASE = dataclasses.replace(
    SMALL,
    model=dataclasses.replace(octo_base(vggt=TOKENS), compute_dtype="bfloat16", remat=True),
    pretrained_path="hf://rail-berkeley/octo-base-1.5",
    save_dir="runs/libero_vggt_base",
)

BASELINE = dataclasses.replace(
    SMALL,
    data=dataclasses.replace(SMALL.data, observations=OBSERVATIONS[:-1]),
    model=dataclasses.replace(SMALL.model, vggt=None),
    pretrained_differs=(),
    save_dir="runs/libero_vggt_baseline",
)

DEMO = TrainConfig(
    data=DataConfig(
        datasets=(
            DatasetConfig(
                "data/libero_mini",
                commands=(
                    "octograin convert octograin://libero_mini data/libero_mini",
                    "octograin tokens data/libero_mini --name vggt_tiny "
                    "--weights random:tiny --size 56",
                ),
            ),
        ),
        vocabulary="octograin://vocabulary.model",
        observations=(*OBSERVATIONS[:-1], TINY_TOKENS.observation_key),
        validation_fraction=0.3,
    ),
    model=dataclasses.replace(
        demo(head=RegressionConfig("l1"), vggt=TINY_TOKENS),
        transformer=TransformerConfig(num_layers=1, mlp_dim=128, num_heads=2),
        images=tuple(
            ImageTokenizerConfig(name, f"image_{name}", 32, stem_features=(32, 32, 64), stem_dim=64)
            for name in ("primary", "wrist")
        ),
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20, decay_steps=200),
    validation=ValidationConfig(interval=100, num_batches=8),
    batch_size=8,
    num_steps=200,
    save_interval=100,
    save_dir="runs/demo",
)

VARIANTS = {"default": SMALL, "small": SMALL, "base": BASE, "baseline": BASELINE, "demo": DEMO}
