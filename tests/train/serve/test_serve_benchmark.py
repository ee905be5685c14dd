import json
import sys

import pytest

from pipeline.errors import UserError
from train.serve.__main__ import main
from train.serve.client_session import ServeConfig
from train.serve.serve_benchmark import measure


def test_the_command_measures_calls_of_a_client(policy_run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve", str(policy_run), "--benchmark", "8", "--json"])
    main()
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["num_calls"] == 8
    assert found["message_bytes"] > 2 * 128 * 128 * 3
    assert 100 < found["reply_bytes"] < 1000
    assert 0 < found["model_ms"] < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert 0 < found["first_instruction_ms"] < found["first_ms"]
    assert found["first_ratio"] == pytest.approx(found["first_ms"] / found["p50_ms"], rel=0.01)
    assert 1000 / found["max_ms"] < found["calls_per_s"]
    assert "times the median" in printed.err
    assert "128" in printed.err


def test_a_planned_action_is_measured_as_it_is_served(served_policy):
    found = measure(served_policy, ServeConfig(execute_horizon=4), 10)
    assert found.model_ms == 0
    assert found.reply_bytes < 300


@pytest.mark.parametrize("number", ["0", "-1", "x", "2.5"])
def test_a_number_of_calls_is_expected(monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "argv", ["serve", "no run", "--benchmark", number])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert number in capsys.readouterr().err


def test_clients_of_vla_eval_are_not_measured(served_policy):
    with pytest.raises(UserError, match="expected the protocol openpi"):
        measure(served_policy, ServeConfig(protocol="vla-eval"), 1)


def test_what_a_client_would_be_refused_is_an_error(served_policy, monkeypatch):
    def infer(shown):
        raise UserError(where="actions", expected="finite values", found="NaN", remedy="Stop.")

    monkeypatch.setattr(served_policy, "infer", infer)
    with pytest.raises(UserError, match="example observation: expected actions; found actions: "):
        measure(served_policy, ServeConfig(), 1)
