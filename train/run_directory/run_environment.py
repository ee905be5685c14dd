"""Records the environment of a run: versions, devices, and the commit of the checkout."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

from train.run_directory.run_description import describe_devices

ENVIRONMENT_NAME = "environment.json"
_PACKAGES = ("octograin", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_STATUS = ("status", "--porcelain", "--untracked-files=no")
_TIMEOUT_S = 5.0


def describe_environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the JSON values of a run's `environment.json`."""
    return {
        "devices": describe_devices(mesh),
        "commit": find_commit(pathlib.Path(__file__).parents[2]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def find_commit(checkout: pathlib.Path) -> str | None:
    """Returns the commit of a checkout, with `+changes` if files differ; None without git."""
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _git(checkout, *_STATUS) else "")


def _git(checkout: pathlib.Path, *words: str) -> str:
    """Returns what git prints; empty if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
