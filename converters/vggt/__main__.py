"""`octograin tokens DATASET`: adds VGGT's tokens of a dataset's images, as a column."""

import dataclasses
import math
import pathlib
import re
import shlex
import time
from typing import Annotated

import jax
import tyro
from etils import epath

from converters.job import job_progress
from converters.job.column_parts import Part
from converters.job.columns import check_free, check_name, is_unfinished, remove_column
from converters.vggt.token_job import (
    IMAGE,
    OBSERVATION,
    TokenJob,
    TokenSettings,
    add_tokens,
    misused,
    report,
)
from converters.vggt.token_parts import (
    PartOutcome,
    add_part,
    finish_tokens,
    num_frames,
    shards_done,
)
from pipeline.data.dataset import Dataset, on_disk, open_dataset
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.schema import EPISODES
from pipeline.data.token_provenance import Keep, Store
from pipeline.errors import DataError, UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.memory import keep_freed_memory
from pipeline.sharing.pulled_note import not_pulled
from pipeline.terminal import count, log_to_stderr, program, show
from pipeline.vggt.encoder_spec import ComputeDtype, Precision, Views
from pipeline.vggt.weight_sources import config_of

_MB = 1e6
_INTERRUPTED = "interrupted; run the same command again to resume"
_STEPS_A_DEVICE = 16
_MOST_PARTS = 10
"""Parts that a summary lists."""
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
    part: Annotated[
        str | None, tyro.conf.arg(metavar="I/N", constructor=str, help_behavior_hint="")
    ] = None
    """Compute one of N parts, 1/N to N/N, each on any host that shares the directory; --finish then
    adds the column."""
    finish: Annotated[bool, _Off] = False
    """Add the column once its parts are done, with --name alone or with all flags of the parts."""
    overwrite: Annotated[bool, _Off] = False
    """Replace a computed column of that name, or an unfinished one of other settings."""
    remove: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Take a column out of the dataset and delete its files; settings have no meaning then."""
    debug: Annotated[bool, _Off] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the job."""
    log_to_stderr()
    with user_errors_exit(interrupted=_INTERRUPTED):
        args = tyro.cli(joined_help(Args), prog=program("converters.vggt"), use_underscores=True)
        _check_mode(args)
        directory = on_disk(args.dataset)
        if args.remove is not None:
            folder = pathlib.Path(directory) / args.remove
            kept = f"; it was a link: what is in {folder.resolve()} stays"
            note = kept if folder.is_symlink() else ""
            num_bytes = remove_column(directory, args.remove)
            freed = f"{num_bytes / _MB:,.1f} MB are free again"
            show(f"removed {args.remove}: {freed}{note}\n")
            return
        if args.finish:
            _finish(args, directory)
        else:
            _compute(args, directory)


def _check_mode(args: Args) -> None:
    """Raises `UserError` where flags contradict each other."""
    modes = {"--report": args.report, "--part": args.part is not None, "--finish": args.finish}
    modes["--remove"] = args.remove is not None
    given = [flag for flag, is_given in modes.items() if is_given]
    if len(given) > 1:
        raise misused(f"one of {', '.join(modes)}", " and ".join(given))


def _finish(args: Args, directory: epath.Path) -> None:
    asked = None
    if args.weights is not None:
        asked = (_settings(args, load_manifest(directory)), args.weights)
    else:
        alone = Args(args.dataset, name=args.name, finish=True, debug=args.debug)
        names = [field.name for field in dataclasses.fields(Args)]
        given = [f"--{name}" for name in names if getattr(args, name) != getattr(alone, name)]
        if given:
            # They would be taken for settings of the column, and could be others.
            expected = "--finish with --name alone, or with all flags of the parts"
            raise misused(expected, f"{', '.join(given)} without --weights")
    manifest = finish_tokens(directory, args.name, asked)
    show(_summary(manifest, args.name, args.dataset, "in the dataset"))


