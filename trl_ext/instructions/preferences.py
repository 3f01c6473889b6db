# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs in the formats they are published in, brought into TRL's: `prompt`, `chosen`, `rejected`."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.messages.printable import one_line

Message = dict[str, str]
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def convert_preferences(dataset: Dataset, name: str, *, chat: bool, skip_bad: bool = False) -> Dataset:
    r"""Bring preference pairs into TRL's format with an explicit prompt.

    Understood are texts or conversations in `chosen` and `rejected`, with or without `prompt`; conversations may hold
    the prompt's messages (UltraFeedback) or not; texts without a prompt must be dialogues in the format of Anthropic's
    HH ("\n\nHuman: ... \n\nAssistant: ...").

    Args:
        dataset: The rows; a numeric column `margin` and the text columns `kind` and `key` are kept.
        name: Of the dataset, for messages.
        chat: Return conversations, for a tokenizer with a chat template; otherwise texts, in the format of HH.
        skip_bad: Leave out rows that cannot be used, and print how many.

    Returns:
        Columns `prompt`, `chosen`, `rejected`.

    Raises:
        ValueError: for missing columns, a row without one of its sides, with identical ones, or with a prompt that
            they do not share.
    """
    missing = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The preference data '{name}' have no column '{missing[0]}' (columns: {', '.join(dataset.column_names)}); "
            "give pairs with 'chosen' and 'rejected'."
        )
    kept = [column for column in ("margin", "kind", "key") if column in dataset.column_names]
    rows, errors = [], []
    for number, row in enumerate(dataset, start=1):
        try:
            pair = _convert(row, chat)
        except ValueError as error:
            errors.append(f"row {number} {error}")
            continue
        rows.append(pair | {column: row[column] for column in kept})
    bad = f"{len(errors):,} of {len(dataset):,} rows of the preference data '{name}'"
    if errors and not skip_bad:
        raise ValueError(
            f"{bad} cannot be used (the first: {one_line(errors[0])}); mend such rows, or leave them out with "
            "`--preference_skip_bad`."
        )
    if errors:
        print(f"{bad} are left out (the first: {one_line(errors[0])}).")
    if not rows:
        raise ValueError(f"The preference data '{name}' hold no pair that can be used.")
    return Dataset.from_list(rows)


def keep_last_turns(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Drop first turns of dialogues that are too long for a reward model, and print how many dialogues lost some.

    A pair that is too long even with its last question alone stays as it is.

    Args:
        pairs: What `convert_preferences` returned.
        tokenizer: Of the reward model.
        max_length: Tokens of the prompt with the longer of its answers.
    """
    rows = list(pairs)
    for row in rows:
        row["prompt"] = next(
            (prompt for prompt in _endings(row["prompt"]) if _longest(prompt, row, tokenizer) <= max_length),
            row["prompt"],
        )
    shortened = sum(row["prompt"] != prompt for row, prompt in zip(rows, pairs["prompt"], strict=True))
    if shortened:
        print(f"{shortened} of {len(rows)} dialogues lost their first turns: they had more than {max_length} tokens.")
    return Dataset.from_list(rows)


def _endings(prompt: Any) -> Iterator[Any]:
    """Yield the prompt, then its rest from each later question on, always with the system message."""
    if isinstance(prompt, str):
        starts = [match.start() for match in re.finditer(r"\n\nHuman:", prompt)]
    else:
        starts = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    yield prompt
    yield from (prompt[: starts[0]] + prompt[start:] for start in starts[1:])


def _longest(prompt: Any, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> int:
    texts = [prompt + row[side] for side in ("chosen", "rejected")]
    if isinstance(prompt, str):
        encoded = tokenizer(texts, verbose=False)
        return 1 + max(map(len, encoded["input_ids"]))  # the trainer adds the token that ends a text
    encoded = tokenizer.apply_chat_template(texts, return_dict=True, tokenizer_kwargs={"verbose": False})
    return max(map(len, encoded["input_ids"]))


def _convert(row: dict[str, Any], chat: bool) -> dict[str, Any]:
    for side in ("chosen", "rejected"):
        if not row[side] or (isinstance(row[side], str) and not row[side].strip()):
            raise ValueError(f"has no '{side}' side")
    if isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        raise ValueError("has a text on one side and a conversation on the other")
    if row["chosen"] == row["rejected"]:
        raise ValueError("has identical 'chosen' and 'rejected' sides")
    if isinstance(row["chosen"], str) and row.get("prompt"):
        return _from_texts(row["prompt"], row["chosen"], row["rejected"], chat)
    sides = [_messages(row[side]) for side in ("chosen", "rejected")]
    if row.get("prompt"):
        sides = [_with_prompt(row["prompt"], side) for side in sides]
    prompt, chosen, rejected = _split(*sides)
    if chat:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": dialogue_text(prompt) + "\n\nAssistant:",
        "chosen": " " + chosen[0]["content"],
        "rejected": " " + rejected[0]["content"],
    }


def _from_texts(prompt: Any, chosen: str, rejected: str, chat: bool) -> dict[str, Any]:
    if chat:
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
        return {"prompt": messages, **dict(zip(("chosen", "rejected"), answers, strict=True))}
    if isinstance(prompt, list):
        prompt = dialogue_text(prompt) + "\n\nAssistant: "
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _messages(side: Any) -> list[Message]:
    if isinstance(side, str):
        return parse_dialogue(side)
    # Datasets fill messages up with keys that only some of them have.
    return [{"role": message["role"], "content": message["content"]} for message in side]


def _with_prompt(prompt: Any, side: list[Message]) -> list[Message]:
    """Return a side with its prompt; UltraFeedback's sides hold it already."""
    if side[0]["role"] == "assistant":
        return [*(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]), *side]
    return side


def parse_dialogue(text: str) -> list[Message]:
    """Return the messages of a dialogue in the format of Anthropic's HH.

    Raises:
        ValueError: if it is not one.
    """
    if not _TURN.match("\n\n" + text.lstrip("\n")):
        raise ValueError("is neither a dialogue ('\\n\\nHuman: ...') nor has it a 'prompt'")
    pieces = _TURN.split("\n\n" + text.lstrip("\n"))[1:]
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return [{"role": _ROLES[speaker], "content": said.strip()} for speaker, said in turns]


def dialogue_text(messages: Iterable[Message]) -> str:
    """Return the text that `parse_dialogue` reads; the text of a system message comes first."""
    names = {role: speaker for speaker, role in _ROLES.items()}
    return "".join(f"\n\n{names[m['role']]}: {m['content']}" if m["role"] in names else m["content"] for m in messages)


def _split(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """Return the shared messages, and one answer of the assistant on each side."""
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise ValueError("does not end with an answer of the assistant on both sides")
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("has sides that answer different prompts")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise ValueError("has identical 'chosen' and 'rejected' sides")
    if not chosen[-1]["content"].strip() or not rejected[-1]["content"].strip():
        raise ValueError("has an empty answer")
    if len(chosen) < 2:
        raise ValueError("has no prompt before the answer")
    return chosen[:-1], chosen[-1:], rejected[-1:]
