"""Computes tokens of a dataset's images: as a column of the dataset, or as a report about one."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from converters.job.column_job import ColumnJob, Record
from converters.job.columns import check_free, claimed, clear_up
from converters.job.job_progress import clock
from converters.vggt.sample_errors import measure, sample_steps
from converters.vggt.step_images import FrameReader
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.data.schema import Column
from pipeline.data.token_provenance import Keep, Store, TokenOrigin
from pipeline.errors import UserError
from pipeline.files import to_json_values
from pipeline.loading.device import batch_sharding, make_mesh, replicated
from pipeline.terminal import program
from pipeline.vggt.aggregator_weights import VggtWeights, load_weights
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.encoder_spec import ComputeDtype, EncoderSpec, Precision, VggtConfig, Views
from pipeline.vggt.token_storage import Packed, TokenEncoder
from pipeline.vggt.weight_sources import config_of

OnProgress = Callable[[int, int], None]
"""Called with the images encoded, and the bytes written for them, since the last call."""
IMAGE = "image_"
"""Before a camera's name, in its observation's."""
OBSERVATION = "observation/"
ALL = Keep("all")
_STORES: tuple[Store, ...] = ("f16", "bf16", "int8")
_MEASURED_FIELDS = ("storage_error", "reduction_error", "projection_digest")
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class TokenSettings:
    """A column of tokens."""

    name: str
    """Name of the column, and of its feature below observation/ if there is one."""
    cameras: tuple[str, ...] = ("image_primary",)
    """Observations, in the order in which a joint sequence has them."""
    views: Views = "single"
    """Whether cameras see each other."""
    layers: tuple[int, ...] = ()
    """Pairs of blocks whose tokens are kept; empty: the last."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels that images are brought to."""
    keep: Keep = ALL
    """The tokens that are stored."""
    store: Store = "f16"
    """How they are stored."""
    compute_dtype: ComputeDtype = "float32"
    """Dtype of the weights and the matrix products."""
    precision: Precision = "highest"
    """Precision of float32 matrix products."""

    def layers_of(self, model: VggtConfig) -> tuple[int, ...]:
        """The layers, of a model."""
        return self.layers or (model.num_layers - 1,)

    def keys(self, model: VggtConfig) -> Iterator[tuple[str, int, str]]:
        """Yields (feature key, layer, camera): a layer or a camera is named where there are more.

        Layers 11 and 23 of two cameras are `NAME_11_primary`, `NAME_11_wrist`, `NAME_23_primary`
        and `NAME_23_wrist`.
        """
        layers = self.layers_of(model)
        for layer, camera in itertools.product(layers, self.cameras):
            of_layer = f"_{layer}" if len(layers) > 1 else ""
            of_camera = f"_{camera.removeprefix(IMAGE)}" if len(self.cameras) > 1 else ""
            yield f"{OBSERVATION}{self.name}{of_layer}{of_camera}", layer, camera

    def spec(self, model: VggtConfig, weights: tuple[str, str, str]) -> EncoderSpec:
        """The encoder of all features.

        Args:
          model: Model of the weights.
          weights: Their source, digest and licence.

        Raises:
          UserError: Where the model has no such layers, or the images no such size.
        """
        source, digest, licence = weights
        try:
            spec = EncoderSpec(
                source,
                digest,
                licence,
                cameras=self.cameras,
                model=model,
                layers=self.layers_of(model),
                views=self.views,
                image_size=self.image_size,
                kept=self.keep.kept,
                compute_dtype=self.compute_dtype,
                precision=self.precision,
            )
            self.keep.shape(spec)
        except ValueError as error:
            raise misused("settings that fit each other and the model", str(error)) from error
        return spec

    def origins(self, spec: EncoderSpec) -> dict[str, TokenOrigin]:
        """What is known of each feature, by key, before its error is measured."""
        origins = {}
        for key, layer, camera in self.keys(spec.model):
            # In a single sequence other cameras change no token.
            cameras = self.cameras if self.views == "joint" else (camera,)
            origins[key] = TokenOrigin(
                dataclasses.replace(spec, layers=(layer,), cameras=cameras),
                camera,
                str(self.keep),
                self.store,
                storage_error=0.0,
            )
        return origins


def misused(expected: str, found: str) -> UserError:
    """The error of a flag."""
    remedy = f"See `{program('converters.vggt')} --help`."
    return UserError(where="command line", expected=expected, found=found, remedy=remedy)


