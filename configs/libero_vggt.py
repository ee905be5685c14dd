"""Octo-small-1.5 with VGGT tokens on the four LIBERO suites.

    python -m train.run --config configs/libero_vggt.py --config.save_dir=runs/libero_vggt

reads data/libero_{spatial,object,goal,10}, converted from RLDS sets that carry `vggt_tokens`
(float16 261x2048 a step; the published sets do not: see configs/libero.py for those), and starts
from octo-small-1.5 on the hub. A sample of two steps is 2.6 MB.

    python -m train.run --config configs/libero_vggt.py:demo

is the same run at a laptop's size: the bundled set, 21 tokens a step and random weights. 300 steps
take about a minute on two CPU cores; the mean loss of 20 steps falls from 9 to 3.
"""

from pipeline.config import DataConfig, DatasetConfig
from train.config import OptimizerConfig, TrainConfig
from train.octo.config import VGGTTokenizerConfig, demo, octo_small

OBSERVATIONS = ("image_primary", "image_wrist", "proprio", "vggt_tokens")
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def suite_dataset(suite: str) -> DatasetConfig:
    """One suite, with the command that converts an RLDS set which carries tokens."""
    command = f"python -m converters.rlds data/rlds/{suite}_vggt data/{suite}"
    source = "RLDS with observation/vggt_tokens, float16 261x2048 a step"
    return DatasetConfig(f"data/{suite}", commands=(f"{command}  # from {source}",))


DEFAULT = TrainConfig(
    data=DataConfig(
        datasets=tuple(map(suite_dataset, SUITES)),
        vocabulary="hf://google-t5/t5-base/spiece.model",
        observations=OBSERVATIONS,
    ),
    model=octo_small(vggt=VGGTTokenizerConfig(num_tokens=261, token_dim=2048)),
    pretrained_path="hf://rail-berkeley/octo-small-1.5",
    pretrained_step=300000,
    pretrained_differs=("octo_transformer/*vggt*",),
    batch_size=64,
    save_dir="runs/libero_vggt",
)

DEMO = TrainConfig(
    data=DataConfig(
        datasets=(
            DatasetConfig(
                "data/libero_mini",
                commands=("python -m converters.rlds tests/data/libero_mini data/libero_mini",),
            ),
        ),
        vocabulary="tests/data/vocabulary.model",
        observations=OBSERVATIONS,
    ),
    model=demo(vggt=VGGTTokenizerConfig(num_tokens=21, token_dim=64)),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, decay_steps=300),
    batch_size=16,
    num_steps=300,
    save_interval=100,
    save_dir="runs/demo",
)

VARIANTS = {"default": DEFAULT, "demo": DEMO}
