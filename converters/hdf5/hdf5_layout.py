"""What HDF5 files of demonstrations hold: their demos, the types of their arrays, their texts.

Two layouts are known. In the one of robomimic and LIBERO a group `data` holds the groups `demo_0`,
`demo_1`, ..., whose arrays have a leading time axis. In the other, of ALOHA, a file is one episode:
its arrays lie at the root.

Source: robomimic's documentation of its datasets, and LIBERO's `create_dataset.py`.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from pipeline.errors import DataError

_DATA = "data"
_DEMO = re.compile(r"demo_(\d+)$")
_ACTIONS = ("actions", "action")
_INSTRUCTION = "language_instruction"
_MAX_DEPTH = 32
"""Maximum number of groups inside one another, below that of a demo."""
_MAX_ITEMS = 10_000
"""Maximum number of arrays and groups of a demo; links to groups with links multiply them."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """One episode: a group of a file."""

    path: pathlib.Path
    """The file."""
    group: str
    """The group that holds its arrays, such as `data/demo_3`; `/` of a file that is one episode."""

    @property
    def where(self) -> str:
        """Place for errors."""
        return str(self.path) if self.group == "/" else f"{self.path}, {self.group}"


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """The type of an array of a demo, without its time axis."""

    dtype: str
    """Its dtype; `utf8` for texts."""
    shape: tuple[int, ...]
    """Shape of one step."""
    is_single: bool = False
    """Whether it has no time axis: one number or text of the whole demo."""

    def __str__(self) -> str:
        """The type as messages show it."""
        shown = f"{self.dtype}{list(self.shape)}"
        return f"a single {self.dtype}" if self.is_single else shown


@dataclasses.dataclass(frozen=True)
class FileLayout:
    """What one file holds."""

    path: pathlib.Path
    """The file."""
    demos: tuple[Demo, ...]
    """Its episodes, by number: `demo_2` before `demo_10`."""
    arrays: Mapping[str, ArrayType]
    """Those of its first demo, and of others that it lacks, by path: `obs/ee_states`."""
    masks: Mapping[str, tuple[str, ...]]
    """Names of demos by split, as robomimic's `mask` has them."""
    attributes: Mapping[str, str]
    """Attributes of `data` that are texts."""

    @property
    def instruction(self) -> str:
        """The instruction that LIBERO keeps in `problem_info`; empty where there is none."""
        try:
            problem = json.loads(self.attributes.get("problem_info", "{}"))
        except (ValueError, RecursionError):
            return ""
        text = problem.get(_INSTRUCTION, "") if isinstance(problem, dict) else ""
        return text if isinstance(text, str) else ""

    @property
    def name_in_words(self) -> str:
        """The instruction that LIBERO's file names spell; empty where the name says nothing.

        `KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5` is `turn on the stove`.
        """
        words = self.path.stem.removesuffix("_demo").split("_")
        scenes = [place for place, word in enumerate(words) if "SCENE" in word]
        words = words[scenes[-1] + 1 :] if scenes else words
        # A single word names a file, not a task.
        return " ".join(words) if self.path.stem.endswith("_demo") and len(words) > 1 else ""


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """An HDF5 file for reading.

    Raises:
      DataError: It is missing, truncated or no HDF5.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise unreadable(str(path), error) from error


def unreadable(where: str, error: Exception) -> DataError:
    """The error for a file, or a part of one, that h5py cannot read."""
    reason = re.sub(r"^.*?\(|\)$", "", " ".join(str(error).split()), count=2)
    return DataError(
        where=where,
        expected="an HDF5 file that can be read",
        found=reason or type(error).__name__,
        remedy="Fetch the file again, or leave it out of the folder.",
    )


def read_layout(path: pathlib.Path) -> FileLayout:
    """What a file holds; its arrays are not read.

    Raises:
      DataError: It is not readable, or has neither of the two layouts.
    """
    with opened(path) as file:
        demos = _demos(path, file)
        arrays: dict[str, ArrayType] = {}
        for demo in demos:
            for name, array in _arrays(path, file[demo.group]):
                if name not in arrays:
                    arrays[name] = array_type(array)
        data = file.get(_DATA, file)
        return FileLayout(
            path=path,
            demos=demos,
            arrays=arrays,
            masks=_masks(file),
            attributes={k: v for k, v in data.attrs.items() if isinstance(v, str)},
        )


def _demos(path: pathlib.Path, file: Any) -> tuple[Demo, ...]:
    if any(isinstance(file.get(name), h5py.Dataset) for name in _ACTIONS):
        return (Demo(path, "/"),)
    data = file.get(_DATA)
    if not isinstance(data, h5py.Group):
        raise DataError(
            where=str(path),
            expected=f"a group {_DATA} with demos, or an array {' or '.join(_ACTIONS)} of one "
            "episode",
            found=f"{', '.join(map(str, file))} at the root" if len(file) else "an empty file",
            remedy="Write the demonstrations as robomimic does: data/demo_0, data/demo_1, ...",
        )
    names = [str(name) for name in data]
    numbers = {name: int(match[1]) for name in names if (match := _DEMO.match(name))}
    if not numbers:
        raise DataError(
            where=f"{path}, {_DATA}",
            expected="groups demo_0, demo_1, ...",
            found=", ".join(names) if names else "an empty group",
            remedy="Leave the file out of the folder, or write demonstrations to it.",
        )
    kinds = {name: h5py.Group if name in numbers else h5py.Dataset for name in names}
    others = [name for name, kind in kinds.items() if not isinstance(data.get(name), kind)]
    if others:
        raise DataError(
            where=f"{path}, {_DATA}",
            expected="groups demo_0, demo_1, ... alone: each is an episode",
            found=f"{', '.join(others)} beside {len(numbers.keys() - others)} of them",
            remedy="Rename these groups if they are demonstrations, or remove them from the file.",
        )
    # h5py lists demo_10 before demo_2.
    return tuple(Demo(path, f"{_DATA}/{name}") for name in sorted(numbers, key=numbers.__getitem__))


def _arrays(path: pathlib.Path, group: Any) -> Iterator[tuple[str, Any]]:
    """Yields the arrays below a group by their paths in it, those behind links as well.

    Raises:
      DataError: There are too many, or one of them cannot be read; see `_items`.
    """
    for number, (name, item) in enumerate(_items(path, group)):
        if number == _MAX_ITEMS:
            raise DataError(
                where=f"{path}, {group.name}",
                expected=f"at most {_MAX_ITEMS:,} arrays and groups, those behind links as well",
                found="more",
                remedy="Write one array of all steps per quantity, and remove links to groups.",
            )
        if _is_array(item):
            yield name, item


def _items(
    path: pathlib.Path, group: Any, above: tuple[Any, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """Yields the arrays and groups below a group by their paths in it.

    Raises:
      DataError: A link without its target, or to a group that it lies in; a name that is no text;
        too many groups inside one another.
    """
    if len(above) > _MAX_DEPTH:
        raise DataError(
            where=f"{path}, {group.name}",
            expected=f"at most {_MAX_DEPTH} groups inside one another",
            found="more",
            remedy="Write the arrays below fewer groups.",
        )
    above = (*above, group)
    for name in group:
        if isinstance(name, bytes):  # h5py gives what is not UTF-8 as it is
            raise DataError(
                where=f"{path}, {group.name}",
                expected="names in UTF-8",
                found=str(name),
                remedy="Rename it, or remove it from the file.",
            )
        item = group.get(name)
        if _is_array(item):
            yield name, item
        elif isinstance(item, h5py.Group) and item not in above:
            yield name, item
            yield from ((f"{name}/{below}", found) for below, found in _items(path, item, above))
        elif not isinstance(item, h5py.Datatype):
            raise DataError(
                where=f"{path}, {group.name}/{name}",
                expected="a link to an array, or to a group that it is not part of",
                found="a group that it lies in" if item else "a link whose target is missing",
                remedy="Remove the link, or bring the file that it names.",
            )


def _is_array(item: Any) -> bool:
    return isinstance(item, h5py.Dataset)


def array_type(dataset: Any) -> ArrayType:
    """The type of an array in a file."""
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    # An array that is declared empty has no shape at all.
    shape = dataset.shape or ()
    return ArrayType("utf8" if is_text else dataset.dtype.name, shape[1:], is_single=not shape)


def _masks(file: Any) -> dict[str, tuple[str, ...]]:
    group = file.get("mask")
    masks = dict(group.items()) if isinstance(group, h5py.Group) else {}
    return {
        str(name): tuple(bytes(demo).decode(errors="replace") for demo in np.ravel(mask[()]))
        for name, mask in masks.items()
        # Other arrays, such as those of references, and those declared empty name no demos.
        if _is_array(mask) and mask.shape is not None and array_type(mask).dtype == "utf8"
    }
