"""One run on 1, 2, 4 and 8 processes of this machine: equality, cost, deaths and resuming.

    python -m benchmarks.training_processes DATASET --directory DIR

Needs 12 GB of memory and, on two cores, half an hour. Prints JSON lines as it goes, then tables.
The processes share the cores, so the seconds show what a change costs, not what a cluster takes.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import module, print_figures
from pipeline.loading import device
from pipeline.loading.loader import LoadedBatch
from pipeline.loading.loader_state import LoaderState
from train import distributed, run
from train.checkpoints.checkpoint_store import Checkpoints, Constants
from train.metrics.step_metrics import read_metrics
from train.run_log import RunLog
from train.update.train_state import TrainState

_CONFIG = "tests/data/tiny_config.py:shallow"
_BATCH_SIZE = 16
_NUM_AGREED = 200
_POLL_S = 0.02
_LONG = ("--config.num_steps=100000", "--config.optimizer.decay_steps=100000")


@dataclasses.dataclass(frozen=True)
class Death:
    """How a process of a run is made to die."""

    count: int
    """Processes of the run."""
    index: int
    """The process that dies."""
    number: signal.Signals
    """SIGKILL, or SIGSTOP for a host that hangs."""


def main() -> None:
    """Parses the command line, and runs everything or, started by itself, one process."""
    if sys.argv[1:2] == ["worker"]:
        _work(pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="dataset directory with the keys of the config")
    parser.add_argument("--directory", type=pathlib.Path, required=True, help="work directory")
    parser.add_argument("--config", default=_CONFIG, help="FILE:VARIANT (default: %(default)s)")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of processes"
    )
    parser.add_argument("--steps", type=int, default=12, help="training steps of each run")
    parser.add_argument("--deaths", action="store_true", help="the deaths and resumptions as well")
    arguments = parser.parse_args()
    runs = Runs(arguments.directory, arguments.config, arguments.dataset, arguments.steps)
    figures: list[dict[str, Any]] = [
        runs.measure(count) for count in dict.fromkeys([1, *arguments.counts])
    ]
    tables = [_table(figures)]
    if arguments.deaths:
        most = max(arguments.counts)
        deaths = [
            Death(most, most - 1, signal.SIGKILL),
            Death(most, 0, signal.SIGKILL),
            Death(most, most - 1, signal.SIGSTOP),
            Death(most, 0, signal.SIGSTOP),
        ]
        tables.append(_table(runs.resume([most, most // 2, 1])))
        tables.append(_table([runs.end(death) for death in deaths]))
    sys.stdout.write("\n" + "\n".join(tables))


class Runs:
    """Runs of one config and dataset on any number of processes.

    Args:
      directory: Where they are written; each replaces the one of its name.
      config: The config's FILE:VARIANT.
      dataset: The dataset directory.
      num_steps: Training steps of an undisturbed run.
    """

    def __init__(self, directory: pathlib.Path, config: str, dataset: str, num_steps: int) -> None:
        self._directory = directory
        self._num_steps = num_steps
        self._flags = (
            *("--config", config),
            f"--config.data.datasets.0.path={dataset}",
            f"--config.batch_size={_BATCH_SIZE}",
            f"--config.compilation_cache={directory / 'compiled'}",
            "--config.optimizer.decay_steps=100000",
        )
        self._alone = directory / "1"

    def measure(self, count: int) -> dict[str, Any]:
        """Returns the figures of an undisturbed run, compared with those of one process."""
        directory = self._fresh(str(count))
        processes = self._start(count, directory, [f"--config.num_steps={self._num_steps}"])
        for process in processes:
            if process.wait():
                raise RuntimeError(f"{directory}: a process ended with {process.returncode}")
        each = [json.loads((directory / f"{i}.json").read_text()) for i in range(count)]
        steps_s = [row.step_s for row in read_metrics(directory / "run")][2:]
        figures = {
            "processes": count,
            **self._compare(directory, self._num_steps),
            "join_s": round(max(one["join_s"] for one in each), 2),
            "first_step_s": round(max(one["first_step_s"] for one in each), 1),
            "agree_ms": max(one["agree_ms"] for one in each),
            "agree_cpu_ms": max(one["agree_cpu_ms"] for one in each),
            "step_ms": round(statistics.median(steps_s) * 1e3, 1),
            "peak_mb": max(one["peak_mb"] for one in each),
        }
        print_figures(figures)
        return figures

    def end(self, death: Death) -> dict[str, Any]:
        """Returns how the other processes of a run end after one dies between checkpoints."""
        directory = self._fresh(f"{death.number.name}-{death.index}")
        processes = self._start(death.count, directory, _LONG)
        victim = processes[death.index]
        _wait(lambda: _num_rows(directory) >= self._num_steps, processes)
        victim.send_signal(death.number)
        figures = {
            "processes": death.count,
            "dies": f"process {death.index}, {death.number.name}",
            **_ending(directory, processes, victim),
        }
        print_figures(figures)
        return figures

    def resume(self, counts: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the figures of a run of which a process is killed while it writes a checkpoint.

        Args:
          counts: Numbers of processes; the run starts on the first and resumes on each that
            follows. On the last one it completes.
        """
        directory = self._fresh("resumed")
        figures = []
        interval = self._num_steps // (len(counts) + 1)
        flags = [f"--config.num_steps={self._num_steps}", f"--config.save_interval={interval}"]
        for number, count in enumerate(counts):
            # The last one has nobody to die for.
            is_last = number == len(counts) - 1
            death = None if is_last else Death(count, count // 2, signal.SIGKILL)
            at = interval * (number + 2)
            resume = ["--resume"] if number else []
            processes = self._start(count, directory, [*flags, *resume], death, at)
            victim = processes[count // 2]
            ending = {"others_end_after_s": "", "exit_codes": "", "lines": "", "line": ""}
            if not is_last:
                victim.wait()
                ending = _ending(directory, processes, victim)
            elif any(process.wait() for process in processes):
                raise RuntimeError(f"{directory}: a process failed")
            steps = _num_rows(directory)
            figures.append(
                {
                    "processes": count,
                    "dies": "none"
                    if is_last
                    else f"process {count // 2}, in the save of step {at}",
                    **ending,
                    **self._compare(directory, steps),
                }
            )
            print_figures(figures[-1])
        return figures

    def _fresh(self, name: str) -> pathlib.Path:
        directory = self._directory / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def _start(
        self,
        count: int,
        directory: pathlib.Path,
        flags: Sequence[str],
        death: Death | None = None,
        at_save: int | None = None,
    ) -> list[subprocess.Popen[bytes]]:
        flags = [*self._flags, f"--config.save_dir={directory / 'run'}", *flags]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        shared = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if count > 1:
            shared |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            }
        rows = directory / f"rows-{len(list(directory.glob('rows-*')))}-{count}"
        rows.mkdir()
        processes = []
        for index in range(count):
            dies_at = at_save if death and death.index == index else None
            settings = {"dies_at": dies_at, "index": index, "rows": rows.name}
            line = module("benchmarks.training_processes", "worker", str(directory))
            environment = shared | ({"JAX_PROCESS_ID": str(index)} if count > 1 else {})
            with (rows / f"{index}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*line, json.dumps(settings), *flags],
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )
        return processes

    def _compare(self, directory: pathlib.Path, num_steps: int) -> dict[str, Any]:
        """Compares the samples and losses of a run with those of the run of one process."""
        found, expected = (_rows(one)[:num_steps] for one in (directory, self._alone))
        ours, theirs = (
            np.array([row.loss for row in read_metrics(one / "run")][:num_steps])
            for one in (directory, self._alone)
        )
        return {
            "steps": len(ours),
            "batches": "identical" if found == expected else "differ",
            "loss_rel": float(f"{np.max(np.abs(ours / theirs - 1)):.1e}"),
        }


def _work(directory: pathlib.Path, settings: Mapping[str, Any], flags: Sequence[str]) -> None:
    """One process of a run: trains, and notes what it measures."""
    figures: dict[str, Any] = {"agree_ms": 0.0, "agree_cpu_ms": 0.0}
    rows = directory / settings["rows"]
    begun_s = time.monotonic()
    join, to_devices, add, save = distributed.join, device.to_devices, RunLog.add, Checkpoints.save

    def timed_join() -> None:
        join_s = time.monotonic()
        join()
        figures["join_s"] = time.monotonic() - join_s
        if "JAX_NUM_PROCESSES" in os.environ:
            figures.update(_agree_ms())

    def noted(batch: LoadedBatch, *others: Any) -> Any:
        with (rows / f"{settings['index']}.jsonl").open("a") as file:
            file.write(json.dumps([batch.position, _row_checksums(batch)]) + "\n")
        return to_devices(batch, *others)

    def first_added(self: RunLog, step: int, metrics: Mapping[str, Any], fingerprint: str) -> None:
        add(self, step, metrics, fingerprint)
        figures.setdefault("first_step_s", time.monotonic() - begun_s)

    def killed(
        self: Checkpoints, state: TrainState, loader_state: LoaderState, constants: Constants
    ) -> None:
        save(self, state, loader_state, constants)
        if int(state.step) == settings["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    distributed.join, device.to_devices = timed_join, noted
    RunLog.add, Checkpoints.save = first_added, killed
    sys.argv = ["train.run", *flags]
    run.main()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = directory / f"{settings['index']}.json"
    path.write_text(json.dumps({**figures, "peak_mb": peak // 1024}))


def _agree_ms() -> dict[str, float]:
    """Returns the wall and CPU milliseconds of one agreement while the devices are idle."""
    for _ in range(20):
        distributed.agree()
    seconds, cpu_s = [], time.process_time()
    for _ in range(_NUM_AGREED):
        begun_s = time.perf_counter()
        distributed.agree()
        seconds.append(time.perf_counter() - begun_s)
    cpu_s = time.process_time() - cpu_s
    return {
        "agree_ms": round(statistics.median(seconds) * 1e3, 2),
        "agree_cpu_ms": round(cpu_s / _NUM_AGREED * 1e3, 2),
    }


def _row_checksums(batch: LoadedBatch) -> list[str]:
    """Returns one checksum per row of this process's part of a batch."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch.arrays)]
    return [
        hashlib.sha256(b"".join(leaf[row].tobytes() for leaf in leaves)).hexdigest()[:16]
        for row in range(len(leaves[0]))
    ]


def _rows(directory: pathlib.Path) -> list[list[str]]:
    """Returns the checksums of the rows of each global batch, in order.

    If a resumed run loaded a batch again, it returns what was loaded last.
    """
    batches: dict[int, list[str]] = {}
    # Each start of the run has a folder, named by its place and its number of processes.
    for start in sorted(directory.glob("rows-*")):
        parts: dict[int, list[str]] = {}
        for index in range(int(start.name.rpartition("-")[2])):
            for line in (start / f"{index}.jsonl").read_text().splitlines():
                position, checksums = json.loads(line)
                parts[position] = parts.get(position, []) + checksums
        # A process that dies may have loaded one batch less than the others.
        batches |= {place: rows for place, rows in parts.items() if len(rows) == _BATCH_SIZE}
    return [batches[position] for position in sorted(batches)]


def _num_rows(directory: pathlib.Path) -> int:
    path = directory / "run" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def _ending(
    directory: pathlib.Path,
    processes: Sequence[subprocess.Popen[bytes]],
    victim: subprocess.Popen[bytes],
) -> dict[str, Any]:
    """Waits until the others have ended, and returns how they did."""
    died_s = time.monotonic()
    others = [index for index, one in enumerate(processes) if one is not victim]
    codes = sorted({processes[index].wait() for index in others})
    ended_s = time.monotonic() - died_s
    victim.kill()
    victim.wait()
    logs = max(directory.glob("rows-*"))
    errors = [_lines_of_death((logs / f"{index}.log").read_text()) for index in others]
    return {
        "others_end_after_s": round(ended_s, 1),
        "exit_codes": str(codes),
        "lines": max(map(len, errors)),
        "line": errors[0][0].partition(". This")[0],
    }


def _lines_of_death(log: str) -> list[str]:
    """Returns what a process wrote after its last line of progress: from its error on."""
    lines = [line for line in log.splitlines() if line]
    places = [
        place
        for place, line in enumerate(lines)
        if line.startswith(("error: ", "Traceback", "E1", "F1"))
    ]
    return lines[places[0] :]


def _wait(is_reached: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while not is_reached():
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("a process ended too early; its log shows why")
        time.sleep(_POLL_S)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table; the rows have the same keys."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(str(value) for value in row.values()) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    main()
