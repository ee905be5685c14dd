r"""Trains a small Octo on the scripted expert's episodes of four tasks, on two CPU cores.

    python -m examples.scripted_expert data/libero_expert --suite libero_spatial,libero_object \
        --tasks 0,2 0,5 --episodes 40 --noise 0.2 --waypoint_noise 0.03 --workers 2
    octograin train --config configs/libero_expert.py
    octograin evaluate runs/libero_expert --suite libero_spatial --tasks 0,2 \
        --first_trial 40 --trials 10 --execute_horizon 4 --workers 2
    octograin evaluate runs/libero_expert --suite libero_object --tasks 0,5 \
        --first_trial 40 --trials 10 --execute_horizon 4 --workers 2

Variants, after a colon:

    default      two cameras, the instruction and the robot's state; images are not augmented.
    augmented    the same with crops of the third-person camera and strong changes of colour.
    diffusion    the same as default with a diffusion head that predicts chunks of 16 actions.
    lerobot_av1  the same as default on images that were frames of AV1 videos of LeRobot:
                 octograin export data/libero_expert data/libero_expert_lerobot --to lerobot
                 octograin convert data/libero_expert_lerobot data/libero_expert_av1
    se3          learns poses relative to the current one, with rot6d, instead of the simulator's
                 commands. Add --rlds data/libero_expert_rlds to the first command, and then:
                 octograin convert data/libero_expert_rlds/1.0.0 data/libero_expert_poses \
                     --mapping libero_poses
    geometry     adds to both cameras' features those of an encoder that was trained on depth and
                 poses of the simulator, and 5 tokens; examples/geometry_encoder has the commands.

docs/results.md has the hours, the hardware and the success rates.
"""

import dataclasses

from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.transforms.rotation_transforms import RelativePose
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
)
from train.train_config import AugmentConfig, OptimizerConfig, TrainConfig, ValidationConfig

OBSERVATIONS = ("image_primary", "image_wrist", "proprio")
STEM = (32, 64, 128, 192)

EXPERT = (
    "python -m examples.scripted_expert data/libero_expert --suite libero_spatial,libero_object "
    "--tasks 0,2 0,5 --episodes 40 --noise 0.2 --waypoint_noise 0.03 --workers 2"
)
"""The command that makes the demonstrations."""

MODEL = OctoConfig(
    embedding_dim=192,
    max_horizon=2,
    transformer=TransformerConfig(num_layers=4, mlp_dim=768, num_heads=4),
    images=(
        ImageTokenizerConfig("primary", "image_primary", 128, stem_features=STEM, stem_dim=192),
        ImageTokenizerConfig("wrist", "image_wrist", 64, stem_features=STEM, stem_dim=192),
    ),
    lowdims=(LowdimTokenizerConfig("proprio", "proprio", num_dims=8),),
    language=LanguageConfig(
        t5=T5Config(
            vocab_size=33,  # the bundled vocabulary's
            d_model=64,
            d_kv=32,
            d_ff=128,
            num_layers=2,
            num_heads=2,
        ),
        max_length=20,
    ),
    head=RegressionConfig("l1", action_horizon=8),
    repeat_task_tokens=False,
)

DEFAULT = TrainConfig(
    data=DataConfig(
        datasets=(DatasetConfig("data/libero_expert", commands=(EXPERT,)),),
        vocabulary="octograin://vocabulary.model",
        observations=OBSERVATIONS,
        max_text_length=20,
        window_size=1,
        action_horizon=8,
        validation_fraction=0.05,
    ),
    model=MODEL,
    augment=AugmentConfig(enabled=False),
    optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=200),
    validation=ValidationConfig(interval=1000, num_batches=8),
    batch_size=16,
    num_steps=7000,
    save_interval=1750,
    keep_every=1750,
    save_dir="runs/libero_expert",
)

