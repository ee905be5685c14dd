import threading
from collections.abc import Generator

from pipeline.loading.reading.closable_stream import ClosableStream


def test_a_stream_that_waits_is_closed_at_once() -> None:
    is_ended = threading.Event()

    def count() -> Generator[int]:
        try:
            yield from range(9)
        finally:
            is_ended.set()

    stream = ClosableStream(count())
    found = []
    for number in stream:
        found.append(number)
        if number == 2:
            stream.close()
            assert is_ended.is_set()
    assert found == [0, 1, 2]
    assert [*stream] == []
    stream.close()


def test_a_stream_that_runs_ends_at_its_next_item() -> None:
    is_running, may_go_on, is_ended = (threading.Event() for _ in range(3))

    def count() -> Generator[int]:
        try:
            yield 0
            is_running.set()
            may_go_on.wait(20)
            yield 1
        finally:
            is_ended.set()

    stream = ClosableStream(count())

    def close() -> None:
        is_running.wait(20)
        stream.close()
        may_go_on.set()

    thread = threading.Thread(target=close)
    thread.start()
    assert [*stream] == [0]
    assert is_ended.is_set()
    thread.join()
