"""Commands of the package in processes of their own, which start without importing it again.

One server process per test process imports the package once, 3 s of CPU time, and forks a child
for each command. What a child prints goes into files, so that no pipe can fill up.
"""

import atexit
import functools
import importlib
import importlib.util
import multiprocessing
import multiprocessing.context
import os
import pathlib
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import forkserver

import jax

from tests.compiled import share_contexts, spare_garbage_collection, write_programs_whole
from tests.flax_parameters import check_parameters_once

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE_S = 1800
"""A safety net for a hang: no test depends on how fast the machine is."""


class Command:
    """A started command.

    Args:
      module: With a function `main`, as `python -m` runs it.
      arguments: The arguments of the command line.
      env: Environment variables on top of those of this process.
      before: What the child calls before `main`; of a module that a child can import.
    """

    def __init__(
        self,
        module: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._out = pathlib.Path(tempfile.mkdtemp(prefix="command-"))
        weakref.finalize(self, shutil.rmtree, self._out, ignore_errors=True)
        line = (module, *map(str, arguments))
        args = (line, {**os.environ, **(env or {})}, str(self._out), before or _nothing)
        self._process = _context().Process(target=_main, args=args)
        self._process.start()
        _started.add(self)

    @property
    def pid(self) -> int:
        """The id of the process itself."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """Printed so far."""
        return self._printed("stdout")

    @property
    def stderr(self) -> str:
        """Printed so far."""
        return self._printed("stderr")

    def _printed(self, name: str) -> str:
        path = self._out / name
        return path.read_text(errors="replace") if path.exists() else ""

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the process, if it still runs, and waits for its end."""
        self._process.kill()
        self._process.join(PATIENCE_S)

    def wait(self) -> "Command":
        """Waits for its end."""
        self._process.join(PATIENCE_S)
        assert self.returncode is not None, self.stderr
        return self

    def finish(self, code: int = 0) -> "Command":
        """Waits for its end, and checks the exit code."""
        assert self.wait().returncode == code, f"exit code {self.returncode}:\n{self.stderr}"
        return self

    def wait_until(self, is_reached: Callable[[], bool], period_s: float = 0.01) -> None:
        """Waits until the function says so, while the process runs."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_reached():
            assert self.returncode is None, f"exit code {self.returncode}:\n{self.stderr}"
            assert time.monotonic() < deadline_s, self.stderr
            time.sleep(period_s)


_PRELOADED = (
    "train.run",
    "train.checkpoints.export_run",
    "train.serve.__main__",
    "train.serve.server",
    "converters.job.convert_command",
    "converters.vggt.__main__",
    "converters.edit",
    "converters.export.__main__",
    "converters.verify.__main__",
    "pipeline.inspection.__main__",
    "pipeline.benchmark.__main__",
)
_started: weakref.WeakSet[Command] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    """Leaves no process behind a test that failed; else Python would wait for its end."""
    for command in list(_started):
        command.kill()
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]


# Children import this module.
write_programs_whole()
share_contexts()
check_parameters_once()


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_PRELOADED])
    return context


def _nothing() -> None:
    pass


def _main(
    line: tuple[str, ...], env: Mapping[str, str], out: str, before: Callable[[], None]
) -> None:
    """What a child does. JAX reads its variables when it is imported, so they are set again."""
    spare_garbage_collection()
    for number, name in ((1, "stdout"), (2, "stderr")):
        with pathlib.Path(out, name).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    for name, value in env.items():
        if name.lower() in jax.config.values:
            jax.config.update(name.lower(), value)
    os.chdir(ROOT)
    sys.argv = list(line)
    before()
    found = importlib.util.find_spec(line[0])
    is_package = found is not None and found.submodule_search_locations is not None
    try:
        importlib.import_module(f"{line[0]}.__main__" if is_package else line[0]).main()
    finally:
        atexit._run_exitfuncs()
