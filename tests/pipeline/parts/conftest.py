import pathlib
import sys
from collections.abc import Iterator

import pytest

from tests.own_modules import forget_modules


@pytest.fixture(autouse=True)
def own_modules(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports from its folder is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    forget_modules(tmp_path)
