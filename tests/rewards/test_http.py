# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A reward that an HTTP service computes, against a server in this process."""

import json
import logging
import pickle
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trl_ext.rewards import HTTPReward, RewardRunner, check_reward

Reply = Callable[[dict], tuple[int, bytes]]
PROMPTS, COMPLETIONS = ["p"] * 4, ["a", "bb", "ccc", "dddd"]


def lengths(body: dict) -> tuple[int, bytes]:
    return 200, json.dumps({"rewards": [len(text) for text in body["completions"]]}).encode()


@pytest.fixture
def serve(monkeypatch):
    """Starts a server that replies as told; returns its URL and the requests it gets."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(reply: Reply):
        requests: list[dict] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                status, text = reply(body)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/score", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(url: str, *, runner: dict | None = None, columns: dict | None = None, **options):
    reward = HTTPReward(url, **options)
    scored = RewardRunner(reward, backoff=0.0, **(runner or {}))(
        PROMPTS, COMPLETIONS, [[1], [2], [3], [4]], columns or {}
    )
    return [None if value != value else value for value in scored.per_function[:, 0].tolist()]


def test_the_samples_go_out_and_the_rewards_come_back(serve):
    url, requests = serve(lengths)
    assert run(url, columns={"answer": ["w", "x", None, "\ud800"]}) == [1, 2, 3, 4]
    assert requests[0]["body"] == {
        "prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": [[1], [2], [3], [4]],
        "answer": ["w", "x", None, "\ud800"],
    }  # fmt: skip
    assert requests[0]["headers"]["Content-Type"] == "application/json" and len(requests) == 1


def test_conversations_go_out_as_messages(serve):
    url, requests = serve(lambda body: lengths({"completions": [row[0]["content"] for row in body["completions"]]}))
    check = check_reward(
        HTTPReward(url), [[{"role": "user", "content": "hi"}]], [[{"role": "assistant", "content": "ab"}]]
    )
    assert check.values == [2.0] and check.warnings == ()
    assert requests[0]["body"]["completions"] == [[{"role": "assistant", "content": "ab"}]]


def test_null_is_not_applicable(serve):
    url, _ = serve(lambda body: (200, b'{"rewards": [1, null, -2.5, true]}'))
    with pytest.warns(UserWarning, match="returned None for sample 1"):
        assert run(url) == [1, None, -2.5, 1]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b'{"rewards": [1, 2]}'), "'http_reward' returned 2 rewards for 4 completions"),
        ((200, b'{"rewards": [1, NaN, 2, 3]}'), "'http_reward' returned nan for sample 1"),
        ((200, b'{"rewards": [1, 1e400, 2, 3]}'), "'http_reward' returned inf for sample 1"),
        ((200, b'{"rewards": [1, "2", 2, 3]}'), "returned '2' .str. for sample 1"),
        ((200, b'{"rewards": 1}'), r"answered {'rewards': 1}: answer {'rewards': \[...\]}"),
        ((200, b"[1, 2, 3, 4]"), r"answered \[1, 2, 3, 4\]: answer"),
        ((401, b"your key sk-secret-key-of-mine"), "refuses the request with HTTP 401: check the URL, and the key in"),
        ((404, b""), "refuses the request with HTTP 404"),
        ((302, b""), "redirects the request, which is not followed: give the final address"),
    ],
)
def test_what_no_retry_can_mend_ends_the_run_at_once(serve, reply, message):
    url, requests = serve(lambda body: reply)
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        run(url + "?key=k3y")
    assert len(requests) == 1 and "k3y" not in str(raised.value) and "sk-" not in str(raised.value)


def failing(times: int, reply: tuple[int, bytes]) -> Reply:
    replies = iter([reply] * times)
    return lambda body: next(replies, None) or lengths(body)


@pytest.mark.parametrize("reply", [(503, b""), (429, b""), (200, b"<html>busy</html>"), (200, b"\xff"), (200, b"")])
def test_a_service_that_is_busy_is_asked_again_in_one_request(serve, reply):
    url, requests = serve(failing(2, reply))
    assert run(url) == [1, 2, 3, 4]
    assert [len(request["body"]["completions"]) for request in requests] == [4, 4, 4]


def test_a_sample_that_breaks_the_service_costs_no_other(serve):
    url, requests = serve(lambda body: (500, b"Traceback") if "bb" in body["completions"] else lengths(body))
    with pytest.warns(
        UserWarning, match=rf"'http_reward' failed on 1 of 4 samples.*{re.escape(url)} answered HTTP 500"
    ):
        assert run(url, runner={"max_reward_failures": 0.3}) == [1, None, 3, 4]
    assert [len(request["body"]["completions"]) for request in requests][:5] == [4, 1, 1, 1, 1]


def test_a_service_that_stays_away_stops_the_run(serve, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(RuntimeError, match=r"failed on at least 4 of 4 samples .*\(URLError: Connection refused\)"):
        run("http://me:passw@127.0.0.1:1/score?token=t0k")


def test_a_slow_service(serve):
    url, requests = serve(lambda body: time.sleep(0.6) or lengths(body))
    seconds = time.monotonic()
    with pytest.raises(RuntimeError, match=r"no rewards from .* \(TimeoutError: timeout\)"):
        run(url, timeout=0.1, runner={"retries": 1})
    assert time.monotonic() - seconds < 5 and len(requests) == 2


def test_an_endless_reply(serve):
    url, _ = serve(lambda body: (200, b" " * (2**20 + 2**16)))
    with pytest.raises(RuntimeError, match=r"a reply of more than 1048704 bytes"):
        run(url, runner={"retries": 0})


def test_secrets_reach_the_service_and_no_message(serve, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    url, requests = serve(failing(1, (500, b"")))
    secret = url.replace("//", "//me:p%77@") + "?key=k3y&version=2"
    assert run(secret) == [1, 2, 3, 4]
    assert requests[0]["path"] == "/score?key=k3y&version=2"
    assert requests[0]["headers"]["Authorization"] == "Basic bWU6cHc="
    reward = HTTPReward(secret)
    shown = repr(reward) + str(reward.url) + caplog.text
    assert not [text for text in ("k3y", "p%77", "pw@", "version") if text in shown]
    monkeypatch.setenv("MY_KEY", "abc")
    run(url, api_key_env="MY_KEY")
    assert requests[-1]["headers"]["Authorization"] == "Bearer abc"
    assert pickle.loads(pickle.dumps(reward)).url == reward.url


def test_services_are_asked_at_the_same_time(serve):
    all_here = threading.Barrier(4, timeout=60)  # no reply before the fourth request

    def reply(body):
        all_here.wait()
        return lengths(body)

    url, _ = serve(reply)
    scores = RewardRunner([HTTPReward(url) for _ in range(4)])(PROMPTS, COMPLETIONS, [[1]] * 4, {})
    assert scores.total.tolist() == [4, 8, 12, 16] and not all_here.broken


def test_values_that_json_does_not_know_and_wrong_options(serve):
    url, requests = serve(lengths)
    for value in (float("nan"), {1, 2}):
        with pytest.raises(TypeError, match="The column 'extra' cannot be sent to a reward service as JSON"):
            run(url, columns={"extra": [value] * 4})
    assert not requests
    for bad in ("http://host/a b", "http://host/ü"):
        with pytest.raises(ValueError, match="write spaces and other special characters as %20"):
            HTTPReward(bad)
    with pytest.raises(ValueError, match="timeout is 0"):
        HTTPReward(url, timeout=0)
