"""Copy this: finetunes Octo on a robot with two cameras, none at the wrist, and proprioception.

    octograin train --config my_robot/my_robot.py --dry_run    # checks everything in seconds
    octograin train --config my_robot/my_robot.py

reads data/my_robot, which `my_robot.toml` beside this file describes. Variants, after a colon:

    default    octo-small-1.5, from the released weights on the hub: for a GPU.
    laptop     a small model with random weights, which needs no download: to try your data with.
"""

import dataclasses

from octograin import (
    DataConfig,
    DatasetConfig,
    DiffusionConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OptimizerConfig,
    RegressionConfig,
    T5Config,
    TrainConfig,
    TransformerConfig,
    ValidationConfig,
    octo_small,
)

# Your cameras: a name, the key of the mapping without `observation/`, and the side in pixels of the
# square that the model sees. `primary` with 256 pixels has trained weights; a new camera has none.
CAMERAS = (
    ImageTokenizerConfig("primary", "image_primary", 256),
    ImageTokenizerConfig("side", "image_side", 128),
)
# Your vectors: a name, the key, and the number of dimensions. Leave it empty if you have none.
STATE = (LowdimTokenizerConfig("proprio", "proprio", 7),)
# The size of your action, and how many actions are predicted at once. Octo's weights of the head
# fit 7 and 4; for others, add "heads_action/*" to `pretrained_differs`.
ACTION_DIM, ACTION_HORIZON = 7, 4

DEFAULT = TrainConfig(
    data=DataConfig(
        datasets=(DatasetConfig("data/my_robot"),),
        vocabulary="hf://google-t5/t5-base/spiece.model",
        observations=tuple(part.observation_key for part in (*CAMERAS, *STATE)),
        window_size=2,
        action_horizon=ACTION_HORIZON,
        validation_fraction=0.05,  # the share of the episodes that are held out
    ),
    model=dataclasses.replace(
        octo_small(head=DiffusionConfig(ACTION_HORIZON, ACTION_DIM)), images=CAMERAS, lowdims=STATE
    ),
    pretrained_path="hf://rail-berkeley/octo-small-1.5",
    pretrained_step=300000,
    # What differs from the released model: it has a wrist camera, yours has a side camera and a
    # state. Any other difference is an error.
    pretrained_differs=(
        "octo_transformer/*wrist*",
        "octo_transformer/*side*",
        "octo_transformer/*proprio*",
    ),
    batch_size=64,
    num_steps=50000,
    save_dir="runs/my_robot",
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
            dataclasses.replace(camera, image_size=64, stem_features=(32, 32, 64), stem_dim=64)
            for camera in CAMERAS
        ),
        language=LanguageConfig(T5Config(d_model=64, d_kv=32, d_ff=128, num_layers=1, num_heads=2)),
        head=RegressionConfig("l1", ACTION_HORIZON, ACTION_DIM),
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
    validation=ValidationConfig(interval=250),
    pretrained_path=None,
    pretrained_step=None,
    pretrained_differs=(),
    batch_size=8,
    num_steps=500,
    save_interval=250,
    save_dir="runs/my_robot_laptop",
)

VARIANTS = {"default": DEFAULT, "laptop": LAPTOP}