def _compute(args: Args, directory: epath.Path) -> None:
    if args.weights is None:
        raise misused("weights", "no --weights, such as --weights hf://facebook/VGGT-1B")
    part = _part(args.part) if args.part is not None else None
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
    if part is not None:
        _compute_part(args, job, part)
        return
    started = time.perf_counter()
    total = dataset.num_steps * len(settings.cameras)
    with job_progress.shown(settings.name, total, job_progress.FRAMES) as on_progress:
        manifest = add_tokens(job, overwrite=args.overwrite, on_progress=on_progress)
    took = f"in {time.perf_counter() - started:,.1f} s"
    show(_summary(manifest, settings.name, args.dataset, took))


def _compute_part(args: Args, job: TokenJob, part: Part) -> None:
    started, name = time.perf_counter(), job.settings.name
    title, directory = f"{name}, part {part}", epath.Path(job.dataset.path)
    num_shards = len(job.dataset.manifest.shards[EPISODES])
    whole = shards_done(directory, name, num_shards)
    with job_progress.shown(
        title, num_frames(job, part), job_progress.FRAMES, beside=whole
    ) as on_progress:
        outcome = add_part(job, part, overwrite=args.overwrite, on_progress=on_progress)
    show(_part_summary(args, title, outcome, time.perf_counter() - started))


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


def _part(text: str) -> Part:
    try:
        return Part.parse(text)
    except ValueError as error:
        raise misused("--part I/N, with I from 1 to N, such as --part 2/3", text) from error


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
    if args.report or is_unfinished(directory, settings.name):
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


def _part_summary(args: Args, title: str, outcome: PartOutcome | None, seconds: float) -> str:
    """What a part has written, and what is left of the column."""
    if outcome is None:
        lines = [f"{title}: nothing to do, the dataset has this column"]
    elif not outcome.num_shards:
        total = count(outcome.total, "shard")
        lines = [f"{title}: nothing to do, the dataset has {total} for {outcome.num_parts} parts"]
    else:
        written = f"{outcome.num_bytes / _MB:,.1f} MB in {seconds:,.1f} s"
        lines = [f"{title}: {count(outcome.num_shards, 'shard')}, {written}"]
    if outcome is not None:
        lines += _left(outcome, args)
    return "\n".join([*lines, f"dataset: {args.dataset}"]) + "\n"


def _left(outcome: PartOutcome, args: Args) -> list[str]:
    """Which parts have shards that are not done, or the command that finishes the column."""
    if not outcome.left:
        name = "" if args.name == Args.name else f" --name {args.name}"
        finish = f"{program('converters.vggt')} {shlex.quote(args.dataset)}{name} --finish"
        return [f"all {count(outcome.total, 'shard')} are done; add the column with: {finish}"]
    num_left = sum(map(len, outcome.left.values()))
    lines = [f"left of the column: {num_left} of {count(outcome.total, 'shard')}"]
    parts = list(outcome.left.items())
    for part, numbers in parts[:_MOST_PARTS]:
        state = "at work" if part in outcome.working else "not at work"
        lines.append(f"  part {part}: {count(len(numbers), 'shard')}, {state}")
    if len(parts) > _MOST_PARTS:
        lines.append(f"  and {count(len(parts) - _MOST_PARTS, 'more part')}")
    return lines


def _summary(manifest: Manifest, name: str, path: str, took: str) -> str:
    """What was written, how exact it is, and what binds it."""
    (column,) = (c for c in manifest.schema.columns if c.name == name)
    num_bytes = sum(shard.num_bytes for shard in manifest.shards[name])
    lines = [f"{name}: {num_bytes / _MB:,.1f} MB {took}"]
    for feature in column.features:
        origin = manifest.encoders[feature.key]
        error = f"storage changes tokens by {origin.storage_error:.1e} of their size"
        if origin.reduction_error:
            error += f", {origin.keep} before by {origin.reduction_error:.2g}"
        lines.append(f"  {feature.key:26} {feature.dtype}{list(feature.shape)}, {error}")
    lines.append(f"licence: {manifest.licences[name]}")
    lines.append(f"dataset: {path}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
