# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts in the columns in which datasets have them: texts, conversations with and without an answer, ShareGPT."""

from collections.abc import Collection, Mapping
from typing import Any

from trl import maybe_convert_to_chatml

from .rows import Message, is_conversation

PROMPT = "prompt"
"""The column of TRL's prompt-only format."""
CONVERSATIONS = ("messages", "conversations")
"""Columns of whole conversations, which hold the prompts where there is no column "prompt"."""

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def find_prompt_column(columns: Collection[str], given: str = PROMPT) -> str | None:
    """Return the column that holds the prompts, or None where there is none.

    Args:
        columns: Columns of a dataset.
        given: The column that the user named. In the place of "prompt", a dataset may have "messages" or
            "conversations".

    Raises:
        ValueError: when several columns could be meant; a clause that follows the name of the dataset.
    """
    if given in columns:
        return given
    found = [name for name in CONVERSATIONS if name in columns] if given == PROMPT else []
    if len(found) > 1:
        raise ValueError(
            f"has the columns {' and '.join(map(repr, found))}; name the one that holds the prompts with "
            "`prompt_column`."
        )
    if found == ["conversations"] and "system" in columns:
        raise ValueError(
            "has a column 'system' beside 'conversations'; make it the first message of each conversation, or remove "
            "it."
        )
    return found[0] if found else None


def read_prompt(value: Any, column: str) -> Any:
    """Return a value of a column as a prompt: a text, or the messages before the answer.

    A dictionary with "text" (real-toxicity-prompts) gives its text; messages with "from" and "value" (ShareGPT) get
    "role" and "content". In the column "prompt" a last message of the assistant is the beginning of an answer, which
    the policy continues, as in TRL; in every other column it is an answer, and left out. A value of another kind comes
    back as it is.

    Args:
        value: The value.
        column: Its column.

    Raises:
        ValueError: for a conversation without a prompt, or in which the answer cannot be told from the prompt; a clause
            that follows the row.
    """
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return value["text"]
    if not is_conversation(value):
        return value
    messages = [_message(message) for message in value]
    return messages if column == PROMPT else _before_answer(messages)


def _message(message: Any) -> Any:
    """Return a message with "role" and "content" in the place of ShareGPT's "from" and "value"."""
    if not isinstance(message, Mapping) or message.get("from") is None or message.get("role") is not None:
        return message
    given = {key: value for key, value in message.items() if value is not None}
    (converted,) = maybe_convert_to_chatml({PROMPT: [given]})[PROMPT]
    return converted | {"role": _SHAREGPT_ROLES.get(converted["role"], converted["role"])}


def _before_answer(messages: list[Message]) -> list[Message]:
    """Return the messages before the last one of the assistant."""
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    if roles[-1] == "assistant":
        messages, roles = messages[:-1], roles[:-1]
    if not roles or roles[-1] in ("system", "developer"):
        raise ValueError("the conversation has no message before the answer; filter such rows out.")
    if roles[-1] == "assistant":
        raise ValueError(
            "the conversation ends with two messages of the assistant; join them, or put the messages before the "
            "answer into a column 'prompt'."
        )
    return messages
