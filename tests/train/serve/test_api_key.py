import re
import socket
import sys
import urllib.request

import pytest
from websockets.exceptions import InvalidStatus

from pipeline.errors import UserError
from tests.train.serve.openpi_client import Client
from tests.train.serve.served import shown
from train.serve.__main__ import main
from train.serve.api_key import ApiKey, read_api_key
from train.serve.in_thread import serving
from train.serve.listener import bind, is_local

KEY = "0123abcd"


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (["Api-Key 0123abcd"], None),
        (["api-key  0123abcd"], None),
        ([], "no API key"),
        ([""], "a wrong API key"),
        (["0123abcd"], "a wrong API key"),
        (["Bearer 0123abcd"], "a wrong API key"),
        (["Api-Key 0123abc"], "a wrong API key"),
        (["Api-Key 0123abcd0"], "a wrong API key"),
        (["Api-Key 0123abcd", "Api-Key 0123abcd"], "a wrong API key"),
        (["Api-Key \udcff"], "a wrong API key"),
    ],
)
def test_the_header_of_openpis_client_is_needed(sent, problem):
    assert ApiKey(KEY).find_problem(sent) == problem
    assert KEY not in repr(ApiKey(KEY))


def test_a_client_without_the_key_is_refused_before_the_upgrade(served_policy, caplog):
    with serving(served_policy, api_key=KEY) as port:
        for key in (None, "guessed"):
            with pytest.raises(InvalidStatus) as caught:
                Client(port, key)
            response = caught.value.response
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Api-Key"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                b"Authorization: Api-Key \xff\r\n\r\n"
            )
            assert client.recv(12) == b"HTTP/1.1 401"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
        with Client(port, KEY) as client:
            assert client.ask(**shown())[0].shape == (4, 7)
    lines = [record.getMessage() for record in caplog.records if " refused" in record.getMessage()]
    refused = [re.sub(r"\('127.0.0.1', \d+\)", "client", line) for line in lines]
    wrong = "client refused: a wrong API key"
    assert refused == ["client refused: no API key", wrong, wrong]
    assert KEY not in caplog.text


def test_a_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.delenv("OCTOGRAIN_API_KEY", raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv("OCTOGRAIN_API_KEY", "other")
    assert read_api_key(None) == ApiKey("other")
    assert read_api_key(str(file)) == ApiKey(KEY)
    with pytest.raises(UserError, match="lost: expected a file with the key; found No such file"):
        read_api_key(str(tmp_path / "lost"))
    for text, found in (("", "an empty one"), ("two words", "another text"), ("é", "another text")):
        file.write_text(text)
        monkeypatch.setenv("OCTOGRAIN_API_KEY", text)
        for path, where in ((None, "OCTOGRAIN_API_KEY"), (str(file), str(file))):
            with pytest.raises(UserError, match=re.escape(f"{where}: expected a key")) as caught:
                read_api_key(path)
            assert caught.value.found == found
    file.write_bytes(b"\xff")
    with pytest.raises(UserError, match="found bytes that are not UTF-8"):
        read_api_key(str(file))


@pytest.mark.parametrize(
    ("host", "key", "warns"),
    [("0.0.0.0", None, True), ("0.0.0.0", KEY, False), ("127.0.0.1", None, False)],
)
def test_serving_others_without_a_key_is_warned_about(monkeypatch, capsys, host, key, warns):
    monkeypatch.delenv("OCTOGRAIN_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("OCTOGRAIN_API_KEY", key)
    monkeypatch.setattr(sys, "argv", ["serve", "no run", "--host", host, "--port", "0"])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    warning = f"every machine that reaches {host} may use the policy: set OCTOGRAIN_API_KEY"
    assert (warning in error) == warns
    assert "no run: expected the directory of a run" in error


def test_only_a_loopback_address_is_local():
    for host, expected in (("127.0.0.1", True), ("0.0.0.0", False)):
        with bind(host, 0) as listener:
            assert is_local(listener) == expected