AUGMENTED = dataclasses.replace(
    DEFAULT,
    augment=AugmentConfig(
        cropped=("image_primary",),
        brightness=0.2,
        contrast=(0.6, 1.4),
        saturation=(0.6, 1.4),
        hue=0.1,
    ),
    save_dir="runs/libero_expert_augmented",
)

DIFFUSION = dataclasses.replace(
    DEFAULT,
    data=dataclasses.replace(DEFAULT.data, action_horizon=16),
    model=dataclasses.replace(
        MODEL,
        head=DiffusionConfig(
            action_horizon=16,
            hidden_dim=512,
            n_diffusion_samples=4,
            pooling="map",
            prediction="action",
        ),
    ),
    optimizer=dataclasses.replace(DEFAULT.optimizer, ema_decay=0.999),
    save_dir="runs/libero_expert_diffusion",
)

LEROBOT_AV1 = dataclasses.replace(
    DEFAULT,
    data=dataclasses.replace(
        DEFAULT.data,
        datasets=(
            DatasetConfig(
                "data/libero_expert_av1",
                commands=(
                    EXPERT,
                    "octograin export data/libero_expert data/libero_expert_lerobot --to lerobot",
                    "octograin convert data/libero_expert_lerobot data/libero_expert_av1",
                ),
            ),
        ),
    ),
    save_dir="runs/libero_expert_lerobot_av1",
)

SE3 = dataclasses.replace(
    DEFAULT,
    data=dataclasses.replace(
        DEFAULT.data,
        datasets=(
            DatasetConfig(
                "data/libero_expert_poses",
                commands=(
                    f"{EXPERT} --rlds data/libero_expert_rlds",
                    "octograin convert data/libero_expert_rlds/1.0.0 data/libero_expert_poses "
                    "--mapping libero_poses",
                ),
            ),
        ),
        transforms=(
            RelativePose(
                position=("x_m", "y_m", "z_m"),
                rotation=tuple(f"rot6d_{number}" for number in range(6)),
                representation="rot6d",
                state_rotation=("rx_rad", "ry_rad", "rz_rad"),
                state_representation="axis_angle",
            ),
        ),
    ),
    model=dataclasses.replace(MODEL, head=RegressionConfig("l1", action_horizon=8, action_dim=10)),
    save_dir="runs/libero_expert_se3",
)

OF_PRIMARY = VGGTTokenizerConfig(
    num_tokens=69, token_dim=256, observation_key="geometry_primary", fusion="features"
)
OF_WRIST = dataclasses.replace(
    OF_PRIMARY, observation_key="geometry_wrist", name="vggt_wrist", camera="wrist"
)
# The pose of the hand's camera relative to the third-person one.
OF_POSE = dataclasses.replace(OF_WRIST, name="vggt_pose", fusion="registers")

GEOMETRY = dataclasses.replace(
    DEFAULT,
    data=dataclasses.replace(
        DEFAULT.data,
        datasets=(
            DatasetConfig(
                "data/libero_expert",
                commands=(
                    EXPERT,
                    "python -m examples.geometry_encoder.render data/geometry_views "
                    "--suite libero_spatial,libero_object --tasks 0,2 0,5 --workers 2",
                    "python -m examples.geometry_encoder.train data/geometry_views "
                    "runs/geometry_encoder",
                    "octograin tokens data/libero_expert --name geometry "
                    "--weights runs/geometry_encoder/model.safetensors "
                    "--cameras primary,wrist --views joint --size 112",
                ),
            ),
        ),
        observations=(*OBSERVATIONS, OF_PRIMARY.observation_key, OF_WRIST.observation_key),
    ),
    model=dataclasses.replace(MODEL, vggt=OF_PRIMARY, more_vggt=(OF_WRIST, OF_POSE)),
    save_dir="runs/libero_expert_geometry",
)

VARIANTS = {
    "default": DEFAULT,
    "augmented": AUGMENTED,
    "diffusion": DIFFUSION,
    "lerobot_av1": LEROBOT_AV1,
    "se3": SE3,
    "geometry": GEOMETRY,
}
