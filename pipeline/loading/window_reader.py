"""Reads the windows of a batch directly into reused arrays; all reads of training are here."""

import dataclasses
import functools
import math
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from pipeline.data.column_reader import ColumnReader
from pipeline.data.conventions import Conventions
from pipeline.data.dataset import Dataset
from pipeline.data.record import Values
from pipeline.data.schema import ACTION, EPISODES, Column, Feature
from pipeline.loading.batch import DATASET_INDEX, KEEPS_TEXT, BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.data_config import DataConfig
from pipeline.loading.reading.sample_threads import ForEach, in_turn
from pipeline.loading.samples.sampling import Samples
from pipeline.loading.samples.selection import Selection
from pipeline.loading.samples.windows import (
    action_mask,
    chunk_indices,
    history_indices,
    keeps_goal_images,
    octo_action_mask,
    uniform_goals,
)
from pipeline.memory import REUSE_ARRAYS, is_on

# Below a megabyte the C library reuses memory by itself.
_SMALLEST_BYTES = 1 << 20
"""Smaller arrays are allocated by the C library."""


class Buffers:
    """Allocates uninitialised arrays from reusable blocks; safe to share between threads.

    A fresh array of 34 MB (the tokens of a batch of 16) costs a page fault and zeroing for each of
    its pages: 0.7 of 5.7 CPU ms per sample (benchmarks/RESULTS.md).

    The reference count shows whether a block is free: views of an array hold a reference, and so
    do jax arrays that share its memory or are still being copied from it. No block is reused on an
    interpreter whose counts do not show views, or where the environment variable
    `OCTOGRAIN_REUSE_ARRAYS` is 0.
    """

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._free_count = _count_of_a_free_block() if is_on(REUSE_ARRAYS) else None

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        """Pickles no memory: another process starts with an empty pool."""
        # A reference count is of one process, and a lock cannot be pickled.
        return Buffers, ()

    @property
    def num_bytes(self) -> int:
        """Total size of all blocks, in use or free."""
        return sum(block.nbytes for block in self._blocks)

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Returns an array like `numpy.empty`, in a block that nothing else refers to."""
        # Uninitialised: `WindowReader` writes every element, or masks and zeroes it.
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if num_bytes < _SMALLEST_BYTES or self._free_count is None:
            return np.empty(shape, dtype)
        # Counting references and taking the block has to be one operation among the reading
        # threads.
        with self._lock:
            place = self._find_free(num_bytes)
            if place is None:
                place = len(self._blocks)
                self._blocks.append(np.empty(num_bytes, np.uint8))
            # The view made here is the reference that marks the block as taken.
            return self._blocks[place].view(dtype).reshape(shape)

    def _find_free(self, num_bytes: int) -> int | None:
        # By index: iterating over the blocks themselves would hold one more reference.
        for place in range(len(self._blocks)):
            is_free = _references(self._blocks, place) == self._free_count
            # Equal size only: the arrays of one loader have few sizes.
            if is_free and self._blocks[place].nbytes == num_bytes:
                return place
        return None


def _references(blocks: Sequence[np.ndarray], place: int) -> int:
    # An indexed element, as in `_find_free`, so that both expressions count the same references.
    return sys.getrefcount(blocks[place])


def _count_of_a_free_block() -> int | None:
    """The `_references` of a block without views; None where a view does not add a reference."""
    blocks = [np.empty(1, np.uint8)]
    free = _references(blocks, 0)
    view = blocks[0].view(np.int8)
    in_use = _references(blocks, 0)
    # Dropping the view has to lower the count again, which builds without the GIL may defer.
    del view
    is_exact = in_use == free + 1 and _references(blocks, 0) == free
    return free if is_exact else None


def step_spec(
    key: str, leaf: LeafSpec, dims: Sequence[str], conventions: Sequence[Conventions]
) -> LeafSpec:
    """Returns the type of one step of a feature with the names of its dimensions.

    Args:
      key: Key of the feature.
      leaf: Its dtype and its shape in a batch, without the batch axis.
      dims: Names of the dimensions of a vector; empty: they are numbered from 0.
      conventions: Conventions of each dataset, which know the grippers and rotations; the grippers
        are the same in all.
    """
    if len(leaf.shape) != 1:
        return leaf
    names = tuple(dims) or tuple(map(str, range(leaf.shape[0])))
    grippers = conventions[0].all_grippers if key == ACTION else ()
    raw = frozenset(names[gripper.dim] for gripper in grippers)
    stated = [one.rotation_names(key, names) for one in conventions]
    # Where datasets differ, no representation is that of all.
    rotations = {
        name: " or ".join(sorted({one[name] for one in stated if name in one}))
        for name in names
        if any(name in one for one in stated)
    }
    return LeafSpec(leaf.dtype, leaf.shape, names, raw, rotations)


def read_spec(
    config: DataConfig, steps: Mapping[str, LeafSpec], cameras: Collection[str], batch_size: int
) -> BatchSpec:
    """Returns the types of the arrays of a batch as it is read, before any transform.

    Args:
      config: Config of the loader.
      steps: Type of one step of the action and of each observation, by key.
      cameras: Names of the observations that are images.
      batch_size: Number of samples.
    """
    b, w, h = batch_size, config.window_size, config.action_horizon

    def over(step: LeafSpec, *axes: int) -> LeafSpec:
        return dataclasses.replace(step, shape=(*axes, *step.shape))

    spec = {DATASET_INDEX: LeafSpec("int32", (b,)), KEEPS_TEXT: LeafSpec("bool", (b,))}
    for name in config.observations:
        key = f"observation/{name}"
        # Tokens and proprio may have a shorter window than the images.
        spec[key] = over(steps[key], b, config.window_of(name))
        spec[f"observation/pad_mask_dict/{name}"] = LeafSpec("bool", (b, w))
    spec["observation/timestep"] = LeafSpec("int32", (b, w))
    spec["observation/timestep_pad_mask"] = LeafSpec("bool", (b, w))
    spec[ACTION] = over(steps[ACTION], b, w, h)
    # One value per action dimension, as Octo's loss expects, although all of a step are equal.
    spec["action_pad_mask"] = LeafSpec("bool", spec[ACTION].shape, spec[ACTION].dims)
    spec["task/task_index"] = LeafSpec("int32", (b,))
    spec["sample_index"] = LeafSpec("int32", (b,))
    if config.has_goals:
        spec["task/timestep"] = LeafSpec("int32", (b,))
        for name in cameras:
            spec[f"task/{name}"] = LeafSpec("uint8", (b, *steps[f"observation/{name}"].shape))
            spec[f"task/pad_mask_dict/{name}"] = LeafSpec("bool", (b,))
    return spec


def read_record(column: ColumnReader, index: int) -> Values:
    """Returns what `ColumnReader.read` returns."""
    return column.read(index)


@dataclasses.dataclass(frozen=True)
class Windows:
    """The steps that each sample of a batch reads."""

    dataset: np.ndarray
    """int (b): index of the dataset in the mixture."""
    episode: np.ndarray
    """int (b): record in the episode column."""
    first: np.ndarray
    """int (b): first step of that episode in the dataset."""
    task: np.ndarray
    """int (b): the dataset's task at the current step."""
    history: np.ndarray
    """int (b w): steps inside the episode."""
    history_mask: np.ndarray
    """bool (b w): False before the first step of the episode, or of the chosen part of it."""
    chunk: np.ndarray
    """int (b w h): steps of the actions."""
    chunk_mask: np.ndarray
    """bool (b w h): False past the last action that counts."""
    goal: np.ndarray
    """int (b): step of the goal; the last step if the task is not given by goal images."""
    has_goal: np.ndarray
    """bool (b): whether the task is given by goal images instead of the instruction."""


