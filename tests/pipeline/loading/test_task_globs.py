import fnmatch
import sys

import hypothesis
from hypothesis import strategies as st

from pipeline.loading.samples.task_globs import TaskGlobs

_TEXTS = st.text(st.sampled_from("ab.\0\n "), max_size=5)
_GLOBS = st.text(st.sampled_from("ab.\0\n *?[]!-"), max_size=5)


@hypothesis.given(st.lists(_TEXTS, max_size=5), _GLOBS)
@hypothesis.settings(max_examples=300, deadline=None)
def test_globs_match_as_fnmatch_does(tasks: list[str], glob: str) -> None:
    expected = [row for row, text in enumerate(tasks) if fnmatch.fnmatchcase(text, glob)]
    assert [*TaskGlobs(tasks).rows(glob)] == expected


def test_a_hundred_globs_compare_few_of_many_instructions() -> None:
    num_calls = 0

    def count(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1

    tasks = [f"open drawer {number:05d} of the cabinet" for number in range(10_000)]
    globs = TaskGlobs(tasks)
    # What is prepared once.
    assert [*globs.rows("* 00000 *")] == [*globs.rows(tasks[0])] == [0]
    sys.setprofile(count)
    try:
        found = [[*globs.rows(f"* {number:05d} *")] for number in range(100)]
        found += [[*globs.rows(tasks[number])] for number in range(100)]
    finally:
        sys.setprofile(None)
    assert found == [[number] for number in range(100)] * 2
    # 1,000,000 more if each glob were compared with each instruction.
    assert num_calls < 300_000
