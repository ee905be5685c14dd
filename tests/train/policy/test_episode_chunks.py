"""What a policy predicts along a stored episode, and the recording that shows it."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest
from rerun.chunk import RrdReader

from octograin.cli import main
from pipeline.data.conventions import restore_gripper
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from tests.hub_server import HubServer
from tests.small_dataset import write_dataset
from tests.train.conftest import without_params
from train.policy import Policy, episode_chunks
from train.policy.episode_chunks import predict_chunks
from train.policy.policy_spec import PolicySpec
from train.train_config import TrainConfig

NAMES = ("image_primary", "image_wrist", "proprio")


def test_chunks_are_those_of_the_policy_that_saw_every_step(
    policy_run: pathlib.Path, short_dataset: pathlib.Path
) -> None:
    dataset = open_dataset(str(short_dataset))
    chunks = predict_chunks(policy_run, dataset, 1)
    policy = Policy.from_run(policy_run)
    horizon = policy.action_horizon
    assert [step for step, _ in chunks] == list(range(0, 11, horizon))
    # The window has two steps, so the second chunk needs those before and at its own.
    assert policy.window_size == 2
    steps = [dataset.step(1, step) for step in (0, horizon - 1, horizon)]
    shown = [{0: {name: step["observation"][name] for name in NAMES}} for step in steps]
    policy.reset(0, steps[0]["instruction"])
    policy.infer(shown[0])
    policy.observe(shown[1])
    wanted = restore_gripper(policy.infer(shown[2])[0], policy.conventions)
    found = chunks[1][1]
    assert found.shape == (horizon, 7)
    assert set(np.unique(found[:, 6]).tolist()) <= {-1.0, 1.0}
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_command_shows_those_of_a_policy_on_the_hub_beside_the_actions(
    policy_run: pathlib.Path,
    hub: HubServer,
    short_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "out.rrd"
    hub.model("owner/name").commit_folder(policy_run)
    run = "hf://owner/name"
    arguments = ["inspect", short_dataset, "--episode", 1, "--rerun", target, "--run", run]
    monkeypatch.setattr(sys, "argv", ["octograin", *map(str, arguments)])
    main()
    rows = {
        chunk.entity_path: chunk for chunk in RrdReader(str(target)).stream() if not chunk.is_static
    }
    assert rows["/predicted/dx"].num_rows == rows["/action/dx"].num_rows == 11
    chunks = predict_chunks(policy_run, open_dataset(str(short_dataset)), 1)
    shown = rows["/predicted/dx"].to_record_batch().to_pydict()["Scalars:scalars"]
    wanted = np.concatenate([actions for _, actions in chunks])[:11, :1]
    np.testing.assert_array_equal(np.array(shown), wanted)


def test_a_policy_of_goals_is_shown_the_last_step(
    policy_config: TrainConfig, short_dataset: pathlib.Path
) -> None:
    dataset = open_dataset(str(short_dataset))
    data = dataclasses.replace(policy_config.data, conditioning="image_conditioned")
    spec = PolicySpec.of(without_params(dataclasses.replace(policy_config, data=data)))
    instruction, goal = episode_chunks._task(dataset, 1, "open the drawer", spec)
    last = dataset.step(1, 10)["observation"]
    assert (instruction, set(goal)) == ("", {"image_primary", "image_wrist"})
    for name, image in goal.items():
        np.testing.assert_array_equal(image, last[name])


def test_a_run_of_another_robot_is_refused(
    policy_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    dataset = open_dataset(str(write_dataset(tmp_path / "other", {"action": (3,)})))
    with pytest.raises(
        UserError, match=r"--run .*expected a policy of actions \[3\], .*found \[7\]"
    ):
        predict_chunks(policy_run, dataset, 0)
