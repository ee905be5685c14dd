"""The command line of `octograin evaluate`."""

import contextlib
import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

from pipeline.checksums import write_json
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import to_json_values, writing
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.parts.part_files import load_parts
from pipeline.terminal import log_to_stderr, program, show
from train.evaluate.delayed_execution import DelayStrategy
from train.evaluate.evaluation import Evaluation, Request
from train.evaluate.evaluation_page import write_report
from train.evaluate.libero.installation import Installation, find_installation
from train.evaluate.libero.scene.perturbations import NONE, Perturbations
from train.evaluate.libero.suites import Trial, parse_indices, trials_of
from train.evaluate.result_tables import COMPARISON_NAME, compare, paired_table, success_table
from train.evaluate.results import claimed
from train.evaluate.videos import Kept
from train.policy.policy import NUM_SEEDS

EXIT_ERRORS = 1
"""Exit code if some trials ended with an error."""
_COMPARED = "compared"
_INTERRUPTED = "interrupted; run the same command again to continue"


@dataclasses.dataclass(frozen=True)
class Args:
    """Rolls the policy of a run out in the LIBERO simulator and reports how often it succeeds.

    An evaluation that was stopped continues if you run the same command again.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or hf://owner/name[@revision] for a policy on the hub."""
    suite: Annotated[str, tyro.conf.arg(metavar="NAME")] = "libero_spatial"
    """Suite of tasks."""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="0,2", help_behavior_hint="")] = None
    """Indices of tasks, from 0, separated by commas; by default, all."""
    trials: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Number of trials per task; each starts from the initial state of its number."""
    first_trial: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Number of the first trial."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Dataset whose statistics and conventions are used, by path or name; required if the run was
    trained on several that differ."""
    execute_horizon: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Number of actions to execute per chunk; by default, all."""
    ensemble: Annotated[float | None, tyro.conf.arg(metavar="M", help_behavior_hint="")] = None
    """Predict at every step and execute the mean of all chunks, with weights exp(-M i), where i = 0
    is the oldest."""
    delay: Annotated[int, tyro.conf.arg(metavar="D")] = 0
    """Number of steps that a prediction takes: a chunk takes effect this many steps after its
    observation. At most execute_horizon, and at most what is left of a chunk after it, unless the
    robot holds still."""
    execution: DelayStrategy = "real_time_chunking"
    """What the robot does in the steps of a --delay. It executes the last chunk, and the next one
    continues what was planned (real_time_chunking) or not (naive_async); or it holds still
    (synchronous)."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Seed of a diffusion head's noise, of the positions of fixtures, and of what perturbations
    draw."""
    perturb: Perturbations = NONE
    """Perturbations of every trial's scene, by size; 0 means none."""
    compare: Annotated[str | None, tyro.conf.arg(metavar="RUN2", help_behavior_hint="")] = None
    """Another run, evaluated on the same trials and tested against the first."""
    compare_step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of its checkpoint; the last one by default."""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Number of simulators; each is a process of about 1 GB. One half simulates while the policy
    predicts for the other, in one batch."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of results, report and videos; by default, RUN/evaluation/SUITE-STEP, or
    evaluation/OWNER--NAME/SUITE-STEP here for a policy on the hub, where the name also has what
    differs from the defaults, such as SUITE-STEP-camera10. Those of RUN2 go to DIR/compared, or to
    its own such folder."""
    videos: Kept = "all"
    """Trials whose videos are kept."""
    assets: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of LIBERO's assets; by default LIBERO_ASSETS, the package's own folder, or
    ~/.cache/libero/assets."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Where the weights of the token encoder are now; by default, where they were when the
    dataset's tokens were computed."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line, evaluates and prints the tables."""
    log_to_stderr()
    with user_errors_exit(interrupted=_INTERRUPTED):
        args = tyro.cli(joined_help(Args), prog=program("train.evaluate"), use_underscores=True)
        load_parts(*args.parts)
        has_errors = evaluate(args)
    sys.exit(EXIT_ERRORS if has_errors else 0)


