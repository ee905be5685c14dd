"""LIBERO's suites: their tasks, instructions and initial states, read from the installed files.

Nothing of the simulator is imported: the module of it that knows the tasks needs torch.
"""

import ast
import codecs
import dataclasses
import io
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.errors import DataError, UserError

# NumPy's own function, whatever its module is called in this release.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
_PICKLE = "data.pkl"
_STATES_AXES = 2

MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Number of actions after which a trial has failed, by suite.

Source: OpenVLA's evaluation; each is a little more than the suite's longest demonstration.
"""

_TASK_MAP = pathlib.Path("benchmark", "libero_suite_task_map.py")
_TASK_MAP_NAME = "libero_task_map"
INITIAL_STATES = "initial_states"
"""Key of a dataset's provenance: the trials that its demonstrations are of, as `to_text` says."""

_STATES = re.compile(r"(\w+) task (\d+): (\d+(?: \d+)*)")
_SCENE = re.compile(r"[A-Z_]+_SCENE\d+_")
"""Prefix of the names in libero_10 and libero_90, before the instruction."""


Place = tuple[str, int, int]
"""(suite, task, initial state)."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a suite."""

    suite: str
    """Such as `libero_spatial`."""
    index: int
    """Its place in the suite, from 0, in the benchmark's default order."""
    name: str
    """Name of its files."""

    @property
    def instruction(self) -> str:
        """The policy's instruction, in the words of the published datasets.

        The scene's file holds another wording, which no dataset has.
        """
        # The names of libero_10 and libero_90 begin with their scene.
        return _SCENE.sub("", self.name, count=1).replace("_", " ")

    @property
    def max_steps(self) -> int:
        """Actions after which a trial has failed."""
        return MAX_STEPS[self.suite]

    def __str__(self) -> str:
        """Such as `libero_spatial task 3`."""
        return f"{self.suite} task {self.index}"

    def scene_path(self, root: pathlib.Path) -> pathlib.Path:
        """The file that describes objects and goal, in the package at `root`."""
        return root / "bddl_files" / self.suite / f"{self.name}.bddl"

    def init_states(self, root: pathlib.Path) -> np.ndarray:
        """float64 (trials, n): the simulator states from which the benchmark's trials start.

        Raises:
          DataError: Where the package at `root` does not hold them.
        """
        return read_init_states(root / "init_files" / self.suite / f"{self.name}.pruned_init")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One attempt at a task."""

    task: Task
    """What is attempted."""
    init: int
    """The initial state it starts from; the benchmark's trial k starts from state k."""

    def __str__(self) -> str:
        """Such as `libero_spatial task 3, initial state 7`."""
        return f"{self.task}, initial state {self.init}"


def to_text(trials: Iterable[Trial]) -> str:
    """Such as `libero_spatial task 0: 0 1 2; libero_spatial task 2: 0 1`."""
    states: dict[str, list[int]] = {}
    for trial in trials:
        # In the order of the trials.
        states.setdefault(str(trial.task), []).append(trial.init)
    return "; ".join(f"{task}: {' '.join(map(str, inits))}" for task, inits in states.items())


def places_in(text: str) -> frozenset[Place] | None:
    """The trials that `to_text` named; None where it did not write this."""
    places: set[Place] = set()
    for part in text.split("; "):
        match = _STATES.fullmatch(part)
        if match is None:
            # A text of another program: nothing is known.
            return None
        suite, task, inits = match.groups()
        places |= {(suite, int(task), int(init)) for init in inits.split()}
    return frozenset(places)


def read_tasks(root: pathlib.Path, suite: str) -> tuple[Task, ...]:
    """The tasks of a suite in the benchmark's default order.

    Args:
      root: Folder of the package `libero.libero`.
      suite: One of `MAX_STEPS`.

    Raises:
      UserError: No such suite.
      DataError: A package without its list of tasks.
    """
    if suite not in MAX_STEPS:
        raise UserError(
            where="suite",
            expected=f"one of {', '.join(MAX_STEPS)}",
            found=suite,
            remedy="Name one of them.",
        )
    names = _task_map(root / _TASK_MAP)[suite]
    return tuple(Task(suite, index, name) for index, name in enumerate(names))


