import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
import simplejpeg

from converters.mapping.mapping_registry import registered
from converters.sources.open_source import open_source
from examples.scripted_expert import episodes
from examples.scripted_expert.collect import Destination, collect
from examples.scripted_expert.episodes import EpisodeFiles, Noise, Settings, find_course, record
from pipeline.data.conventions import is_no_op
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError, UserError
from tests.examples.scripted_expert.toy import HOPELESS, TASK, ToyEnv
from train.evaluate.libero.installation import Installation
from train.evaluate.libero.suites import Trial

SETTINGS = Settings(Noise(), seed=0, attempts=2, image_size=16, simulator="toy 1")
CONVENTIONS = registered("libero").conventions


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> ToyEnv:
    """A toy environment in place of the simulator."""
    env = ToyEnv()
    monkeypatch.setattr(episodes, "_environment", lambda files: env)
    return env


def files_of(
    tmp_path: pathlib.Path, inits: tuple[int, ...], settings: Settings = SETTINGS
) -> EpisodeFiles:
    nowhere = Installation(tmp_path, tmp_path, "egl", {})
    trials = tuple(Trial(TASK, init) for init in inits)
    return EpisodeFiles(nowhere, settings, trials, Destination(tmp_path / "out").folder)


# --- an episode


def test_without_noise_what_is_executed_is_intended() -> None:
    course = find_course(ToyEnv(), Trial(TASK, 0), Noise(), (0,))
    assert course is not None
    assert np.array_equal(course.executed, course.intended)
    assert len(course.states) == len(course.executed)
    np.testing.assert_allclose(course.states[0][:3], [-0.1, 0.0, 0.3])  # the hand, before it moves


def test_noise_is_executed_and_not_recorded() -> None:
    env, trial = ToyEnv(), Trial(TASK, 0)
    course = find_course(env, trial, Noise(0.1), (0,))
    assert course is not None
    noise = course.executed - course.intended
    assert np.array_equal(noise[:, 6], np.zeros(len(noise)))
    assert np.abs(course.executed).max() <= 1.0
    free = noise[:8, 3:5]  # which the toy never clips
    assert 0.02 < np.abs(free).mean() < 0.2
    assert np.array_equal(free[:4], np.tile(free[0], (4, 1)))  # a draw lasts for four steps
    assert not np.array_equal(free[4], free[0])
    again = find_course(env, trial, Noise(0.1), (0,))
    other = find_course(env, trial, Noise(0.1), (1,))
    assert again is not None
    assert other is not None
    assert np.array_equal(again.executed, course.executed)
    assert not np.array_equal(other.executed[:8], course.executed[:8])
    values = record(env, trial, course, CONVENTIONS, "name")
    assert np.array_equal(values["steps/action"], course.intended.astype(np.float32))


def test_noise_is_less_where_fingers_close() -> None:
    course = find_course(ToyEnv(), Trial(TASK, 0), Noise(0.1), (0,))
    assert course is not None
    noise = np.abs(course.executed - course.intended)[:, :6]
    closing = int(np.flatnonzero(course.intended[:, 6] > 0)[0])
    assert noise[closing : closing + 8].mean() < 0.5 * noise[: closing - 8].mean()


def test_an_episode_has_the_keys_and_marks_of_a_published_one() -> None:
    env, trial = ToyEnv(), Trial(TASK, 0)
    course = find_course(env, trial, Noise(), (0,))
    assert course is not None
    values: dict[str, Any] = record(env, trial, course, CONVENTIONS, "a/b")
    num_steps = len(course.intended)
    assert {key for key in values if key.startswith("steps/")} == {
        f.source for f in registered("libero").features if not f.optional
    } | {registered("libero").task}
    assert {len(v) for key, v in values.items() if key.startswith("steps/")} == {num_steps}
    assert values["steps/reward"].tolist() == [0.0] * (num_steps - 1) + [1.0]
    assert np.flatnonzero(values["steps/is_first"]).tolist() == [0]
    assert np.flatnonzero(values["steps/is_last"]).tolist() == [num_steps - 1]
    assert values["episode_metadata/file_path"] == [b"a/b"]
    assert values[registered("libero").task][0] == b"pick up the cup and place it on the tray"
    # An image is what was seen before the action: the toy's are as bright as steps were done.
    third = simplejpeg.decode_jpeg(values["steps/observation/image"][3])
    assert np.abs(third.astype(int) - 3).max() <= 1


def test_a_simulation_that_is_not_the_same_twice_is_reported() -> None:
    env, trial = ToyEnv(), Trial(TASK, 0)
    course = find_course(env, trial, Noise(), (0,))
    assert course is not None
    cut = dataclasses.replace(course, executed=course.executed[:-9])
    with pytest.raises(RuntimeError, match=r"initial state 0: its course ended in success once"):
        record(env, trial, cut, CONVENTIONS, "x")


# --- the job