@dataclasses.dataclass(frozen=True)
class WindowReader:
    """Reads a batch of samples: windows, chunks, goals and masks, with values as stored."""

    datasets: tuple[Dataset, ...]
    """The mixture; all have the same features, except those that the config lists as missing."""
    selections: tuple[Selection, ...]
    """Selected steps of each dataset."""
    config: DataConfig
    """Config of the observations, the window, the horizon and the goals."""
    image_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Height and width, by camera, to which images are resized if the datasets' sizes differ."""
    buffers: Buffers = dataclasses.field(default_factory=Buffers, compare=False, repr=False)
    """Pool that holds the arrays of the batches."""
    for_each: ForEach = dataclasses.field(default=in_turn, compare=False, repr=False)
    """Reads the samples of a batch: one after the other, or in threads."""
    read_episode: Callable[[ColumnReader, int], Values] = dataclasses.field(
        default=read_record, compare=False, repr=False
    )
    """Reads the trajectory of a sample."""

    @functools.cached_property
    def features(self) -> tuple[Feature, ...]:
        """The action, then the observations in the config's order, as they are in a batch."""
        return tuple(map(self._in_batch, self.config.keys))

    def stored(self, place: int, key: str) -> Feature:
        """Returns a feature as a dataset stores it, or as in a batch if the dataset lacks it."""
        if key.removeprefix("observation/") in self.config.datasets[place].missing:
            return next(feature for feature in self.features if feature.key == key)
        column, feature = self._find(place, key)
        return column.in_batch(feature)

    @functools.cached_property
    def columns(self) -> tuple[frozenset[str], ...]:
        """The columns that are read from each dataset."""
        return tuple(frozenset({EPISODES, *keys}) for keys in self._keys_by_column)

    @functools.cached_property
    def _has_camera(self) -> np.ndarray:
        """Whether samples of a dataset can have goal images; bool (datasets)."""
        return np.array([bool(set(self.cameras) - set(p.missing)) for p in self.config.datasets])

    @functools.cached_property
    def cameras(self) -> tuple[str, ...]:
        """Names of the observations that are images."""
        return self._names(Column.is_camera)

    @functools.cached_property
    def lowdims(self) -> tuple[str, ...]:
        """Names of the observations that are float32 vectors of the trajectories."""
        return self._names(Column.is_lowdim)

    @functools.cached_property
    def trajectories(self) -> tuple[str, ...]:
        """Names of the observations that are read from the episode column."""
        return self._names(lambda column, _: column.per == "episode")

    def _names(self, is_one: Callable[[Column, Feature], bool]) -> tuple[str, ...]:
        keys = {name: f"observation/{name}" for name in self.config.observations}
        # Any dataset that has the feature: all of them agree on its kind.
        return tuple(
            name for name, key in keys.items() if is_one(*self._find(self.having(key)[0], key))
        )

    def spec(self, batch_size: int) -> BatchSpec:
        """Returns the types of the arrays of a batch of `batch_size` samples."""
        steps = {key: self._step(key, feature) for key, feature in self._features.items()}
        return read_spec(self.config, steps, self.cameras, batch_size)

    @functools.cached_property
    def _features(self) -> dict[str, Feature]:
        return {feature.key: feature for feature in self.features}

    def _step(self, key: str, feature: Feature) -> LeafSpec:
        """Returns the type of one step of a feature, with the names of its dimensions."""
        is_depth = feature.kind == "depth"
        leaf = LeafSpec(str(feature.batch_dtype), feature.shape, is_depth=is_depth)
        having = [self.datasets[place].manifest.conventions for place in self.having(key)]
        return step_spec(key, leaf, self.dims(key), having)

    def dims(self, key: str) -> tuple[str, ...]:
        """Returns the names of a feature's dimensions; empty if no dataset names them."""
        # A dataset without names does not contradict the others.
        named = (self._find(place, key)[1].dims for place in self.having(key))
        return next(filter(None, named), ())

    def __call__(self, samples: Samples) -> FlatBatch:
        """Reads a batch.

        Returns:
          Arrays of the types in `spec`; `task/task_index` indexes each dataset's own tasks.

        Raises:
          RecordError: A record or image is corrupt.
          DataError: A shard is corrupt.
        """
        windows = self.locate(samples)
        spec = self.spec(len(windows.dataset))
        batch = {key: self.buffers.empty(leaf.shape, leaf.dtype) for key, leaf in spec.items()}
        # int32, because jax has no int64 by default; a run of 2**31 samples would wrap.
        batch["sample_index"][...] = samples.index % 2**31
        batch[DATASET_INDEX][...] = windows.dataset
        batch[KEEPS_TEXT][...] = ~windows.has_goal
        batch["observation/timestep"][...] = windows.history
        batch["observation/timestep_pad_mask"][...] = windows.history_mask
        # (b, w, h, 1) broadcast over the action's dimensions
        batch["action_pad_mask"][...] = windows.chunk_mask[..., None]
        batch["task/task_index"][...] = windows.task
        if self.config.has_goals:
            batch["task/timestep"][...] = windows.goal
        # Before the reads, which leave missing inputs as they are.
        self._mask_inputs(batch, windows)
        # Each writes its own rows; reads and JPEG decoding release the GIL for other threads.
        read = functools.partial(self._read_sample, batch, windows)
        self.for_each(read, len(windows.dataset))
        return batch

    def _read_sample(self, batch: FlatBatch, windows: Windows, sample: int) -> None:
        """Fills the rows of one sample."""
        self._read_episode(batch, windows, sample)
        self._read_steps(batch, windows, sample)
        self._read_goal(batch, windows, sample)

    def locate(self, samples: Samples) -> Windows:
        """Computes the windows of samples, without reading anything."""
        t, first, begin, end, episode, task = (np.empty_like(samples.step) for _ in range(6))
        has_text = np.ones(len(t), bool)
        for number, dataset in enumerate(self.datasets):
            rows = np.flatnonzero(samples.dataset == number)
            episode[rows], t[rows] = dataset.locate(samples.step[rows])
            # Steps of the dataset; the steps of `Windows` count from the episode's first one.
            first[rows] = dataset.episode_starts[episode[rows]]
            borders = np.stack([first[rows], dataset.episode_starts[episode[rows] + 1]], axis=1)
            reached = self.selections[number].bounds(samples.step[rows], borders)
            begin[rows], end[rows] = reached.T - first[rows]
            # Instructions may change inside an episode, so the task is looked up by step.
            for row in rows.tolist():
                task[row] = dataset.task_index(int(episode[row]), int(t[row]))
                # An empty text means that goal images alone specify the task.
                has_text[row] = bool(dataset.manifest.tasks[task[row]])
        goal, has_goal = self._choose_goals(samples, first, t, end, has_text)
        # Steps before `begin` count as not recorded, like those of the episode before.
        history, history_mask = history_indices(t - begin, self.config.window_size)
        history += begin[:, None]
        horizon = self.config.action_horizon
        if self.config.octo_action_mask:
            mask = octo_action_mask(t, goal, self.config.window_size, horizon)
        else:
            # An instruction ends with the episode, a goal image with what it shows.
            mask = action_mask(history, np.where(has_goal, goal, end), horizon)
        return Windows(
            dataset=samples.dataset,
            episode=episode,
            first=first,
            task=task,
            history=history,
            history_mask=history_mask,
            chunk=chunk_indices(history, end, horizon),
            chunk_mask=mask,
            goal=goal,
            has_goal=has_goal,
        )

    def _choose_goals(
        self,
        samples: Samples,
        first: np.ndarray,
        t: np.ndarray,
        end: np.ndarray,
        has_text: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns `goal` and `has_goal` of `Windows`."""
        if not self.config.has_goals:
            return end - 1, np.zeros(len(t), bool)
        # Draw 0: the goal. Draw 1: goal images or text. Draws 2 and 3 are spare.
        goal = first + uniform_goals(t, end, samples.draws[:, 0])
        for number, selection in enumerate(self.selections):
            rows = samples.dataset == number
            # Replaces goals whose record is excluded.
            goal[rows] = selection.goals(samples.step[rows], goal[rows])
        is_multimodal = self.config.conditioning == "multimodal"
        # Without instructions in the conditioning, every sample keeps its goal images.
        probability = self.config.keep_image_prob if is_multimodal else 1.0
        has_goal = keeps_goal_images(has_text, probability, samples.draws[:, 1])
        # A dataset without cameras has no goal images to keep.
        has_goal &= self._has_camera[samples.dataset]
        # Back to steps that count from the episode's first one.
        return np.where(has_goal, goal - first, end - 1), has_goal

    def pad_mask(self, name: str, dataset: np.ndarray) -> np.ndarray:
        """Returns where samples have an observation; bool (b w).

        Args:
          name: Name of the observation.
          dataset: int (b), index of each sample's dataset.
        """
        has_it = np.array([name not in part.missing for part in self.config.datasets])
        mask = np.repeat(has_it[dataset][:, None], self.config.window_size, axis=1)
        # A shorter window is real only at its end: the steps before it are not read.
        mask[:, : -self.config.window_of(name)] = False
        return mask

    def _mask_inputs(self, batch: FlatBatch, windows: Windows) -> None:
        """Fills the pad masks of single inputs, and zeroes the missing ones."""
        for name in self.config.observations:
            mask = batch[f"observation/pad_mask_dict/{name}"]
            mask[...] = self.pad_mask(name, windows.dataset)
            # (b): samples whose dataset lacks this observation
            rows = ~mask[:, -1]
            # Blocks are reused, so what is not read has to be zeroed.
            batch[f"observation/{name}"][rows] = 0
            if self.config.has_goals and name in self.cameras:
                present = windows.has_goal & ~rows
                batch[f"task/pad_mask_dict/{name}"][...] = present
                batch[f"task/{name}"][~present] = 0

    def _read_episode(self, batch: FlatBatch, windows: Windows, sample: int) -> None:
        """Fills the low-dimensional arrays of one sample from its episode's record."""
        place = windows.dataset[sample]
        # One record holds the whole trajectory: proprio and action of all steps cost one read.
        column = self.datasets[place].columns[EPISODES]
        record = self.read_episode(column, int(windows.episode[sample]))
        history = windows.history[sample]
        # (w, h, a): fancy indexing repeats padded steps.
        actions = np.asarray(record[ACTION])[windows.chunk[sample]]
        batch[ACTION][sample] = actions.reshape(batch[ACTION].shape[1:])
        for key in self._keys_by_column[place].get(EPISODES, ()):
            shape = batch[key].shape[1:]
            # Some features have a window shorter than the history.
            batch[key][sample] = np.asarray(record[key])[history[-shape[0] :]].reshape(shape)

    def _read_steps(self, batch: FlatBatch, windows: Windows, sample: int) -> None:
        """Fills one sample's images and tokens, one record per step; copies padding unread."""
        place = windows.dataset[sample]
        first = int(windows.first[sample])
        for column, keys in self._keys_by_column[place].items():
            if column == EPISODES:
                continue
            reader = self.datasets[place].columns[column]
            windows_of = {key: batch[key].shape[1] for key in keys}
            history = windows.history[sample][-max(windows_of.values()) :].tolist()
            # Oldest first, so that a repeated first step can be copied from the row before it.
            for back in range(len(history), 0, -1):  # steps back from the window's end
                # Padding repeats the episode's first step: decode it once and copy the pixels.
                is_again = back < len(history) and history[-back] == history[-back - 1]
                wanted = [key for key in keys if back <= windows_of[key]]
                # Not at the window's first row, which has no row before it.
                copied = [key for key in wanted if is_again and back < windows_of[key]]
                for key in copied:
                    batch[key][sample, -back] = batch[key][sample, -back - 1]
                # Rows of the batch itself: the decoder writes into them without a copy.
                out = {key: batch[key][sample, -back] for key in wanted if key not in copied}
                # All features of a column in one read.
                if out:
                    reader.read_into(first + history[-back], out)

    def _read_goal(self, batch: FlatBatch, windows: Windows, sample: int) -> None:
        """Fills the goal images of one sample; copies them if the goal is the current step."""
        if not windows.has_goal[sample]:
            return
        place = windows.dataset[sample]
        goal, now = windows.goal[sample], windows.history[sample, -1]
        for column, keys in self._keys_by_column[place].items():
            cameras = self._cameras_of(keys)
            # The own step may be its own goal; its image was decoded a moment ago.
            if goal == now:
                for name in cameras:
                    batch[f"task/{name}"][sample] = batch[f"observation/{name}"][sample, -1]
            elif cameras:
                reader = self.datasets[place].columns[column]
                out = {f"observation/{name}": batch[f"task/{name}"][sample] for name in cameras}
                reader.read_into(int(windows.first[sample] + goal), out)

    def records(self, windows: Windows, sample: int) -> Iterator[tuple[str, int]]:
        """Yields the column and the record of each read of a sample.

        A step that padding repeats is read once.
        """
        place = windows.dataset[sample]
        first, history = int(windows.first[sample]), windows.history[sample]
        yield EPISODES, int(windows.episode[sample])
        for column, keys in self._keys_by_column[place].items():
            if column != EPISODES:
                window = max(self.config.window_of(k.removeprefix("observation/")) for k in keys)
                steps = history[-window:].tolist()
                goal = int(windows.goal[sample])
                if windows.has_goal[sample] and self._cameras_of(keys) and goal != steps[-1]:
                    steps.append(goal)
                # A dict drops the padding and keeps the order.
                yield from ((column, first + step) for step in dict.fromkeys(steps))

    def _cameras_of(self, keys: Sequence[str]) -> list[str]:
        names = [key.removeprefix("observation/") for key in keys]
        return [name for name in names if name in self.cameras]

    @functools.cached_property
    def _keys_by_column(self) -> tuple[dict[str, tuple[str, ...]], ...]:
        """Keys of the observations that are read from each column, for each dataset."""
        return tuple(map(self._group_by_column, range(len(self.datasets))))

    def _group_by_column(self, place: int) -> dict[str, tuple[str, ...]]:
        dataset, part = self.datasets[place], self.config.datasets[place]
        keys: dict[str, tuple[str, ...]] = {}
        for name in self.config.observations:
            if name not in part.missing:
                key = f"observation/{name}"
                column, _ = dataset.manifest.schema.find(key, dataset.path)
                # A tuple keeps the config's order of observations.
                keys[column.name] = (*keys.get(column.name, ()), key)
        return keys

    def _in_batch(self, key: str) -> Feature:
        """Returns a feature as in a batch; a camera of several sizes has its common size."""
        column, feature = self._find(self.having(key)[0], key)
        size = self.image_sizes.get(key.removeprefix("observation/"))
        if size is None or not column.is_camera(feature):
            return column.in_batch(feature)
        shapes = {self._find(place, key)[1].shape for place in self.having(key)}
        # Square, because the model resizes to squares; a camera of one size keeps its shape.
        return dataclasses.replace(feature, shape=(size, size, 3)) if len(shapes) > 1 else feature

    def _find(self, place: int, key: str) -> tuple[Column, Feature]:
        dataset = self.datasets[place]
        return dataset.manifest.schema.find(key, dataset.path)

    def having(self, key: str) -> list[int]:
        """Indices of the datasets that do not lack a feature; at least one."""
        name = key.removeprefix("observation/")
        return [n for n, part in enumerate(self.config.datasets) if name not in part.missing]
