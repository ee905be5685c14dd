import itertools
import pickle
import time

import pytest

from pipeline.errors import DataError, SchemaError, UserError, nearest_name, user_errors_exit

FIELDS = {
    "where": "libero, shard 3",
    "expected": "7 records",
    "found": "none",
    "remedy": "Convert it again.",
}


def test_message_says_where_what_was_expected_what_was_found_and_what_to_do() -> None:
    assert str(UserError(**FIELDS)) == (
        "libero, shard 3: expected 7 records; found none. Convert it again."
    )


@pytest.mark.parametrize("kind", [UserError, SchemaError, DataError])
def test_fields_and_kind_survive_a_process_border(kind: type[UserError]) -> None:
    error = pickle.loads(pickle.dumps(kind(**FIELDS)))
    assert type(error) is kind
    assert {name: getattr(error, name) for name in FIELDS} == FIELDS
    assert str(error) == str(kind(**FIELDS))


def test_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, user_errors_exit():
        raise DataError(**FIELDS)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {DataError(**FIELDS)}\n"


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["command", "SRC", "--debug"])
    with pytest.raises(DataError, match="7 records"), user_errors_exit():
        raise DataError(**FIELDS)


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), user_errors_exit():
        raise ZeroDivisionError


def test_the_nearest_of_very_many_instructions_is_found_at_once() -> None:
    words = [f"word{n}" for n in range(40)]
    texts = [f"put the {' '.join(three)} down" for three in itertools.product(words, repeat=3)]
    assert len(texts) == 64_000
    started = time.process_time()
    found = nearest_name("put the word17 word3 wrd8 down", texts)
    assert found is not None
    assert found.startswith("put the word17 word3 word")
    # Comparing all of them letter by letter takes 20 times as long as this allows.
    assert time.process_time() - started < 1.5
