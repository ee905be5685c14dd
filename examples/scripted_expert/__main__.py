"""`python -m examples.scripted_expert DST`: demonstrations from the LIBERO simulator."""

import dataclasses
import pathlib
import time
from typing import Annotated

import tyro

from converters.job import job_progress
from examples.scripted_expert.collect import Destination, collect
from examples.scripted_expert.episodes import EpisodeFiles, Noise, Settings
from examples.scripted_expert.trials import choose_trials
from pipeline.data.manifest import Manifest
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.terminal import program, show
from train.evaluate.libero.installation import find_installation

_INTERRUPTED = "interrupted; run the same command again to resume"


@dataclasses.dataclass(frozen=True)
class Args:
    """Collects demonstrations of a scripted expert in the LIBERO simulator as a dataset.

    The expert has the tasks of libero_spatial and libero_object. Only episodes that reach the goal
    are kept. A job that was killed resumes where it stopped when the same command is run again.
    """

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory to write."""
    suite: Annotated[str, tyro.conf.arg(metavar="NAME")] = "libero_spatial"
    """Suite; several with commas between."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="0,2", help_behavior_hint="")] = ()
    """Indices of tasks, from 0, with commas between: once for all suites, or once per suite; all
    without it."""
    episodes: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Initial states of each task, one episode each."""
    first_init: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """The first of them. Trials of an evaluation start from them too: leave some out to test on."""
    noise: Annotated[float, tyro.conf.arg(metavar="STD")] = 0.0
    """Standard deviation of what is added to the arm's commands in [-1, 1] as they are executed.
    The recorded action is the expert's, without it."""
    waypoint_noise: Annotated[float, tyro.conf.arg(metavar="M")] = 0.0
    """Maximum displacement of waypoints in free space, in m along each axis."""
    attempts: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Tries at an initial state, each with other noise, until one reaches the goal."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of the noise."""
    image_size: Annotated[int, tyro.conf.arg(metavar="PX")] = 256
    """Height and width of the images."""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes, each with a simulator of about 1 GB."""
    rlds: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder to keep the episodes in as RLDS, too."""
    assets: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of LIBERO's assets; by default LIBERO_ASSETS, the package's own folder, or
    ~/.cache/libero/assets."""
    licence: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "CC-BY-4.0"
    """Licence of the data, as an SPDX identifier or in words."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a dataset that stands at DST."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the job."""
    with user_errors_exit(interrupted=_INTERRUPTED):
        args = tyro.cli(
            joined_help(Args), prog=program("examples.scripted_expert"), use_underscores=True
        )
        _check(args)
        installation = find_installation(args.assets)
        wanted = range(args.first_init, args.first_init + args.episodes)
        trials = choose_trials(installation.root, args.suite, args.tasks, wanted)
        destination = Destination(
            dataset=pathlib.Path(args.dst),
            rlds=None if args.rlds is None else pathlib.Path(args.rlds),
            name=_name(args.suite),
            licence=args.licence,
            overwrite=args.overwrite,
        )
        settings = Settings(
            noise=Noise(args.noise, args.waypoint_noise),
            seed=args.seed,
            attempts=args.attempts,
            image_size=args.image_size,
            simulator=str(installation),
        )
        files = EpisodeFiles(installation, settings, trials, destination.folder)
        started = time.perf_counter()
        with job_progress.shown(destination.name, len(trials)) as on_progress:
            manifest = collect(files, destination, args.workers, on_progress)
        show(_summary(manifest, args, time.perf_counter() - started))


def _check(args: Args) -> None:
    """Refuses numbers that have no meaning."""
    least = {
        "episodes": 1,
        "first_init": 0,
        "attempts": 1,
        "seed": 0,
        "image_size": 8,
        "workers": 1,
    }
    least |= {"noise": 0.0, "waypoint_noise": 0.0}
    for name, value in least.items():
        # Written this way so that NaN fails too.
        if not getattr(args, name) >= value:
            raise UserError(
                where=f"--{name}",
                expected=f"at least {value}",
                found=f"{getattr(args, name)}",
                remedy=f"See `{program('examples.scripted_expert')} --help`.",
            )


def _name(suites: str) -> str:
    """Returns a name of the dataset that the built-in mapping of LIBERO accepts."""
    return f"{suites}_expert" if "," not in suites else "libero_expert"


def _summary(manifest: Manifest, args: Args, seconds: float) -> str:
    """What a person wants to know."""
    said = manifest.provenance
    lines = [
        f"{len(manifest.episode_lengths):,} episodes, {sum(manifest.episode_lengths):,} steps, "
        f"{len(manifest.tasks)} tasks in {seconds:.0f} s",
        f"initial states: {said.get('initial_states', '')}",
        f"failed: {said.get('failed_initial_states', '')}",
        f"no-ops removed: {sum(manifest.removed_steps)} steps",
        f"dataset: {args.dst}",
    ]
    return "\n".join(lines + ([f"RLDS: {args.rlds}"] if args.rlds else [])) + "\n"


if __name__ == "__main__":
    main()
