"""The whole evaluation command, with a trained policy and a fake simulator."""

import dataclasses
import io
import json
import pathlib
import pickle
import re
import sys
import zipfile
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.loading.transforms.gripper_rules import GripperHysteresis
from tests.hub_server import HubServer
from tests.train.evaluate.fakes import make_env
from train.evaluate import evaluate_command, evaluation
from train.evaluate.evaluate_command import Args, evaluate
from train.evaluate.libero.installation import Installation
from train.evaluate.libero.scene.perturbations import NONE, Perturbations
from train.evaluate.results import read_results
from train.octo.octo_config import RegressionConfig
from train.policy.policy import Policy, read_run

TASK_MAP = 'libero_task_map = {"libero_spatial": ["lift_it", "push_it"]}'


@pytest.fixture
def installation(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An installation with two tasks of three initial states, which `find_installation` finds."""
    root = tmp_path / "libero"
    (root / "benchmark").mkdir(parents=True)
    (root / "benchmark" / "libero_suite_task_map.py").write_text(TASK_MAP)
    folder = root / "init_files" / "libero_spatial"
    folder.mkdir(parents=True)
    data = io.BytesIO()
    pickle.dump(np.zeros((3, 4)), data, protocol=2)
    for task in ("lift_it", "push_it"):
        with zipfile.ZipFile(folder / f"{task}.pruned_init", "w") as file:
            file.writestr("archive/data.pkl", data.getvalue())
    found = Installation(root, root, "egl", {"mujoco": "3.3"})
    monkeypatch.setattr(evaluate_command, "find_installation", lambda assets: found)
    monkeypatch.setattr(evaluation, "LiberoEnv", make_env)
    return found


def arguments(run: pathlib.Path, out: pathlib.Path, **changes: Any) -> Args:
    args = Args(str(run), trials=2, workers=2, out=str(out), seed=7, videos="none")
    return dataclasses.replace(args, **changes)


@pytest.mark.usefixtures("installation")
def test_an_evaluation_from_start_to_end_and_once_more(
    policy_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert not evaluate(arguments(policy_run, out))
    results = read_results(out)
    assert [(t.task, t.init, t.success, t.steps) for t in results.trials] == [
        (0, 0, True, 5),
        (0, 1, False, 7),
        (1, 0, True, 5),
        (1, 1, False, 7),
    ]
    assert results.settings.execute_horizon == 4
    assert results.settings.simulator == "mujoco 3.3, egl, images as sampled"
    assert results.inference is not None
    assert results.inference.batch_size == 1  # half of two workers
    assert [trial.num_workers for trial in results.trials] == [2, 2, 2, 2]
    output = capsys.readouterr().out
    assert "all   2 of 4   50.0 %  15.0 to 85.0 %  5" in output
    assert "2 of 4" in (out / "report.html").read_text()
    path = out / "results.json"
    values = json.loads(path.read_text())
    kept = values["trials"].pop(2)
    # As written by hand: an object without a checksum is not compared.
    del values["checksum"]
    path.write_text(json.dumps(values))
    assert not evaluate(arguments(policy_run, out))
    again = read_results(out)
    assert [t.place for t in again.trials] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # One simulator for the one trial that was left.
    assert [trial.num_workers for trial in again.trials] == [2, 2, 1, 2]
    page = (out / "report.html").read_text()
    assert re.search(r">num_workers</th>\s*<td[^>]*>1, 2</td>", page)
    assert again.trials[:2] == results.trials[:2]
    assert again.trials[2].seconds != kept["seconds"]
    with pytest.raises(UserError, match=r"expected results of .*, step 1, execute_horizon 2; "):
        evaluate(arguments(policy_run, out, step=1, execute_horizon=2))


@pytest.mark.usefixtures("installation")
def test_a_delay_is_a_setting_of_the_results(
    policy_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    args = arguments(policy_run, out, tasks="0", workers=1, execute_horizon=2, delay=1)
    assert not evaluate(args)
    assert [(t.success, t.steps) for t in read_results(out).trials] == [(True, 5), (False, 7)]
    assert ">delay<" in (out / "report.html").read_text()
    # Without a delay nothing is written, so that results of earlier releases are the same.
    for found, wanted in ((1, 0), (0, 2)):
        path = out / "results.json"
        values = json.loads(path.read_text())
        values.pop("checksum", None)
        assert values["settings"].get("delay", 0) == found
        other = dataclasses.replace(args, delay=wanted)
        with pytest.raises(UserError, match=f"results of .*, delay {wanted}.*; .*, delay {found}"):
            evaluate(other)
        values["settings"].pop("delay", None)
        path.write_text(json.dumps(values))


@pytest.mark.usefixtures("installation")
def test_what_is_executed_during_a_delay_is_a_setting_of_the_results(
    policy_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    args = arguments(policy_run, tmp_path / "out", tasks="0", execute_horizon=2, delay=1)
    path = tmp_path / "out" / "results.json"
    for execution in ("naive_async", "synchronous"):
        path.unlink(missing_ok=True)
        assert not evaluate(dataclasses.replace(args, execution=execution))
        results = read_results(path.parent)
        assert results.settings.execution == execution
        assert [(t.success, t.steps) for t in results.trials] == [(True, 5), (False, 7)]
        assert f">{execution}<" in (path.parent / "report.html").read_text()
    with pytest.raises(
        UserError, match=r"execution real_time_chunking; found .*, execution synchronous"
    ):
        evaluate(args)
    # As an earlier version wrote it, for which there was real-time chunking alone.
    values = json.loads(path.read_text())
    del values["checksum"], values["settings"]["execution"]
    path.write_text(json.dumps(values))
    assert read_results(path.parent).settings.execution == "real_time_chunking"
    assert not evaluate(args)
    with pytest.raises(UserError, match=r"found .*, execution real_time_chunking"):
        evaluate(dataclasses.replace(args, execution="naive_async"))


def test_strategies_are_one_setting_without_a_delay_and_differ_with_one(
    policy_run: pathlib.Path, installation: Installation, real_time_policy: Policy
) -> None:
    def made(**changes: Any) -> evaluation.Evaluation:
        request = evaluation.Request("libero_spatial", (), execute_horizon=2, **changes)
        return evaluation.Evaluation(str(policy_run), None, request, installation, policy_run)

    chunks = [np.full((4, 7), value, np.float32) for value in (0.25, 0.75)]
    for delay, expected in ((0, [2, 2, 2, 2]), (1, [2, 2, 2, 3])):
        lengths = []
        for execution in (None, "real_time_chunking", "naive_async", "synchronous"):
            one = made(delay=delay, **({"execution": execution} if execution else {}))
            settings = one._settings()
            assert settings.execution == ((execution or "real_time_chunking") if delay else None)
            is_guided = delay == 1 and settings.execution == "real_time_chunking"
            assert (one._actor(real_time_policy) is not real_time_policy) == is_guided
            execute = one._new_execution()
            assert len(execute(chunks[0])) == 2
            lengths.append(len(execute(chunks[1])))
        assert lengths == expected
    # A robot that holds still needs nothing of the last chunk, so the delay may be any.
    execute = made(delay=5, execution="synchronous")._new_execution()
    execute(chunks[1])
    # The gripper's rule opens it above 0.5, and it stays as it was commanded.
    held = [[0, 0, 0, 0, 0, 0, 1]] * 5
    np.testing.assert_array_equal(execute(chunks[0])[:5], held)
    np.testing.assert_array_equal(execute(chunks[0])[:5, 6], [0] * 5)


@pytest.mark.usefixtures("installation")
def test_perturbations_are_a_setting_of_the_results(
    policy_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    perturbed = Perturbations(camera=10, start=0.1)
    assert not evaluate(arguments(policy_run, out, tasks="0", workers=1, perturb=perturbed))
    assert read_results(out).settings.perturbations == perturbed
    assert "step 2, libero_spatial, camera 10, start 0.1\n" in capsys.readouterr().out
    assert "camera 10, start 0.1" in (out / "report.html").read_text()
    # Results without the field are of the scenes as they are.
    path = out / "results.json"
    for found, wanted in ((perturbed, NONE), (NONE, Perturbations(light=0.5))):
        with pytest.raises(UserError, match=f"perturbations {wanted}; .*, perturbations {found}"):
            evaluate(arguments(policy_run, out, perturb=wanted))
        values = json.loads(path.read_text())
        values.pop("checksum", None)
        values["settings"].pop("perturbations", None)
        path.write_text(json.dumps(values))
    assert read_results(out).settings.perturbations == NONE


def test_perturbed_results_have_a_folder_of_their_own(
    policy_run: pathlib.Path, installation: Installation
) -> None:
    folders = [
        evaluation.Evaluation(str(policy_run), None, request, installation, None).folder.name
        for request in (
            evaluation.Request("libero_spatial", ()),
            evaluation.Request("libero_spatial", (), perturbations=Perturbations(camera=20)),
            evaluation.Request("libero_spatial", (), perturbations=Perturbations(5, 0.5, 1, 0.05)),
        )
    ]
    assert folders == [
        "libero_spatial-2",
        "libero_spatial-2-camera20",
        "libero_spatial-2-camera5-light0.5-texture1-start0.05",
    ]


@pytest.mark.usefixtures("installation")
def test_trials_that_were_demonstrated_are_reported(
    policy_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = read_run(policy_run)
    (values,) = checkpoint.datasets.values()
    monkeypatch.setattr(evaluation, "read_run", lambda run, step: checkpoint)
    warning = "not held out: 2 of 4 trials start from an initial state that a demonstration"
    for said, expected in (
        ("libero_spatial task 0: 0 5; libero_spatial task 1: 1", [True, False, False, True]),
        ("anywhere", [None] * 4),
        (None, [None] * 4),
    ):
        values["provenance"] = {} if said is None else {"initial_states": said}
        out = tmp_path / f"out_{said}"
        evaluate(arguments(policy_run, out))
        assert [t.is_demonstrated for t in read_results(out).trials] == expected
        is_reported = True in expected
        assert (warning in capsys.readouterr().out) == is_reported
        assert (warning in (out / "report.html").read_text()) == is_reported


def test_executed_actions_follow_the_grippers_rule(
    policy_run: pathlib.Path, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_run(policy_run)
    rule = GripperHysteresis("gripper", 0.8, 0.2)
    data = dataclasses.replace(checkpoint.config.data, gripper_rules=(rule,))
    config = dataclasses.replace(checkpoint.config, data=data)
    ruled = dataclasses.replace(checkpoint, config=config)
    chunk = np.zeros((4, 7), np.float32)
    chunk[:, 6] = [0.9, 0.4, 0.1, 0.6]
    request = evaluation.Request("libero_spatial", (), execute_horizon=3)
    for read, decided in ((checkpoint, [1, 0, 0, 1, 0, 0]), (ruled, [1, 1, 0, 1, 1, 0])):
        monkeypatch.setattr(evaluation, "read_run", lambda run, step, read=read: read)
        made = evaluation.Evaluation("run", None, request, installation, policy_run / "none")
        for execution in (made._new_execution(), made._new_execution()):
            found = np.concatenate([execution(chunk), execution(chunk)])
            np.testing.assert_array_equal(found[:, 6], decided)
            assert not found[:, :6].any()


def test_results_of_a_policy_on_a_hub_are_kept_outside_of_its_cache(
    policy_run: pathlib.Path, installation: Installation, hub: HubServer
) -> None:
    commit = hub.model().commit_folder(policy_run)
    request = evaluation.Request("libero_spatial", ())
    made = evaluation.Evaluation("hf://owner/name", 1, request, installation, None)
    assert made.folder == pathlib.Path("evaluation/owner--name/libero_spatial-1")
    assert made.results.run == f"hf://owner/name@{commit}"


def test_results_of_other_settings_have_a_folder_of_their_own(
    policy_run: pathlib.Path, installation: Installation
) -> None:
    def name(**settings: Any) -> str:
        request = evaluation.Request("libero_spatial", (), **settings)
        return evaluation.Evaluation(str(policy_run), 1, request, installation, None).folder.name

    delayed = name(
        execute_horizon=2, delay=1, execution="naive_async", perturbations=Perturbations(camera=10)
    )
    assert delayed == "libero_spatial-1-execute2-delay1-naive_async-camera10"
    assert name(seed=3, ensemble=0.1) == "libero_spatial-1-seed3-ensemble0.1"


@pytest.mark.usefixtures("installation")
def test_two_checkpoints_are_compared_on_the_same_trials(
    policy_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluate(arguments(policy_run, out, tasks="1", compare=str(policy_run), compare_step=1))
    comparison = json.loads((out / "comparison.json").read_text())
    assert (comparison["first_step"], comparison["second_step"]) == (2, 1)
    assert comparison["total"] == {"both": 1, "only_first": 0, "only_second": 0, "neither": 1}
    assert comparison["p_value"] == 1
    first, second = read_results(out), read_results(out / "compared")
    assert [t.place for t in second.trials] == [(1, 0), (1, 1)] == [t.place for t in first.trials]
    assert first.settings.checkpoint != second.settings.checkpoint
    assert "McNemar's exact test: p = 1;" in capsys.readouterr().out
    assert "Comparison" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": "2"}, "indices from 0 to 1; found 2"),
        ({"tasks": "a"}, "such as 0,2; found a"),
        ({"trials": 4}, "from 0 to 2; found 0 to 3"),
        ({"first_trial": 2}, "from 0 to 2; found 2 to 3"),
        ({"trials": 0}, "--trials: expected at least 1; found 0"),
        ({"suite": "libero_new"}, "found libero_new"),
        ({"compare_step": 3}, "--compare RUN2"),
        ({"step": 9}, "a checkpoint of step 9"),
        ({"execute_horizon": 5}, "execute_horizon: expected 1 to 4"),
        ({"delay": 1}, "delay: expected 0 to 0 steps: a chunk of 4 is predicted every 4 steps"),
        ({"delay": 3, "execute_horizon": 2}, "delay: expected 0 to 2 steps: .*; found 3"),
        ({"delay": 3, "execute_horizon": 2, "execution": "naive_async"}, "0 to 2 .*; found 3"),
        ({"delay": -1}, "--delay: expected at least 0; found -1"),
        ({"execution": "naive_async"}, "--execution naive_async: expected a --delay of 1 or more"),
        ({"seed": -1}, r"--seed: expected 0 to 2\*\*32 - 1; found -1"),
        ({"seed": 2**32}, r"--seed: expected 0 to 2\*\*32 - 1; found 4294967296"),
        ({"delay": 1, "ensemble": 0.1}, r"expected no --ensemble as well; found --ensemble 0\.1"),
    ],
)
@pytest.mark.usefixtures("installation")
def test_what_cannot_be_evaluated_is_refused(
    changes: dict[str, Any], said: str, policy_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=said):
        evaluate(arguments(policy_run, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("installation")
def test_a_checkpoint_of_other_conventions_is_refused(
    policy_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_run(policy_run)
    for values in checkpoint.datasets.values():
        values["conventions"]["control_frequency_hz"] = 10.0
    monkeypatch.setattr(evaluation, "read_run", lambda run, step: checkpoint)
    with pytest.raises(UserError, match=r"control_frequency_hz = 20\.0; found .* = 10\.0"):
        evaluate(arguments(policy_run, tmp_path / "out"))
    for values in checkpoint.datasets.values():
        values["conventions"] |= {"control_frequency_hz": 20.0, "target_poses": True}
    with pytest.raises(UserError, match=r"ensemble: expected target poses with rotation rot6d or"):
        evaluate(arguments(policy_run, tmp_path / "out", ensemble=0.1))
    regression = dataclasses.replace(checkpoint.config.model, head=RegressionConfig("l1", 4, 7))
    config = dataclasses.replace(checkpoint.config, model=regression)
    checkpoint = dataclasses.replace(checkpoint, config=config)
    with pytest.raises(UserError, match=r"real-time chunking: .* found axis_angle: two that"):
        evaluate(arguments(policy_run, tmp_path / "out", execute_horizon=2, delay=1))


@pytest.mark.usefixtures("installation")
def test_the_command_line_exits_with_one_line(
    policy_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["train.evaluate", str(policy_run), "--trials", "9", "--first_trial", "1"]
    )
    with pytest.raises(SystemExit) as stopped:
        evaluate_command.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --first_trial and --trials: expected initial states of libero_spatial task 0, "
        "from 0 to 2; found 1 to 9. Name fewer.\n"
    )
