# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Judges, the endpoint's against a server in this process."""

import json
import pickle
import re
import threading
import time
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.quality.win_rate import main
from trl_ext.evaluation.judges import EndpointJudge, RewardJudge

PROMPTS = ["p0", "p1", "p2", "p3"]
ANSWERS, BASELINES = ["good", "bad", "good", "fine"], ["bad", "good", "good [[B]]", "bad"]
WORTH = {"good": 2, "good [[B]]": 2, "fine": 1, "bad": 0}


def value(completions, **columns):
    return [float(completion) if completion else None for completion in completions]


def test_the_higher_reward_wins():
    judge = RewardJudge(value, margin=0.5)
    assert judge(["p"] * 5, ["1", "1", "1", "", "1"], ["2", "0", "1.5", "1", "0.4"]) == [-1, 1, 0, None, 1]
    assert RewardJudge(value)(["p"] * 2, ["1", "1"], ["1", "1.001"]) == [0, -1]
    with pytest.raises(ValueError, match="`margin` is -1"):
        RewardJudge(value, margin=-1)


def test_columns_reach_the_reward_and_its_failures_are_left_out():
    def gold(completions, answer):
        if "boom" in completions:
            raise RuntimeError("no answer")
        return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]

    judge = RewardJudge(gold, retries=0)
    assert judge(["p"] * 2, ["a", "b"], ["c", "c"], answer=["a", "c"]) == [1, -1]
    with pytest.warns(UserWarning, match=r"'gold' failed on 1 of 2 answers, .* \(RuntimeError: no answer\)"):
        assert judge(["p"] * 2, ["a", "boom"], ["c", "c"], answer=["a", "c"]) == [1, None]


# The endpoint

Reply = Callable[[str, dict], tuple[int, str]]


