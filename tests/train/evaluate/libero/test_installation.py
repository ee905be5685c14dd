import importlib.metadata
import pathlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import UserError
from train.evaluate.libero.installation import (
    ASSETS_COMMAND,
    Installation,
    check_packages,
    find_assets,
    find_root,
)

VERSIONS = {"hf-libero": "0.1.4", "robosuite": "1.4.0", "bddl": "1.0.1", "mujoco": "3.8.1"}


def versions(**changed: str | None) -> Callable[[str], str]:
    """What `importlib.metadata.version` would say."""
    known = {**VERSIONS, **changed}

    def version(name: str) -> str:
        found = known.get(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    return version


def found(name: str) -> object:
    return name


def test_packages_that_work_together_are_reported() -> None:
    assert check_packages(versions(), found) == VERSIONS
    assert check_packages(versions(mujoco="3.3.2rc1"), found)["mujoco"] == "3.3.2rc1"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"mujoco": "3.9.0"},
            r"found mujoco 3\.9\.0, not from 3\.3 to before 3\.9\. .*make libero",
        ),
        ({"mujoco": "3.2.7"}, r"mujoco 3\.2\.7, not from 3\.3"),
        ({"mujoco": "4"}, r"mujoco 4, not"),
        ({"robosuite": "1.5.1"}, r"robosuite 1\.5\.1, not from 1\.4 to before 1\.5"),
        ({"bddl": None, "mujoco": "3.10"}, r"found no bddl; mujoco 3\.10, not"),
    ],
)
def test_packages_that_do_not_are_all_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"the LIBERO simulator: .*{message}"):
        check_packages(versions(**changed), found)


def test_a_missing_module_is_named_with_the_command() -> None:
    with pytest.raises(UserError, match=r"found no module cv2\. Install them: make libero$"):
        check_packages(versions(), lambda name: None if name == "cv2" else name)


def test_the_package_is_found_without_importing_it(root: pathlib.Path) -> None:
    spec = SimpleNamespace(
        submodule_search_locations=[str(root.parent)], origin=None, name="libero"
    )
    assert find_root(lambda name: spec) == root
    with pytest.raises(
        UserError, match=r"a package libero with its scenes; found none\. .*make li"
    ):
        find_root(lambda name: None)
    other = SimpleNamespace(submodule_search_locations=None, origin="/x/libero.py", name="libero")
    with pytest.raises(UserError, match=r"found another one: /x/libero\.py"):
        find_root(lambda name: other)


def make_assets(folder: pathlib.Path) -> pathlib.Path:
    (folder / "scenes").mkdir(parents=True)
    return folder


def test_assets_are_those_that_are_named_before_those_of_the_package(
    root: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    make_assets(root / "assets")
    flag, variable = make_assets(tmp_path / "flag"), make_assets(tmp_path / "variable")
    environ = {"LIBERO_ASSETS": str(variable)}
    assert find_assets(root, str(flag), environ) == flag
    assert find_assets(root, None, environ) == variable
    assert find_assets(root, None, {}) == root / "assets"


def test_assets_in_the_cache_are_found(
    root: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = make_assets(tmp_path / ".cache/libero/assets")
    assert find_assets(root, None, {}) == cache


def test_missing_assets_name_the_command_that_fetches_them(
    root: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ASSETS_COMMAND == (
        "hf download lerobot/libero-assets --repo-type dataset --local-dir ~/.cache/libero/assets"
    )
    with pytest.raises(UserError) as caught:
        find_assets(root, None, {})
    assert ASSETS_COMMAND in str(caught.value)
    assert str(root / "assets" / "scenes") in str(caught.value)
    make_assets(root / "assets")
    with pytest.raises(
        UserError, match=r"assets of the LIBERO simulator, /gone: .*no /gone/scenes"
    ):
        find_assets(root, "/gone", {})


def test_an_installation_tells_what_decides_its_results() -> None:
    installation = Installation(pathlib.Path("a"), pathlib.Path("b"), "egl", VERSIONS)
    assert str(installation) == (
        "bddl 1.0.1, hf-libero 0.1.4, mujoco 3.8.1, robosuite 1.4.0, egl, images as sampled"
    )
