"""`octograin tokens DATASET`: adds VGGT's tokens of a dataset's images, as a column."""

import dataclasses
import math
import pathlib
import re
import time
from typing import Annotated

import jax
import tyro
from etils import epath

from converters.job import job_progress
from converters.job.columns import check_free, check_name, remove_column
from converters.job.file_ownership import NOTE_SUFFIX
from converters.vggt.token_job import (
    IMAGE,
    OBSERVATION,
    TokenJob,
    TokenSettings,
    add_tokens,
    misused,
    report,
)
from pipeline.data.dataset import Dataset, on_disk, open_dataset
from pipeline.data.manifest import WORK, Manifest, load_manifest
from pipeline.data.token_provenance import Keep, Store
from pipeline.errors import DataError, UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.memory import keep_freed_memory
from pipeline.sharing.pulled_note import not_pulled
from pipeline.terminal import log_to_stderr, program, show
from pipeline.vggt.encoder_spec import ComputeDtype, Precision, Views
from pipeline.vggt.weight_sources import config_of

_MB = 1e6
_INTERRUPTED = "interrupted; run the same command again to resume"
_STEPS_A_DEVICE = 16
_Off = tyro.conf.FlagCreatePairsOff


@dataclasses.dataclass(frozen=True)
class Args:
    """Computes VGGT's tokens of the images of a dataset, and adds them to it as a column.

    The other columns stay as they are. A job that was killed resumes where it stopped when the same
    command is run again. Weights may bind what is made with them: facebook/VGGT-1B is CC-BY-NC-4.0.
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset directory, on a disk."""
    weights: Annotated[
        str | None, tyro.conf.arg(metavar="hf://facebook/VGGT-1B|PATH|random:tiny")
    ] = None
    """File of safetensors, its folder, a repository on the hub, or untrained weights for tests."""
    licence: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """Licence of the weights, if it is not known by their name."""
    name: Annotated[str, tyro.conf.arg(metavar="NAME")] = "vggt_tokens"
    """Name of the column, and of its feature below observation/."""
    cameras: Annotated[str, tyro.conf.arg(metavar="A[,B]")] = "primary"
    """Cameras; of more than one, each has a feature NAME_CAMERA."""
    views: Views = "single"
    """single: each image by itself; joint: those of a step in one sequence, in this order."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="N[,N]", help_behavior_hint="")] = None
    """Pairs of blocks, from 0; the last one (23 of VGGT-1B) where it is not given. Of more than
    one, each has a feature NAME_LAYER."""
    size: Annotated[str, tyro.conf.arg(metavar="N|HxW")] = "224"
    """Pixels that images are resized to; multiples of 14."""
    keep: Annotated[str, tyro.conf.arg(metavar="all|patches|registers|pool:N")] = "all"
    """all tokens; those of patches; of camera and registers; patches averaged to N."""
    store: Store = "f16"
    """f16; bf16 (more range, less accuracy); int8 in groups of 128 values (half the size)."""
    compute_dtype: ComputeDtype = "float32"
    """Dtype of the weights and of what enters a matrix product."""
    precision: Precision = "highest"
    """Precision of float32 matrix products; on a GPU, `default` is faster, exact as bfloat16."""
    batch_size: Annotated[
        int | None, tyro.conf.arg(metavar="N", constructor=int, help_behavior_hint="")
    ] = None
    """Steps at a time, over all devices; 16 per device by default."""
    report: Annotated[bool, _Off] = False
    """Print sizes, errors and time, measured on a sample of steps, and write nothing."""
    overwrite: Annotated[bool, _Off] = False
    """Replace a computed column of that name, or an unfinished one of other settings."""
    remove: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Take a column out of the dataset and delete its files; other flags have no meaning then."""
    debug: Annotated[bool, _Off] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the job."""
    log_to_stderr()
    with user_errors_exit(interrupted=_INTERRUPTED):
        args = tyro.cli(joined_help(Args), prog=program("converters.vggt"), use_underscores=True)
        directory = on_disk(args.dataset)
        if args.remove is not None:
            folder = pathlib.Path(directory) / args.remove
            kept = f"; it was a link: what is in {folder.resolve()} stays"
            note = kept if folder.is_symlink() else ""
            num_bytes = remove_column(directory, args.remove)
            freed = f"{num_bytes / _MB:,.1f} MB are free again"
            show(f"removed {args.remove}: {freed}{note}\n")
        else:
            _compute(args, directory)


def _compute(args: Args, directory: epath.Path) -> None:
    if args.weights is None:
        raise misused("weights", "no --weights, such as --weights hf://facebook/VGGT-1B")
    settings = _settings(args, load_manifest(directory))
    # Opened for the images alone: other columns may be incomplete.
    dataset = open_dataset(args.dataset, [OBSERVATION + name for name in settings.cameras])
    _check_name(args, settings, directory, dataset.manifest)
    keep_freed_memory()
    batch_size = _batch_size(args, dataset)
    job = TokenJob.load(dataset, settings, args.weights, batch_size, args.licence)
    if args.report:
        show(report(job))
        return
    started = time.perf_counter()
    total = dataset.num_steps * len(settings.cameras)
    with job_progress.shown(settings.name, total, job_progress.FRAMES) as on_progress:
        manifest = add_tokens(job, overwrite=args.overwrite, on_progress=on_progress)
    show(_summary(manifest, settings, args.dataset, time.perf_counter() - started))


def _settings(args: Args, manifest: Manifest) -> TokenSettings:
    return TokenSettings(
        name=args.name,
        cameras=_cameras(args.cameras, manifest, args.dataset),
        views=args.views,
        layers=_layers(args.layers) if args.layers is not None else (),
        image_size=_size(args.size),
        keep=_keep(args.keep),
        store=args.store,
        compute_dtype=args.compute_dtype,
        precision=args.precision,
    )


def _cameras(text: str, manifest: Manifest, where: str) -> tuple[str, ...]:
    """Observations of a dataset that are images, from names such as `primary,wrist`.

    Raises:
      UserError: Where it has none of a name, or a name is there twice.
    """
    held = [
        feature.key.removeprefix(OBSERVATION)
        for column, feature in manifest.schema.features()
        if column.is_camera(feature)
    ]
    # "primary" means "image_primary", unless a camera has that very name.
    names = [name if name in held else IMAGE + name for name in text.split(",")]
    unknown = [name for name in names if name not in held]
    left = [error for name in unknown if (error := _left_on_the_hub(name, where))]
    if left:
        raise left[0]
    if unknown or len(set(names)) < len(names):
        known = [name.removeprefix(IMAGE) for name in held]
        raise UserError(
            where=f"{where}, --cameras {text}",
            expected=f"cameras among {', '.join(known)}, each once",
            found=", ".join(name.removeprefix(IMAGE) for name in unknown or names),
            remedy=f"Write them with commas between, such as {','.join(known[:2])}.",
        )
    return tuple(names)


def _left_on_the_hub(camera: str, where: str) -> DataError | None:
    """The error of a camera whose column was not pulled; None if there is no such column."""
    return not_pulled(epath.Path(where), OBSERVATION + camera, where)


def _layers(text: str) -> tuple[int, ...]:
    """Layers from `11,23`."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise misused("whole numbers with commas between with --layers, such as 11,23", text)
    return tuple(map(int, text.split(",")))


