"""Evaluates one policy: checks everything first, then runs the remaining trials."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.errors import UserError
from pipeline.hub.hub_address import SCHEME, parse_repository
from pipeline.terminal import escaped
from train.checkpoints.checkpoint_store import Checkpoint
from train.evaluate.delayed_execution import DelayStrategy, delay_execution
from train.evaluate.delayed_policy import DelayedPolicy
from train.evaluate.libero.environment import CAMERAS, LiberoEnv
from train.evaluate.libero.installation import Installation
from train.evaluate.libero.scene.perturbations import NONE, Perturbations
from train.evaluate.libero.simulator_conventions import CONTROL_FREQUENCY_HZ, check_conventions
from train.evaluate.libero.simulator_pool import EnvPool
from train.evaluate.libero.simulator_worker import Env
from train.evaluate.libero.suites import INITIAL_STATES, Place, Trial, places_in
from train.evaluate.results import (
    Inference,
    Results,
    ResultsFile,
    Settings,
    TrialResult,
    checkpoint_digest,
)
from train.evaluate.rollouts import Actor, Options, Rollouts, groups
from train.evaluate.videos import VIDEOS_NAME, Film, Kept
from train.policy.chunk_execution import Execution, check_delay, make_execution
from train.policy.gripper_commands import GripperCommands
from train.policy.planned_actions import check_blended
from train.policy.policy import Policy, PolicyConfig, read_run
from train.policy.policy_spec import PolicySpec
from train.policy.rollout_tokens import encoder_of
from train.report.html_page import duration

_LOG_INTERVAL_S = 30.0

_IMAGE_SIZE = (256, 256)
"""Size of the simulator's images, if a checkpoint does not record it; as in the published sets."""


@dataclasses.dataclass(frozen=True)
class Request:
    """The settings for every policy that is evaluated."""

    suite: str
    """Suite of the tasks."""
    trials: tuple[Trial, ...]
    """Trials, by task and initial state."""
    seed: int = 0
    """Seed of the policy's noise and of the simulator."""
    execute_horizon: int | None = None
    """Number of actions executed per chunk; None: all."""
    ensemble: float | None = None
    """Decay of a temporal ensemble; None: no ensemble."""
    delay: int = 0
    """Steps that a prediction takes; 0: none."""
    execution: DelayStrategy = "real_time_chunking"
    """What the robot does in these steps; all are the same without a delay."""
    perturbations: Perturbations = NONE
    """Perturbations of every trial's scene."""
    dataset: str | None = None
    """Path or name of the dataset whose statistics and conventions are used."""
    num_workers: int = 1
    """Number of simulators; a batch holds half of their environments."""
    videos: Kept = "all"
    """Trials whose videos are kept."""
    weights: str | None = None
    """Where the token encoder's weights are now; None: where they were for the dataset."""


@dataclasses.dataclass(frozen=True)
class Demonstrated:
    """Finds out whether training showed a trial's initial state to the policy."""

    places: frozenset[Place]
    """Initial states from which demonstrations are known to have started."""
    is_complete: bool
    """Whether every dataset records where its demonstrations started."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Demonstrated":
        """Reads it from the provenance of the checkpoint's datasets; published sets lack it."""
        said = [
            # None for a dataset that does not record it.
            places_in(values.get("provenance", {}).get(INITIAL_STATES, ""))
            for values in checkpoint.datasets.values()
        ]
        return cls(frozenset[Place]().union(*filter(None, said)), None not in said)

    def __call__(self, place: Place) -> bool | None:
        """Returns whether the place was demonstrated; None if it is not known."""
        if place in self.places:
            return True
        # Without a complete record the answer is not known.
        return False if self.is_complete else None


