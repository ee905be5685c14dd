"""The loader: turns dataset directories into checked batches by one explicit list of transforms."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from pipeline.data import statistics as stats
from pipeline.data.dataset import Dataset
from pipeline.data.schema import ACTION
from pipeline.data.statistics import FeatureStatistics
from pipeline.errors import UserError, shown
from pipeline.files import to_json_values
from pipeline.loading.batch import INTERNAL, BatchSpec
from pipeline.loading.data_config import DataConfig, Split
from pipeline.loading.loader_description import (
    describe,
    describe_dataset,
    predict_memory,
    resized,
)
from pipeline.loading.loader_state import (
    LoaderState,
    MixtureChange,
    MixturePart,
    checksum,
    config_fingerprint,
    continued,
    renewed,
    renewed_fingerprint,
)
from pipeline.loading.mixture import check_datasets
from pipeline.loading.normalize import (
    check_varying,
    make_normalizer,
    normalized_arrays,
    normalized_dims,
    used_statistics,
)
from pipeline.loading.reading.closable_stream import ClosableStream
from pipeline.loading.reading.sample_threads import SampleThreads
from pipeline.loading.samples.sampling import (
    WHOLE_BATCH,
    HostShard,
    SampleOrder,
    Samples,
    Turns,
    sample_draws,
)
from pipeline.loading.samples.splits import select_all
from pipeline.loading.text import Encode, TaskTable, tokenize
from pipeline.loading.transformed_statistics import transformed_statistics
from pipeline.loading.transforms.batch_transforms import (
    CheckBatch,
    LookUpTask,
    OwnTransform,
    StandardizeGripper,
    instruction_spec,
)
from pipeline.loading.transforms.normalize_transforms import Normalizer, with_normalizers
from pipeline.loading.transforms.transform_chain import TransformChain
from pipeline.loading.window_reader import Buffers, WindowReader
from pipeline.memory import LoaderMemory


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """The input of one training step."""

    arrays: dict[str, Any]
    """Nested numpy arrays that follow the contract of `pipeline.loading.batch`."""
    fingerprint: str
    """Checksum of every byte, 16 hex digits."""
    position: int
    """Number of batches before this one. After using it, resume from `position + 1`."""


class Loader:
    """Loads batches of a mixture; batch i is a pure function of the config, the data and i.

        with open_loader("data/libero_mini", batch_size=8) as loader:
            for batch in loader:                       # nested numpy arrays, without end
                batch["observation"]["proprio"]        # float32 (b w d), normalised

    Each `for` begins with the first batch; `batches` begins anywhere. The threads that read ahead
    stop when the `for`, the block or the program ends. `print(loader)` shows the chain of
    transforms.

    Args:
      config: What is read, and how.
      batch_size: Number of samples in a global batch, over all processes and devices.
      datasets: The opened directories of `config.datasets`, in order.
      encode: Tokenizer of the model's language encoder: the token ids of an instruction. None:
        batches hold no token ids, only `task/task_index`, the row of `loader.tasks.texts`.
      shard: The rows of every global batch that this process makes.
      image_sizes: Height and width, by camera, that the model resizes images to. Images are
        resized on the host if the datasets store them at different sizes.

    Raises:
      SchemaError: A dataset lacks a feature, its types differ from the other datasets', or its
        action is no float32 vector.
      DataError: A dataset's statistics do not belong to its features, or cannot normalise them.
      UserError: A filter leaves nothing, the processes do not divide the batch, or the memory
        budget is too small.
    """

    def __init__(
        self,
        config: DataConfig,
        batch_size: int,
        datasets: Sequence[Dataset],
        encode: Encode | None,
        shard: HostShard = WHOLE_BATCH,
        image_sizes: Mapping[str, int] | None = None,
    ) -> None:
        _check_batch_size(batch_size)
        self.config = config
        self.batch_size = batch_size
        self.datasets = tuple(datasets)
        self.shard = shard
        self._seed: int | None = config.seed
        self._changes: tuple[MixtureChange, ...] = ()
        self._own: tuple[OwnTransform, ...] = ()
        # Streams of running `for` loops, to be closed with the loader: their threads would outlive
        # it.
        self._streams: set[ClosableStream[LoadedBatch]] = set()
        self._has_ids = encode is not None
        self._selections = select_all(self.datasets, config)
        self._window_reader = WindowReader(
            self.datasets, self._selections, config, dict(image_sizes or {})
        )
        check_datasets(self._window_reader)
        for key, normalizer in self.normalizers.items():
            used, masks = self.statistics[key], list(normalizer.mask)
            kind = config.normalization
            check_varying(self.datasets, key, used, masks, self._transformed, kind)
        # A dict keeps the first occurrence: the same text in two datasets is one row of the table.
        texts = tuple(dict.fromkeys(t for d in datasets for t in d.manifest.tasks))
        self.tasks: TaskTable = tokenize(texts, encode or _no_ids, config.max_text_length)
        # Before the first read, where a killed process would be the only message.
        self.memory.check(config.ram_budget_gb)

    def __enter__(self) -> "Loader":
        """Returns the loader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the loader."""
        self.close()

    def close(self) -> None:
        """Stops the threads that read ahead, and ends every `for` over the loader.

        Any thread may call it. A `for` of another thread ends when the batch that it waits for is
        there, and its threads stop with it.
        """
        for stream in list(self._streams):
            stream.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the arrays of each batch, nested, without end, from the first batch.

        The threads that read ahead stop when the `for` ends, also by `break` or an exception.

        Raises:
          RecordError: A corrupt record or image, after the last batch that does not need it.
          DataError: A corrupt shard.
        """
        stream = ClosableStream(self.batches())
        self._streams.add(stream)
        try:
            for batch in stream:
                yield batch.arrays
        finally:
            stream.close()
            self._streams.discard(stream)

    def map(self, transform: Callable[[dict[str, Any]], dict[str, Any]]) -> "Loader":
        """Returns this loader with one more transform at the end of its chain.

        It runs in the threads that read ahead, on whole batches, after the checks: it may add, drop
        or change arrays of any shape and numeric dtype. The loader's `spec` describes the batch
        before it.

        Args:
          transform: Returns another batch, and does not modify the one that it is given.

        Raises:
          UserError: The transform cannot be called.
        """
        if not callable(transform):
            raise UserError(
                where="Loader.map",
                expected="a function from a batch to another",
                found=f"a {type(transform).__name__}",
                remedy="Give the function itself, without calling it: `loader.map(function)`.",
            )
        # A shallow copy shares the readers and the pool; only the list of streams is its own.
        mapped = copy.copy(self)
        mapped.__dict__.update(_own=(*self._own, OwnTransform(transform)), _streams=set())
        return mapped

    def without_random(self) -> "Loader":
        """Returns this loader without its random transforms, as for validation."""
        quiet = copy.copy(self)
        quiet.__dict__.update(_seed=None, _streams=set())
        return quiet

    def over_split(self, split: Split) -> "Loader":
        """Returns this loader over the episodes of another split, with the same statistics.

        A loader that is opened for that split would merge those of a mixture by other shares.

        Raises:
          UserError: The split leaves nothing of a dataset.
          RecordError: A trajectory is corrupt, and the split reads all of them.
        """
        config = dataclasses.replace(self.config, split=split)
        selections = select_all(self.datasets, config)
        reader = dataclasses.replace(self._window_reader, selections=selections, config=config)
        other = copy.copy(self)
        # What was computed of the selected steps, but for the statistics.
        for name in ("_weights", "shares", "_mixture"):
            other.__dict__.pop(name, None)
        other.__dict__.update(
            config=config, _selections=selections, _window_reader=reader, _streams=set()
        )
        return other

    def over_whole_episodes(self) -> "Loader":
        """Returns this loader with windows that reach the ends of their episodes.

        What a policy observes does not end where a config's `trim` or `segments` do.
        """
        whole = copy.copy(self)
        selections = tuple(selection.over_whole_episodes() for selection in self._selections)
        reader = dataclasses.replace(self._window_reader, selections=selections)
        whole.__dict__.update(_window_reader=reader, _streams=set())
        return whole

    def __str__(self) -> str:
        """The datasets, the chain of transforms and the size of a batch, in at most 15 lines."""
        return describe(self)

    def __repr__(self) -> str:
        """The size of a batch and of the data, in one line."""
        paths = ", ".join(dataset.path for dataset in self.datasets)
        return f"Loader({self.batch_size} of {self.num_steps} steps of {paths})"

    @property
    def has_own_transforms(self) -> bool:
        """Whether transforms were added with `map`."""
        return bool(self._own)

    @functools.cached_property
    def spec(self) -> BatchSpec:
        """The contract: the type of every leaf of a global batch, known without any read."""
        return self._spec(self.batch_size)

    def transforms(self, batch_size: int | None = None) -> list[Callable[[Any], Any]]:
        """Returns the transforms that turn `Samples` into a batch, in order.

        Args:
          batch_size: Samples of a batch; None: as many as this process makes of each.
        """
        # Per process: `batch_size` is global.
        size = len(self.shard.rows(self.batch_size)) if batch_size is None else batch_size
        conventions = tuple(d.manifest.conventions for d in self.datasets)
        # Read, standardise, transform, normalise, look up, check: the order matters. Statistics are
        # of what is normalised, and the gripper is not.
        return [
            self._window_reader,
            StandardizeGripper(conventions),
            *self._chain(size).stages,
            # After `Normalize`, which indexes statistics by dataset, not by task row.
            LookUpTask(self.tasks, tuple(map(self._rows, self.datasets)), self._has_ids),
            CheckBatch(self._spec(size)),
            # After the check, because a user's arrays have no contract.
            *self._own,
        ]

    def _chain(self, batch_size: int) -> TransformChain:
        """Returns the config's transforms, and after them those that normalise."""
        return with_normalizers(self._transforms(batch_size), self.normalizers, self._seed)

    def _transforms(self, batch_size: int) -> TransformChain:
        spec = self._window_reader.spec(batch_size)
        return TransformChain.bind(self.config.transforms, spec, self._seed)

    def batches(self, position: int = 0) -> Generator[LoadedBatch]:
        """Yields batches without end, starting with batch `position`; close it after use.

        Raises:
          UserError: There is no such batch.
          RecordError: A record or image is corrupt; all batches before it are yielded first.
          DataError: A shard is corrupt.
          SchemaError: A batch breaks the contract.
        """
        order = self.order()
        if not isinstance(position, int | np.integer) or not 0 <= position < len(order):
            raise UserError(
                where="Loader.batches, position",
                expected=f"an integer from 0 to {len(order) - 1}",
                found=shown(position),
                remedy="Give the number of batches to leave out before the first one.",
            )
        stream: Any = grain.MapDataset.source(order)
        columns = [reader for one in self.datasets for reader in one.columns.values()]
        threads = SampleThreads(self.config.num_threads, columns)
        reader = dataclasses.replace(self._window_reader, for_each=threads)
        # In place of the first transform, which reads one sample after the other.
        for transform in (reader, *self.transforms()[1:]):
            stream = stream.map(transform)
        # Grain has a thread for each batch ahead, which waits for those that read its samples and
        # runs the other transforms; processes would import JAX in each, 12 to 26 s.
        ahead = self.config.prefetch_batches
        options = grain.ReadOptions(ahead if self.config.num_threads else 0, ahead)
        iterator = iter(stream.to_iter_dataset(options))
        # A number is the whole state: nothing is read to get there.
        iterator.set_state({"next_index": position})
        try:
            for arrays, fingerprint in iterator:
                yield LoadedBatch(arrays, fingerprint, position)
                position += 1
        finally:
            # Also after an exception or an early end of the loop, or the threads would read on.
            iterator.close()
            # After it, or Grain would begin the next batch.
            threads.close()

    def read(self, dataset: int, steps: Sequence[int]) -> dict[str, Any]:
        """Reads a batch of given steps, with the same transforms as `batches`; nested arrays.

        Args:
          dataset: Index in the mixture.
          steps: Steps of that dataset, from 0, at least one. The random draws (of goals
            and conditioning) are those of the first samples of a run.

        Raises:
          UserError: There is no such dataset or step.
          RecordError: A corrupt record or image.
        """
        self._check_place(dataset)
        num_steps = self.datasets[dataset].num_steps
        # A float would be cut to the step below it.
        unknown = [
            step
            for step in steps
            if not isinstance(step, int | np.integer) or not 0 <= step < num_steps
        ]
        if unknown or not len(steps):
            raise UserError(
                where=f"Loader.read, steps of {self.datasets[dataset].path}",
                expected=f"one or more integers from 0 to {num_steps - 1}",
                found=", ".join(map(shown, unknown)) or "none",
                remedy="Count the steps of all episodes: `dataset.episode_starts` has the first of "
                "each.",
            )
        batch: Any = Samples(
            # The first samples of the run, so a window looks the same at every call.
            index=np.arange(len(steps)),
            dataset=np.full(len(steps), dataset),
            step=np.asarray(steps, np.int64),
            draws=sample_draws(self.config.seed, 0, len(steps)),
        )
        # Blocks of its own: the pool would keep one for each number of steps that was ever read.
        reader = dataclasses.replace(self._window_reader, buffers=Buffers())
        for transform in (reader, *self.transforms(len(steps))[1:]):
            batch = transform(batch)
        # Without the fingerprint.
        return batch[0]

    def window(self, step: int, dataset: int = 0) -> dict[str, Any]:
        """Returns one sample, as a batch has it but without the batch axis; nested arrays.

        `["observation"]["image_primary"]` is uint8 (w y x 3), `["action"]` float32 (w h a).

        Args:
          step: The current step of the window, counted over the steps of all episodes.
          dataset: Index in the mixture.

        Raises:
          UserError: There is no such dataset or step.
          RecordError: A corrupt record or image.
        """
        return _first_sample(self.read(dataset, [step]))

    def normalize(self, key: str, values: np.ndarray, dataset: int = 0) -> np.ndarray:
        """Returns values as a batch has them; float32 (..., d), the inverse of `unnormalize`.

        Args:
          key: `action`, or a normalised observation such as `observation/proprio`.
          values: float32 (..., d), in the dataset's units. The gripper of an action, 1 = open and
            0 = close, stays as it is.
          dataset: Index in the mixture of the dataset whose statistics are used.

        Raises:
          UserError: The feature is not normalised, or there is no such dataset.
        """
        rows, normalizer = self._flat(key, values, dataset)
        # Rows of one dataset: the normalizer looks its statistics up by dataset index.
        return normalizer.normalize(rows, np.full(len(rows), dataset)).reshape(np.shape(values))

    def unnormalize(self, key: str, values: np.ndarray, dataset: int = 0) -> np.ndarray:
        """Returns values of a batch, or predicted ones, in the dataset's units; float32 (..., d).

        With `data.transforms` they are as these leave them.

        The gripper of an action stays 1 = open and 0 = close;
        `restore_gripper(actions, manifest.conventions)` turns it into the dataset's commands.

        Args:
          key: `action`, or a normalised observation such as `observation/proprio`.
          values: float32 (..., d), numpy or JAX.
          dataset: Index in the mixture of the dataset whose statistics are used.

        Raises:
          UserError: The feature is not normalised, or there is no such dataset.
        """
        rows, normalizer = self._flat(key, values, dataset)
        found = normalizer.unnormalize(rows, np.full(len(rows), dataset))
        return found.reshape(np.shape(values))

    def _flat(self, key: str, values: Any, dataset: int) -> tuple[np.ndarray, Normalizer]:
        """Values as rows (b d), and the normalizer of their feature."""
        self._check_place(dataset)
        if key not in self.normalizers:
            raise UserError(
                where="loader, normalised feature",
                expected="one of " + ", ".join(self.normalizers),
                found=key,
                remedy="Others are not normalised: a batch has them in the dataset's units.",
            )
        dims = self.normalizers[key].offset.shape[-1]
        if np.shape(values)[-1:] != (dims,):
            raise UserError(
                where=f"loader, values of {key}",
                expected=f"an array whose last axis has {dims} numbers",
                found=f"the shape {np.shape(values)}",
                remedy="Give whole vectors, with any axes before the last.",
            )
        return np.asarray(values, np.float32).reshape(-1, dims), self.normalizers[key]

    def _check_place(self, dataset: int) -> None:
        if not 0 <= dataset < len(self.datasets):
            raise UserError(
                where="loader, dataset",
                expected=f"an index in the mixture, 0 to {len(self.datasets) - 1}",
                found=str(dataset),
                remedy="`loader.datasets` lists them.",
            )

    def example(self, dataset: int) -> np.ndarray:
        """Returns the sampled steps of one episode of a dataset, ascending; int64 (t)."""
        return self._selections[dataset].example()

    def longest_episode(self, dataset: int) -> int:
        """Returns the steps of the longest episode of a dataset, or of its longest chosen part."""
        spans = self._selections[dataset].spans
        starts = self.datasets[dataset].episode_starts
        return int(np.diff(spans).max() if len(spans) else np.diff(starts).max())

    def order(self) -> SampleOrder:
        """Returns the source that lists the samples of every batch, for this process's rows."""
        return SampleOrder(
            self._selections, self._weights, self.config.seed, self.batch_size, self.shard
        )

    @functools.cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of the samples that come from each dataset; they sum to 1."""
        return Turns(self._weights).shares

    @functools.cached_property
    def _weights(self) -> tuple[float, ...]:
        weights = []
        for selection, part in zip(self._selections, self.config.datasets, strict=True):
            by_steps = self.config.balance or part.weight is None
            # With `balance`, or without a weight, every selected step counts, by its own weight;
            # else the dataset does.
            weights.append((part.weight or 1.0) * (selection.num_samples if by_steps else 1))
        return tuple(weights)

    @property
    def tokenizes(self) -> bool:
        """Whether batches hold the token ids of instructions."""
        return self._has_ids

    @property
    def num_steps(self) -> int:
        """Number of selected steps of all datasets."""
        return sum(selection.num_steps for selection in self._selections)

    @functools.cached_property
    def normalizers(self) -> dict[str, Normalizer]:
        """Normalizers of the action (except its gripper) and of the normalised observations."""
        made = {}
        for key, leaf in self._normalized.items():
            name = key.removeprefix("observation/")
            # A missing feature is all zeros, which normalising would turn into other values.
            masks = [normalized_dims(leaf) & (name not in p.missing) for p in self.config.datasets]
            made[key] = make_normalizer(self.statistics[key], masks, self.config.normalization)
        return made

    @functools.cached_property
    def statistics(self) -> dict[str, list[FeatureStatistics]]:
        """Statistics that each dataset's samples are normalised by, by feature."""
        args = (self.config, self.datasets, self.shares)
        return stats.StatisticsByKey(
            {
                key: used_statistics(*args, key, leaf, self._transformed)
                for key, leaf in self._normalized.items()
            }
        )

    @functools.cached_property
    def _transformed(self) -> list[dict[str, FeatureStatistics]]:
        """Statistics of each dataset of what the transforms change."""
        numbers = range(len(self.datasets))
        return [transformed_statistics(self.datasets, n, self.config) for n in numbers]

    @functools.cached_property
    def _normalized(self) -> BatchSpec:
        """Types of the arrays that are normalised: the action, then the observations."""
        return normalized_arrays(self.config, self._transforms(1).spec, self.lowdims)

    @property
    def normalized(self) -> tuple[str, ...]:
        """Names of the observations that are normalised."""
        return tuple(k.removeprefix("observation/") for k in self._normalized if k != ACTION)

    @property
    def lowdims(self) -> tuple[str, ...]:
        """Names of the observations that are float32 vectors of the trajectories."""
        return self._window_reader.lowdims

    @property
    def raw(self) -> tuple[str, ...]:
        """Names of the observations of the trajectories that are not normalised."""
        return tuple(n for n in self._window_reader.trajectories if n not in self.normalized)

    def describe_datasets(self) -> dict[str, Any]:
        """Describes the training data for a policy's checkpoint: JSON values by dataset path."""
        return {
            dataset.path: describe_dataset(
                n, self._window_reader, self.config, self.statistics, self._normalized
            )
            for n, dataset in enumerate(self.datasets)
        }

    @functools.cached_property
    def memory(self) -> LoaderMemory:
        """Predicted memory of the loader."""
        local = self._spec(len(self.shard.rows(self.batch_size)))
        num_bytes = sum(leaf.nbytes for leaf in local.values())
        return predict_memory(num_bytes, self._window_reader, self.config)

    def state(self, position: int) -> LoaderState:
        """Returns the state of the loader after `position` batches, for a checkpoint."""
        return LoaderState(position, self.fingerprint, self._mixture, self._changes)

    def restore(self, state: LoaderState, *, new_mixture: bool = False) -> int:
        """Checks a state and returns its position; later states keep its earlier mixtures.

        Args:
          state: A state that `state` returned.
          new_mixture: Whether the mixture may differ from here on.

        Raises:
          DataError: The state is of another order, of other shapes or, unless `new_mixture`, of
            another mixture.
        """
        # Older checksums are translated first, so that `continued` compares like with like.
        manifests = [dataset.manifest for dataset in self.datasets]
        known = dataclasses.replace(
            state,
            fingerprint=renewed_fingerprint(state.fingerprint, self.config, self.batch_size),
            mixture=tuple(renewed(state.mixture, manifests, self._window_reader.columns)),
        )
        continuing = continued(known, self.state(0), new_mixture=new_mixture)
        self._changes = continuing.changes
        return continuing.position

    @functools.cached_property
    def fingerprint(self) -> str:
        """Checksum, 16 hex digits, of everything but the mixture that determines batch i."""
        return config_fingerprint(self.config, self.batch_size)

    @functools.cached_property
    def _mixture(self) -> tuple[MixturePart, ...]:
        return tuple(map(self._part, range(len(self.datasets))))

    def _part(self, number: int) -> MixturePart:
        """Describes a dataset for a state: by everything that determines its samples."""
        dataset, selection = self.datasets[number], self._selections[number]
        settings = {
            "selection": selection.digest(),
            "conventions": to_json_values(dataset.manifest.conventions),
            "statistics": {k: s[number].to_json() for k, s in self.statistics.items()},
            "tasks": self.tasks.input_ids[self._rows(dataset)].tolist(),
            "missing": self.config.datasets[number].missing,
            # Absent if empty, so that runs saved before this setting still resume.
            **({"resized": changed} if (changed := resized(self._window_reader, number)) else {}),
        }
        return MixturePart(
            name=dataset.manifest.name,
            path=dataset.path,
            steps=selection.num_steps,
            share=self.shares[number],
            data=dataset.manifest.digest(self._window_reader.columns[number]),
            settings=checksum(settings),
            excluded=self.config.datasets[number].excluded,
            excluded_episodes=dataset.manifest.excluded_episodes,
            choice=self.config.datasets[number].choice(),
        )

    def _spec(self, batch_size: int) -> BatchSpec:
        spec = {k: v for k, v in self._chain(batch_size).spec.items() if k not in INTERNAL}
        length = self.config.max_text_length if self._has_ids else None
        spec |= instruction_spec(batch_size, length)
        # Sorted, as jax flattens dictionaries: both sides then agree on the order of leaves.
        return dict(sorted(spec.items()))

    def _rows(self, dataset: Dataset) -> np.ndarray:
        """Rows of the task table for the tasks of a dataset; int32 (tasks)."""
        rows = {text: row for row, text in enumerate(self.tasks.texts)}
        return np.array([rows[text] for text in dataset.manifest.tasks], np.int32)


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UserError(
            where="loader, batch_size",
            expected="an integer of at least 1",
            found=repr(batch_size),
            remedy="Give the number of samples in a batch, such as 8.",
        )


def _no_ids(text: str) -> Sequence[int]:
    """The token ids of any instruction where there is no vocabulary."""
    del text
    return ()


def _first_sample(batch: dict[str, Any]) -> dict[str, Any]:
    """The first sample of nested arrays; numbers that one's own transforms add stay as they are."""
    first: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            first[key] = _first_sample(value)
        else:
            first[key] = value[0] if np.ndim(value) else value
    return first
