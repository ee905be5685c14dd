import subprocess
import sys

_FAULTS = """
import resource, sys
from pipeline.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
bytes(bytearray(8_000_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytes(bytearray(8_000_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str) -> int:
    command = [sys.executable, "-c", _FAULTS, argument]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_memory_that_was_freed_is_used_again_without_a_fault_for_every_page() -> None:
    assert faults("given back") > 20 * 8_000_000 / 4096
    assert faults("kept") < 100
