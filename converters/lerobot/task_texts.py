"""The texts of tasks and subtasks by their number."""

import json
from collections.abc import Mapping

from etils import epath

from converters.lerobot.lerobot_info import LeRobotInfo
from converters.lerobot.parquet_rows import named_as_corrupt, read_columns, schema_of
from pipeline.errors import DataError
from pipeline.files import parse_json, read_text

_SUBTASKS = "meta/subtasks.parquet"
_FETCH = "Fetch the file again: without it nothing says what the steps are for."


def read_tasks(info: LeRobotInfo, directory: epath.Path) -> dict[int, str]:
    """The text of each task by its number.

    Raises:
      DataError: The file is missing or not what LeRobot writes.
    """
    if info.is_packed:
        return _packed(directory / "meta" / "tasks.parquet", "task_index")
    path = directory / "meta" / "tasks.jsonl"
    found = {}
    for where, row in json_lines(path, _FETCH):
        index, text = row.get("task_index"), row.get("task")
        if not isinstance(index, int) or not isinstance(text, str):
            expected = "a task_index and a task"
            raise DataError(where=where, expected=expected, found=json.dumps(row), remedy=_FETCH)
        found[index] = text
    return found


def read_subtasks(directory: epath.Path) -> dict[int, str] | None:
    """The text of each subtask by its number; None where the set names none.

    Raises:
      DataError: The file is not what LeRobot writes.
    """
    path = directory / _SUBTASKS
    return _packed(path, "subtask_index") if path.exists() else None


def _packed(path: epath.Path, index: str) -> dict[int, str]:
    """Texts of a table of two columns.

    The texts are its index for pandas, which is a column with whatever name the index had.
    """
    names = schema_of(path).names
    texts = [name for name in names if name != index]
    if index not in names or not texts:
        raise DataError(
            where=str(path),
            expected=f"a column {index} and one of texts",
            found=", ".join(names) or "no columns",
            remedy=_FETCH,
        )
    # By its usual name where there are several.
    likely = [name for name in ("task", "subtask", "__index_level_0__") if name in texts]
    text = (likely or texts)[0]
    table = read_columns(path, [index, text])
    with named_as_corrupt(path):
        numbers, values = table.column(index).to_pylist(), table.column(text).to_pylist()
    found = dict(zip(numbers, values, strict=True))
    for number, value in found.items():
        if not isinstance(number, int) or not isinstance(value, str):
            raise DataError(
                where=str(path),
                expected=f"whole numbers in {index}, and a text for each",
                found=f"{number!r} and {value!r}",
                remedy=_FETCH,
            )
    return found


def json_lines(path: epath.Path, remedy: str) -> list[tuple[str, Mapping]]:
    """The (place, object) of each line of a file of JSON objects.

    Raises:
      DataError: The file is missing, or a line is no such object.
    """
    expected = "a JSON object in each line"
    rows = []
    for number, line in enumerate(read_text(path, expected=expected, remedy=remedy).splitlines()):
        where = f"{path}, line {number + 1}"
        if line.strip():
            row = parse_json(line, where=where, expected=expected, remedy=remedy)
            if not isinstance(row, dict):
                raise DataError(where=where, expected=expected, found=line[:80], remedy=remedy)
            rows.append((where, row))
    return rows
