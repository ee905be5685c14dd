"""Sections that show what the model saw and did: chunks along an episode, frames, step 0."""

import io

import numpy as np
from PIL import Image

from pipeline.inspect.names import split_unit
from train.report.charts import Size, draw_chunks
from train.report.inputs import VIEWS_NAME, RunFiles
from train.report.markup import Html, data_uri, tag
from train.report.numbers import count, three_digits
from train.report.parts import SMALL_PANEL, absent, key, legend, note, panel, panels, section
from train.report.quality import NOTHING_HELD_OUT
from train.validation import EpisodePrediction

_MAX_CHUNKS = 40
"""Chunks that are drawn in a panel."""
_MAX_FRAME_PIXELS = 256
"""Longer side of a frame on the page."""
_MAX_VIEWS_BYTES = 800_000
"""Of a picture that goes into the page as it is; a larger one becomes a JPEG."""
_MAX_VIEWS_PIXELS = 2240
"""Width of that JPEG."""
_QUALITY = 85


def episode_section(run: RunFiles) -> Html:
    """Recorded actions and predicted chunks along an episode, and frames of it."""
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
    """The camera images of step 0."""
    title = "What the model saw at step 0"
    if run.views is None:
        reason = f"The camera images of step 0 were not saved: {VIEWS_NAME} is missing."
        return section(title, absent(reason), anchor="views")
    about = note("Camera images of the first batch as the model took them: resized and augmented.")
    alt = "Camera images of the first samples, after augmentation."
    image = tag("img", src=_views_uri(run.views), alt=alt, class_="views")
    scrolled = tag("div", image, class_="scroll", tabindex=0, role="region", aria_label=alt)
    return section(title, about, tag("figure", scrolled), anchor="views")


def chunk_interval(num_steps: int, horizon: int) -> int:
    """Steps from a drawn chunk to the next: chunks do not overlap, and are not too many to see.

    120 steps, chunks of 4    4
    400 steps, chunks of 4    10
    """
    return max(horizon, -(-num_steps // _MAX_CHUNKS))


def chunk_error(actions: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Float64 (dims): mean absolute error of all predicted actions that the episode has.

    Args:
      actions: (steps, dims).
      chunks: (steps, horizon, dims).
    """
    num_steps, horizon, _ = chunks.shape
    wanted = np.arange(num_steps)[:, None] + np.arange(horizon)
    is_real = wanted < num_steps
    errors = np.abs(chunks[is_real] - actions[wanted[is_real]])
    return errors.mean(axis=0, dtype=np.float64)


def constant_error(actions: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Float64 (dims): the same, had every predicted action been the episode's median one."""
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
        "dataset's units; a gripper is 1 = open. Errors are mean absolute ones over all chunks; "
        "constant is the error of the episode's median action, repeated."
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
    """Those of the config, in the order of the frames; numbers where it does not have as many."""
    images = run.setting("model.images") or []
    names = [str(image.get("observation_key")) for image in images if isinstance(image, dict)]
    if len(names) != num_cameras:
        return [f"camera {number}" for number in range(1, num_cameras + 1)]
    return names


def _frames(episode: EpisodePrediction, cameras: list[str]) -> Html:
    """A figure a step, its cameras below each other; nothing where the model has none."""
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
    with Image.open(io.BytesIO(content)) as image:
        shown = image.convert("RGB")
    shown.thumbnail((_MAX_VIEWS_PIXELS, shown.height))
    return _encoded(shown)


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    return data_uri(buffer.getvalue(), "image/jpeg")
