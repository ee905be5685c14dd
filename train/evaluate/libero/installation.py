"""Finds the simulator on this machine: its packages, its assets and a working renderer.

Everything is checked before any of it is imported, so that what is missing is one message.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.errors import UserError
from train.evaluate.libero.rendering import VARIABLE, choose_backend

INSTALL = "make libero"
"""The command that installs all packages; see the Makefile for its parts."""

ASSETS_VARIABLE = "LIBERO_ASSETS"
"""Environment variable with the folder of meshes and textures."""
ASSETS_CACHE = "~/.cache/libero/assets"
"""Folder to which the package itself downloads them."""
ASSETS_COMMAND = f"hf download lerobot/libero-assets --repo-type dataset --local-dir {ASSETS_CACHE}"

_PACKAGES = {
    "hf-libero": ("0.1", "0.2"),
    "robosuite": ("1.4", "1.5"),
    "bddl": ("1.0", "1.1"),
    "mujoco": ("3.3", "3.9"),
}
"""First version that works, and first newer one that does not, by distribution."""
_MODULES = ("cv2", "easydict", "future", "gymnasium", "matplotlib", "numba", "OpenGL", "scipy")
"""What those import without pip having been asked to install it."""
_ROBOSUITE_SETTINGS = "robosuite.macros_private"
_ASSET_FOLDER = "scenes"
"""A folder that every set of assets contains."""


@dataclasses.dataclass(frozen=True)
class Installation:
    """A simulator that can be started, here or in another process of this machine."""

    root: pathlib.Path
    """Folder of the package `libero.libero`."""
    assets: pathlib.Path
    """Meshes and textures."""
    backend: str
    """Value of `MUJOCO_GL` that draws without a display."""
    versions: Mapping[str, str]
    """Versions of the packages that decide what is simulated; results of others may differ."""

    def __str__(self) -> str:
        """Formats it as `bddl 1.0.1, ..., robosuite 1.4.0, egl, images as sampled`."""
        versions = [f"{name} {version}" for name, version in sorted(self.versions.items())]
        # Results of version 0.7, whose images are 2 ms later, lack the last: they do not resume.
        return ", ".join([*versions, self.backend, "images as sampled"])


def find_installation(
    assets: str | None = None, environ: Mapping[str, str] = os.environ
) -> Installation:
    """The simulator of this interpreter, complete and of versions that work together.

    Args:
      assets: Folder of the assets; None: that of `LIBERO_ASSETS`, of the package, or the one that
        the package downloads to.
      environ: The environment.

    Raises:
      UserError: Where packages or assets are missing or of another version, or nothing renders.
    """
    versions = check_packages()
    root = find_root()
    return Installation(root, find_assets(root, assets, environ), choose_backend(environ), versions)


def check_packages(
    version: Callable[[str], str] = importlib.metadata.version,
    find: Callable[[str], object | None] = importlib.util.find_spec,
) -> dict[str, str]:
    """Versions of the packages that decide what is simulated.

    Raises:
      UserError: All that are missing or of a version that does not work, together.
    """
    versions, problems = {}, []
    for name, (first, end) in _PACKAGES.items():
        try:
            versions[name] = version(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"no {name}")
            continue
        # Tuples of numbers compare as versions do.
        if not _numbers(first) <= _numbers(versions[name]) < _numbers(end):
            problems.append(f"{name} {versions[name]}, not from {first} to before {end}")
    # All that is missing in one message.
    problems += [f"no module {name}" for name in _MODULES if find(name) is None]
    if problems:
        raise UserError(
            where="the LIBERO simulator",
            expected="its packages, in versions that work together",
            found="; ".join(problems),
            remedy=f"Install them: {INSTALL}",
        )
    return versions


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, such as (3, 8, 1) of `3.8.1rc2`."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)  # pyright: ignore[reportOptionalSubscript]  (it matches nothing at least)


def find_root(
    find: Callable[[str], Any] = importlib.util.find_spec,
) -> pathlib.Path:
    """Folder of the package `libero.libero`, which is not imported: that would ask a question.

    Raises:
      UserError: Where there is none.
    """
    spec = find("libero")
    # A package of another kind may be called libero too.
    for folder in spec.submodule_search_locations or () if spec else ():
        root = pathlib.Path(folder) / "libero"
        if (root / "bddl_files").is_dir():
            return root
    raise UserError(
        where="the LIBERO simulator",
        expected="a package libero with its scenes",
        found="none" if spec is None else f"another one: {spec.origin or spec.name}",
        remedy=f"Install it: {INSTALL}",
    )


def find_assets(
    root: pathlib.Path, assets: str | None = None, environ: Mapping[str, str] = os.environ
) -> pathlib.Path:
    """The folder of meshes and textures: the one that is named, or the first that is there.

    Args:
      root: Folder of the package.
      assets: Folder of the assets; None: search for it.
      environ: The environment variables.

    Raises:
      UserError: Where there is none, or the one that is named is none.
    """
    named = assets or environ.get(ASSETS_VARIABLE)
    candidates = [pathlib.Path(p).expanduser() for p in ([named] if named else [ASSETS_CACHE])]
    # A folder that was named is the only one tried.
    if not named:
        candidates.insert(0, root / "assets")
    for folder in candidates:
        if (folder / _ASSET_FOLDER).is_dir():
            return folder.absolute()
    raise UserError(
        where="assets of the LIBERO simulator" + (f", {named}" if named else ""),
        expected=f"a folder of meshes and textures, with {_ASSET_FOLDER} in it",
        found=" and ".join(f"no {folder / _ASSET_FOLDER}" for folder in candidates),
        remedy=f"Fetch them: `{ASSETS_COMMAND}`; or name their folder with --assets or "
        f"{ASSETS_VARIABLE}.",
    )


def import_simulator(installation: Installation) -> Any:
    """The simulator's environment class, imported without a question and without a log file.

    Left alone, the package asks a question on standard input where it finds no configuration,
    fetches assets from the network, and robosuite opens `/tmp/robosuite.log`, which another user
    may own.
    """
    # Before MuJoCo is imported, which reads it once.
    os.environ[VARIABLE] = installation.backend
    # Where robosuite finds no private settings it opens the log.
    sys.modules.setdefault(_ROBOSUITE_SETTINGS, types.ModuleType(_ROBOSUITE_SETTINGS))
    with _configuration(installation):
        package: Any = importlib.import_module("libero.libero")
        environments = importlib.import_module("libero.libero.envs.env_wrapper")
    # The package caches the path; without it the first use would download the assets.
    package._assets_path_cache = str(installation.assets)  # noqa: SLF001  (its config is not read)
    return environments.ControlEnv


@contextlib.contextmanager
def _configuration(installation: Installation) -> Iterator[None]:
    """A configuration file for as long as the import takes; nothing reads it later."""
    name = "LIBERO_CONFIG_PATH"
    before = os.environ.get(name)
    root = installation.root
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": installation.assets,
    }
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(f"{key}: '{path}'\n" for key, path in paths.items())
        (pathlib.Path(folder) / "config.yaml").write_text(text)
        os.environ[name] = folder
        try:
            yield
        finally:
            # Restored, so that processes started later are not sent to a folder that is gone.
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