@dataclasses.dataclass(frozen=True)
class TokenJob:
    """Tokens of the images of a dataset."""

    dataset: Dataset
    """Opened."""
    settings: TokenSettings
    """What is computed."""
    weights: VggtWeights
    """Loaded, on every device."""
    batch_size: int
    """Steps that are encoded at a time, over all devices."""

    @classmethod
    def load(
        cls,
        dataset: Dataset,
        settings: TokenSettings,
        source: str,
        batch_size: int,
        licence: str | None = None,
    ) -> "TokenJob":
        """Loads the weights of a source after checking that the settings fit its model.

        Raises:
          UserError: Where they do not, or the weights are not to be had.
        """
        model = config_of(source)
        # Its checks alone: settings that do not fit must not cost a download.
        settings.spec(model, (source, "", ""))
        weights = load_weights(
            source,
            layers=settings.layers_of(model),
            dtype=settings.compute_dtype,
            licence=licence,
            sharding=replicated(make_mesh()),
        )
        return cls(dataset, settings, weights, batch_size)

    @property
    def spec(self) -> EncoderSpec:
        """The encoder of all features."""
        weights = (self.weights.source, self.weights.digest, self.weights.licence)
        return self.settings.spec(self.weights.config, weights)

    @property
    def frames(self) -> FrameReader:
        """The images."""
        return FrameReader(self.dataset, self.settings.cameras, self.batch_size)

    @property
    def licence(self) -> str:
        """What binds the column."""
        return column_licence(self.spec.licence, self.dataset.manifest, self.frames.columns)

    def column_job(self, manifest: Manifest) -> tuple[ColumnJob, dict[str, TokenOrigin]]:
        """(the column on its way into the dataset, what is known of its features before)."""
        origins = self.settings.origins(self.spec)
        directory = epath.Path(self.dataset.path)
        return column_of(directory, manifest, self.settings.name, origins), origins

    def encoder(self, origins: Mapping[str, TokenOrigin]) -> TokenEncoder:
        """Makes the encoder on all devices."""
        sharding = batch_sharding(make_mesh(), self.batch_size)
        return TokenEncoder(VggtEncoder(self.spec, self.weights, sharding), origins)


def column_of(
    directory: epath.Path, manifest: Manifest, name: str, origins: Mapping[str, TokenOrigin]
) -> ColumnJob:
    """The column of tokens on its way into a dataset.

    Raises:
      SchemaError: Where the dataset has no images of a camera.
    """
    features = tuple(origin.feature(key) for key, origin in origins.items())
    known = {key: _known(origin) for key, origin in origins.items()}
    cameras = {camera for origin in origins.values() for camera in origin.encoder.cameras}
    find = manifest.schema.find
    reads = frozenset(find(OBSERVATION + camera, str(directory))[0].name for camera in cameras)
    return ColumnJob(directory, manifest, Column(name, "step", features), known, reads)


def column_licence(of_weights: str, manifest: Manifest, reads: Iterable[str]) -> str:
    """What binds a column: the licence of the weights, and those of the columns of images."""
    of_images = dict.fromkeys(manifest.licences[name] for name in sorted(reads))
    return f"{of_weights} (weights); {', '.join(of_images)} (images)"


def add_tokens(
    job: TokenJob,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = lambda num_frames, num_bytes: None,
) -> Manifest:
    """Computes the column and puts it into the dataset.

    A job that was killed resumes where it stopped when it is called again.

    Args:
      job: What is computed.
      overwrite: Whether a computed column of that name gives way, once this one is there, or an
        unfinished one of other settings.
      on_progress: Called with images and bytes as they are done; images without bytes were done
        by an earlier run. With neither, a shard is done.

    Returns:
      The manifest that was written.

    Raises:
      UserError: Where the name is taken, the disk has no room, another job is at work in the
        dataset, or tokens cannot be stored.
    """
    directory = epath.Path(job.dataset.path)
    # Held for the whole job, so that no other one changes the dataset.
    with claimed(directory) as manifest:
        columns, origins = job.column_job(manifest)
        # Published by this plan already: killed before it cleared up, or asked for once more.
        if columns.is_published() and (overwrite or columns.is_begun()):
            clear_up(directory, job.settings.name)
            return manifest
        check_free(manifest, job.settings.name, origins, job.dataset.path, overwrite=overwrite)
        numbers = range(len(columns.steps))
        # Shards of a plan that was not noted belong to another job.
        pending = columns.pending() if columns.is_begun() else numbers
        columns.check_room(pending)
        columns.begin(overwrite=overwrite)
        encoders = write_shards(job, columns, numbers, on_progress)
        return columns.finish(job.licence, encoders)


def write_shards(
    job: TokenJob, columns: ColumnJob, numbers: Sequence[int], on_progress: OnProgress
) -> dict[str, TokenOrigin]:
    """Writes those shards of a column that are not done, after it has measured a sample once.

    Args:
      job: What is computed.
      columns: The column, which has begun.
      numbers: The shards.
      on_progress: As of `add_tokens`.

    Returns:
      What is known of the features, with their errors.
    """
    pending = columns.pending(numbers)
    num_steps = [len(columns.steps[number]) for number in set(numbers) - set(pending)]
    on_progress(sum(num_steps) * len(job.settings.cameras), 0)
    measured = columns.measured()
    if measured is not None and not pending:
        # Without making the encoder, which compiles it.
        return measured
    encoder = job.encoder(job.settings.origins(job.spec))
    if measured is None:
        # Also finds, before hours of work, that the tokens cannot be stored.
        measured = _measured(job, encoder)
        columns.note_measured(measured)
    for number in pending:
        # A generator: a shard's records are never in memory together.
        columns.write(number, records(job, encoder, columns.steps[number], on_progress))
        on_progress(0, 0)
    return measured


