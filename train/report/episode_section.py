"""Sections on what the model saw and did: chunks along an episode, frames, and step 0."""

import io

import numpy as np
from PIL import Image

from pipeline.inspection.feature_names import split_unit
from pipeline.terminal import count
from train.metrics.validation_files import EpisodePrediction
from train.report.charts import Size, draw_chunks
from train.report.markup import Html, data_uri, tag, three_digits
from train.report.page_parts import SMALL_PANEL, absent, key, legend, note, panel, panels, section
from train.report.quality_section import NOTHING_HELD_OUT
from train.report.report_inputs import VIEWS_NAME, RunFiles

_MAX_CHUNKS = 40
"""Largest number of chunks drawn in a panel."""
_MAX_FRAME_PIXELS = 256
"""Longer side of a frame on the page, in pixels."""
_MAX_VIEWS_BYTES = 800_000
"""Largest size of an image that is embedded unchanged; a larger one becomes a JPEG."""
_MAX_VIEWS_PIXELS = 2240
"""Width of that JPEG, in pixels."""
_QUALITY = 85


def episode_section(run: RunFiles) -> Html:
    """Shows recorded actions and predicted chunks along an episode, and frames of it."""
    title, episode = "Predicted actions along an episode", run.episode
    if episode is None:
        reason = NOTHING_HELD_OUT if run.setting("data.validation_fraction") == 0 else None
        missing = "No chunks were sampled along an episode: episode.npz is missing."
        return section(title, absent(reason or missing), anchor="episode")
    every = chunk_interval(*episode.chunks.shape[:2])
    horizon = episode.chunks.shape[1]
    keys = legend(
        key("recorded", "recorded action"),
        key(
            "chunk",
            f"chunk of {count(horizon, 'action')}, sampled at its dot, every {_steps(every)}",
        ),
    )
    figures = [_dim_panel(episode, dim, every) for dim in range(len(episode.dims))]
    return section(
        title,
        tag("blockquote", episode.task),
        note(_about(episode)),
        keys,
        panels(*figures, size=SMALL_PANEL),
        _frames(episode, _camera_names(run, len(episode.frames))),
        anchor="episode",
    )


def views_section(run: RunFiles) -> Html:
    """Shows the camera images of step 0."""
    title = "What the model saw at step 0"
    if run.views is None:
        reason = f"The camera images of step 0 were not saved: {VIEWS_NAME} is missing."
        return section(title, absent(reason), anchor="views")
    about = note("Camera images of the first batch as the model read them: resized and augmented.")
    alt = "Camera images of the first samples, after augmentation."
    image = tag("img", src=_views_uri(run.views), alt=alt, class_="views")
    scrolled = tag("div", image, class_="scroll", tabindex=0, role="region", aria_label=alt)
    return section(title, about, tag("figure", scrolled), anchor="views")


def chunk_interval(num_steps: int, horizon: int) -> int:
    """Returns the steps between drawn chunks: they do not overlap, and are not too many to see.

    120 steps, chunks of 4    4
    400 steps, chunks of 4    10
    """
    # At least a horizon apart, so that chunks do not overlap.
    return max(horizon, -(-num_steps // _MAX_CHUNKS))


def chunk_error(actions: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Returns the mean absolute error of all predicted actions in the episode; float64 (dims).

    Args:
      actions: Recorded actions (steps, dims).
      chunks: Predicted chunks (steps, horizon, dims).
    """
    num_steps, horizon, _ = chunks.shape
    wanted = np.arange(num_steps)[:, None] + np.arange(horizon)
    # Actions past the episode's end were never recorded.
    is_real = wanted < num_steps
    errors = np.abs(chunks[is_real] - actions[wanted[is_real]])
    return errors.mean(axis=0, dtype=np.float64)


def constant_error(actions: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Returns the same error if every predicted action were the median one; float64 (dims)."""
    # The median minimises the absolute error.
    median = np.median(actions, axis=0).astype(actions.dtype)
    return chunk_error(actions, np.broadcast_to(median, chunks.shape))


def _steps(every: int) -> str:
    return "step" if every == 1 else f"{every} steps"


def _about(episode: EpisodePrediction) -> str:
    held_out = (
        "held out from training"
        if episode.is_held_out
        else "one that the model was trained on, since none were held out"
    )
    steps = count(len(episode.actions), "step")
    return (
        f"Episode {episode.episode} of {episode.dataset}, {held_out}; {steps}. Values are in the "
        "dataset's units; a gripper is 1 = open. Errors are mean absolute errors over all chunks; "
        "constant is the error of repeating the episode's median action."
    )


def _dim_panel(episode: EpisodePrediction, dim: int, every: int) -> Html:
    label, unit = split_unit(episode.dims[dim])
    error = float(chunk_error(episode.actions, episode.chunks)[dim])
    constant = float(constant_error(episode.actions, episode.chunks)[dim])
    words = f"error {three_digits(error)}, constant {three_digits(constant)}"
    words = f"{unit}, {words}" if unit else words

    def draw(size: Size) -> str:
        return draw_chunks(episode.actions[:, dim], episode.chunks[:, :, dim], every, size)

    alt = f"{label}: recorded and predicted actions; {words}."
    return panel(draw, alt, label, words, SMALL_PANEL)


def _camera_names(run: RunFiles, num_cameras: int) -> list[str]:
    """Returns camera names from the config in frame order; numbers if the count differs."""
    images = run.setting("model.images") or []
    names = [str(image.get("observation_key")) for image in images if isinstance(image, dict)]
    if len(names) != num_cameras:
        return [f"camera {number}" for number in range(1, num_cameras + 1)]
    return names


def _frames(episode: EpisodePrediction, cameras: list[str]) -> Html:
    """Shows one figure per step, with its cameras below each other; empty without cameras."""
    if not cameras:
        return tag("div")
    figures = []
    for place, step in enumerate(episode.frame_steps.tolist()):
        shown = [
            tag("img", src=_jpeg_uri(images[place]), alt=f"{camera} at step {step}")
            for camera, images in zip(cameras, episode.frames, strict=True)
        ]
        figures.append(tag("figure", *shown, tag("figcaption", f"step {step}")))
    heading = tag("h3", f"Frames of that episode: {', '.join(cameras)}")
    return tag("div", heading, tag("div", *figures, class_="frames"))


def _jpeg_uri(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_MAX_FRAME_PIXELS, _MAX_FRAME_PIXELS))
    return _encoded(image)


def _views_uri(content: bytes) -> str:
    if len(content) <= _MAX_VIEWS_BYTES:
        return data_uri(content, "image/png")
    # A PNG of many cameras may be larger than the rest of the page.
    with Image.open(io.BytesIO(content)) as image:
        shown = image.convert("RGB")
    shown.thumbnail((_MAX_VIEWS_PIXELS, shown.height))
    return _encoded(shown)


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    return data_uri(buffer.getvalue(), "image/jpeg")
