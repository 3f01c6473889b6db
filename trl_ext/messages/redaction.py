# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Redaction of secrets in texts for files, logs and the terminal: by the names of settings, and in URLs.

The words of a name mark it as that of a secret (`hub_token`, `apiKey`, `X-API-KEY`, `WANDB_API_KEY`, `password`), in
any case and at any depth. Names of a language model's tokens and of a dictionary's keys are not (`eos_token`,
`pad_token_id`, `max_new_tokens`, `sort_key`).
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "(hidden)"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Anywhere in a name.
_SECRET_WORDS = _words(
    "password passwords passwd pwd passwort passphrase passcode secret secrets credential credentials authorization "
    "cookie cookies apikey apikeys accesskey secretkey privatekey authtoken accesstoken"
)
# At the end of a name.
_SECRET_ENDS = _words("auth bearer pass")
# Plurals (`tokens`, `keys`) are secrets only behind these words, unlike `stop_tokens` and `label_keys`.
_SECRET_OWNERS = _words("api access auth bearer client hf hub private refresh secret session ssh user")
# At the end of a name: the place of a secret, not the secret.
_PLACES = _words("column env field file name path")
_NO_SECRET_TOKENS = _words(
    "added answer assistant audio bad begin blank boi bos boundary class cls completion content context decoder end "
    "eoi eom eos eot eow extra false fim final first frame good head image initial instruction label lang language "
    "last mask max mean middle min negative new newline next no num number pad padding patch per placeholder positive "
    "prefix prompt response reward sep separator sot source space special src start step stop suffix system tail "
    "target tgt think thinking tool total true unk unknown video vision word yes"
)
_NO_SECRET_KEYS = _words(
    "answer batch cache chosen column completion config content data dataset dict dictionary feature field foreign "
    "group hash id image index input item join json label language lookup map mapping merge message messages metric "
    "model name output pad param parameter partition path primary prompt public query registry rejected response "
    "reward role row score sort sorting state task text unique value video"
)
_NO_SECRET_PASSES = _words("backward first forward second single")
_SECRET_PARAMETERS = _words("key sig signature sas code awsaccesskeyid googleaccessid")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>]+")
_USER = re.compile(r"(?<=://)[^/?#]*@")
_PARAMETER = re.compile(r"(?<=[?&;#])([^=&#;\s]+)=([^&#;\s]+)")
_ASSIGNMENT = re.compile(r"(?<![\w-])([A-Za-z][\w-]*)=([^\s&;,\"']+)")
_SPECIAL_TOKEN = re.compile(r"<.*>|\[.*\]|\(hidden\)", re.DOTALL)
# Credentials of a known shape, under any name.
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abeprs]-[\w-]{10,}|AKIA[A-Z0-9]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
)


def is_secret(name: str) -> bool:
    """Return whether a setting, a header or a parameter of that name holds a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    *before, last = words
    owner = before[-1] if before else ""
    if any(word.endswith(("password", "passwd")) for word in words) or _SECRET_WORDS & {
        *words,
        *(first + second for first, second in zip(words, words[1:], strict=False)),
    }:
        return last not in _PLACES
    if last == "token":
        return owner not in _NO_SECRET_TOKENS
    if last == "key":
        return bool(owner) and owner not in _NO_SECRET_KEYS
    if last in ("tokens", "keys"):
        return owner in _SECRET_OWNERS
    return last in _SECRET_ENDS and owner not in _NO_SECRET_PASSES


def redacted(value: Any, name: str = "") -> Any:
    """Return a copy of `value` with "(hidden)" in place of every secret.

    Args:
        value: Mappings, lists and tuples of any depth, with texts and other scalars.
        name: Name of `value`.
    """
    if name and is_secret(name):
        return _hidden(value, numbers=bool(_SECRET_WORDS & {word.lower() for word in _WORD.findall(name)}))
    if isinstance(value, Mapping):
        return {key: redacted(entry, key if isinstance(key, str) else "") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 2 and all(isinstance(entry, str) for entry in value) and _is_header(value[0]):
            return [value[0], _hidden(value[1])]
        entries = [redacted(entry) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """Hide user names and passwords in URLs, secret parameters (`token=...`) and known kinds of keys in a text."""
    if text.lstrip().startswith("{"):
        try:
            return json.dumps(redacted(json.loads(text)))
        except ValueError:
            pass
    text = _URL.sub(lambda match: _redacted_url(match[0]), text)
    text = _ASSIGNMENT.sub(lambda match: f"{match[1]}={_hidden(match[2]) if is_secret(match[1]) else match[2]}", text)
    return _KNOWN.sub(HIDDEN, text)


def _redacted_url(url: str) -> str:
    def parameter(match: re.Match) -> str:
        name = unquote(match[1])
        secret = is_secret(name) or name.lower().rsplit("-", 1)[-1] in _SECRET_PARAMETERS
        return f"{match[1]}={HIDDEN if secret else match[2]}"

    return _PARAMETER.sub(parameter, _USER.sub(f"{HIDDEN}@", url))


def _is_header(name: str) -> bool:
    return name.lower().endswith(("authorization", "cookie", "api-key", "apikey", "auth-token"))


def _hidden(value: Any, *, numbers: bool = False) -> Any:
    """Hide every text in `value`, and with `numbers` (for passwords) every integer, but no boolean."""
    if isinstance(value, Mapping):
        return {key: _hidden(entry, numbers=numbers) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden(entry, numbers=numbers) for entry in value]
    if isinstance(value, str | bytes):
        # `<HUB_TOKEN>`, as transformers writes it, or `<|im_end|>`
        special = isinstance(value, str) and _SPECIAL_TOKEN.fullmatch(value)
        return value if special or not value else HIDDEN
    return HIDDEN if numbers and type(value) is int else value
