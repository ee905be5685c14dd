import functools
import itertools
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import simplejpeg

from converters.mapping.mapping_registry import registered
from converters.operations.operations import computed
from converters.sources.open_source import open_source
from converters.sources.reading import read_episodes
from examples.scripted_expert.episodes import Noise, find_course
from pipeline.data.conventions import standardize_gripper
from pipeline.errors import UserError
from train.evaluate.libero.environment import CAMERAS, OBSERVATIONS, LiberoEnv
from train.evaluate.libero.installation import Installation, import_simulator
from train.evaluate.libero.simulator import SETTLING_STEPS
from train.evaluate.libero.simulator_conventions import OPEN, from_command
from train.evaluate.libero.simulator_pool import EnvPool, Reply
from train.evaluate.libero.suites import MAX_STEPS, Task, Trial, read_tasks

pytestmark = [
    pytest.mark.libero,
    pytest.mark.filterwarnings("ignore"),  # the simulator's packages are of another time
]

HOLD = np.array([0, 0, 0, 0, 0, 0, 1.0])
PUSH = np.array([0.5, 0.5, -0.5, 0, 0, 0.5, 0.0])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


def turn_knobs(model: Any, data: Any) -> None:
    """Lights the stoves of a scene."""
    for joint in range(model.njnt):
        if "button" in model.joint(joint).name:
            data.qpos[model.jnt_qposadr[joint]] = 2.0


def test_all_suites_have_their_tasks_and_initial_states(installation: Installation) -> None:
    for suite in MAX_STEPS:
        tasks = read_tasks(installation.root, suite)
        assert len(tasks) == (90 if suite == "libero_90" else 10)
        for task in tasks:
            assert task.scene_path(installation.root).exists()
            assert task.init_states(installation.root).shape[0] == 50
            assert task.instruction == task.instruction.lower().strip()


def test_a_reset_depends_on_nothing_before_it(env: LiberoEnv, task: Task) -> None:
    env.reset(Trial(task, 3))
    first = env.simulator.physics_state
    for _ in range(12):
        env.step(PUSH)  # closes the gripper, and moves
    moved = env.simulator.physics_state
    assert np.abs(moved - first).max() > 0.05
    env.reset(Trial(task, 4))
    assert np.abs(env.simulator.physics_state - first).max() > 1e-3
    env.reset(Trial(task, 3))
    assert np.array_equal(env.simulator.physics_state, first)
    for _ in range(12):
        env.step(PUSH)
    assert np.array_equal(env.simulator.physics_state, moved)


def test_two_simulators_of_a_process_keep_apart_and_start_alike(
    env: LiberoEnv, installation: Installation, task: Task
) -> None:
    """One that was used, its gripper closed, and a new one, which renders and is closed again."""
    env.reset(Trial(task, 1))
    for _ in range(12):
        env.step(PUSH)
    env.reset(Trial(task, 2))
    before = env.observe()
    new = LiberoEnv(installation, registered("libero").conventions, observations=OBSERVATIONS)
    new.reset(Trial(task, 2))
    assert np.array_equal(new.simulator.physics_state, env.simulator.physics_state)
    for seen in (new.observe(), env.observe(), new.observe()):
        assert all(np.array_equal(seen[name], before[name]) for name in OBSERVATIONS)
    new.close()
    assert all(np.array_equal(env.observe()[name], before[name]) for name in OBSERVATIONS)


def test_steps_are_bitwise_those_of_robosuite(env: LiberoEnv, task: Task) -> None:
    env.reset(Trial(task, 3))
    simulator = env.simulator
    commands = np.repeat(np.random.default_rng(0).uniform(-1, 1, (6, 7)), 5, axis=0)

    def states(step: Callable[[np.ndarray], object]) -> list[np.ndarray]:
        found = []
        for command in commands:
            step(command)
            data = simulator.data
            found += [simulator.physics_state, simulator.state, simulator.joint_state]
            found += [data.qacc.copy(), data.xpos.copy(), data.contact.dist.copy()]
        return found

    def theirs(command: np.ndarray) -> None:
        simulator._sensed = simulator._env.step(command)[0]

    ours = states(simulator.step)
    env.reset(Trial(task, 3))
    assert all(map(np.array_equal, ours, states(theirs)))


