# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A language model behind an OpenAI-compatible HTTP endpoint."""

import json
import threading
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm.auto import tqdm

from trl_ext.messages.printable import one_line

from .service import NO_REPLY, TEMPORARY, Service, failure_kind

T = TypeVar("T")

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
        self._service = Service(url, "/chat/completions", api_key_env=api_key_env, owner="The judge's URL")
        self.url = self._service.url
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
                if error.code < 500 and error.code not in TEMPORARY:
                    # The server's text and the error may repeat the request with its key.
                    raise ValueError(
                        f"The judge at {self.url} refuses requests with HTTP {error.code}; check the URL, the model's "
                        f"name and the key in ${self.api_key_env}."
                    ) from None
                failure = f"HTTP {error.code}"
            except (*NO_REPLY, TypeError, LookupError) as error:
                failure = failure_kind(error)
            with _LOCK:
                self._failed_in_a_row += 1
                self.last_failure = failure
        return None

    def _ask(self, question: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], **self.options}
        reply = self._service.post(json.dumps(body).encode(), self.timeout)
        return str(reply["choices"][0]["message"]["content"])