def _size(text: str) -> tuple[int, int]:
    """(height, width) from `224` or `224x336`."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise misused("pixels with --size, such as 224, or height x width as 224x336", text)
    return int(match[1]), int(match[2] or match[1])


def _keep(text: str) -> Keep:
    try:
        keep = Keep.parse(text)
    except ValueError as error:
        raise misused("tokens that are kept with --keep", str(error)) from error
    if keep.what == "project":
        expected = "--keep all, patches, registers or pool:N"
        raise misused(expected, f"{text}, which only early releases computed")
    return keep


def _check_name(
    args: Args, settings: TokenSettings, directory: epath.Path, manifest: Manifest
) -> None:
    """Before the weights are loaded, which takes a while; the job checks it once more."""
    check_name(settings.name)
    # An unfinished column of this name is the job's own.
    if args.report or (directory / WORK / f"{settings.name}{NOTE_SUFFIX}").exists():
        return
    keys = [key for key, _, _ in settings.keys(config_of(str(args.weights)))]
    check_free(manifest, settings.name, keys, args.dataset, overwrite=args.overwrite)


def _batch_size(args: Args, dataset: Dataset) -> int:
    """Returns the given batch size, a multiple of the devices, or what the dataset needs."""
    num_devices = jax.device_count()
    if args.batch_size is None:
        # A dataset of few steps needs no larger batch.
        largest = math.ceil(dataset.num_steps / num_devices)
        return num_devices * min(_STEPS_A_DEVICE, largest)
    if args.batch_size < 1 or args.batch_size % num_devices:
        expected = f"a multiple of {num_devices}, the number of devices, with --batch_size"
        raise misused(expected, str(args.batch_size))
    return args.batch_size


def _summary(manifest: Manifest, settings: TokenSettings, path: str, seconds: float) -> str:
    """What was written, how exact it is, and what binds it."""
    (column,) = (c for c in manifest.schema.columns if c.name == settings.name)
    num_bytes = sum(shard.num_bytes for shard in manifest.shards[settings.name])
    lines = [f"{settings.name}: {num_bytes / _MB:,.1f} MB in {seconds:,.1f} s"]
    for feature in column.features:
        origin = manifest.encoders[feature.key]
        error = f"storage changes tokens by {origin.storage_error:.1e} of their size"
        if origin.reduction_error:
            error += f", {origin.keep} before by {origin.reduction_error:.2g}"
        lines.append(f"  {feature.key:26} {feature.dtype}{list(feature.shape)}, {error}")
    lines.append(f"licence: {manifest.licences[settings.name]}")
    lines.append(f"dataset: {path}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
