"""Conversion on Spark. What needs PySpark and Java is slow, and skipped where they are missing."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from etils import epath

import octograin
from converters.job.convert import convert
from converters.job.runners import spark_messages
from converters.job.runners.spark_messages import DriverLog
from converters.job.shard_conversion import ShardJob
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import registered
from converters.sources.open_source import open_source
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError
from tests.file_checksums import contents
from tests.processes import PATIENCE_S, Command

ROOT = Path(__file__).parents[3]
CLUSTER = ("--master", "local-cluster[2,1,1024]", "--conf", "spark.ui.enabled=false")
"""Two executors of one core, each a process of its own."""
NUM_SHARDS = 24
HAS_SPARK = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None


def on_spark(test: Callable) -> Callable:
    """A test that runs only with PySpark and Java, and in minutes."""
    skipped = pytest.mark.skipif(not HAS_SPARK, reason="needs the extra spark, and Java")
    return pytest.mark.slow(skipped(test))


# --- without Spark


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is not None, reason="PySpark is installed")
def test_a_missing_pyspark_is_one_line(mini_rlds: Path, tmp_path: Path) -> None:
    job = Command("converters.rlds", mini_rlds, tmp_path / "out", "--runner", "spark")
    assert job.finish(2).stderr == (
        "error: --runner spark: expected PySpark; found No module named 'pyspark'. In the "
        "checkout, run `pip install -c constraints.txt -e '.[spark]'`.\n"
    )
    assert not (tmp_path / "out").exists()


def test_two_attempts_at_one_shard_at_once_write_the_same_bytes(toy: Any, tmp_path: Path) -> None:
    """A speculative copy of a task does this, and an executor that Spark took for lost."""
    source = toy.open(tmp_path)
    alone, both = (
        ShardJob(source, toy.mapping, toy.mapping.schema(source), epath.Path(tmp_path / name))
        for name in ("alone", "both")
    )
    for job in (alone, both):
        (job.destination / ".conversion").mkdir(parents=True)
    alone.convert(0, lambda num_bytes: None)
    reported = []

    def start_another(num_bytes: int) -> None:
        reported.append(num_bytes)
        if len(reported) == 1:
            both.convert(0, reported.append)

    both.convert(0, start_another)
    assert len(reported) == 4
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert both.is_done(0)


_STACK = "\n\tat org.apache.spark.scheduler.Task.run(Task.scala:147)\n"
_RAISED = (
    "Traceback (most recent call last):\n"
    '  File "worker.py", line 1, in process\n'
    "    run()\n"
    "ModuleNotFoundError: No module named 'octograin'\n"
    "\n SQLSTATE: 38000"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Errno 111] Connection refused", "[Errno 111] Connection refused"),
        ("", "RuntimeError"),
        (
            f"An error occurred while calling o1.\n: org.apache.SparkException: No master.{_STACK}",
            "org.apache.SparkException: No master.",
        ),
        (
            f"An error occurred while calling o1.\n: PythonException: thrown: {_RAISED}{_STACK}",
            "a task that raised ModuleNotFoundError: No module named 'octograin'",
        ),
    ],
)
def test_an_error_of_spark_becomes_one_line(text: str, expected: str) -> None:
    assert spark_messages.reason(RuntimeError(text)) == expected


def test_a_driver_s_log_gives_the_cause_and_news_alone(caplog: pytest.LogCaptureFixture) -> None:
    log = DriverLog()
    assert log.cause() == ""
    for is_shown, lines in (
        (False, "26/11/30 10:00:00 WARN Utils: Your hostname resolves to a loopback address\n"),
        (
            True,
            "26/11/30 10:00:00 INFO SparkContext: Running\n"
            "26/11/30 10:00:01 WARN TaskSchedulerImpl: Initial job has not accepted any resources\n"
            "26/11/30 10:00:02 ERROR Executor: Exception in task 0.0 in stage 0.0 (TID 0)\n"
            f"26/11/30 10:00:02 WARN TaskSetManager: Lost task 0.0: {_RAISED}\n"
            "26/11/30 10:00:03 ERROR TaskSchedulerImpl: Lost executor 1 on host: code 137\n",
        ),
    ):
        log.is_shown = is_shown
        with log.pipe() as descriptor:
            os.write(descriptor, f"{lines}\tat org.apache.spark\n".encode())
        log.cause()  # waits for the reader
    assert log.cause() == "TaskSchedulerImpl: Lost executor 1 on host: code 137"
    assert caplog.messages == [
        "Spark: TaskSchedulerImpl: Initial job has not accepted any resources",
        "Spark: TaskSchedulerImpl: Lost executor 1 on host: code 137",
    ]
    with log.pipe() as descriptor:
        os.write(descriptor, b'Exception in thread "main" org.apache.X: No YARN.\n')
    assert log.cause() == "No YARN."


def test_a_driver_without_java_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/no/java")
    error = spark_messages.not_started(RuntimeError("exited"), DriverLog())
    assert str(error) == (
        "--runner spark: expected Spark's driver to start; found no Java at JAVA_HOME=/no/java. "
        "Install Java 17 or later, and set JAVA_HOME where it is not on the PATH."
    )


@pytest.mark.parametrize(
    ("error", "log", "found"),
    [
        (
            "[Errno 111] refused",
            b"",
            "that the driver has ended ([Errno 111] refused). See Spark's",
        ),
        ("[Errno 111] refused", b"d t ERROR Shutdown: No room\n", "Shutdown: No room. See Spark's"),
        (
            "called\n: X: Cannot call methods on a stopped SparkContext.",
            b"d t ERROR Backend: All masters are unresponsive! Giving up.\n",
            "Backend: All masters are unresponsive! Giving up. See Spark's own log, and run the",
        ),
        (
            "called\n: X: Job aborted: code 137",
            b"d t ERROR Y: Z\n",
            "X: Job aborted: code 137.",
        ),
        (
            f"called\n: X: {_RAISED}",
            b"",
            "'octograin'. Executors run the interpreter that",
        ),
    ],
)
def test_a_job_that_fails_is_explained(error: str, log: bytes, found: str) -> None:
    driver = DriverLog()
    with driver.pipe() as descriptor:
        os.write(descriptor, log)
    message = str(spark_messages.failed(RuntimeError(error), driver))
    assert message.startswith("--runner spark: expected its job to run to its end; found ")
    assert found in message


# --- on Spark


@pytest.fixture(scope="module")
def long_source(mini_rlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled set's two files over and over, as links."""
    directory = tmp_path_factory.mktemp("long") / "1.0.0"
    directory.mkdir()
    shutil.copy(mini_rlds / "features.json", directory)
    info = json.loads((mini_rlds / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2"] * NUM_SHARDS
    (directory / "dataset_info.json").write_text(json.dumps(info))
    for i in range(NUM_SHARDS):
        name = f"libero_mini-train.tfrecord-{i:05d}-of-{NUM_SHARDS:05d}"
        bundled = f"libero_mini-train.tfrecord-{i % 2:05d}-of-00002"
        (directory / name).symlink_to(mini_rlds / bundled)
    return directory


@pytest.fixture(scope="module")
def undisturbed(long_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    convert(open_source(str(long_source)), out, registered("libero"))
    return contents(out)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SPARK_HOME whose folder `work`, where executors of a local cluster log, is its own."""
    import pyspark  # pyright: ignore[reportMissingImports]

    installed = Path(pyspark.__file__).parent
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("bin", "jars", "python"):
        (folder / name).symlink_to(installed / name)
    monkeypatch.setenv("SPARK_HOME", str(folder))
    return folder


def start(source: Path, out: Path, *flags: object, env: dict[str, str] | None = None) -> Command:
    return Command("converters.rlds", source, out, "--runner", "spark", "--", *flags, env=env)


def num_done(out: Path) -> int:
    return len(list(out.glob(".conversion/[0-9]*.part.json")))


def descendants(job: Command) -> list[psutil.Process]:
    return psutil.Process(job.pid).children(recursive=True)


def with_words(processes: list[psutil.Process], *words: str) -> list[psutil.Process]:
    """Those whose command lines have all of the words."""
    found = []
    for process in processes:
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if all(word in line for word in words):
            found.append(process)
    return found


def executors(job: Command) -> list[psutil.Process]:
    return with_words(descendants(job), "CoarseGrainedExecutorBackend")


def await_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, PATIENCE_S)
    assert not alive


def kill_a_writer(job: Command, out: Path, *, kills_jvm: bool) -> None:
    """Kills the Python process of an executor that is writing a shard, or its JVM."""

    def is_killed() -> bool:
        for path in out.glob("steps/.*.tmp"):
            writer = int(path.name.split(".")[-2])
            for executor in executors(job):
                inside = [process.pid for process in executor.children(recursive=True)]
                # Asked again: it may have ended the shard meanwhile.
                if writer in inside and path.exists():
                    os.kill(executor.pid if kills_jvm else writer, signal.SIGKILL)
                    return True
        return False

    job.wait_until(is_killed, 0.001)


@on_spark
def test_killed_executors_change_no_byte(
    long_source: Path, undisturbed: dict[str, str], tmp_path: Path, home: Path
) -> None:
    """First the Python process of an executor, and later the JVM of one."""
    out = tmp_path / "out"
    job = start(long_source, out, *CLUSTER)
    job.wait_until(lambda: num_done(out) >= 2)
    kill_a_writer(job, out, kills_jvm=False)
    job.wait_until(lambda: num_done(out) >= 6)
    kill_a_writer(job, out, kills_jvm=True)
    lost = num_done(out)
    started = descendants(job)
    errors = job.finish().stderr
    assert lost < NUM_SHARDS
    assert "TaskSetManager: Lost task" in errors
    assert "TaskSchedulerImpl: Lost executor" in errors
    assert f"\n{2 * NUM_SHARDS} episodes, " in job.stdout
    assert contents(out) == undisturbed
    await_end(started)


@on_spark
def test_a_killed_driver_leaves_nothing_that_opens_and_a_rerun_resumes(
    long_source: Path, undisturbed: dict[str, str], tmp_path: Path, home: Path
) -> None:
    out = tmp_path / "out"
    job = start(long_source, out, *CLUSTER)
    job.wait_until(lambda: num_done(out) >= 4)
    started = descendants(job)
    job.kill()
    with pytest.raises(DataError, match="found an unfinished conversion"):
        open_dataset(str(out))
    await_end(started)
    # A shard counts as done once its part is noted, which comes after its files.
    numbers = [path.name[:5] for path in out.glob(".conversion/[0-9]*.part.json")]
    done = {path: path.stat().st_mtime_ns for n in numbers for path in out.glob(f"*/{n}-of-*")}
    assert 4 <= len(numbers) < NUM_SHARDS
    assert len(done) == 3 * len(numbers)
    start(long_source, out, "--master", "local[2]").finish()
    assert contents(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in done} == done


@on_spark
def test_a_driver_that_ends_is_one_line(long_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = start(long_source, out, "--master", "local[2]")
    job.wait_until(lambda: num_done(out) >= 1)
    started = descendants(job)
    (driver,) = with_words(started, "SparkSubmit")
    driver.kill()
    errors = job.finish(2).stderr.splitlines()
    assert errors[-1].startswith("error: --runner spark: expected its job to run to its end; found")
    assert errors[-1].endswith("run the same command again: it resumes from here.")
    assert [line for line in errors if line.startswith(" ")] == []
    await_end(started)


@on_spark
def test_an_interrupted_job_says_so_and_stops_spark(long_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = start(long_source, out, "--master", "local[2]")
    job.wait_until(lambda: num_done(out) >= 1)
    started = descendants(job)
    job.send_signal(signal.SIGINT)
    errors = job.finish(130).stderr.splitlines()
    assert errors[-1] == "interrupted; run the same command again to resume"
    assert "episodes" not in job.stdout
    await_end(started)
    assert not list(out.glob("**/.*.tmp"))


@on_spark
def test_a_mistake_in_the_source_is_one_line_and_not_tried_again(toy: Any, tmp_path: Path) -> None:
    source = toy.write(tmp_path)
    (tmp_path / "mapping.toml").write_text(describe(open_source(str(source))))
    shard = source / "toy-train.tfrecord-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-1])
    mapping = ("--mapping", tmp_path / "mapping.toml")
    flags = (*mapping, "--runner", "spark", "--", "--master", "local[2,4]")
    job = Command("converters.rlds", source, tmp_path / "out", *flags)
    # On a busy machine, beside lines of the progress.
    lines = job.finish(2).stderr.splitlines()
    (line,) = (line for line in lines if not line.startswith("toy: "))
    assert line.startswith(f"error: {shard}, record 1: expected ")
    assert num_done(tmp_path / "out") == 1


@on_spark
@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        (("--mister", "yarn"), {}, "found Unrecognized option: --mister. Correct the flags"),
        (("--master", "local[x]"), {}, "Could not parse Master URL: 'local[x]'. Correct the flag"),
        (("--version",), {}, "say where and how a program runs; found --version. Run `spark-subm"),
        ((), {"JAVA_HOME": "/no/java"}, "found no Java at JAVA_HOME=/no/java. Install Java 17"),
        (("-v",), {"PYSPARK_GATEWAY_PORT": "1"}, "as spark-submit started this program; found -v"),
    ],
)
def test_what_spark_does_not_start_with_is_one_line(
    long_source: Path, tmp_path: Path, flags: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    (line,) = start(long_source, tmp_path / "out", *flags, env=env).finish(2).stderr.splitlines()
    assert line.startswith("error: --runner spark: expected ")
    assert message in line


@on_spark
def test_spark_submit_starts_the_command(
    long_source: Path, undisturbed: dict[str, str], tmp_path: Path, home: Path
) -> None:
    program = str(Path(octograin.__file__).with_name("__main__.py"))
    submit = [str(home / "bin" / "spark-submit"), "--master", "local[2]"]
    command = [*submit, program, "convert", str(long_source), "out", "--runner", "spark"]
    variables = {"PYTHONPATH": str(ROOT), "PYSPARK_DRIVER_PYTHON": sys.executable}
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"\n{2 * NUM_SHARDS} episodes, " in result.stdout
    assert contents(tmp_path / "out") == undisturbed
