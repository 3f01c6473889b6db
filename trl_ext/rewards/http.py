# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`HTTPReward`: a reward that an HTTP service computes."""

import json
import urllib.error
from typing import Any

from trl_ext.messages.printable import brief

from .base import SERVICES, Ids, Outcome, RewardTypeError, RewardValueError, Texts, read_rewards
from .calling import in_thread
from .service import LARGEST_REPLY, NO_REPLY, TEMPORARY, Service, failure_kind

_TOGETHER = (*TEMPORARY, 502, 503, 504)  # the service is busy or not there, whatever the samples are
_TOKEN_BYTES = 32  # of a token's reward in a reply


class HTTPReward:
    """Rewards from `POST url`: the samples go out as JSON, and a reward for each comes back.

    The request is `{"prompts": [...], "completions": [...], "completion_ids": [...], ...}` with one entry a sample in
    each list and the dataset's other columns beside them: texts, or conversations as lists of messages. The reply is
    `{"rewards": [0.5, null, [0.0, 0.25], ...]}`: a number, a list of one number a token, or null (not applicable) for
    each sample in the order of the request.

    A service that is away, late or busy is asked again by the run's retries (`reward_retries`), for all samples in one
    request; after HTTP 500 each sample is asked for alone, so that one that breaks the service costs no other. A
    redirect, a refusal (HTTP 4xx), and a reply with another number of rewards, NaN or something else than numbers end
    the run: the next request would fare no better.

    Args:
        url: Address of the service. A query string is sent along, and a user name and password as basic
            authentication; no message shows either.
        api_key_env: Environment variable with a key, sent as a bearer token if it is set.
        timeout: Seconds for a request and its whole reply, of which a megabyte and 32 bytes a token are read.
        name: Name in logs.

    Raises:
        ValueError: `url` is no HTTP URL, or `timeout` is not positive.
    """

    def __init__(
        self, url: str, *, api_key_env: str = "REWARD_API_KEY", timeout: float = 60.0, name: str = "http_reward"
    ):
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}: give the seconds for a request, more than 0.")
        self._service = Service(url, api_key_env=api_key_env, owner="The reward's URL")
        self.url, self.api_key_env, self.timeout, self.__name__ = self._service.url, api_key_env, timeout, name

    def __repr__(self) -> str:
        return f"HTTPReward({self.url!r})"

    def check(self) -> None:
        """Refuse an address at which nothing listens; raise ValueError."""
        self._service.check()

    async def __call__(
        self, prompts: Texts, completions: Texts, completion_ids: Ids = None, **columns: Any
    ) -> list[Outcome]:
        """Return N rewards, None where the service has none, or N exceptions where there was no reply."""
        samples = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        samples |= {key: values for key, values in columns.items() if key not in SERVICES}
        body = _encode({key: values for key, values in samples.items() if values is not None})
        try:
            largest = LARGEST_REPLY + _TOKEN_BYTES * sum(map(len, completion_ids or []))
            reply = await in_thread(lambda: self._service.post(body, self.timeout, largest))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _TOGETHER:
                return self._failed(f"HTTP {error.code}", len(completions))
            if error.code >= 500:
                raise ConnectionError(f"the service at {self.url} answered HTTP {error.code}") from None
            # The server's text and the error may repeat the request with its key.
            refusal = "redirects the request, which is not followed: give the final address"
            if not 300 <= error.code < 400:
                refusal = f"refuses the request with HTTP {error.code}: check the URL, and the key in "
                refusal += f"${self.api_key_env} if it wants one"
            raise RewardValueError(f"The reward service at {self.url} {refusal}.") from None
        except NO_REPLY as error:
            return self._failed(failure_kind(error), len(completions))
        if not isinstance(reply, dict) or not isinstance(reply.get("rewards"), list):
            raise RewardTypeError(
                f"The reward service at {self.url} answered {brief(reply)}: answer {{'rewards': [...]}} with a number, "
                "a list of one number a token, or null for each completion."
            )
        return read_rewards(self.__name__, reply["rewards"], len(completions), completion_ids)

    def _failed(self, kind: str, count: int) -> list[Outcome]:
        """Return a failure of all samples that are then asked for again in one request."""
        return [ConnectionError(f"no rewards from {self.url} ({kind})")] * count


def _encode(samples: dict[str, Any]) -> bytes:
    """Return samples as JSON.

    Raises:
        RewardTypeError: a column holds values that JSON does not know.
    """
    parts = []
    for key, values in samples.items():
        try:
            parts.append(f"{json.dumps(key)}: {json.dumps(values, allow_nan=False)}")
        except (TypeError, ValueError) as error:
            raise RewardTypeError(
                f"The column '{key}' cannot be sent to a reward service as JSON ({error}): remove it from the dataset."
            ) from None
    return f"{{{', '.join(parts)}}}".encode()
