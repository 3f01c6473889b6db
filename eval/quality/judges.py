# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Who says which of two answers is better: any reward function, or a language model behind an HTTP endpoint."""

import base64
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from tqdm.auto import tqdm

from trl_ext.messages.printable import error_text, one_line
from trl_ext.rewards.base import Batch, completion_text, prompt_text, reward_name
from trl_ext.rewards.calling import start
from trl_ext.rewards.retry import run_reward
from trl_ext.text.rows import Text

Outcome = int | None
"""1: the model's answer is better, -1: the baseline's, 0: a tie, None: not judged."""

CRITERIA = (
    "Prefer the answer that is correct, does what was asked and nothing else, is helpful and does no harm. A longer "
    "answer is not a better one, and the order of the answers means nothing."
)
_QUESTION = """Two assistants have answered the same request. {criteria}

<request>
{prompt}
</request>

<answer_a>
{first}
</answer_a>

<answer_b>
{second}
</answer_b>

Compare them in a few sentences, then end with exactly one of these lines: [[A]] if answer A is better, [[B]] if
answer B is better, [[tie]] if they are equally good."""
_VERDICT = re.compile(r"\[\[\s*(a|b|c|tie)\s*\]\]", re.IGNORECASE)
_SIGNS = {"a": 1, "b": -1, "c": 0, "tie": 0}
_TEMPORARY = (408, 409, 425, 429)
_NO_JSON = (json.JSONDecodeError, UnicodeDecodeError)
_LARGEST_REPLY = 2**20  # bytes


class Judge(Protocol):
    """Compares N answers with N answers of a baseline; `columns` are the data set's others, N values each."""

    def __call__(
        self, prompts: Sequence[Text], answers: Sequence[Text], baselines: Sequence[Text], **columns: list
    ) -> list[Outcome]:
        """Return N outcomes: 1 for a win of the answer, -1 for a loss, 0 for a tie, None where the judge gave none."""
        ...


class RewardJudge:
    """The answer with the higher reward wins: a gold reward function, or a reward model as `PreferenceReward`.

    Args:
        reward: Reward function in TRL's signature; it gets no `completion_ids`.
        margin: Rewards that differ by no more are a tie.
        retries: How often it is called again if it raises; samples that it cannot score are not judged.

    Raises:
        ValueError: `margin` is negative.
    """

    def __init__(self, reward: Callable, *, margin: float = 0.0, retries: int = 2):
        if margin < 0:
            raise ValueError(f"`margin` is {margin}; it must be 0 or more.")
        self.reward, self.margin, self.retries = reward, margin, retries

    def __call__(
        self, prompts: Sequence[Text], answers: Sequence[Text], baselines: Sequence[Text], **columns: list
    ) -> list[Outcome]:
        """Return N outcomes, one for each answer and its baseline."""
        ours, theirs = (self._rewards(prompts, completions, columns) for completions in (answers, baselines))
        return [
            None if one is None or other is None else _sign(one - other, self.margin)
            for one, other in zip(ours, theirs, strict=True)
        ]

    def _rewards(self, prompts: Sequence[Text], completions: Sequence[Text], columns: dict) -> list[float | None]:
        batch = Batch(prompts, completions, None, columns)
        result = run_reward(
            self.reward,
            batch,
            retries=self.retries,
            timeout=None,
            allowed_failures=len(batch),
            on_progress=lambda n: None,
        )
        if result.failures:
            error = next(reversed(result.failures.values()))
            warnings.warn(
                f"The judge '{reward_name(self.reward)}' failed on {len(result.failures)} of {len(batch)} answers, "
                f"which are left out ({error_text(error)}).",
                stacklevel=3,
            )
        return result.rewards