def records(
    job: TokenJob,
    encoder: TokenEncoder,
    steps: Sequence[int],
    on_progress: OnProgress = lambda num_frames, num_bytes: None,
) -> Iterator[Record]:
    """Yields the values of each step's record.

    Raises:
      DataError: Where an image is corrupt, or tokens cannot be stored.
    """
    num_bytes = sum(feature.nbytes for feature in encoder.features.values())

    def pack(images: Sequence[np.ndarray]) -> Packed:
        return encoder.pack(encoder.reduce(encoder.tokens(images)))

    for part, packed in job.frames.batches(steps, pack):
        yield from encoder.records(packed, [job.frames.describe(step) for step in part])
        on_progress(len(part) * len(job.settings.cameras), len(part) * num_bytes)


def _measured(job: TokenJob, encoder: TokenEncoder) -> dict[str, TokenOrigin]:
    """What is known of the features, with the errors of a sample."""
    steps = sample_steps(job.dataset.num_steps)
    found = measure(encoder, job.frames, steps, [job.settings.store])
    of_storage = found.storage[job.settings.store]
    return {
        key: dataclasses.replace(
            origin, storage_error=of_storage[key], reduction_error=found.reduction[key]
        )
        for key, origin in encoder.origins.items()
    }


def _known(origin: TokenOrigin) -> dict[str, object]:
    """What decides the tokens, as JSON; without what is measured, and where weights were found."""
    values = to_json_values(origin)
    # Measured values differ in digits between machines.
    for name in _MEASURED_FIELDS:
        del values[name]
    # The same weights may lie elsewhere at the next run; their checksum stays in the plan.
    del values["encoder"]["weights"]
    return values


# --- the report


def report(job: TokenJob) -> str:
    """Sizes, errors and time of a column, for every way to store it; writes nothing.

    Raises:
      DataError: Where the tokens of the sample cannot be stored in any way.
    """
    _, origins = job.column_job(job.dataset.manifest)
    # The same sample as the job itself takes.
    steps = sample_steps(job.dataset.num_steps)
    encoder = job.encoder(origins)
    # All ways to store in one pass over the sample.
    found = measure(encoder, job.frames, steps, _STORES)
    lines = [_heading(job, origins), "", "store  bytes per step  column GB  storage error"]
    for store in _STORES:
        features = [f.nbytes for f in encoder.storing(store).features.values()]
        errors = found.storage.get(store)
        error_text = "cannot hold them" if errors is None else f"{max(errors.values()):.1e}"
        total = sum(features) * job.dataset.num_steps / _GB
        lines.append(f"{store:5}  {sum(features):14,}  {total:9.3f}  {error_text}")
    if reduction := max(found.reduction.values()):
        lines += ["", f"{job.settings.keep} loses {reduction:.2g} of the patches' tokens before"]
    lines += ["", _speed(job, encoder, steps)]
    lines.append(f"errors: RMS of the difference over that of the tokens, on {len(steps)} steps")
    lines += [f"licence: {job.licence}", "nothing was written"]
    return "\n".join(lines) + "\n"


def _heading(job: TokenJob, origins: dict[str, TokenOrigin]) -> str:
    shapes = {Keep.parse(o.keep).shape(o.encoder) for o in origins.values()}
    ((num_tokens, width),) = shapes
    return (
        f"{', '.join(key.removeprefix('observation/') for key in origins)}: "
        f"{job.dataset.num_steps:,} steps of {', '.join(job.settings.cameras)}, "
        f"{num_tokens} x {width} per step and feature"
    )


def _speed(job: TokenJob, encoder: TokenEncoder, steps: Sequence[int]) -> str:
    """What the sample took once more, now that all is compiled, and the whole would take."""
    # Once before the clock, to compile.
    collections.deque(records(job, encoder, steps[: job.batch_size]), maxlen=0)
    started = time.perf_counter()
    collections.deque(records(job, encoder, steps), maxlen=0)
    # The last batch is filled up, and takes as long as a whole one.
    num_batches = -(-len(steps) // job.batch_size)
    num_cameras = len(job.settings.cameras)
    rate = num_batches * job.batch_size * num_cameras / (time.perf_counter() - started)
    num_frames = job.dataset.num_steps * num_cameras
    where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    left = clock(num_frames / rate)
    return f"speed: {rate:,.1f} frames/s on {where}: about {left} for {num_frames:,} frames"