def evaluate(args: Args) -> bool:
    """Evaluates one run, or two; returns whether trials ended with an error.

    Raises:
      UserError: Something does not fit; it is raised before the first trial.
    """
    _check(args)
    installation = find_installation(args.assets)
    request = _request(args, installation)
    with contextlib.ExitStack() as stack:
        # All are claimed and checked before the first one runs for hours.
        evaluations = []
        for run, step, out in _places(args):
            evaluation = Evaluation(run, step, request, installation, out)
            stack.enter_context(claimed(evaluation.folder))
            evaluation.prepare()
            evaluations.append(evaluation)
        for evaluation in evaluations:
            try:
                evaluation.run()
            finally:
                # Also after an interruption: the report shows what is done so far.
                _write(evaluations)
        show(_summary(evaluations))
    return any(evaluation.results.errors for evaluation in evaluations)


def _places(args: Args) -> list[tuple[str, int | None, pathlib.Path | None]]:
    """Returns (run, step, folder of the results) of each policy."""
    out = None if args.out is None else pathlib.Path(args.out)
    places = [(args.run, args.step, out)]
    if args.compare is not None:
        places.append((args.compare, args.compare_step, out and out / _COMPARED))
    return places


def _write(evaluations: list[Evaluation]) -> None:
    """Writes the report and, if there are two policies, the comparison."""
    policies = [(one.folder, one.results) for one in evaluations if one.results.trials]
    # The report is in the first policy's folder, which needs results of its own.
    if not policies or policies[0][0] != evaluations[0].folder:
        return
    comparison = None
    if len(policies) > 1:
        comparison = compare(policies[0][1], policies[1][1])
        path = policies[0][0] / COMPARISON_NAME
        with writing(path):
            write_json(path, to_json_values(comparison))
    write_report(policies, comparison)


def _summary(evaluations: list[Evaluation]) -> str:
    """Returns the tables to print."""
    parts = []
    for evaluation in evaluations:
        results = evaluation.results
        heading = f"{results.run}, step {results.settings.step}, {results.settings.conditions}"
        parts.append(f"{heading}\n{success_table(results)}")
    if len(evaluations) > 1:
        parts.append(paired_table(compare(evaluations[0].results, evaluations[1].results)))
    parts.append(f"results: {evaluations[0].folder}")
    return "\n\n".join(parts) + "\n"


def _request(args: Args, installation: Installation) -> Request:
    return Request(
        suite=args.suite,
        trials=_trials(args, installation),
        seed=args.seed,
        execute_horizon=args.execute_horizon,
        ensemble=args.ensemble,
        delay=args.delay,
        execution=args.execution,
        perturbations=args.perturb,
        dataset=args.dataset,
        num_workers=args.workers,
        videos=args.videos,
        weights=args.weights,
    )


def _check(args: Args) -> None:
    """Raises an error if a number is out of range."""
    least = {"trials": 1, "first_trial": 0, "workers": 1, "delay": 0}
    for name, value in least.items():
        if getattr(args, name) < value:
            raise _refused(f"--{name}", f"at least {value}", str(getattr(args, name)), _help())
    if not 0 <= args.seed < NUM_SEEDS:
        raise _refused("--seed", "0 to 2**32 - 1", str(args.seed), _help())
    if not args.delay and args.execution != Args.execution:
        raise _refused(f"--execution {args.execution}", "a --delay of 1 or more", "none", _help())
    if args.delay and args.ensemble is not None:
        raise _refused("--delay", "no --ensemble as well", f"--ensemble {args.ensemble}", _help())
    if args.compare_step is not None and args.compare is None:
        raise _refused("--compare_step", "a run: --compare RUN2", "none", _help())


def _trials(args: Args, installation: Installation) -> tuple[Trial, ...]:
    """Returns the trials of each task, in order."""
    indices = None if args.tasks is None else parse_indices(args.tasks)
    wanted = range(args.first_trial, args.first_trial + args.trials)
    where = "--first_trial and --trials"
    return tuple(trials_of(installation.root, args.suite, indices, wanted, where))


def _refused(where: str, expected: str, found: str, remedy: str) -> UserError:
    return UserError(where=where, expected=expected, found=found, remedy=remedy)


def _help() -> str:
    return f"See `{program('train.evaluate')} --help`."
