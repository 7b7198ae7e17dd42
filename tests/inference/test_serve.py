"""The service refuses what it must, stays up, tells logs nothing, and loses nothing that it acknowledged."""

import http.client
import json
import random
import socket
import threading
import time
from datetime import timedelta

import appended_rows
import numpy as np
import pytest
import served

import ehrwear_jax as ew
from ehrwear_jax.inference import serve, state_store

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[serve]'")
service = pytest.importorskip("ehrwear_jax.inference.service", reason="starlette is not installed: '.[serve]'")
import uvicorn  # noqa: E402

EVENT = {"time": "2018-01-01T09:00", "code": "LOINC//2345-7", "numeric_value": 90.5}
ONE = {"patient": "SOMEBODY", "key": "1", "events": [EVENT]}
LIMITS = service.Limits(body_bytes=100_000, body_seconds=0.5, rate=1000.0, burst=2000, waiting=16)


@pytest.fixture(scope="module")
def model():
    return appended_rows.small(ew.load("tiny"))


@pytest.fixture()
def port(model, tmp_path):
    """Of a service of this process."""
    store = state_store.StateStore(model, tmp_path / "states")
    application = service.Service(store, [served.TOKEN, "the-other-token"], LIMITS).application()
    config = uvicorn.Config(application, port=served.free_port(), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield config.port
    server.should_exit = True
    thread.join(20)


@pytest.mark.slow
def test_it_takes_reads_predicts_and_erases(port, model):
    state = model.state()
    state.append([EVENT])
    assert served.ask(port, "/append", ONE)[:2] == (200, {"appended": True})
    assert served.ask(port, "/append", ONE, token="the-other-token")[:2] == (200, {"appended": False})
    assert served.ask(port, "/append", ONE | {"events": []})[0] == 409
    time = "2018-01-02T00:00:00"
    status, answer, headers = served.ask(port, "/read", {"patient": "SOMEBODY", "time": time})
    assert status == 200 and headers["cache-control"] == "no-store"
    np.testing.assert_allclose(answer["z"], state.read(time), atol=1e-6)
    asked = {"patient": "SOMEBODY", "time": time, "task": "hospitalization_365d"}
    assert served.ask(port, "/predict", asked)[1]["prediction"] == state.predict("hospitalization_365d", time)
    assert served.ask(port, "/predict", asked | {"task": "happiness"})[0] == 404
    assert served.ask(port, "/erase", {"patient": "SOMEBODY"})[1] == {"erased": True}
    assert served.ask(port, "/read", {"patient": "SOMEBODY", "time": time})[0] == 404


@pytest.mark.parametrize(
    "body, status",
    [
        (b"{", 400), (b"", 400), (b"[]", 400), (b"null", 400), (b'{"patient": NaN}', 400), (b"\xff\xfe", 400),
        (b"[" * 50_000, 400), (b'{"patient": "a"}', 400), (json.dumps(ONE | {"more": 1}).encode(), 400),
        (json.dumps(ONE | {"patient": ""}).encode(), 400), (json.dumps(ONE | {"patient": "a" * 300}).encode(), 400),
        (json.dumps(ONE | {"events": "x"}).encode(), 400), (json.dumps(ONE | {"events": [1]}).encode(), 422),
        (json.dumps(ONE | {"events": [EVENT | {"time": "soon"}]}).encode(), 422),
        (json.dumps(ONE | {"events": [EVENT | {"code": {"a": 1}}]}).encode(), 422),
        (json.dumps(ONE | {"events": [EVENT | {"numeric_value": 10**400}]}).encode(), 422),
        (json.dumps(ONE).replace("90.5", "1e999").encode(), 422), (b" " * 100_001, 413),
        (json.dumps(ONE | {"patient": "\ud800"}).encode(), 422),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(port, body, status):
    got, answer, _ = served.ask(port, "/append", body=body)
    assert got == status and set(answer) == {"error"}
    assert served.ask(port, "/append", ONE)[:2] == (200, {"appended": True}), "and nothing was taken"


def test_who_has_no_token_is_refused_before_the_body_is_read(port):
    for token in ("", "a-token-of-the-testx", served.TOKEN + "x", "ü"):
        assert served.ask(port, "/append", ONE, token=token.encode())[0] == 401
    assert served.ask(port, "/append", ONE, headers={"Authorization": served.TOKEN})[0] == 401
    assert served.ask(port, "/health", token="")[1] == {"status": "ok"}


def test_a_body_of_a_gigabyte_is_not_read(port):
    """Declared, and without a length: the service answers and closes, long before it has all of it."""
    head = f"POST /append HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.TOKEN}\r\n"
    for framing, part in (
        ("Content-Length: 1000000000\r\n\r\n", b"x" * 65536),
        ("Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
            s.sendall((head + framing).encode())
            sent = 0
            try:
                while sent < 1_000_000_000:
                    s.sendall(part)
                    sent += len(part)
            except OSError:
                pass  # closed
            assert sent < 50_000_000
        assert served.ask(port, "/health")[0] == 200
    assert served.ask(port, "/append", body=b"x" * 10, headers={"Content-Length": "1000000000"})[0] == 413


def test_a_slow_body_is_given_up(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        head = f"POST /append HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.TOKEN}\r\nContent-Length: 10\r\n\r\n"
        s.sendall(head.encode() + b"{")
        assert b" 408 " in s.recv(100)


def test_a_bucket_lets_its_rate_pass():
    now = [0.0]
    bucket = service.Bucket(10.0, 5, lambda: now[0])
    assert [bucket.take() for _ in range(7)] == [True] * 5 + [False] * 2
    now[0] = 0.25
    assert [bucket.take() for _ in range(4)] == [True, True, False, False]
    now[0] = 1e6
    assert sum(bucket.take() for _ in range(100)) == 5


@pytest.mark.slow
def test_a_flood_is_served_or_refused(port):
    """Two thousand requests as fast as this machine sends them, of 32 clients at once."""
    served.ask(port, "/append", ONE)

    def client(k):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for i in range(62):
            body = json.dumps({"patient": f"p{k}", "key": f"{i}", "events": [EVENT]})
            connection.request("POST", "/append", body, {"Authorization": f"Bearer {served.TOKEN}"})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()

    statuses: list[int] = []
    threads = [threading.Thread(target=client, args=(k,)) for k in range(32)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(statuses) == 32 * 62 and set(statuses) <= {200, 429, 503} and 200 in statuses
    assert served.ask(port, "/append", ONE)[:2] == (200, {"appended": False})


def test_logs_hold_no_patient(port, caplog):
    caplog.set_level("DEBUG")
    served.ask(port, "/append", ONE)
    served.ask(port, "/append", ONE | {"key": "2", "events": [EVENT | {"time": "2018-01-01T09:0SOMEBODY"}]})
    served.ask(port, "/read", {"patient": "SOMEBODY", "time": "SOMEBODY"})
    lines = [record.getMessage() for record in caplog.records if record.name == service.LOG.name]
    assert [line.rsplit(" ", 2)[0] for line in lines] == ["/append 200", "/append 422", "/read 422"]
    assert not any("SOMEBODY" in record.getMessage() or "2345" in record.getMessage() for record in caplog.records)


def test_an_error_inside_is_answered_and_told_by_its_kind_alone(port, caplog, monkeypatch):
    class Panic(BaseException):
        pass

    def fails(*_):
        raise Panic("SOMEBODY")

    monkeypatch.setattr(state_store.StateStore, "read", fails)
    assert served.ask(port, "/read", {"patient": "a", "time": "2018-01-01"})[0] == 500
    assert "Panic" in caplog.text and "SOMEBODY" not in caplog.text
    assert served.ask(port, "/append", ONE)[0] == 200


def test_the_command_wants_a_good_token(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    assert serve.main(["tiny", f"--state_dir={tmp_path}"]) == 2 and "no token" in capsys.readouterr().err
    (tmp_path / "tokens").write_text("short\n")
    assert serve.main(["tiny", f"--state_dir={tmp_path}", f"--token_file={tmp_path / 'tokens'}"]) == 2
    assert "shorter than 16" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- crashes


def killed(tmp_path, times, seed=0):
    """Kills the service so many times while a client appends; returns how many appends it acknowledged.

    The client does what it should: it sends again, with the same key, what was not acknowledged.
    """
    rng, running = random.Random(seed), served.Served(tmp_path / "states", "--no_warm_up", "--rate=100000")
    acknowledged, n_sent, over = [], 0, threading.Event()

    def client():
        nonlocal n_sent
        while not over.is_set():
            k = len(acknowledged)
            patient, moment = f"p{k % 20}", (appended_rows.BEGIN + timedelta(seconds=k)).isoformat()
            asked = {"patient": patient, "key": f"{k}", "events": [EVENT | {"time": moment, "numeric_value": k}]}
            try:
                n_sent += 1
                if served.ask(running.port, "/append", asked, timeout=30)[0] == 200:
                    acknowledged.append((patient, moment))
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)

    running.start()
    thread = threading.Thread(target=client)
    thread.start()
    try:
        for _ in range(times):
            before = len(acknowledged)
            while len(acknowledged) == before:  # at a random moment after the first that this process took
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            running.kill()
            running.start()
    finally:
        over.set()
        thread.join()
        running.kill()
    store = state_store.StateStore(ew.load("tiny"), tmp_path / "states")
    for patient in {p for p, _ in acknowledged}:
        wanted = sorted(np.datetime64(m, "us").astype(np.int64) for p, m in acknowledged if p == patient)
        got = store._state(patient)._record.events["time"].tolist()
        # once each; the last one may have been taken and not acknowledged
        assert len(set(got)) == len(got) and set(wanted) <= set(got) and len(got) <= len(wanted) + 1
    store.close()
    print(f"{times} kills, {len(acknowledged)} appends acknowledged of {n_sent} sent: none lost, none twice")
    return len(acknowledged)


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path):
    assert killed(tmp_path, 3) > 3


@pytest.mark.long
def test_two_hundred_kills_lose_nothing(tmp_path):
    assert killed(tmp_path, 200, seed=1) > 200
