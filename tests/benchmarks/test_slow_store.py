import json
import pathlib
import sys

import pytest

from benchmarks.slow_store import main

_SMALL = "--delays_ms 2 --batch_sizes 4 --steps_s 0.02 --seconds 0.1 --num_shards 20"


def test_a_loop_is_fed_from_a_slow_store(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["slow_store", str(mini_dataset), *_SMALL.split()])
    main()
    opening, loop = map(json.loads, capsys.readouterr().out.splitlines())
    assert opening["shards"] == 20
    # Twenty delays of 2 ms, 32 at a time.
    assert opening["open_s"] >= 0.002
    # An episode and one or two steps, each 2 ms late.
    assert loop["sample_ms"] >= 4
    assert loop["num_threads"] >= 2
    assert 0 <= loop["wait_percent"] < 100