def test_successes_become_a_dataset_that_says_where_they_come_from(
    env: ToyEnv, tmp_path: pathlib.Path
) -> None:
    reported: list[int] = []
    out = Destination(tmp_path / "out", name="libero_toy_expert", licence="CC0-1.0")
    files = files_of(tmp_path, (0, HOPELESS, 2))
    collect(files, out, on_progress=lambda episodes, num_bytes: reported.append(episodes))
    dataset = open_dataset(str(out.dataset))
    manifest = dataset.manifest
    assert manifest.name == "libero_toy_expert"
    assert set(manifest.licences.values()) == {"CC0-1.0"}
    assert manifest.provenance == {
        "expert": "scripted, examples/scripted_expert",
        "simulator": "toy 1",
        "noise": "commands 0, waypoints 0 m; actions are the expert's, without it",
        "seed": "0",
        "initial_states": "libero_spatial task 3: 0 2",
        "failed_initial_states": "libero_spatial task 3: 41",
        "source": "libero_toy_expert",
        "version": "1.0.0",
        "split": "train",
    }
    ids = [bytes(dataset.columns["episodes"].read(e)["source_id"]).decode() for e in range(2)]
    assert ids == [
        f"scripted_expert/libero_spatial/task_3/init_0{init}/seed_0/attempt_0" for init in (0, 2)
    ]
    assert manifest.conventions == dataclasses.replace(
        CONVENTIONS, no_ops="removed_at_conversion", no_op_threshold=1e-4
    )
    for episode in range(2):
        action = np.asarray(dataset.columns["episodes"].read(episode)["action"])
        assert not is_no_op(action, manifest.conventions).any()
    assert sum(reported) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_made_is_not_made_again(env: ToyEnv, tmp_path: pathlib.Path) -> None:
    files = files_of(tmp_path, (0, HOPELESS, 2))
    with files.claimed():
        files.make(0, lambda num_bytes: None)
        files.make(1, lambda num_bytes: None)
        (files.folder / ".half.tmp").touch()  # of a worker that was killed
    made = (files.folder / "libero_spatial-3-0.tfrecord").read_bytes()
    assert files.pending() == [2]
    before = env.num_resets
    collect(files, Destination(tmp_path / "out"))
    assert env.num_resets == before + 2  # once to find the way, once to record it
    other = tmp_path / "other"
    other.mkdir()
    fresh = files_of(other, (0, HOPELESS, 2))
    with fresh.claimed():
        fresh.make(0, lambda num_bytes: None)
    assert (fresh.folder / "libero_spatial-3-0.tfrecord").read_bytes() == made


def test_a_failed_attempt_is_tried_again_with_other_noise(
    env: ToyEnv, tmp_path: pathlib.Path
) -> None:
    files = files_of(tmp_path, (HOPELESS,))
    with pytest.raises(UserError, match=r"the expert: .*found none of 1\. Lower --noise"):
        collect(files, Destination(tmp_path / "out"))
    assert env.num_resets == SETTINGS.attempts
    assert not (tmp_path / "out").exists()


def test_the_rlds_is_kept_where_it_is_asked_for(env: ToyEnv, tmp_path: pathlib.Path) -> None:
    out = Destination(tmp_path / "out", rlds=tmp_path / "rlds")
    collect(files_of(tmp_path, (0, 1)), out)
    source = open_source(str(tmp_path / "rlds"))
    assert source.name == "libero_expert"
    assert sum(shard.num_episodes for shard in source.shards) == 2
    assert source.keys["steps/observation/image"].shape == (16, 16, 3)


def test_a_job_that_was_killed_after_placing_the_rlds_resumes(
    env: ToyEnv, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Destination(tmp_path / "out", rlds=tmp_path / "rlds")
    files = files_of(tmp_path, (0, 1))
    with monkeypatch.context() as patch:
        patch.setattr("examples.scripted_expert.collect.convert", _killed)
        with pytest.raises(KeyboardInterrupt):
            collect(files, out)
    assert (tmp_path / "rlds").exists()
    with pytest.raises(DataError):
        open_dataset(str(out.dataset))
    collect(files, out)
    assert open_dataset(str(out.dataset)).num_episodes == 2


def _killed(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_places_that_are_taken_are_refused_before_anything_is_simulated(
    env: ToyEnv, tmp_path: pathlib.Path
) -> None:
    files = files_of(tmp_path, (0,))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    with pytest.raises(
        UserError, match=r"/out: expected an empty or new directory; found one that"
    ):
        collect(files, Destination(tmp_path / "out"))
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"/taken: expected a new folder; found one that exists"):
        collect(files, Destination(tmp_path / "new", rlds=tmp_path / "taken"))
    assert env.num_resets == 0


def test_a_dataset_is_replaced_on_request(env: ToyEnv, tmp_path: pathlib.Path) -> None:
    collect(files_of(tmp_path, (0, 1)), Destination(tmp_path / "out"))
    with pytest.raises(UserError, match="Replace a dataset with --overwrite"):
        collect(files_of(tmp_path, (2,)), Destination(tmp_path / "out"))
    collect(files_of(tmp_path, (2,)), Destination(tmp_path / "out", overwrite=True))
    assert open_dataset(str(tmp_path / "out")).num_episodes == 1


def test_episodes_of_other_settings_are_not_mixed_in(env: ToyEnv, tmp_path: pathlib.Path) -> None:
    files = files_of(tmp_path, (0, 1))
    with files.claimed():
        files.make(0, lambda num_bytes: None)
    noisy = files_of(tmp_path, (0, 1), dataclasses.replace(SETTINGS, noise=Noise(0.1)))
    with pytest.raises(UserError, match=r"\.out\.episodes: expected episodes of the same settings"):
        collect(noisy, Destination(tmp_path / "out"))


def test_a_second_job_is_refused(env: ToyEnv, tmp_path: pathlib.Path) -> None:
    files = files_of(tmp_path, (0,))
    with (
        files.claimed(),
        pytest.raises(UserError, match=r"no other job in it; found one at work"),
    ):
        collect(files, Destination(tmp_path / "out"))
    collect(files, Destination(tmp_path / "out"))
