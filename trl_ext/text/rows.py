# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of a dataset's rows, and conversations as the policy's chat template writes them.

`*_fault` functions return a clause for a sentence that begins with the dataset and the row, or None.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Text = str | list[Message]
"""A prompt or a completion: a string, or the messages of a conversation."""

# Columns of a row that belong to its chat template, as in TRL's trainers.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = "rename 'from' to 'role' and 'value' to 'content' (`trl.maybe_convert_to_chatml`), 'human' to 'user' and 'gpt' to 'assistant'"  # fmt: skip # noqa: E501


def check_dataset(dataset: Any, name: str, columns: str) -> None:
    """Refuse an argument that is no dataset with rows.

    Messages call the argument `name`, such as `train_dataset`, and name the `columns` that it should have.

    Raises:
        TypeError: when the argument is no `datasets.Dataset`.
        ValueError: when the dataset has no rows.
    """
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        splits = [str(split) for split in dataset]
        kind = ("an " if isinstance(dataset, IterableDatasetDict) else "a ") + type(dataset).__name__
        raise TypeError(
            f"`{name}` is {kind} with the splits {', '.join(splits) or 'none'}; give one of them, such as "
            f"`dataset[{splits[0] if splits else 'train'!r}]`."
        )
    if not isinstance(dataset, Dataset):
        advice = {
            IterableDataset: "cut a stream into one with `Dataset.from_list(list(stream.take(n)))`",
            list: "make one with `Dataset.from_list(rows)`",
            dict: "make one with `Dataset.from_dict(columns)`",
            str: "read one with `datasets.load_dataset`",
        }
        fix = next((text for kind, text in advice.items() if isinstance(dataset, kind)), "make one with `Dataset`")
        raise TypeError(f"`{name}` must be a `datasets.Dataset` with {columns}, got {type(dataset).__name__}; {fix}.")
    if len(dataset) == 0 and dataset.column_names:
        raise ValueError(f"`{name}` is empty; give at least one row.")


def missing_prompt(columns: Sequence[str]) -> str:
    """Return advice for a dataset with these columns, none of which holds prompts."""
    if {"chosen", "rejected"} <= set(columns):
        return "take the prompt from 'chosen' and 'rejected' with `dataset.map(trl.extract_prompt)`"
    if "input_ids" in columns:
        return (
            "token ids, which TRL's old PPOTrainer took, must be texts: `dataset.map(lambda row: {'prompt': "
            "tokenizer.decode(row['input_ids'], skip_special_tokens=True)})`"
        )
    return "name the one that holds the prompts with `prompt_column` of PPOConfig"


def is_conversation(value: Any) -> bool:
    """Return whether a value of a row is meant as a list of messages."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def value_fault(value: Any, conversational: bool, row: int, what: str = "prompt") -> str | None:
    """Return the fault of a value of column `what` that is no text, or no list of messages if `conversational`."""
    subject = "the prompt" if what == "prompt" else f"'{what}'"
    if isinstance(value, str) and not conversational:
        return None if value.strip() else f"{subject} is empty; filter such rows out."
    if isinstance(value, list) and not value:
        return f"{subject} is empty; filter such rows out."
    if conversational and isinstance(value, list):
        return None
    wanted = "a list of messages, as in row 0" if conversational else "a text, as in row 0"
    fix = ""
    if isinstance(value, Mapping) and "role" in value:
        fix = "; put a single message into a list"
    elif isinstance(value, Mapping) and "text" in value:
        fix = "; take its 'text'"
    elif isinstance(value, list) and is_conversation(value[0]):
        fix = "; give each conversation a row of its own"
    elif isinstance(value, list) and isinstance(value[0], int):
        fix = "; decode token ids with `tokenizer.decode`"
    wanted = wanted if row else "a text or a list of messages"
    return f"{subject} is {value!r:.60}; {'every prompt' if what == 'prompt' else 'it'} must be {wanted}{fix}."


def conversation_fault(messages: Any, template: str) -> str | None:
    """Return the fault of a list of messages, or None; roles in the source of the chat template are valid."""
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            return f"message {i} is {message!r:.60}; a message is a dictionary with 'role' and 'content'."
        given = {key: value for key, value in message.items() if value is not None}
        if "role" not in given:
            fix = SHAREGPT if "from" in given else "give every message a 'role' and a 'content'"
            return f"message {i} has no 'role', only {', '.join(map(repr, given)) or 'nothing'}; {fix}."
        role = given["role"]
        if role not in ROLES and not re.search(rf"['\"]{re.escape(str(role))}['\"]", template):
            return f"message {i} has the role {role!r:.40}; the roles are 'system', 'user', 'assistant' and 'tool'."
        fault = _content_fault(given)
        if fault is not None:
            return f"message {i} {fault}"
    if not any(message_text(message).strip() or message.get("tool_calls") for message in messages):
        return "the messages are empty; filter such rows out."
    return None


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the source of a tokenizer's chat template, or of all its named templates."""
    template: Any = tokenizer.chat_template
    return "\n".join(map(str, template.values())) if isinstance(template, Mapping) else str(template or "")


def options_fault(row: Mapping[str, Any]) -> str | None:
    """Return the fault of a row's arguments for the chat template, or None."""
    try:
        template_options(row)
    except ValueError as error:
        return f"{error}."
    return None


def _content_fault(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if content is None:
        return None if message.get("tool_calls") else "has no 'content'; filter such rows out."
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"has the content {content!r:.60}; it must be a text."
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text":
            return f"has a part of the type {kind!r}; PPOTrainer trains on text alone, so filter such rows out."
        if not isinstance(part.get("text"), str):
            return f"has the part {part!r:.60}; a part of a text has a 'text'."
    return None


def message_text(message: Mapping[str, Any]) -> str:
    """Return a message's string content, or its text parts joined; images and missing content give ''."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    return ""


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for the chat template in a row: its tools, and its `chat_template_kwargs`.

    Both may be given as JSON, which keeps `datasets` from filling every dictionary with the keys of all the others.

    Raises:
        ValueError: tools that are no list of dictionaries, or invalid JSON.
    """
    tools, kwargs = (_json(row.get(name), name) for name in TEMPLATE_COLUMNS)
    if tools and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ValueError(f"'tools' is {tools!r:.60}; it must be a list of JSON schemas, or that list as JSON")
    if kwargs and not isinstance(kwargs, Mapping):
        raise ValueError(f"'chat_template_kwargs' is {kwargs!r:.60}; it must be a dictionary")
    # Some templates write an introduction to tools for an empty list.
    return ({"tools": tools} if tools else {}) | dict(kwargs or {})


def _json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return _without_none(value)
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise ValueError(f"'{name}' is {value!r:.60}, which is not JSON ({error})") from None


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """Return a conversation as text, up to the policy's turn, or up to the end of a prefilled assistant message.

    Keys with the value None are left out; `options` are further arguments of `apply_chat_template`, such as `tools`.
    """
    begun = messages[-1]["role"] == "assistant"
    return str(
        tokenizer.apply_chat_template(
            [plain(message) for message in messages],
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
            **options,
        )
    )


def plain(message: Message) -> Message:
    """Return a message without None values and with one text as content, which every chat template understands.

    `datasets` gives all dictionaries in a column the keys of all the others, with None as value: templates take None
    for an image, or write "None". Templates for text would write a list of texts as a list.
    """
    message = _without_none(dict(message))
    if isinstance(message.get("content"), list):
        message["content"] = message_text(message)
    return message


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_none(entry) for entry in value]
    return value