def select_tasks(
    root: pathlib.Path, suite: str, indices: tuple[int, ...] | None = None
) -> tuple[Task, ...]:
    """Some tasks of a suite, or all.

    Raises:
      UserError: No such suite, or an index that it does not have.
      DataError: A file of the suite is missing or cannot be read.
    """
    tasks = read_tasks(root, suite)
    wanted = range(len(tasks)) if indices is None else indices
    strange = [index for index in wanted if index not in range(len(tasks))]
    if strange:
        raise UserError(
            where=f"tasks of {suite}",
            expected=f"indices from 0 to {len(tasks) - 1}",
            found=", ".join(map(str, strange)),
            remedy="Name others: the tasks are counted from 0.",
        )
    return tuple(tasks[index] for index in wanted)


def parse_indices(text: str) -> tuple[int, ...]:
    """The tasks that `--tasks` names, such as `0,2`: in the order given, each once.

    Raises:
      UserError: Anything but indices with commas between.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(
            where="--tasks",
            expected="indices with commas between, such as 0,2",
            found=text,
            remedy="Tasks are counted from 0.",
        )
    return tuple(dict.fromkeys(map(int, text.split(","))))


def trials_of(
    root: pathlib.Path,
    suite: str,
    indices: tuple[int, ...] | None,
    wanted: range,
    where: str,
) -> list[Trial]:
    """Some initial states of some tasks of a suite, or of all, in order.

    Args:
      root: Folder of the package `libero.libero`.
      suite: Name of the suite.
      indices: Indices of the tasks; None: all.
      wanted: Numbers of the initial states, the same for each task.
      where: Flags that chose them, for the error.

    Raises:
      UserError: No such suite, task or initial state.
    """
    trials = []
    for task in select_tasks(root, suite, indices):
        # All tasks are checked before the first trial.
        held = len(task.init_states(root))
        if wanted.stop > held:
            raise UserError(
                where=where,
                expected=f"initial states of {task}, from 0 to {held - 1}",
                found=f"{wanted.start} to {wanted.stop - 1}",
                remedy="Name fewer.",
            )
        trials += [Trial(task, init) for init in wanted]
    return trials


def _task_map(path: pathlib.Path) -> dict[str, list[str]]:
    """The one assignment in a module that is a literal."""
    try:
        # Parsed and not imported: the module imports torch.
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _TASK_MAP_NAME:
                return ast.literal_eval(node.value)
        found = f"no {_TASK_MAP_NAME} in it"
    except (OSError, SyntaxError, ValueError) as error:
        found = str(error)
    raise DataError(
        where=str(path),
        expected="LIBERO's list of tasks",
        found=found,
        remedy="Install the simulator again: make libero",
    )


def read_init_states(path: pathlib.Path) -> np.ndarray:
    """float64 (trials, n): one flattened simulator state per trial.

    Raises:
      DataError: A file that is missing, corrupt, holds anything but such an array, or whose pickle
        names another function.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if name.endswith(f"/{_PICKLE}")]
            if len(names) != 1:
                raise _unreadable(path, f"{len(names)} files {_PICKLE} in it")
            states = _Unpickler(io.BytesIO(file.read(names[0]))).load()
    except DataError:
        # Errors from above, with their own message.
        raise
    except Exception as error:  # what a corrupt pickle raises can be anything
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(states, np.ndarray) or states.dtype != np.float64:
        raise _unreadable(path, f"{getattr(states, 'dtype', type(states).__name__)}")
    if states.ndim != _STATES_AXES or not np.isfinite(states).all():
        raise _unreadable(path, f"float64{list(states.shape)}, finite or not")
    return states


class _Unpickler(pickle.Unpickler):
    """Rebuilds arrays and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name."""
        # Everything else could run code of the file's author.
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def _unreadable(path: pathlib.Path, found: str) -> DataError:
    return DataError(
        where=str(path),
        expected="initial states: a zip with a pickle of one array, float64[trials, n] and finite",
        found=found,
        remedy="Install the simulator again: make libero",
    )
