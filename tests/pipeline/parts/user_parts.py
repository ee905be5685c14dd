"""A user's part in a file, and a config that holds it."""

import dataclasses
import json
import pathlib
from typing import Annotated, Any, Protocol, runtime_checkable

from pipeline.files import from_json_text, to_json_values
from pipeline.parts.part import Part

PART = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Wrench:
    gain: float = 1.0

    def apply(self, x):
        return self.gain * x
"""


@runtime_checkable
class Transform(Protocol):
    def apply(self, x: float) -> float: ...


@dataclasses.dataclass(frozen=True)
class Config:
    transforms: tuple[Annotated[Transform, Part()], ...] = ()


def text_of(config: Config) -> str:
    return json.dumps(to_json_values(config))


def read(text: str, directory: pathlib.Path | None = None) -> Config:
    return from_json_text(
        Config, text, where="config.json", remedy="Read it elsewhere.", directory=directory
    )


def record(module: str, name: str = "Wrench", **fields: Any) -> str:
    source = {"module": module, "file": f"{module}.py", "checksum": "00"}
    return json.dumps({"transforms": [{"part": name, **source, "fields": fields}]})


def write(path: pathlib.Path, text: str = PART) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
