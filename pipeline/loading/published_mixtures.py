"""The mixtures that Octo and OpenVLA publish: datasets and weights, as TOML files in `mixtures`."""

import functools
import pathlib
import tomllib
from collections.abc import Collection
from typing import Any

from pipeline.errors import UserError, did_you_mean

_FOLDER = pathlib.Path(__file__).parent / "mixtures"
_PROJECTS = ("octo", "openvla")
_WHERE = "DataConfig.from_mixture"


def mixture_names() -> list[str]:
    """Returns the names of all mixtures, such as `octo/oxe_magic_soup`."""
    return [f"{project}/{name}" for project in _PROJECTS for name in _read(project)]


def published_mixture(name: str, leave_out: Collection[str] = ()) -> dict[str, float]:
    """Returns how often a step of each dataset is sampled, relative to a step of the others.

    Args:
      name: A mixture, such as `octo/oxe_magic_soup`. The part after the slash is enough where one
        project alone has it.
      leave_out: Datasets of it that are not returned.

    Raises:
      UserError: There is no such mixture, several have the name, or one that is left out is not
        in it.
    """
    known = mixture_names()
    found = [full for full in known if name in (full, full.partition("/")[2])]
    if len(found) != 1:
        raise UserError(
            where=_WHERE,
            expected="one of " + ", ".join(found or known),
            found=name,
            remedy=f"{did_you_mean(name, found or known)}Write the name with its project.",
        )
    project, _, short = found[0].partition("/")
    weights = _read(project)[short]
    unknown = sorted(set(leave_out) - set(weights))
    if unknown:
        raise UserError(
            where=f"{_WHERE}, leave_out",
            expected=f"datasets of {found[0]}: {', '.join(weights)}",
            found=", ".join(unknown),
            remedy=f"{did_you_mean(unknown[0], weights)}Remove it, or write its name as listed.",
        )
    return {dataset: weight for dataset, weight in weights.items() if dataset not in leave_out}


def lacked_observations(dataset: str) -> set[str]:
    """Returns the cameras that other datasets of a mixture have, and this one has not."""
    return {name for name, datasets in _read("lacking").items() if dataset in datasets}


def usual_cameras() -> list[str]:
    """Returns the cameras that a batch of a mixture holds if none are named."""
    return list(_read("lacking"))


@functools.cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text())
