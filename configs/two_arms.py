"""Finetunes Octo on a robot with two arms in joint space, such as ALOHA, at 50 actions per second.

    octograin convert path/to/two_arms --describe      # proposes a mapping: save it and correct it
    octograin convert path/to/two_arms data/two_arms --mapping two_arms.toml
    octograin train --config configs/two_arms.py --dry_run
    octograin train --config configs/two_arms.py

The mapping names the dimensions of `action` and of `observation/proprio` as in `ACTION` below: six
joints in radians and a gripper for each arm. They are the names of LeRobot's ALOHA sets. Actions
are the joint positions that the robot is sent to, as in those sets. Its conventions:

    rotation = "none"
    control_frequency_hz = 50
    grippers = [
        { dim = 6, open = 1.0, close = 0.0, kind = "continuous" },
        { dim = 13, open = 1.0, close = 0.0, kind = "continuous" },
    ]

The model predicts a second of motion at once. Joints are learned relative to where they are now,
and come back as positions at rollout; grippers are absolute, anywhere between open and closed.

Variants, after a colon:

    default    octo-small-1.5 from the released weights, with a new head: for a GPU.
    laptop     a small model with random weights, which needs no download: to try your data with.
"""

import dataclasses

from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.transforms.action_transforms import RelativeActions
from train.octo.octo_config import (
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
    octo_small,
)
from train.train_config import OptimizerConfig, TrainConfig, ValidationConfig

JOINTS_OF_AN_ARM = (
    "waist",
    "shoulder",
    "elbow",
    "forearm_roll",
    "wrist_angle",
    "wrist_rotate",
)
ARMS = ("left", "right")
JOINTS = tuple(f"{arm}_{joint}" for arm in ARMS for joint in JOINTS_OF_AN_ARM)
ACTION = tuple(f"{arm}_{part}" for arm in ARMS for part in (*JOINTS_OF_AN_ARM, "gripper"))
ACTION_HORIZON = 50

# Your cameras: a name, the key of the mapping without `observation/`, and the side in pixels of the
# square that the model sees. `primary` and `wrist` have trained weights.
CAMERAS = (
    ImageTokenizerConfig("primary", "image_primary", 256),
    ImageTokenizerConfig("wrist", "image_wrist", 128),
    ImageTokenizerConfig("left_wrist", "image_left_wrist", 128),
)
STATE = LowdimTokenizerConfig("proprio", "proprio", len(ACTION))

DEFAULT = TrainConfig(
    data=DataConfig(
        datasets=(DatasetConfig("data/two_arms"),),
        vocabulary="hf://google-t5/t5-base/spiece.model",
        observations=tuple(part.observation_key for part in (*CAMERAS, STATE)),
        window_size=1,
        action_horizon=ACTION_HORIZON,
        validation_fraction=0.05,
        # By name: `proprio` has the same dimensions, so a joint is relative to its own position.
        transforms=(RelativeActions(relative=JOINTS),),
    ),
    # An L1 head, as in Octo's own finetuning on ALOHA.
    model=dataclasses.replace(
        octo_small(head=RegressionConfig("l1", ACTION_HORIZON, len(ACTION))),
        images=CAMERAS,
        lowdims=(STATE,),
        compute_dtype="bfloat16",
    ),
    pretrained_path="hf://rail-berkeley/octo-small-1.5",
    pretrained_step=300000,
    pretrained_differs=(
        "octo_transformer/*left_wrist*",
        "octo_transformer/*proprio*",
        "heads_action/*",
    ),
    batch_size=64,
    save_dir="runs/two_arms",
)

# The bundled vocabulary has LIBERO's words: the dry run warns of words of yours that it lacks.
LAPTOP = dataclasses.replace(
    DEFAULT,
    data=dataclasses.replace(
        DEFAULT.data, vocabulary="octograin://vocabulary.model", validation_fraction=0.2
    ),
    model=dataclasses.replace(
        DEFAULT.model,
        embedding_dim=64,
        transformer=TransformerConfig(num_layers=1, mlp_dim=128, num_heads=2),
        images=tuple(
            dataclasses.replace(camera, image_size=32, stem_features=(32, 32, 64), stem_dim=64)
            for camera in CAMERAS
        ),
        language=LanguageConfig(T5Config(d_model=64, d_kv=32, d_ff=128, num_layers=1, num_heads=2)),
        compute_dtype="float32",
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
    validation=ValidationConfig(interval=250),
    pretrained_path=None,
    pretrained_step=None,
    pretrained_differs=(),
    batch_size=8,
    num_steps=500,
    save_interval=250,
    save_dir="runs/two_arms_laptop",
)

VARIANTS = {"default": DEFAULT, "laptop": LAPTOP}
