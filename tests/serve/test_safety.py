"""What strangers, other pages and bad luck can do to `tinytf serve`: nothing but read an error."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.server import Server, write_run
from tinytf.cli import serve
from tinytf.errors import UserError

KEY = "a-key-of-this-test"


@pytest.fixture(scope="module", name="folder")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """With a key, two places, and two that may wait."""
    server = Server(
        folder, "--ckpt_path", "best", "--max_batch", "2", "--max_queue", "2", "--timeout", "20", TINYTF_API_KEY=KEY
    )
    yield server
    assert server.stop() == 143
    assert not [line for line in server.lines if "Traceback" in line], server.lines


def post(server: Server, body: object, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}", **headers}
    return httpx.post(server.url + path, content=content, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": ""}, 401),
        ({"content-type": "text/plain"}, 415),
        ({"host": "localhost"}, 200),
    ],
)
def test_only_clients_of_this_server_are_answered(server: Server, headers: dict[str, str], status: int) -> None:
    found = post(server, {"prompt": "It", "max_tokens": 1}, **headers)
    assert found.status_code == status, found.text
    assert "access-control-allow-origin" not in found.headers
    if status != 200:
        assert found.json()["error"]["message"]


def test_no_file_of_the_machine_can_be_asked_for(server: Server) -> None:
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/v1/models/..%2f..%2fetc", "/docs"):
        with socket.create_connection(server.url.removeprefix("http://").split(":")) as client:
            key = f"authorization: Bearer {KEY}\r\n"
            client.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{key}connection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.split()[1] == b"404", answer


def test_a_thousand_malformed_requests_are_refused(server: Server) -> None:
    rng = random.Random(1)
    whole = json.dumps({"prompt": "It", "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "n": 1, "seed": 3}).encode()
    values = [None, True, -1, 1e999, "x" * 3000, [], {}, [[]], [{}], "\ud800", 2**70, 0.5, float("nan"), ["", 1]]
    names = ["prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "stream", "logprobs",
             "echo", "model", "stream_options", "config", "ckpt_path", "__class__", "messages"]  # fmt: skip

    def body() -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return whole[: rng.randrange(len(whole))] + bytes(rng.randrange(256) for _ in range(rng.randrange(9)))
        if kind == 1:
            return b"[" * rng.randrange(1, 50_000)
        found = {"prompt": "It", "max_tokens": 2, rng.choice(names): rng.choice(values)}
        return json.dumps({**found, rng.choice(names): rng.choice(values)}).encode()

    statuses: dict[int, int] = {}
    with httpx.Client(
        timeout=60, headers={"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    ) as client:
        for number in range(1000):
            path = ["/v1/completions", "/v1/chat/completions"][number % 2]
            content = body()
            found = client.post(server.url + path, content=content)
            statuses[found.status_code] = statuses.get(found.status_code, 0) + 1
            assert found.status_code in (200, 400, 404), (content[:300], found.text)
            if found.status_code != 200 and not found.headers["content-type"].startswith("text/event-stream"):
                error = found.json()["error"]
                assert error["message"]
                assert "\n" not in error["message"], content[:300]
    assert statuses[400] > 500
    assert post(server, {"prompt": "It", "max_tokens": 1}).status_code == 200


def test_a_body_is_bounded(server: Server) -> None:
    assert post(server, b'{"prompt": "' + b"x" * (1 << 20) + b'"}').status_code == 413
    assert post(server, b"{}", path="/v1/models").status_code == 405


def test_past_the_queue_clients_are_sent_away(server: Server) -> None:
    def ask(number: int) -> httpx.Response:
        return post(server, {"prompt": "It", "max_tokens": 3000, "seed": number})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses.count(429) >= 6
    assert statuses.count(200) >= 4
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "--max_queue" in refused.json()["error"]["message"]


def test_slow_and_silent_clients_hold_nobody_up(server: Server) -> None:
    address = server.url.removeprefix("http://").split(":")
    silent = [socket.create_connection(address) for _ in range(50)]
    for client in silent[:25]:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        client.sendall(f"{head}content-type: application/json\r\ncontent-length: 99\r\n\r\n{{".encode())
    assert post(server, {"prompt": "It", "max_tokens": 1}).status_code == 200
    for client in silent:
        client.close()
    assert post(server, {"prompt": "It", "max_tokens": 1}).status_code == 200


def test_sigterm_lets_texts_end(folder: Path) -> None:
    server = Server(folder, "--ckpt_path", "best")
    received: list[str] = []
    begun = threading.Event()

    def read() -> None:
        body = {"prompt": "It", "max_tokens": 400, "stream": True, "seed": 1}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
            for line in stream.iter_lines():
                received.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait(60)
    assert server.stop(signal.SIGTERM) == 143
    reader.join(60)
    assert [line for line in received if line][-1] == "data: [DONE]"
    assert server.process.returncode == 143


def test_a_text_past_its_time_is_an_error(folder: Path) -> None:
    server = Server(folder, "--ckpt_path", "best", "--timeout", "0.5")
    body = {"prompt": "It", "max_tokens": 60_000, "temperature": 0.1}
    found = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert found.status_code == 504
    assert "--timeout" in found.json()["error"]["message"]
    begin = time.monotonic()
    streamed = httpx.post(f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=60)
    assert streamed.status_code == 200
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "timeout"
    assert time.monotonic() - begin < 30
    assert server.stop(signal.SIGINT) == 130


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --ckpt_path and --model"),
        (["--ckpt_path", "best", "--host", "0.0.0.0"], "--api_key"),
        (["--ckpt_path", "best", "--port", "70000"], "--port 70000"),
        (["--ckpt_path", "best", "--api_key", "short"], "at least 8"),
        (["--ckpt_path", "best", "--host", "no.such.host.invalid", "--api_key", KEY], "cannot listen there"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_wrong_flags_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TINYTF_API_KEY", raising=False)
    with pytest.raises(UserError, match=message) as caught:
        serve.run(flags)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"--port {port}: it cannot listen there: .*in use"):
            serve.run(["--ckpt_path", "best", "--port", port])
