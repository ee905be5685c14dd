"""Real-time chunking: a robot executes the last chunk while the next one is predicted."""

import collections
import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal

import numpy as np

from pipeline.errors import UserError
from train.policy.chunk_execution import check_delay
from train.policy.planned_actions import PlannedActions, check_guided
from train.policy.policy import Policy

Predict = Callable[[Sequence[Any], PlannedActions | None], np.ndarray]
"""Returns a chunk, float (h a), whose first action is for the last of these observations.

The observations are those since the last prediction, oldest first; the planned actions are what is
left of the last chunk, and None at an episode's start."""


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """A prediction that runs, or has ended and not yet taken effect."""

    step: int
    """Step of the observation, which is that of the chunk's first action."""
    chunk: Future[np.ndarray]


class RealTimeChunking:
    """Returns one action at every control step, while a thread predicts the next chunk.

        with RealTimeChunking.of(policy, execute_horizon=8, delay=3) as act:
            policy.reset(0, "open the drawer")
            while not done:
                robot.send(act(robot.observe()))        # float32 (a), at once

    A chunk is predicted from the observation of every `execute_horizon`-th step, and takes effect
    exactly `delay` steps later, however early it is ready. Until then the last chunk is executed.

        step               0 1 2 3 4 5 6 7 8 9 ...      execute_horizon 4, delay 2
        observed           A       B       C
        executed           a a a a a a b b b b c c      b from its third action on

    If a prediction is late, the last chunk is executed further while it lasts, and `num_late`
    counts these steps; the new chunk then takes effect at the action of that step. The first call
    of an episode waits for its prediction, as there is nothing to execute yet.

    One prediction runs at a time, in a thread of this object, which calls `predict` and nothing
    else. Before you change the policy's environment yourself, call `reset` of this object for
    another episode, and `drop_plan` or `wait` for another task. The object is called from one
    thread.

    Args:
      predict: Predicts a chunk, such as from an openpi server: `lambda observations, planned:
        client.infer(observations[-1])["actions"]`. A chunk that does not begin with the committed
        actions is executed from its action number `delay` on all the same.
      action_horizon: Number of actions per chunk.
      execute_horizon: Steps from one prediction to the next.
      delay: Steps that a prediction may take, at most `execute_horizon`, and at most the actions of
        a chunk that are left after it. 0: every prediction is waited for.
      num_observed: Largest number of observations that `predict` is given: the window size.
      when_late: What is done at the step at which a chunk that is not ready should take effect:
        continue the last one, or wait, as in a simulator.

    Raises:
      UserError: A horizon or the delay is out of range, or `when_late` is neither of the two.

    Source: Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies",
      algorithm 1, with a fixed delay and horizon: there, the largest recent delay is used, and a
      chunk takes effect as soon as it is ready.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        action_horizon: int,
        execute_horizon: int,
        delay: int,
        num_observed: int = 1,
        when_late: Literal["continue", "wait"] = "continue",
    ) -> None:
        check_delay(delay, execute_horizon, action_horizon)
        check_when_late(when_late)
        self._predict = predict
        self._action_horizon = action_horizon
        self._execute_horizon, self._delay = execute_horizon, delay
        self._waits = when_late == "wait" or not delay
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="real_time_chunking")
        self._observed: collections.deque[Any] = collections.deque(maxlen=num_observed)
        self._num_late = 0
        self._waited_s = 0.0
        self._begin_episode()

    @classmethod
    def of(
        cls,
        policy: Policy,
        env: int = 0,
        *,
        execute_horizon: int,
        delay: int,
        when_late: Literal["continue", "wait"] = "continue",
        is_guided: bool = True,
    ) -> "RealTimeChunking":
        """Makes it for one environment of a policy, whose chunks continue the planned actions.

        Args:
          policy: A policy; with `PolicyConfig(real_time_chunking=True)` if chunks are guided.
          env: Number of the environment; reset the policy's before the first call.
          execute_horizon: Steps from one prediction to the next.
          delay: Steps that a prediction may take.
          when_late: What is done if one takes longer.
          is_guided: Whether chunks continue the planned actions. If not, the robot may jump where
            one takes effect: naive asynchronous execution, to compare with.

        Raises:
          UserError: The horizon or the delay is out of range, or chunks are guided and the policy
            was made without real-time chunking.
        """
        predict = predict_with(policy, env)
        if is_guided:
            # Now, and not at the second chunk, when the robot moves.
            check_guided("RealTimeChunking", is_guided=policy.config.real_time_chunking)
        return cls(
            predict if is_guided else lambda observations, planned: predict(observations, None),
            action_horizon=policy.action_horizon,
            execute_horizon=execute_horizon,
            delay=delay,
            num_observed=policy.window_size,
            when_late=when_late,
        )

    @property
    def num_late(self) -> int:
        """Returns the number of steps, in all episodes, at which a chunk was not ready in time."""
        return self._num_late

    @property
    def waited_s(self) -> float:
        """Returns how long the last call waited for a late chunk, in seconds."""
        return self._waited_s

    def __call__(self, observation: Any) -> np.ndarray:
        """Returns the action of this step, (a).

        Args:
          observation: What `predict` reads; its arrays are copied.

        Raises:
          UserError: The last chunk has ended and the next is not ready, or a chunk does not fit.
          Exception: What a prediction raised, at the step at which it should take effect. The next
            call is for the same step; it waits for another prediction if fewer than `delay` actions
            of the last chunk are left.
        """
        step = self._step
        self._waited_s = 0.0
        # First, as its error is no step of the window.
        self._switch(step)
        # Copied, as the thread reads it while the robot's own buffers may be filled again.
        self._observed.append(copy.deepcopy(observation))
        if self._chunk is None or self._is_too_short(len(self._chunk), step):
            self._chunk = self._checked(self._ask(None).result())
            self._begin = step
        executed = step - self._begin
        if self._pending is None and executed >= self._execute_horizon:
            left = self._chunk[executed:]
            planned = PlannedActions(left, self._delay) if len(left) else None
            self._pending = _Prediction(step, self._ask(planned))
            # Only with a delay of 0.
            self._switch(step)
        self._step += 1
        return self._chunk[step - self._begin]

    def reset(self) -> None:
        """Begins an episode: waits for a running prediction and drops what is planned."""
        self.drop_plan()
        self._begin_episode()

    def drop_plan(self) -> None:
        """Waits for a running prediction and drops what is planned, such as for another task.

        What was observed stays in the history. The next call waits for a prediction.
        """
        self.wait()
        self._chunk = self._pending = None

    def wait(self) -> None:
        """Waits until no prediction runs; until the next call, the policy may be used elsewhere."""
        if self._pending is not None:
            # Its error, if any, is raised at the step at which it should take effect.
            self._pending.chunk.exception()

    def close(self) -> None:
        """Ends the thread, after the prediction that runs."""
        self._worker.shutdown(cancel_futures=True)

    def __enter__(self) -> "RealTimeChunking":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin_episode(self) -> None:
        self._observed.clear()
        self._chunk: np.ndarray | None = None
        self._pending: _Prediction | None = None
        # Steps are counted from the episode's start; the chunk begins at one of them.
        self._step = self._begin = 0

    def _ask(self, planned: PlannedActions | None) -> Future[np.ndarray]:
        """Starts a prediction from what was observed since the last one."""
        observations = list(self._observed)
        self._observed.clear()
        return self._worker.submit(self._predict, observations, planned)

    def _is_too_short(self, num_actions: int, step: int) -> bool:
        """Returns whether the chunk ends before another could take effect, after a failed one."""
        return self._pending is None and step - self._begin + self._delay > num_actions

    def _switch(self, step: int) -> None:
        """Lets the predicted chunk take effect, if this is its step or a later one."""
        pending = self._pending
        if pending is None or step < pending.step + self._delay:
            return
        is_late = self._delay > 0 and not pending.chunk.done()
        if is_late and not self._waits:
            if self._chunk is None or step - self._begin >= len(self._chunk):
                raise self._too_late(step - pending.step)
            self._num_late += 1
            return
        self._pending = None
        started = time.perf_counter()
        chunk = pending.chunk.result()
        if is_late:
            self._num_late += 1
            self._waited_s = time.perf_counter() - started
        self._chunk, self._begin = self._checked(chunk), pending.step

    def _checked(self, chunk: Any) -> np.ndarray:
        """Returns a predicted chunk, if it is one that is long enough."""
        actions = np.asarray(chunk)
        if actions.ndim != len("ha") or len(actions) != self._action_horizon:
            raise UserError(
                where="real-time chunking, predict",
                expected=f"a chunk of {self._action_horizon} actions, (h a)",
                found=f"{actions.dtype}{list(actions.shape)}",
                remedy="Return the actions alone, and give their number as action_horizon.",
            )
        return actions

    def _too_late(self, num_steps: int) -> UserError:
        return UserError(
            where="real-time chunking",
            expected=f"a prediction within {self._delay} steps, the delay",
            found=f"none after {num_steps} steps, and the last chunk has ended",
            remedy="Give a longer delay, predict on a faster device, or train with a longer "
            "data.action_horizon.",
        )


def check_when_late(when_late: object) -> None:
    """Raises a `UserError` for another word, which would otherwise mean "continue"."""
    if when_late not in ("continue", "wait"):
        raise UserError(
            where="RealTimeChunking, when_late",
            expected='"continue" or "wait"',
            found=repr(when_late),
            remedy="A robot continues; a simulator may wait.",
        )


def predict_with(policy: Policy, env: int) -> Predict:
    """Returns what predicts for one environment of a policy, and gives it the steps in between."""

    def predict(observations: Sequence[Any], planned: PlannedActions | None) -> np.ndarray:
        *earlier, last = observations
        for observation in earlier:
            policy.observe({env: observation})
        return policy.infer({env: last}, {env: planned})[env]

    return predict
