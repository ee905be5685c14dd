import sys

import pytest

from pipeline.parts import part_files, part_sources


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test imports is forgotten afterwards."""
    for name, value in (("modules", dict(sys.modules)), ("path", list(sys.path))):
        monkeypatch.setattr(sys, name, value)
    monkeypatch.setattr(part_files, "_loaded", {})
    part_sources._warn_of_change.cache_clear()
