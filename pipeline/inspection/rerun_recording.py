"""Makes a Rerun recording of an episode: cameras, depth, actions, state, instruction, chunks."""

import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.data.images import MM_PER_M, image_format
from pipeline.data.schema import ACTION, EPISODES, Feature
from pipeline.errors import UserError, install_extra
from pipeline.inspection.dataset_summary import episode_tasks, plotted_features
from pipeline.inspection.feature_names import dim_names, short_name

PREDICTED = "predicted"
"""First part of the paths of predicted actions, where recorded ones have `action`."""
MAX_PLOTS = 16
"""Maximum number of dimensions of the action with a plot of their own; more share one."""
_PLOTS_PER_ROW = 4
_BLUE, _ORANGE = (110, 170, 225), (225, 120, 60)
"""Colours of what was recorded and predicted, on the dark ground of the viewer."""
_STEPS_AT_ONCE = 64
"""Steps whose images are read and stored together; the viewer loads such parts one by one."""

Path = tuple[str, ...]
"""Parts of the path of an entity."""
Chunk = tuple[int, np.ndarray]
"""A step, and the actions predicted for it and those after it, float32 (h a)."""


def make_recording(dataset: Dataset, episode: int, chunks: Sequence[Chunk] = ()) -> bytes:
    """Returns the content of an .rrd file, with a layout of its views.

    The entities, on the timelines `step` and `seconds`:

        camera/<name>           the JPEG or PNG as stored, or the pixels
        depth/<name>            the PNG in millimetres as stored
        action/<dimension>      recorded values, in the dataset's units
        predicted/<dimension>   those of `chunks`, up to the end of the episode
        observation/<name>      all dimensions of a vector, with their names
        instruction             text, from the step at which it begins

    Args:
      dataset: The opened directory.
      episode: Number of the episode, from 0.
      chunks: Predicted actions in the dataset's units; they do not overlap.

    Raises:
      UserError: Rerun is not installed.
      DataError: A record is corrupt.
    """
    rr = import_rerun()
    name = f"{dataset.manifest.name}, episode {episode}"
    # An id by content: opened again, an episode takes the place of the one from before.
    stream = rr.RecordingStream("octograin", recording_id=name, send_properties=False)
    memory = stream.memory_recording()
    stream.send_blueprint(_layout(dataset, has_chunks=bool(chunks)))
    part = _Episode(rr, stream, dataset, episode)
    part.send_instructions()
    part.send_images()
    part.send_vectors()
    part.send_chunks(chunks)
    return memory.drain_as_bytes()


