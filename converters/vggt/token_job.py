"""The job that computes tokens: a column of them is added to the dataset that holds the images."""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from converters.job.column_job import ColumnJob, Record
from converters.job.columns import check_free, claimed, clear_up
from converters.vggt.sample_errors import describe, fit_projections, measure, sample_steps
from converters.vggt.step_images import FrameReader
from converters.vggt.token_settings import TokenSettings, licence_of
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.data.schema import Column
from pipeline.data.token_provenance import TokenOrigin, array_digest, read_projection
from pipeline.files import sync, temporary_path, to_json_values, writing
from pipeline.loading.device import batch_sharding, make_mesh, replicated
from pipeline.vggt.aggregator_weights import VggtWeights, load_weights
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.encoder_spec import EncoderSpec
from pipeline.vggt.token_storage import Packed, Projections, TokenEncoder
from pipeline.vggt.weight_sources import config_of

OnProgress = Callable[[int, int], None]
"""Called with the images encoded, and the bytes written for them, since the last call."""
_MEASURED_FIELDS = ("storage_error", "reduction_error", "projection_digest")


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
        model = config_of(source, None)
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
        """Licence of the column."""
        return licence_of(self.spec, self.dataset.manifest, sorted(self.frames.columns))

    def column_job(self, manifest: Manifest) -> tuple[ColumnJob, dict[str, TokenOrigin]]:
        """(the column on its way into the dataset, what is known of its features before)."""
        name = self.settings.name
        origins = self.settings.origins(self.spec, f"{name}/{{}}.npy")
        # The projection's name has no digest yet, since the digest is over this.
        column = Column(name, "step", tuple(o.feature(key) for key, o in origins.items()))
        known = {key: _known(origin) for key, origin in origins.items()}
        directory = epath.Path(self.dataset.path)
        job = ColumnJob(directory, manifest, column, known, self.frames.columns)
        files = self.settings.origins(self.spec, f"{name}/{{}}-{job.digest}.npy")
        return job, files

    def encoder(self, origins: Mapping[str, TokenOrigin]) -> TokenEncoder:
        """Makes the encoder on all devices, without projections yet."""
        sharding = batch_sharding(make_mesh(), self.batch_size)
        return TokenEncoder(VggtEncoder(self.spec, self.weights, sharding), origins)


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
        by an earlier run.

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
        # Shards of a plan that was not noted belong to another job.
        pending = columns.pending() if columns.is_begun() else range(len(columns.steps))
        columns.check_room(pending)
        columns.begin(overwrite=overwrite)
        num_done = sum(map(len, columns.steps)) - sum(len(columns.steps[n]) for n in pending)
        on_progress(num_done * len(job.settings.cameras), 0)
        encoder = _prepared(job, origins, directory)
        for number in pending:
            # A generator: a shard's records are never in memory together.
            columns.write(number, records(job, encoder, columns.steps[number], on_progress))
        return columns.finish(job.licence, encoder.origins)


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
        yield from encoder.records(packed, [describe(job.frames, step) for step in part])
        on_progress(len(part) * len(job.settings.cameras), len(part) * num_bytes)


def _prepared(
    job: TokenJob, origins: dict[str, TokenOrigin], directory: epath.Path
) -> TokenEncoder:
    """The encoder, with projections that are stored and errors that are measured."""
    measured, fitted = sample_steps(job.dataset.num_steps)
    encoder = job.encoder(origins)
    if job.settings.keep.what == "project":
        projections = _projections(job, encoder, fitted, directory)
        encoder = TokenEncoder(encoder.encoder, origins, projections)
    found = measure(encoder, job.frames, measured, [job.settings.store])
    of_storage = found.storage[job.settings.store]
    for key, origin in origins.items():
        digest = array_digest(encoder.projections[key]) if origin.projection else ""
        encoder.origins[key] = dataclasses.replace(
            origin,
            storage_error=of_storage[key],
            reduction_error=found.reduction[key],
            projection_digest=digest,
        )
    return encoder


def _projections(
    job: TokenJob, encoder: TokenEncoder, steps: Sequence[int], directory: epath.Path
) -> Projections:
    """Returns the projections that a killed job stored, or fits and stores them."""
    paths = {key: directory / o.projection for key, o in encoder.origins.items()}
    # Fitted once: a resumed job must store tokens of the same projection.
    if not all(path.exists() for path in paths.values()):
        for key, projection in fit_projections(encoder, job.frames, steps).items():
            _write_array(pathlib.Path(paths[key]), projection)
    return {key: read_projection(directory, o) for key, o in encoder.origins.items()}


def _write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a `.npy` file whole or not at all."""
    content = io.BytesIO()
    np.save(content, array)
    temporary = temporary_path(path)
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        try:
            temporary.write_bytes(content.getvalue())
            # Whole on the disk before it has its name.
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def _known(origin: TokenOrigin) -> dict[str, object]:
    """What decides the tokens, as JSON; without what is measured, and where weights were found."""
    values = to_json_values(origin)
    # Measured values differ in digits between machines.
    for name in _MEASURED_FIELDS:
        del values[name]
    # The same weights may lie elsewhere at the next run; their checksum stays in the plan.
    del values["encoder"]["weights"]
    return values
