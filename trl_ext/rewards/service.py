# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Requests to an HTTP service: no redirects, replies of a bounded size and time, no secret in a message.

`huggingface_hub.InferenceClient(base_url=...)` is not used: it follows redirects, reads replies of any size, limits the
seconds between two bytes only, writes `/v1` into the path, and its errors repeat the URL and the server's text.
"""

import base64
import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from trl_ext.messages.printable import one_line

from .calling import start

TEMPORARY = (408, 409, 425, 429)  # refusals that another try may undo, beside all of the server's own failures
LARGEST_REPLY = 2**20  # bytes
NO_REPLY = (OSError, http.client.HTTPException, json.JSONDecodeError, UnicodeDecodeError)
"""The exceptions of a request without a reply that can be read; an `HTTPError` among them."""


class Service:
    """Sends JSON to one address by POST, and reads JSON.

    Args:
        url: The address. A query string in it is sent along, and a user name and password as basic authentication; no
            message shows either.
        path: Added to the address's path.
        api_key_env: Environment variable with a key, which is sent as a bearer token if it is set.
        owner: What the address is, for the message about one that cannot be used.

    Attributes:
        url: The address without query string, user name and password, for messages.

    Raises:
        ValueError: `url` is no HTTP URL.
    """

    def __init__(self, url: str, path: str = "", *, api_key_env: str, owner: str):
        try:
            parts = urllib.parse.urlsplit(url)
            host, has_host = parts.netloc.rpartition("@")[2], bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, or brackets that do not close; the error repeats the URL
            raise ValueError(f"{owner} is no address; write http://HOST:PORT/PATH.") from None
        self.url = one_line(f"{parts.scheme}://{host}{parts.path.rstrip('/')}")
        if parts.scheme not in ("http", "https") or not has_host:
            raise ValueError(f"{owner} is '{self.url}'; it must begin with http:// or https:// and a host.")
        if not url.isascii() or any(character <= " " for character in url):
            raise ValueError(f"{owner} is '{self.url}'; write spaces and other special characters as %20 and so on.")
        whole = f"{parts.path.rstrip('/')}{path}" if path else parts.path
        self.api_key_env = api_key_env
        self._address = urllib.parse.urlunsplit((parts.scheme, host, whole, parts.query, ""))
        self._user = (parts.username, parts.password)
        self._place = (str(parts.hostname), parts.port or {"http": 80, "https": 443}[parts.scheme])

    def check(self, timeout: float = 10.0) -> None:
        """Refuse an address at which nothing listens; one that is reached through a proxy is not looked at.

        Raises:
            ValueError: nothing listens there.
        """
        scheme = urllib.parse.urlsplit(self._address).scheme
        if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(self._place[0]):
            return
        try:
            socket.create_connection(self._place, timeout).close()
        except OSError as error:
            raise ValueError(
                f"Nothing answers at {self.url} ({failure_kind(error)}); start the service first."
            ) from None

    def post(self, body: bytes, timeout: float, largest: int = LARGEST_REPLY) -> Any:
        """Send JSON, and return the reply, read as JSON; arguments and errors as in `send`."""
        return json.loads(self.send(body, timeout, largest))

    def send(
        self, body: bytes, timeout: float, largest: int = LARGEST_REPLY, stopped: threading.Event | None = None
    ) -> bytes:
        """Send JSON, and return the reply.

        Args:
            body: The JSON.
            timeout: Seconds for the whole reply.
            largest: Most bytes of a reply.
            stopped: Set in another thread, it ends the wait for the reply.

        Raises:
            urllib.error.HTTPError: the server refuses the request, or redirects it.
            OSError, http.client.HTTPException, ValueError: no reply in time, or none that is JSON (`post`); see
                `NO_REPLY`.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        elif self._user[0] is not None:
            user = ":".join(urllib.parse.unquote(part or "") for part in self._user)
            headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        request = urllib.request.Request(self._address, body, headers, method="POST")
        # Sockets limit the seconds between two bytes; a thread limits those of the whole reply.
        return start(lambda: _send(request, timeout, largest))(timeout, stopped)


def _send(request: urllib.request.Request, timeout: float, largest: int) -> bytes:
    deadline = time.monotonic() + timeout
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as response:
        reply = b""
        while chunk := response.read1(2**16):
            reply += chunk
            if len(reply) > largest:
                raise _TooLarge(f"a reply of more than {largest} bytes")
            if time.monotonic() > deadline:  # the caller has given up
                raise TimeoutError
    return reply


class _TooLarge(OSError):
    """A reply with more bytes than are read."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would send the API key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def failure_kind(error: BaseException) -> str:
    """Return the kind of a failure; the error's message may repeat the server's text or the URL."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    known: dict[type, str] = {TimeoutError: "timeout", _TooLarge: str(cause)}
    reason = known.get(type(cause)) or (os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "")
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