def test_frames_are_bitwise_those_of_published_evaluations(
    env: LiberoEnv, installation: Installation, task: Task
) -> None:
    """After settling, as the arm moves, as a stove is lit, and after a state is set."""
    commands = np.repeat(np.random.default_rng(0).uniform(-1, 1, (4, 7)), 3, axis=0)
    states = task.init_states(installation.root)

    def observed(
        env: Any, step: Callable[[np.ndarray], Any], set_state: Callable[[np.ndarray], Any]
    ) -> Iterator[Any]:
        for number, command in enumerate(commands):
            if number == len(commands) // 2:
                turn_knobs(env.sim.model._model, env.sim.data._data)
            yield step(command)
        yield set_state(states[4])

    scene = str(task.scene_path(installation.root))
    theirs = import_simulator(installation)(scene, camera_heights=128, camera_widths=128)
    theirs.seed(0)
    theirs.reset()
    theirs.set_init_state(states[3])
    for _ in range(SETTLING_STEPS):
        sensed = theirs.step([0.0] * 6 + [OPEN])[0]
    expected = [sensed]
    expected += observed(theirs, lambda command: theirs.step(command)[0], theirs.set_init_state)
    theirs.close()

    env.reset(Trial(task, 3))
    simulator = env.simulator

    def frames(_: object = None) -> dict[str, np.ndarray]:
        return {f"{name}_image": simulator.render(name, 128, 128) for name in CAMERAS.values()}

    def set_state(state: np.ndarray) -> dict[str, np.ndarray]:
        simulator.physics_state = state
        return frames()

    found = [frames()]
    found += observed(simulator._env, lambda command: frames(simulator.step(command)), set_state)
    for name in frames():
        same = [
            np.array_equal(ours[name], one[name]) for ours, one in zip(found, expected, strict=True)
        ]
        assert same == [True] * 14
        # The arm moves.
        assert all(np.any(a[name] != b[name]) for a, b in itertools.pairwise(expected))


def test_geoms_that_are_left_out_change_no_pixel(
    env: LiberoEnv, task: Task, shared: pathlib.Path
) -> None:
    demo = np.load(shared / "libero" / "demos" / f"{task.suite}-0-0.npz")
    env.reset(Trial(task, 0))
    simulator = env.simulator
    for state in demo["qstate"][::12]:
        simulator.physics_state = state
        for camera in CAMERAS.values():
            frame = simulator.render(camera, 128, 128)
            with simulator._scene.shown():
                whole = simulator._sim.render(camera_name=camera, height=128, width=128)
            assert np.array_equal(frame, whole)


def test_actions_do_what_they_say(env: LiberoEnv, task: Task) -> None:
    env.reset(Trial(task, 0))
    before = env.observe()["proprio"]
    for _ in range(10):
        env.step(np.array([0.5, 0, 0, 0, 0, 0, 0.0]))
    after = env.observe()["proprio"]
    assert after[0] - before[0] > 0.04  # forward, in m
    assert np.abs(after[1:3] - before[1:3]).max() < 0.02
    assert before[6] > 0.03  # open
    assert after[6] < 0.01  # closed by 0
    for _ in range(15):
        env.step(HOLD)
    assert env.observe()["proprio"][6] > 0.03  # opened by 1


def test_a_trial_ends_at_the_suites_limit(env: LiberoEnv, task: Task) -> None:
    env.reset(Trial(task, 0))
    outcomes = [env.step(HOLD) for _ in range(task.max_steps)]
    assert [outcome.is_over for outcome in outcomes] == [False] * (task.max_steps - 1) + [True]
    assert not outcomes[-1].is_success
    with pytest.raises(RuntimeError, match="no trial is under way"):
        env.step(HOLD)


def test_an_observation_has_the_types_of_a_batch(env: LiberoEnv, task: Task) -> None:
    env.reset(Trial(task, 0))
    found = {name: (a.dtype.name, a.shape) for name, a in env.observe().items()}
    assert found == {
        "image_primary": ("uint8", (256, 256, 3)),
        "image_wrist": ("uint8", (256, 256, 3)),
        "proprio": ("float32", (8,)),
        "joint_state": ("float32", (7,)),
    }


def test_an_initial_state_that_is_not_there_is_named(env: LiberoEnv, task: Task) -> None:
    with pytest.raises(UserError, match=r"task 0, initial state 50: expected .* from 0 to 49"):
        env.reset(Trial(task, 50))


def test_assets_that_a_task_lacks_are_reported(
    installation: Installation, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "scenes").mkdir()
    task = read_tasks(installation.root, "libero_goal")[0]
    script = (
        "import sys, dataclasses, pathlib\n"
        "from converters.mapping.mapping_registry import registered\n"
        "from train.evaluate.libero.environment import LiberoEnv\n"
        "from train.evaluate.libero.installation import find_installation\n"
        "from train.evaluate.libero.suites import Trial, read_tasks\n"
        "found = find_installation(sys.argv[1])\n"
        "trial = Trial(read_tasks(found.root, 'libero_goal')[0], 0)\n"
        "from pipeline.errors import user_errors_exit\n"
        "with user_errors_exit():\n"
        "    LiberoEnv(found, registered('libero').conventions).reset(trial)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {task}, assets {tmp_path}: expected its scene")
    assert "hf download lerobot/libero-assets" in last


