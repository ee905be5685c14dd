"""`python -m examples.geometry_encoder.render DST`: sets of views from the LIBERO simulator."""

import dataclasses
import pathlib
import time
from typing import Annotated

import tyro

from converters.job import job_progress, workers
from examples.geometry_encoder.view_sets import ViewFiles, ViewSettings
from examples.scripted_expert.trials import choose_trials
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.terminal import program, show
from pipeline.vggt.encoder_spec import PATCH_SIZE
from train.evaluate.libero.installation import find_installation

_INTERRUPTED = "interrupted; run the same command again to resume"
_MOST_DEGREES = 60.0


@dataclasses.dataclass(frozen=True)
class Args:
    """Renders sets of views with depth and camera poses, along the scripted expert's episodes.

    Each episode is a file of its own. A job that was killed resumes where it stopped when the same
    command is run again.
    """

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder of the files."""
    suite: Annotated[str, tyro.conf.arg(metavar="NAME")] = "libero_spatial"
    """Suite; several with commas between."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="0,2", help_behavior_hint="")] = ()
    """Indices of tasks, from 0, with commas between: once for all suites, or once per suite; all
    without it."""
    episodes: Annotated[int, tyro.conf.arg(metavar="N")] = 40
    """Initial states of each task, one episode each."""
    first_init: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """The first of them. Leave out those on which a policy is evaluated."""
    moments: Annotated[int, tyro.conf.arg(metavar="N")] = 6
    """Moments of each episode."""
    moved: Annotated[int, tyro.conf.arg(metavar="N")] = 4
    """Views of each moment from a camera that was moved at random."""
    azimuth: Annotated[float, tyro.conf.arg(metavar="DEG")] = 30.0
    """Largest turn of that camera around the table, to either side."""
    elevation: Annotated[float, tyro.conf.arg(metavar="DEG")] = 8.0
    """Largest turn upward or downward."""
    distance: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.1
    """Largest change of its distance, as a fraction of it."""
    image_size: Annotated[int, tyro.conf.arg(metavar="PX")] = 112
    """Height and width at which the encoder reads images, a multiple of 14."""
    attempts: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """Tries of the expert at an initial state, each with other noise."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of noise, moments and cameras."""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes, each with a simulator of about 1 GB."""
    assets: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of LIBERO's assets; by default LIBERO_ASSETS, the package's own folder, or
    ~/.cache/libero/assets."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


_RANGES = {
    "episodes": (1, float("inf")),
    "first_init": (0, float("inf")),
    "moments": (1, float("inf")),
    "moved": (2, float("inf")),
    "azimuth": (0.0, _MOST_DEGREES),
    "elevation": (0.0, _MOST_DEGREES),
    "distance": (0.0, 0.5),
    "image_size": (PATCH_SIZE, float("inf")),
    "attempts": (1, float("inf")),
    "seed": (0, float("inf")),
    "workers": (1, float("inf")),
}


def main() -> None:
    """Parses the command line and runs the job."""
    with user_errors_exit(interrupted=_INTERRUPTED):
        name = program("examples.geometry_encoder.render")
        args = tyro.cli(joined_help(Args), prog=name, use_underscores=True)
        _check(args)
        installation = find_installation(args.assets)
        wanted = range(args.first_init, args.first_init + args.episodes)
        trials = choose_trials(installation.root, args.suite, args.tasks, wanted)
        settings = ViewSettings(
            num_moments=args.moments,
            num_moved=args.moved,
            azimuth_deg=args.azimuth,
            elevation_deg=args.elevation,
            distance=args.distance,
            image_size=args.image_size,
            attempts=args.attempts,
            seed=args.seed,
            simulator=str(installation),
        )
        files = ViewFiles(installation, settings, trials, pathlib.Path(args.dst))
        files.check_settings()
        pending = files.pending()
        started = time.perf_counter()
        with job_progress.shown(files.folder.name, len(trials)) as on_progress:
            on_progress(len(trials) - len(pending), 0)
            workers.run(files.make, pending, min(args.workers, len(pending)) or 1, on_progress)
        took = time.perf_counter() - started
        show(
            f"views of {len(trials)} episodes in {files.folder}, {len(pending)} new, {took:.0f} s\n"
        )


def _check(args: Args) -> None:
    """Refuses numbers that have no meaning."""
    for name, (least, most) in _RANGES.items():
        value = getattr(args, name)
        # Written this way so that NaN fails too.
        if not least <= value <= most:
            bounds = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
            _refuse(name, bounds, value)
    if args.image_size % PATCH_SIZE:
        _refuse("image_size", f"a multiple of {PATCH_SIZE}", args.image_size)


def _refuse(name: str, expected: str, found: float) -> None:
    raise UserError(
        where=f"--{name}",
        expected=expected,
        found=f"{found}",
        remedy=f"See `{program('examples.geometry_encoder.render')} --help`.",
    )


if __name__ == "__main__":
    main()