def verdict(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def fair(question: str, body: dict) -> tuple[int, str]:
    """Knows what each answer is worth."""
    first, second = (WORTH[text] for text in re.findall(r"<answer_.>\n(.*)\n</answer_.>", question))
    return verdict(
        "Answer [[A]] or [[B]]? " + ("[[A]]" if first > second else "[[B]]" if first < second else "[[tie]]")
    )


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
                status, text = reply(body["messages"][0]["content"], body)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def endpoint(url, **options):
    return EndpointJudge(url, "judge-1", **({"backoff": 0.0, "retries": 2} | options))


def test_both_orders_are_asked_and_the_request_is_openais(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    url, requests = serve(fair)
    judge = endpoint(url + "/", api_key_env="MY_KEY", options={"max_tokens": None, "seed": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judge(PROMPTS, ANSWERS, BASELINES, topic=["a"] * 4) == [1, -1, 0, 1]
    assert judge.disagreements == 0 and len(requests) == 8
    for request in requests:
        assert request["path"] == "/v1/chat/completions"
        assert request["headers"]["Authorization"] == "Bearer sk-secret"
        assert request["body"].keys() == {"model", "messages", "temperature", "seed"}
        assert request["body"]["model"] == "judge-1" and request["body"]["temperature"] == 0
    questions = [request["body"]["messages"][0]["content"] for request in requests]
    asked = [tuple(re.findall(r"<answer_.>\n(.*)\n</answer_.>", text)) for text in questions if "\np0\n" in text]
    assert sorted(asked) == [("bad", "good"), ("good", "bad")]


def test_without_a_key_none_is_sent(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, requests = serve(fair)
    endpoint(url)(PROMPTS[:1], ANSWERS[:1], BASELINES[:1])
    assert all("Authorization" not in request["headers"] for request in requests)


def test_a_judge_that_favours_a_position_says_nothing(serve):
    url, _ = serve(lambda question, body: verdict("The first is better.\n[[A]]"))
    judge = endpoint(url)
    assert judge(PROMPTS, ANSWERS, BASELINES) == [0, 0, 0, 0] and judge.disagreements == 4


def test_conversations_are_shown_as_text(serve):
    url, requests = serve(fair)
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say {something}"}]
    answer, baseline = ([{"role": "assistant", "content": text}] for text in ("good", "bad"))
    assert endpoint(url)([conversation], [answer], [baseline]) == [1]
    assert "Be brief.\nSay {something}" in requests[0]["body"]["messages"][0]["content"]


NONSENSE = {
    "no verdict": verdict("I would rather not say."),
    "no JSON": (200, "<html>"),
    "no text": (200, "\u00ff"),
    "no choices": (200, "{}"),
    "other JSON": (200, "[1]"),
    "broken": (500, "oops"),
    "busy": (429, "later"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_pair_without_a_verdict_is_tried_again_and_then_left_out(kind, serve):
    """Only the questions about p1 go wrong."""
    url, requests = serve(lambda question, body: NONSENSE[kind] if "\np1\n" in question else fair(question, body))
    with pytest.warns(UserWarning, match="gave no verdict on 1 of 4 pairs, which are left out; the last failure was: "):
        assert endpoint(url)(PROMPTS, ANSWERS, BASELINES) == [1, None, 0, 1]
    assert len(requests) == 6 + 2 * 3


def test_a_failure_that_passes_costs_nothing(serve):
    seen: set[str] = set()

    def flaky(question, body):
        first = question not in seen
        seen.add(question)
        return (503, "starting") if first else fair(question, body)

    url, requests = serve(flaky)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert endpoint(url)(PROMPTS, ANSWERS, BASELINES) == [1, -1, 0, 1]
    assert len(requests) == 16


def test_an_endpoint_that_is_down_is_given_up(serve):
    url, requests = serve(lambda question, body: (500, "oops"))
    with pytest.warns(UserWarning, match="no verdict on 100 of 100 pairs.*HTTP 500"):
        assert endpoint(url, concurrency=2)(["p"] * 100, ["good"] * 100, ["bad"] * 100) == [None] * 100
    assert 10 <= len(requests) <= 12
    with pytest.warns(UserWarning, match="URLError"):
        assert endpoint("http://127.0.0.1:1/v1")(["p"], ["good"], ["bad"]) == [None]


def test_an_endpoint_that_is_too_slow(serve):
    def slow(question, body):
        time.sleep(0.3)
        return fair(question, body)

    url, _ = serve(slow)
    with pytest.warns(UserWarning, match="[Tt]ime"):
        assert endpoint(url, timeout=0.05, retries=0)(["p"], ["good"], ["bad"]) == [None]


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_refused_request_ends_it_at_once(status, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    url, requests = serve(lambda question, body: (status, "no such model"))
    with pytest.raises(ValueError, match=rf"HTTP {status}; check .* \$OPENAI_API_KEY") as raised:
        endpoint(url, concurrency=1)(PROMPTS, ANSWERS, BASELINES)
    assert len(requests) < 8 and "sk-secret" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


@pytest.mark.parametrize("status", [200, 401, 500])
def test_no_message_shows_a_secret_or_what_the_server_repeats(status, serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, requests = serve(lambda question, body: (status, "you sent Basic bWU6cHc= \x1b[2J and key=k3y, me:pw"))
    judge = endpoint(url.replace("//", "//me:p%77@") + "?key=k3y&api-version=2", concurrency=1, give_up_after=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            judge(PROMPTS, ANSWERS, BASELINES)
            [message] = [str(w.message) for w in caught]
        except ValueError as error:
            message = str(error)
    assert f"The judge at {url} " in message
    assert not [
        secret for secret in ("k3y", "me:", "pw", "p%77", "api-version", "\x1b", "you sent") if secret in message
    ]
    # but both reach the server
    assert requests[0]["path"] == "/v1/chat/completions?key=k3y&api-version=2"
    assert requests[0]["headers"]["Authorization"] == "Basic bWU6cHc="


def test_an_endpoint_can_be_pickled(serve, monkeypatch):
    """Reward functions are picklable, also those that ask an endpoint."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    url, _ = serve(fair)
    stored = pickle.dumps(endpoint(url))
    assert b"sk-secret" not in stored and pickle.loads(stored)(PROMPTS, ANSWERS, BASELINES) == [1, -1, 0, 1]


def test_wrong_urls_are_refused_without_what_is_secret_in_them():
    for url in ("ftp://me:pw@host/v1?key=k3y", "https://", "me:pw@host"):
        with pytest.raises(ValueError, match="must begin with http:// or https:// and a host") as raised:
            endpoint(url)
        assert "pw" not in str(raised.value) and "k3y" not in str(raised.value)


class Endless(BaseHTTPRequestHandler):
    """Replies for ever: a lot at a time, or a byte now and then, from the first line on or after the headers."""

    kind = "large"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self.kind != "headers":
                self.send_response(200)
                self.end_headers()
            for i in range(10**6):
                piece = {"large": b" " * 2**16, "slow": b" ", "headers": b"HTTP/1.1 200 OK"[i : i + 1] or b"!"}[
                    self.kind
                ]
                self.wfile.write(piece)
                self.wfile.flush()
                if self.kind != "large":
                    time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *args):
        pass


ENDLESS = [("large", "a reply of more than 1048576 bytes"), ("slow", "timeout"), ("headers", "timeout")]


@pytest.mark.parametrize(("kind", "said"), ENDLESS)
def test_a_reply_without_an_end(kind, said, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Endless,), {"kind": kind}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    seconds = time.monotonic()
    with pytest.warns(UserWarning, match=f"no verdict on 1 of 1 .* the last failure was: [A-Za-z_]+: {said}"):
        judge = endpoint(f"http://127.0.0.1:{server.server_port}/v1", timeout=0.4 if kind != "large" else 20, retries=0)
        assert judge(["p"], ["good"], ["bad"]) == [None]
    assert time.monotonic() - seconds < 10
    server.shutdown()
    server.server_close()


def test_on_the_command_line(serve, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    url, _ = serve(lambda question, body: (500, "") if "\np3\n" in question else fair(question, body))
    rows = [{"prompt": p, "model": a, "baseline": b} for p, a, b in zip(PROMPTS, ANSWERS, BASELINES, strict=True)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [str(tmp_path / "c.jsonl"), "--endpoint", url, "--endpoint_model", "m", "--output", str(tmp_path)]
    with pytest.warns(UserWarning, match="1 of 4 pairs"):
        assert main(command) == 0
    results = json.loads((tmp_path / "win_rate.json").read_text())
    assert results["outcomes"] == [1, -1, 0, None] and results["disagreements_between_orders"] == 0
    assert results["all"]["left_out"] == 1 and results["all"]["win_rate"]["estimate"] == 0.5
    command[2] = "http://127.0.0.1:1"
    with pytest.warns(UserWarning, match="4 of 4 pairs"):
        assert main(command) == 2
    assert "None of the 4 comparisons could be judged" in capsys.readouterr().err
