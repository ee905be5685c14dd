"""Saves the images that the model sees of the first samples, as one figure."""

import pathlib

import jax
import numpy as np
from PIL import Image, ImageDraw

from pipeline.files import writing
from train.train_config import TrainConfig
from train.update.train_step import Batch, augmentation_key, model_inputs

NAME = "views.png"
_SAMPLES = 4
_SIDE = 192
_GAP = 6
_CAPTION = 16


def save_views(config: TrainConfig, batch: Batch, directory: pathlib.Path) -> None:
    """Writes `views.png` into a run directory: one row per sample, one column per camera and step.

    The images have the model's size, are resized and augmented as in the first training step, and
    are drawn at one scale.

    Args:
      config: The config of the run.
      batch: A batch of the loader, on the host.
      directory: The run directory.

    Raises:
      UserError: The file cannot be written.
    """
    few = jax.tree.map(lambda leaf: np.asarray(leaf[:_SAMPLES]), batch)
    key = augmentation_key(config)
    # The same key as the first training step, so the crops are the same.
    inputs = jax.jit(lambda batch: model_inputs(batch, config, None, key))(few)
    # A model of geometry alone reads no image.
    cameras = list(config.model.image_shapes)
    if not cameras:
        return
    images = jax.device_get([inputs["observation"][camera] for camera in cameras])
    samples = len(images[0])
    # A camera may have a shorter window than the others.
    columns = [
        (camera, step) for camera, seen in enumerate(images) for step in range(seen.shape[1])
    ]
    width = len(columns) * (_SIDE + _GAP) - _GAP
    height = samples * (_SIDE + _GAP) + _CAPTION
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (camera, step) in enumerate(columns):
        left = column * (_SIDE + _GAP)
        steps_back = images[camera].shape[1] - 1 - step
        when = "now" if steps_back == 0 else f"{steps_back} before"
        side = images[camera].shape[-2]
        draw.text((left, 1), f"{cameras[camera]} {side}px, {when}", fill="black")
        for sample in range(samples):
            image = Image.fromarray(images[camera][sample, step])
            # Bicubic at one scale, so that cameras of different sizes are comparable.
            image = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            canvas.paste(image, (left, _CAPTION + sample * (_SIDE + _GAP)))
    with writing(directory / NAME):
        canvas.save(directory / NAME)
