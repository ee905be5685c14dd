import pathlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.data.conventions import Conventions
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from pipeline.loading.transforms.rotation_transforms import RelativePose
from pipeline.parts.part_files import load_parts
from tests.own_modules import forget_modules
from train.exported.code_bundle import SettingsSource, bundle_code

OWN = """
import dataclasses
import math

import numpy as np
from octograin import (LeafSpec, dims_at,
    restore_gripper)

{more}

@dataclasses.dataclass(frozen=True)
class Scale:
    by: float

    def spec_after(self, spec):
        return spec

    def apply(self, batch, spec, draws):
        from octograin import UserError
        return batch | {{"x": batch["x"] * self.by}}
"""
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from exported_policy.settings import VALUE
from exported_policy.pipeline.loading.transforms.transform import dims_at
own = sys.modules[type(VALUE).__module__]
assert own.dims_at is dims_at, "one module for both"
print(own.__name__, VALUE.apply({"x": 2.0}, {}, None), sorted({"pipeline"} & sys.modules.keys()))
"""


@pytest.fixture
def own_file(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file that defines a user's own transform; what it defines is forgotten afterwards."""
    yield tmp_path / "my-parts.py"
    forget_modules(tmp_path)


def own_class(path: pathlib.Path, more: str = "") -> type:
    path.write_text(OWN.format(more=more))
    load_parts(path)
    modules = list(sys.modules.values())
    return next(one for one in modules if getattr(one, "__file__", "") == str(path)).Scale


def test_a_users_own_transform_runs_without_the_package(own_file, tmp_path) -> None:
    kind = own_class(own_file)
    source = SettingsSource()
    files = {"settings.py": source.module("VALUE", kind(0.5)), **bundle_code([kind])}
    for name, text in files.items():
        path = tmp_path / "out" / "exported_policy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "exported_policy.own_parts.my_parts {'x': 1.0} []\n"


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("import simplejpeg, os", r"found my-parts\.py:9 imports simplejpeg\. Remove"),
        ("from my_helpers import f", r"found my-parts\.py:9 imports my_helpers\. "),
        ("from octograin import Loader", r"found \w+\.py:\d+ imports (?!octograin)"),
        (
            "import flax\nimport etils",
            r":9 imports flax; my-parts\.py:10 imports etils",
        ),
        ("from octograin import __version__", r"my-parts\.py:9 imports octograin itself"),
    ],
)
def test_a_transform_that_needs_other_packages_is_refused(own_file, more, match) -> None:
    (own_file.parent / "my_helpers.py").write_text("f = 1")
    kind = own_class(own_file, more)
    with pytest.raises(UserError, match=match):
        bundle_code([kind])


def test_the_code_keeps_its_lines_and_is_under_one_name(own_file) -> None:
    kind = own_class(own_file)
    files = bundle_code([kind, RelativePose])
    text = files["own_parts/my_parts.py"]
    assert "from exported_policy.pipeline.loading.batch import LeafSpec\n" in text
    # Three modules in the two lines of one import.
    assert len(text.splitlines()) == len(own_file.read_text().splitlines()) + 1
    assert "pipeline/loading/transforms/rotation_transforms.py" in files
    for name, source in files.items():
        compile(source, name, "exec")
        assert "\nfrom pipeline" not in source
        assert "\nfrom train" not in source


def test_settings_return_as_they_were() -> None:
    value = {
        "leaf": LeafSpec("float32", (1, 2), ("x_m", "gripper"), frozenset({"gripper"})),
        "pose": RelativePose(("x", "y", "z"), ("a", "b", "c"), "axis_angle", prefix="left_"),
        "conventions": Conventions("upright", "none", 0.1, "kept"),
        "array": np.array([0.1, 1 / 3, np.nan, -np.inf], np.float32),
        "others": (None, True, 1e-300, -np.inf, "it's", b"\x00", ["x"]),
    }
    source = SettingsSource()
    text = source.module("VALUE", value).replace("exported_policy.", "")
    found: dict = {}
    exec(text, found)  # as the import of settings.py does
    array = found["VALUE"].pop("array")
    np.testing.assert_array_equal(array, value.pop("array"), strict=True)
    assert found["VALUE"] == value
    assert found["VALUE"]["leaf"].raw == value["leaf"].raw
    with pytest.raises(UserError, match=r"expected numbers, texts, .* found a object"):
        source.text(object())