class Evaluation:
    """The evaluation of one policy; everything is checked that can be without running it.

    Args:
      run: The run directory, or the address of a policy on a hub.
      step: Training step of the checkpoint; None: the last one.
      request: The settings.
      installation: The simulator's installation.
      folder: Folder of the results; None: one in the run directory, named by suite, step and what
        differs from the defaults; of a policy on a hub, one below `evaluation/` in the current
        directory.

    Raises:
      UserError: There is no such checkpoint, or the simulator does not support its conventions.
      DataError: The checkpoint is corrupt.
    """

    def __init__(
        self,
        run: str,
        step: int | None,
        request: Request,
        installation: Installation,
        folder: pathlib.Path | None,
    ) -> None:
        self._checkpoint = read_run(run, step)
        self._spec = PolicySpec.of(self._checkpoint, request.dataset)
        # Of a policy on a hub the commit, so that the results say what was evaluated.
        run = self._checkpoint.address or run
        self._run, self._request, self._installation = run, request, installation
        check_conventions(self._spec.conventions, f"{run}, dataset {self._spec.dataset}")
        _check_takes_instructions(self._spec, run)
        horizon = self._spec.model.head.action_horizon
        # Made for its checks alone.
        self._new_execution()
        # A robot that holds still needs nothing of the last chunk.
        if request.delay and request.execution != "synchronous":
            check_delay(request.delay, self._executed, horizon)
        if self._is_guided:
            check_blended(self._spec)
        self.folder = folder or _results_of(run) / _folder_name(request, self._checkpoint.step)
        self._file = ResultsFile(self.folder, run, self._settings())
        self._pending: list[Trial] = []
        self._policy: Policy | None = None

    def prepare(self) -> None:
        """Reads the results in the folder, which this process has claimed, and loads the policy.

        Raises:
          UserError: The folder holds other results, the policy reads what the simulator does not
            show, or an encoder's weights are missing.
          DataError: The results, the weights or a projection are corrupt.
        """
        self._file.open()
        self._pending = self._file.pending(self._request.trials)
        # Without pending trials no policy is loaded.
        self._policy = self._make_policy() if self._pending else None

    @property
    def results(self) -> Results:
        """Returns the results in the file."""
        return self._file.results

    def run(self) -> None:
        """Runs the remaining trials.

        Raises:
          UserError: The policy diverged, or a task's assets are missing.
        """
        policy, request = self._policy, self._request
        if policy is None:
            return
        done = len(request.trials) - len(self._pending)
        wanted = {(trial.task.index, trial.init) for trial in request.trials}
        successes = sum(t.success for t in self.results.trials if t.place in wanted)
        name = f"{self._run}, {self.results.settings.conditions}"
        seen = Demonstrated.of(self._checkpoint)
        # No more simulators than trials: each takes about 1 GB.
        num_workers = min(request.num_workers, len(self._pending))
        with (
            shown(name, len(request.trials), done, successes) as on_trial,
            EnvPool(self._make_env(policy), num_workers) as pool,
        ):

            def on_result(result: TrialResult) -> None:
                place = result.suite, result.task, result.init
                self._file.add(
                    dataclasses.replace(
                        result, is_demonstrated=seen(place), num_workers=num_workers
                    )
                )
                on_trial(result.success)

            try:
                Rollouts(self._actor(policy), pool, self._options(), on_result).run(self._pending)
            finally:
                # Also after an interruption: the latency of what was done.
                self._note_inference(policy)

    @property
    def _executed(self) -> int:
        """Returns the number of actions that are executed per chunk."""
        request = self._request
        # An ensemble predicts at every step.
        is_ensemble = request.ensemble is not None
        of_chunk = 1 if is_ensemble else self._spec.model.head.action_horizon
        return request.execute_horizon or of_chunk

    @property
    def _steps_per_chunk(self) -> int:
        """Returns the number of steps from one prediction to the next."""
        request = self._request
        return self._executed + (request.delay if request.execution == "synchronous" else 0)

    @property
    def _is_guided(self) -> bool:
        """Returns whether chunks continue what was planned."""
        return self._request.delay > 0 and self._request.execution == "real_time_chunking"

    def _actor(self, policy: Policy) -> Actor:
        """Returns what acts: the policy, or the same with real-time chunking."""
        delay = self._request.delay
        return DelayedPolicy(policy, self._executed, delay) if self._is_guided else policy

    def _settings(self) -> Settings:
        request = self._request
        return Settings(
            checkpoint=checkpoint_digest(self._checkpoint),
            step=self._checkpoint.step,
            dataset=self._spec.dataset,
            suite=request.suite,
            seed=request.seed,
            execute_horizon=self._executed,
            ensemble=request.ensemble,
            simulator=str(self._installation),
            delay=request.delay,
            execution=request.execution if request.delay else None,
            perturbations=request.perturbations,
        )

    def _make_policy(self) -> Policy:
        request, checkpoint = self._request, self._checkpoint
        encoder = encoder_of(checkpoint, request.dataset, source=request.weights)
        num_workers = min(request.num_workers, len(self._pending))
        # One size for all batches, which is compiled once.
        config = PolicyConfig(
            batch_size=len(groups(range(num_workers))[0]),
            seed=request.seed,
            real_time_chunking=self._is_guided,
        )
        policy = Policy(checkpoint, request.dataset, config, encoder)
        self._make_env(policy)()  # fails if it lacks observations; builds no simulator yet
        return policy

    def _make_env(self, policy: Policy) -> Callable[[], Env]:
        return functools.partial(
            LiberoEnv,
            self._installation,
            policy.conventions,
            observations=tuple(policy.expected),
            image_size=image_size(policy),
            seed=self._request.seed,
            perturbations=self._request.perturbations,
        )

    def _new_execution(self) -> Execution:
        """Makes an execution for one episode, whose grippers are as their rules decide."""
        request = self._request
        horizon, conventions = self._spec.model.head.action_horizon, self._spec.conventions
        execution = make_execution(horizon, conventions, request.execute_horizon, request.ensemble)
        grippers = GripperCommands.of(self._spec)
        return delay_execution(
            # Still 1 = open, 0 = close, of which the simulator makes its own commands.
            lambda chunk: grippers.decide(execution(chunk)),
            request.execution,
            self._executed,
            request.delay,
            conventions,
        )

    def _options(self) -> Options:
        request, folder = self._request, self.folder / VIDEOS_NAME
        return Options(
            seed=request.seed,
            make_execution=self._new_execution,
            make_film=None
            if request.videos == "none"
            else lambda trial: Film(folder, trial, CONTROL_FREQUENCY_HZ / self._steps_per_chunk),
            kept=request.videos,
        )

    def _note_inference(self, policy: Policy) -> None:
        """Writes the policy's latency to the results."""
        latency = policy.latency
        if not latency.num_calls:
            return
        inference = Inference(
            num_calls=latency.num_calls,
            batch_size=policy.config.batch_size,
            mean_ms=round(latency.mean_ms, 3),
            p50_ms=round(latency.p50_ms, 3),
            p95_ms=round(latency.p95_ms, 3),
            device=jax.devices()[0].device_kind,
        )
        self._file.write(dataclasses.replace(self.results, inference=inference))