def import_rerun(module: str = "rerun") -> ModuleType:
    """Imports Rerun's SDK, or one of its modules.

    Raises:
      UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            where="--rerun",
            expected="Rerun's SDK, which writes .rrd files",
            found=str(error),
            remedy=f"{install_extra('rerun')}.",
        ) from error


class _Episode:
    """Sends the parts of an episode to a stream."""

    def __init__(self, rr: ModuleType, stream: Any, dataset: Dataset, episode: int) -> None:
        self._rr, self._stream, self._dataset, self._episode = rr, stream, dataset, episode
        self._num_steps = dataset.manifest.episode_lengths[episode]

    def send_instructions(self) -> None:
        tasks = episode_tasks(self._dataset, self._episode)
        texts = self._rr.TextDocument.columns(text=[task["text"] for task in tasks])
        self._send(("instruction",), [task["step"] for task in tasks], texts)

    def send_images(self) -> None:
        first = int(self._dataset.episode_starts[self._episode])
        for column in self._dataset.manifest.schema.columns:
            features = [f for f in column.features if column.is_camera(f) or f.kind == "depth"]
            for begin in range(0, self._num_steps if features else 0, _STEPS_AT_ONCE):
                steps = range(begin, min(begin + _STEPS_AT_ONCE, self._num_steps))
                # Once for all cameras of the column.
                records = [self._dataset.columns[column.name].read(first + n) for n in steps]
                for feature in features:
                    images = self._image_columns(feature, [r[feature.key] for r in records])
                    self._send(_image_path(feature), steps, images)

    def _image_columns(self, feature: Feature, stored: Sequence[Any]) -> Any:
        rr, count = self._rr, len(stored)
        blobs = [bytes(image) for image in stored]
        if feature.kind == "depth":
            types, scale = ["image/png"] * count, [float(MM_PER_M)] * count
            return rr.EncodedDepthImage.columns(blob=blobs, media_type=types, meter=scale)
        if feature.kind == "image":
            types = [f"image/{image_format(blob)}" for blob in blobs]
            return rr.EncodedImage.columns(blob=blobs, media_type=types)
        height, width, _ = feature.shape
        pixels = rr.components.ImageFormat(
            width=width, height=height, color_model="RGB", channel_datatype="U8"
        )
        return rr.Image.columns(buffer=blobs, format=[pixels] * count)

    def send_vectors(self) -> None:
        record: Any = self._dataset.columns[EPISODES].read(self._episode)
        for feature in plotted_features(self._dataset):
            values = record[feature.key].reshape(self._num_steps, -1)
            if feature.key == ACTION:
                style = self._rr.SeriesLines(names="recorded", colors=_BLUE)
                self._send_dims(ACTION, range(self._num_steps), values, style)
                continue
            path = tuple(feature.key.split("/"))
            self._style(path, self._rr.SeriesLines(names=dim_names(feature)))
            lengths = [values.shape[1]] * self._num_steps
            scalars = self._rr.Scalars.columns(scalars=values.ravel()).partition(lengths)
            self._send(path, range(self._num_steps), scalars)

    def send_chunks(self, chunks: Sequence[Chunk]) -> None:
        if not chunks:
            return
        steps = np.concatenate([step + np.arange(len(actions)) for step, actions in chunks])
        values = np.concatenate([actions for _, actions in chunks])
        # What was predicted for the time after the episode was never recorded.
        is_inside = steps < self._num_steps
        style = self._rr.SeriesPoints(names="predicted", colors=_ORANGE, marker_sizes=2.0)
        self._send_dims(PREDICTED, steps[is_inside].tolist(), values[is_inside], style)

    def _send_dims(self, root: str, steps: Iterable[int], values: np.ndarray, style: Any) -> None:
        """Sends an entity for each dimension of actions (t a)."""
        steps = list(steps)
        for path, column in zip(action_paths(self._dataset, root), values.T, strict=True):
            self._style(path, style)
            self._send(path, steps, self._rr.Scalars.columns(scalars=column))

    def _style(self, path: Path, style: Any) -> None:
        self._stream.log(_joined(path), style, static=True)

    def _send(self, path: Path, steps: Iterable[int], columns: Any) -> None:
        rr, sequence = self._rr, list(steps)
        seconds = np.array(sequence) / self._dataset.manifest.conventions.control_frequency_hz
        times = [rr.TimeColumn("step", sequence=sequence)]
        times += [rr.TimeColumn("seconds", duration=seconds)]
        self._stream.send_columns(_joined(path), times, columns)


def action_paths(dataset: Dataset, root: str) -> list[Path]:
    """Returns the entity of each dimension of the action below a root."""
    return [(root, name) if name else (root,) for name in dim_names(dataset.feature(ACTION))]


def _image_path(feature: Feature) -> Path:
    kind = "depth" if feature.kind == "depth" else "camera"
    return (kind, *short_name(feature.key).split("/"))


def _layout(dataset: Dataset, *, has_chunks: bool) -> Any:
    """Returns a blueprint: images above, below them plots of the action and of each vector."""
    rrb = import_rerun("rerun.blueprint")
    images = [
        _image_path(feature)
        for column, feature in dataset.manifest.schema.features()
        if column.is_camera(feature) or feature.kind == "depth"
    ]
    above = [rrb.TextDocumentView(origin="instruction", name="instruction")]
    above += [rrb.Spatial2DView(origin=_joined(p), name="/".join(p)) for p in images]
    below = [
        rrb.TimeSeriesView(origin=_joined(path), name=short_name(feature.key))
        for feature in plotted_features(dataset)
        for path in [tuple(feature.key.split("/"))]
        if feature.key != ACTION
    ]
    return rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(*above, column_shares=[1, *[2] * len(images)]),
            rrb.Tabs(_action_plots(dataset, has_chunks=has_chunks), *below, active_tab=0),
            row_shares=[2, 3],
        ),
        rrb.TimePanel(timeline="step", state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
    )


def _action_plots(dataset: Dataset, *, has_chunks: bool) -> Any:
    """Returns a plot for each dimension of the action, of recorded and predicted values."""
    rrb = import_rerun("rerun.blueprint")
    roots = (ACTION, PREDICTED) if has_chunks else (ACTION,)
    dims = list(zip(*(action_paths(dataset, root) for root in roots), strict=True))
    if len(dims) > MAX_PLOTS:
        return rrb.TimeSeriesView(contents=[f"/{root}/**" for root in roots], name=ACTION)
    plots = [
        rrb.TimeSeriesView(contents=[_joined(path) for path in paths], name=paths[0][-1])
        for paths in dims
    ]
    return rrb.Grid(*plots, grid_columns=_PLOTS_PER_ROW, name=ACTION)


def _joined(path: Path) -> str:
    return import_rerun().new_entity_path(path)