def test_a_stored_demonstration_replayed_ends_in_success(
    env: LiberoEnv, task: Task, shared: pathlib.Path
) -> None:
    demo = np.load(shared / "libero" / "demos" / f"{task.suite}-0-0.npz")
    assert task.instruction == str(demo["lang"])
    env.reset(Trial(task, 0))
    assert np.abs(env.simulator.physics_state - demo["qstate"][0]).max() < 1e-9
    outcome = None
    for t, action in enumerate(
        standardize_gripper(demo["action"], registered("libero").conventions)
    ):
        assert np.abs(env.simulator.state - demo["state"][t]).max() < 1e-6
        outcome = env.step(action)
    assert outcome is not None
    assert outcome.is_success
    assert outcome.num_steps == len(demo["action"])


def test_images_lie_as_those_of_the_published_sets(
    env: LiberoEnv, task: Task, shared: pathlib.Path
) -> None:
    """Reflections were off where the stored set was rendered: near 1, and not 1."""
    source = open_source(str(shared / "libero" / "rlds" / "libero_sim_no_noops"))
    episode = next(
        episode
        for shard in source.shards
        for _, episode in read_episodes(source, shard)
        if f"{task.suite}-0-0.npz" in bytes(episode["episode_metadata/file_path"][0]).decode()
    )
    demo = np.load(shared / "libero" / "demos" / f"{task.suite}-0-0.npz")
    env.reset(Trial(task, 0))
    env.simulator.physics_state = demo["qstate"][40]
    seen = env.observe()
    for name, key in (("image_primary", "image"), ("image_wrist", "wrist_image")):
        stored = simplejpeg.decode_jpeg(bytes(episode[f"steps/observation/{key}"][40]))
        assert correlation(seen[name], stored) > 0.97
        for flipped in (seen[name][::-1], seen[name][:, ::-1], seen[name][::-1, ::-1]):
            assert correlation(flipped, stored) < 0.9


def test_trials_run_side_by_side_in_processes(
    env: LiberoEnv, installation: Installation, task: Task
) -> None:
    """Two workers are given the expert's actions in chunks, and end where one simulator does."""
    trials = [Trial(task, init) for init in (5, 6)]
    courses = [find_course(env, trial, Noise(0.1, 0.01), (0,)) for trial in trials]
    chunks = []
    for course in courses:
        assert course is not None
        actions = from_command(course.executed)
        chunks.append([actions[start : start + 8] for start in range(0, len(actions), 8)])
    make = functools.partial(
        LiberoEnv, installation, registered("libero").conventions, observations=("proprio",)
    )
    ends = {}
    with EnvPool(make, 2) as pool:
        for worker, trial in enumerate(trials):
            pool.begin(worker, trial)
        while pool.num_busy:
            reply = pool.receive()
            assert isinstance(reply, Reply)
            if reply.outcome.is_over:
                ends[reply.worker] = reply.outcome
            else:
                pool.act(reply.worker, chunks[reply.worker].pop(0))
    assert all(outcome.is_success for outcome in ends.values())
    assert [ends[n].num_steps for n in range(2)] == [len(course.executed) for course in courses]


def test_a_demonstration_replayed_as_target_poses_ends_in_success(
    installation: Installation, task: Task, shared: pathlib.Path
) -> None:
    """At each step the target becomes the command from the pose that the arm has."""
    demo = np.load(shared / "libero" / "demos" / f"{task.suite}-0-0.npz")
    mapping = registered("libero_poses")
    source = {"steps/action": demo["action"], "steps/observation/state": demo["state"]}
    parts = [computed(p.operations, source[p.source], source) for p in mapping.features[0].parts]
    targets = standardize_gripper(np.concatenate(parts, axis=1), mapping.conventions)
    env = LiberoEnv(installation, mapping.conventions, observations=("proprio",))
    env.reset(Trial(task, 0))
    outcome = None
    for t, target in enumerate(targets):
        assert np.abs(env.simulator.state - demo["state"][t]).max() < 1e-3
        outcome = env.step(target)
    env.close()
    assert outcome is not None
    assert outcome.is_success
    assert outcome.num_steps == len(targets)