class EndpointJudge:
    """A language model behind an OpenAI-compatible endpoint (`POST {url}/chat/completions`) compares the answers.

    Each pair is judged twice, with the answers in both orders; verdicts that disagree are a tie, because judges favour
    a position ("Judging LLM-as-a-Judge", Zheng et al. 2023, arXiv 2306.05685, section 3.4). A pair without two
    verdicts after all retries is not judged.

    Args:
        url: Base URL, such as "https://api.openai.com/v1" or "http://localhost:8000/v1". A query string in it is sent
            along, and a user name and password as basic authentication; no message shows either.
        model: Name of the judging model.
        api_key_env: Environment variable that holds the API key; where it is not set, none is sent.
        criteria: What makes an answer better, as a sentence of the question.
        options: Further fields of the request, and replacements of `temperature=0` and `max_tokens=1024`; None removes
            one that a model does not take.
        retries: How often a request that fails, or whose answer has no verdict, is sent again.
        timeout: Seconds for each request and its whole reply, of which a megabyte is read.
        backoff: Seconds before the first retry, twice as many before each further one.
        concurrency: Requests under way at a time.
        give_up_after: After so many failed requests in a row the rest is not tried any more.

    Attributes:
        disagreements: How many pairs of the last call were ties because the verdicts disagreed.

    Raises:
        ValueError: `url` is no HTTP URL; when called: the endpoint refuses the request (wrong key, no such model, ...).
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        criteria: str = CRITERIA,
        options: Mapping[str, Any] | None = None,
        retries: int = 3,
        timeout: float = 120.0,
        backoff: float = 1.0,
        concurrency: int = 8,
        give_up_after: int = 10,
    ):
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.url = one_line(f"{parts.scheme}://{host}{parts.path.rstrip('/')}")  # as it may be shown
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The judge's URL is '{self.url}'; it must begin with http:// or https:// and a host.")
        path = f"{parts.path.rstrip('/')}/chat/completions"
        self._address = urllib.parse.urlunsplit((parts.scheme, host, path, parts.query, ""))
        self._user = (parts.username, parts.password)
        self.model, self.api_key_env, self.criteria = model, api_key_env, criteria
        fields = {"temperature": 0, "max_tokens": 1024} | dict(options or {})
        self.options = {key: value for key, value in fields.items() if value is not None}
        self.retries, self.timeout, self.backoff = retries, timeout, backoff
        self.concurrency, self.give_up_after = concurrency, give_up_after
        self.disagreements = 0
        self._failed_in_a_row, self._last_failure, self._lock = 0, "", threading.Lock()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(
        self, prompts: Sequence[Text], answers: Sequence[Text], baselines: Sequence[Text], **columns: list
    ) -> list[Outcome]:
        """Return N outcomes, one for each answer and its baseline."""
        self._failed_in_a_row = 0
        texts = [
            (prompt_text(prompt), completion_text(answer), completion_text(baseline))
            for prompt, answer, baseline in zip(prompts, answers, baselines, strict=True)
        ]
        questions = [self._question(*text) for text in texts]
        questions += [self._question(prompt, second, first) for prompt, first, second in texts]
        with (
            ThreadPoolExecutor(self.concurrency) as pool,
            tqdm(total=len(questions), desc=f"Asking {one_line(self.model, 40)}", leave=False, disable=None) as bar,
        ):
            verdicts = []
            try:
                for verdict in pool.map(self._verdict, questions):
                    verdicts.append(verdict)
                    bar.update()
            except ValueError:
                pool.shutdown(cancel_futures=True)
                raise
        pairs = list(zip(verdicts[: len(texts)], verdicts[len(texts) :], strict=True))
        self.disagreements = sum(one != -other for one, other in pairs if one is not None and other is not None)
        outcomes = [_agreed(one, other) for one, other in pairs]
        missing = outcomes.count(None)
        if missing:
            warnings.warn(
                f"The judge at {self.url} gave no verdict on {missing} of {len(texts)} pairs, which are left out; the "
                f"last failure was: {self._last_failure}.",
                stacklevel=2,
            )
        return outcomes

    def _question(self, prompt: str, first: str, second: str) -> str:
        return _QUESTION.format(criteria=self.criteria, prompt=prompt, first=first, second=second)

    def _verdict(self, question: str) -> Outcome:
        """1 for the first answer, -1 for the second, 0 for neither; None if there is no verdict."""
        for attempt in range(self.retries + 1):
            if self._failed_in_a_row >= self.give_up_after:
                return None
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                reply = self._ask(question)
                found = _VERDICT.findall(reply)
                if found:
                    with self._lock:
                        self._failed_in_a_row = 0
                    return _SIGNS[found[-1].lower()]
                failure = "no verdict in the reply"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 and error.code not in _TEMPORARY:
                    # What the server says may repeat the request, and the key in it; so may the error itself.
                    raise ValueError(
                        f"The judge at {self.url} refuses requests with HTTP {error.code}; check the URL, the model's "
                        f"name and the key in ${self.api_key_env}."
                    ) from None
                failure = f"HTTP {error.code}"
            except (OSError, http.client.HTTPException, TypeError, LookupError, *_NO_JSON) as error:
                failure = _kind(error)
            with self._lock:
                self._failed_in_a_row += 1
                self._last_failure = failure
        return None

    def _ask(self, question: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], **self.options}
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        elif self._user[0] is not None:
            user = ":".join(urllib.parse.unquote(part or "") for part in self._user)
            headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers, method="POST")
        # Sockets limit the seconds between two bytes; a thread limits those of the whole reply.
        reply = json.loads(start(lambda: self._send(request))(self.timeout))
        return str(reply["choices"][0]["message"]["content"])

    def _send(self, request: urllib.request.Request) -> bytes:
        deadline = time.monotonic() + self.timeout
        with self._opener.open(request, timeout=self.timeout) as response:
            reply = b""
            while chunk := response.read1(2**16):
                reply += chunk
                if len(reply) > _LARGEST_REPLY:
                    raise _TooLarge(f"the reply is larger than {_LARGEST_REPLY} bytes")
                if time.monotonic() > deadline:  # nobody waits any more
                    raise TimeoutError
        return reply


class _TooLarge(OSError):
    """The endpoint does not stop talking."""


def _kind(error: BaseException) -> str:
    """What went wrong, in our words: a message may repeat what the server said, or where it was asked."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    known: dict[type, str] = {TimeoutError: "timeout", _TooLarge: f"a reply of more than {_LARGEST_REPLY} bytes"}
    said = known.get(type(cause)) or (os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the API key to whatever host it names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _sign(difference: float, margin: float) -> int:
    return 0 if abs(difference) <= margin else (1 if difference > 0 else -1)


def _agreed(one: Outcome, swapped: Outcome) -> Outcome:
    if one is None or swapped is None:
        return None
    return one if one == -swapped else 0
