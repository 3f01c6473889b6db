# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A language model behind an OpenAI-compatible HTTP endpoint.

`huggingface_hub.InferenceClient(base_url=...)` is not used: it follows redirects, reads replies of any size, limits the
seconds between two bytes only, writes `/v1` into the path, and its errors repeat the URL and the server's text.
"""

import base64
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm.auto import tqdm

from trl_ext.messages.printable import one_line

from .calling import start

T = TypeVar("T")

_TEMPORARY = (408, 409, 425, 429)
_NO_JSON = (json.JSONDecodeError, UnicodeDecodeError)
_LARGEST_REPLY = 2**20  # bytes
_LOCK = threading.Lock()  # of the counts of failures; an endpoint without one can be pickled


class ChatEndpoint:
    """Asks a model at `POST {url}/chat/completions` several questions at a time, and retries failed requests.

    Args:
        url: Base URL, such as "https://api.openai.com/v1" or "http://localhost:8000/v1". A query string in it is sent
            along, and a user name and password as basic authentication; no message shows either.
        model: Name of the model.
        api_key_env: Environment variable with the API key; if it is not set, no key is sent.
        options: Further fields of the request, and replacements of `temperature=0` and `max_tokens=1024`; None removes
            a field that the model does not take.
        retries: Number of retries for a request that failed, or whose reply could not be read.
        timeout: Seconds for each request and its whole reply, of which a megabyte is read.
        backoff: Seconds before the first retry, doubled before each further one.
        concurrency: Requests at a time.
        give_up_after: Number of failed requests in a row after which the remaining questions are not asked.

    Attributes:
        url: The URL without query string, user name and password, for messages.
        last_failure: Kind of the latest failure, without any text of the server.

    Raises:
        ValueError: `url` is no HTTP URL.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        options: Mapping[str, Any] | None = None,
        retries: int = 3,
        timeout: float = 120.0,
        backoff: float = 1.0,
        concurrency: int = 8,
        give_up_after: int = 10,
    ):
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.url = one_line(f"{parts.scheme}://{host}{parts.path.rstrip('/')}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The judge's URL is '{self.url}'; it must begin with http:// or https:// and a host.")
        path = f"{parts.path.rstrip('/')}/chat/completions"
        self._address = urllib.parse.urlunsplit((parts.scheme, host, path, parts.query, ""))
        self._user = (parts.username, parts.password)
        self.model, self.api_key_env = model, api_key_env
        fields = {"temperature": 0, "max_tokens": 1024} | dict(options or {})
        self.options = {key: value for key, value in fields.items() if value is not None}
        self.retries, self.timeout, self.backoff = retries, timeout, backoff
        self.concurrency, self.give_up_after = concurrency, give_up_after
        self.last_failure = ""
        self._failed_in_a_row = 0

    def ask(self, questions: Sequence[str], read: Callable[[str], T | None]) -> list[T | None]:
        """Ask N questions, and return the result of `read` for each reply, in their order.

        Args:
            questions: N messages of the user.
            read: Parses the text of a reply; None if the question must be asked again.

        Returns:
            N results; None for a question without a result after all retries.

        Raises:
            ValueError: the endpoint refuses a request (wrong key, no such model, ...).
        """
        self._failed_in_a_row = 0
        with (
            ThreadPoolExecutor(self.concurrency) as pool,
            tqdm(total=len(questions), desc=f"Asking {one_line(self.model, 40)}", leave=False, disable=None) as bar,
        ):
            found = []
            try:
                for result in pool.map(lambda question: self._ask_until(question, read), questions):
                    found.append(result)
                    bar.update()
            except ValueError:
                pool.shutdown(cancel_futures=True)
                raise
        return found

    def _ask_until(self, question: str, read: Callable[[str], T | None]) -> T | None:
        for attempt in range(self.retries + 1):
            if self._failed_in_a_row >= self.give_up_after:
                return None
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                found = read(self._ask(question))
                if found is not None:
                    with _LOCK:
                        self._failed_in_a_row = 0
                    return found
                failure = "no verdict in the reply"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 and error.code not in _TEMPORARY:
                    # The server's text and the error may repeat the request with its key.
                    raise ValueError(
                        f"The judge at {self.url} refuses requests with HTTP {error.code}; check the URL, the model's "
                        f"name and the key in ${self.api_key_env}."
                    ) from None
                failure = f"HTTP {error.code}"
            except (OSError, http.client.HTTPException, TypeError, LookupError, *_NO_JSON) as error:
                failure = _kind(error)
            with _LOCK:
                self._failed_in_a_row += 1
                self.last_failure = failure
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
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
            reply = b""
            while chunk := response.read1(2**16):
                reply += chunk
                if len(reply) > _LARGEST_REPLY:
                    raise _TooLarge(f"the reply is larger than {_LARGEST_REPLY} bytes")
                if time.monotonic() > deadline:  # the caller has given up
                    raise TimeoutError
        return reply


class _TooLarge(OSError):
    """A reply of more than `_LARGEST_REPLY` bytes."""


def _kind(error: BaseException) -> str:
    """Return the kind of a failure; the error's message may repeat the server's text or the URL."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    known: dict[type, str] = {TimeoutError: "timeout", _TooLarge: f"a reply of more than {_LARGEST_REPLY} bytes"}
    reason = known.get(type(cause)) or (os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "")
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would send the API key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
