import hashlib
import sys

from pipeline.parts.part_copies import write_copies
from pipeline.parts.part_files import load_parts, run_file

from .user_parts import PART, write


def test_a_run_keeps_each_source_once_and_by_its_checksum(tmp_path) -> None:
    file, run = write(tmp_path / "kept_parts.py"), tmp_path / "run"
    run.mkdir()
    load_parts(file)
    part = sys.modules["kept_parts"].Wrench
    # The copy is of the source that is executed, not of what the file has become since.
    write_copies((part(), part(2.0)), run)
    changed = PART + "# another\n"
    write(file, changed)
    write_copies([part(3.0)], run)
    write_copies(run_file(file).Wrench(), run)
    names = [
        f"kept_parts.{hashlib.sha256(text.encode()).hexdigest()[:8]}.py.txt"
        for text in (PART, changed)
    ]
    assert sorted(path.name for path in (run / "parts").iterdir()) == sorted(names)
    assert (run / "parts" / names[0]).read_text() == PART
    assert (run / "parts" / names[1]).read_text() == changed


def test_a_run_without_parts_of_its_own_keeps_none(tmp_path) -> None:
    write_copies((1, ("a", None)), tmp_path)
    assert list(tmp_path.iterdir()) == []