def image_size(policy: Policy) -> tuple[int, int]:
    """Returns height and width of the images that a policy was trained on.

    Raises:
      UserError: Its cameras differ in size.
    """
    known = {name: spec for name, spec in policy.expected.items() if name in CAMERAS}
    # An image of any size says nothing about what training saw.
    shapes = {name: spec.shape for name, spec in known.items() if spec is not None}
    # All cameras are rendered at one size.
    sizes: Sequence[tuple[int, int]] = sorted({(shape[0], shape[1]) for shape in shapes.values()})
    if len(sizes) > 1:
        raise UserError(
            where="the policy's cameras",
            expected="images of one size, which the simulator renders",
            found=", ".join(f"{name} {shape[0]}x{shape[1]}" for name, shape in shapes.items()),
            remedy="Train on a dataset whose cameras have one size.",
        )
    return sizes[0] if sizes else _IMAGE_SIZE


def _check_takes_instructions(spec: PolicySpec, run: str) -> None:
    if spec.data.conditioning == "image_conditioned":
        raise UserError(
            where=run,
            expected="a policy that takes an instruction",
            found="one that takes goal images",
            remedy="LIBERO's tasks are instructions: train with another data.conditioning.",
        )


def status(done: int, total: int, successes: int, num_now: int, seconds: float) -> str:
    """Returns e.g. `120/500 trials, 96 successes, 41 min 2 s left`.

    Args:
      done: Number of trials that have a result.
      total: Number of trials in total.
      successes: Number of successful trials.
      num_now: Number of trials that ended in this session.
      seconds: Seconds since the session started.
    """
    text = f"{done}/{total} trials, {successes} successes"
    if not num_now:
        return text
    # From trials of this session alone: earlier ones took no time now.
    return f"{text}, {duration((total - done) * seconds / num_now)} left"


def _folder_name(request: Request, step: int) -> str:
    """Returns e.g. `libero_spatial-5000-execute4-camera10-start0.1`."""
    parts = [request.suite, str(step)]
    # What differs from the defaults: these results do not go with those.
    if request.seed:
        parts.append(f"seed{request.seed}")
    if request.execute_horizon is not None:
        parts.append(f"execute{request.execute_horizon}")
    if request.ensemble is not None:
        parts.append(f"ensemble{request.ensemble:g}")
    if request.delay:
        parts.append(f"delay{request.delay}-{request.execution}")
    parts.extend(f"{name}{size:g}" for name, size in request.perturbations.sizes.items())
    return "-".join(parts)


def _results_of(run: str) -> pathlib.Path:
    """Returns the folder of a run's results, which may not lie in the hub's cache."""
    if not run.startswith(SCHEME):
        return pathlib.Path(run) / "evaluation"
    owner, name = parse_repository(run).id.split("/")
    return pathlib.Path("evaluation", f"{owner}--{name}")


@contextlib.contextmanager
def shown(name: str, total: int, done: int, successes: int) -> Iterator[Callable[[bool], None]]:
    """Shows the progress on stderr.

    Args:
      name: Name of what is evaluated.
      total: Number of trials in total.
      done: Number of trials that already have a result.
      successes: Number of successful trials among them.

    Yields:
      A function to call after each trial, with whether it succeeded.
    """
    console = Console(stderr=True)
    started = logged = time.perf_counter()
    num_now = num_new_successes = 0
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        first = status(done, total, successes, 0, 0.0)
        row = bar.add_task(escaped(name), total=total, completed=done, status=first)

        def on_trial(is_success: bool) -> None:  # noqa: FBT001  (its one argument)
            nonlocal logged, num_now, num_new_successes
            num_now, num_new_successes = num_now + 1, num_new_successes + is_success
            now = time.perf_counter()
            text = status(
                done + num_now, total, successes + num_new_successes, num_now, now - started
            )
            bar.update(row, advance=1, status=text)
            if not console.is_terminal and now - logged > _LOG_INTERVAL_S:
                logged = now
                sys.stderr.write(f"{escaped(name)}: {text}\n")

        yield on_trial
