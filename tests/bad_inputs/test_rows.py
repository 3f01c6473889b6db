# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Rows that cannot be trained on: the dataset, the row and the fix, in one sentence."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict

from tests import scripted
from tests.bad_inputs.case import Case, check, table
from tests.tiny_models import VOCAB_SIZE, tiny_tokenizer
from trl_ext import assembly
from trl_ext.arguments import check_columns
from trl_ext.experience.prompt_checks import check_prompts
from trl_ext.experience.supervised import SupervisedData


def user(text: Any = "hi", **keys: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **keys}


def answer(text: str = "a") -> dict[str, str]:
    return {"role": "assistant", "content": text}


def prompts(columns: dict[str, list] | Any, *, template: str | bool = True, **options: Any) -> None:
    """Check a dataset of prompts as the trainer does."""
    data = Dataset.from_dict(columns) if isinstance(columns, dict) else columns
    tokenizer = tiny_tokenizer(chat_template=template is not False)
    if isinstance(template, str):
        tokenizer.chat_template = template
    check_prompts(data, "train_dataset", tokenizer, options.pop("max_length", 40), **options)


def ptx(columns: dict[str, list] | Any, *, template: str | bool = True, **options: Any) -> None:
    """Check texts of PPO-ptx as the trainer does."""
    data = Dataset.from_dict(columns) if isinstance(columns, dict) else columns
    tokenizer = tiny_tokenizer(chat_template=template is not False)
    if isinstance(template, str):
        tokenizer.chat_template = template
    SupervisedData(data, tokenizer, **{"max_length": 40, "seed": 0} | options)


TEXTS = Dataset.from_dict({"prompt": ["a", "b"]})
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
IMAGE = {"type": "image", "text": None}
CONVERT = (
    "rename 'from' to 'role' and 'value' to 'content' (`trl.maybe_convert_to_chatml`), 'human' to 'user' and 'gpt' to "
    "'assistant'"
)
TOKENS = (
    "token ids, which TRL's old PPOTrainer took, must be texts: `dataset.map(lambda row: {'prompt': "
    "tokenizer.decode(row['input_ids'], skip_special_tokens=True)})`."
)
FILTER = "filter such rows out."
NAME = "name the one that holds the prompts with `prompt_column` of PPOConfig."


def prompt_row(name: str, columns: dict[str, list], fault: str, row: int = 1, **options: Any) -> Case:
    return Case(name, lambda: prompts(columns, **options), ValueError, f"`train_dataset` row {row}: {fault}")


def ptx_row(name: str, columns: dict[str, list], fault: str, row: int = 1, **options: Any) -> Case:
    return Case(name, lambda: ptx(columns, **options), ValueError, f"`ptx_dataset` row {row}: {fault}")


DATASETS = [
    Case(
        "a dictionary of splits",
        lambda: check_columns(DatasetDict(train=TEXTS, test=TEXTS), None, None),
        TypeError,
        "`train_dataset` is a DatasetDict with the splits train, test; give one of them, such as `dataset['train']`.",
    ),
    Case(
        "an empty dictionary of splits",
        lambda: check_columns(DatasetDict(), None, None),
        TypeError,
        "`train_dataset` is a DatasetDict with the splits none; give one of them, such as `dataset['train']`.",
    ),
    Case(
        "a dictionary of streams",
        lambda: check_columns(IterableDatasetDict(dev=TEXTS.to_iterable_dataset()), None, None),
        TypeError,
        "`train_dataset` is an IterableDatasetDict with the splits dev; give one of them, such as `dataset['dev']`.",
    ),
    Case(
        "a stream without rows",
        lambda: check_columns(TEXTS.to_iterable_dataset().take(0), None, None),
        ValueError,
        "`train_dataset` is empty; give at least one row.",
    ),
    Case(
        "a stream without prompts",
        lambda: check_columns(Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), None, None),
        ValueError,
        f"`train_dataset` has no column 'prompt' (it has text); {NAME}",
    ),
    Case(
        "a list of rows",
        lambda: check_columns([{"prompt": "a"}], None, None),
        TypeError,
        "`train_dataset` must be a `datasets.Dataset` with a column 'prompt', got list; make one with "
        "`Dataset.from_list(rows)`.",
    ),
    Case(
        "a dictionary of columns",
        lambda: check_columns({"prompt": ["a"]}, None, None),
        TypeError,
        "`train_dataset` must be a `datasets.Dataset` with a column 'prompt', got dict; make one with "
        "`Dataset.from_dict(columns)`.",
    ),
    Case(
        "a name",
        lambda: check_columns("allenai/real-toxicity-prompts", None, None),
        TypeError,
        "`train_dataset` must be a `datasets.Dataset` with a column 'prompt', got str; read one with "
        "`datasets.load_dataset`.",
    ),
    Case(
        "one of several evaluation datasets",
        lambda: check_columns(TEXTS, {"good": TEXTS, "bad": Dataset.from_dict({"text": ["a"]})}, None),
        ValueError,
        "`eval_dataset['bad']` has no column 'prompt' (it has text); " + NAME,
    ),
    Case(
        "an evaluation stream",
        lambda: check_columns(TEXTS, TEXTS.to_iterable_dataset(), None),
        TypeError,
        "`eval_dataset` must be a `datasets.Dataset` with a column 'prompt', got IterableDataset; cut a stream into "
        "one with `Dataset.from_list(list(stream.take(n)))`.",
    ),
    Case("no rows", lambda: prompts({"prompt": []}), ValueError, "`train_dataset` is empty; give at least one row."),
    Case(
        "no columns",
        lambda: prompts({}),
        ValueError,
        f"`train_dataset` has no column 'prompt' (it has none); {NAME}",
    ),
    Case(
        "token ids of TRL's old PPO",
        lambda: prompts({"input_ids": [[5, 6]], "query": ["a"]}),
        ValueError,
        f"`train_dataset` has no column 'prompt' (it has input_ids, query); {TOKENS}",
    ),
    Case(
        "a misspelt column",
        lambda: prompts({"prompt": ["a"], "question": ["b"]}, prompt_column="qestion"),
        ValueError,
        f"`train_dataset` has no column 'qestion' (it has prompt, question); {NAME}",
    ),
    Case(
        "two columns of conversations",
        lambda: prompts({"messages": [[user()]], "conversations": [[user()]]}),
        ValueError,
        "`train_dataset` has the columns 'messages' and 'conversations'; name the one that holds the prompts with "
        "`prompt_column`.",
    ),
    Case(
        "a system message in a column of its own",
        lambda: prompts({"conversations": [[{"from": "human", "value": "hi"}]], "system": ["be brief"]}),
        ValueError,
        "`train_dataset` has a column 'system' beside 'conversations'; make it the first message of each "
        "conversation, or remove it.",
    ),
    Case(
        "a column of prompts beside another",
        lambda: check_columns(TEXTS.add_column("question", ["c", "d"]), None, None, "question"),
        UserWarning,
        "`train_dataset` has a column 'prompt' beside 'question', which `prompt_column` names; reward functions get "
        "'question' as their prompts, and not the column 'prompt': rename it where they need it.",
    ),
    prompt_row(
        "an answer alone",
        {"messages": [[user(), answer()], [answer()]]},
        f"the conversation has no message before the answer; {FILTER}",
    ),
    prompt_row(
        "an answer after a system message",
        {"messages": [[{"role": "system", "content": "be brief"}, answer()]]},
        f"the conversation has no message before the answer; {FILTER}",
        0,
    ),
    prompt_row(
        "two answers",
        {"messages": [[user(), answer("a"), answer("b")]]},
        "the conversation ends with two messages of the assistant; join them, or put the messages before the answer "
        "into a column 'prompt'.",
        0,
    ),
    prompt_row(
        "an unknown role of ShareGPT",
        {"conversations": [[{"from": "observation", "value": "hi"}]]},
        "message 0 has the role 'observation'; the roles are 'system', 'user', 'assistant' and 'tool'.",
        0,
    ),
    Case(
        "preferences with an implicit prompt",
        lambda: prompts({"chosen": ["a"], "rejected": ["b"]}),
        ValueError,
        "`train_dataset` has no column 'prompt' (it has chosen, rejected); take the prompt from 'chosen' and "
        "'rejected' with `dataset.map(trl.extract_prompt)`.",
    ),
    Case(
        "a column of images",
        lambda: prompts({"prompt": [[user()]], "images": [["a.png"]]}),
        ValueError,
        "`train_dataset` has a column 'images'; PPOTrainer trains on text alone, so remove it, or rename it when it is "
        "for a reward function.",
    ),
    Case(
        "conversations without a template",
        lambda: prompts({"prompt": [[user()]]}, template=False),
        ValueError,
        "`train_dataset` holds conversations but the tokenizer has no chat template; use an instruction-tuned model, "
        "give prompts as text, or set `tokenizer.chat_template` in Python.",
    ),
    Case(
        "tools that the template leaves out",
        lambda: prompts({"prompt": [[user()]], "tools": ['[{"name": "weather"}]']}),
        UserWarning,
        "`train_dataset` row 0 has tools that the chat template does not write, so the policy does not see them; "
        "use a template that writes `tools`, or remove the column.",
    ),
]

PROMPTS = [
    prompt_row("an empty text", {"prompt": ["a", ""]}, f"the prompt is empty; {FILTER}"),
    prompt_row("white space", {"prompt": ["a", " \n\t"]}, f"the prompt is empty; {FILTER}"),
    prompt_row("no messages", {"prompt": [[user()], []]}, f"the prompt is empty; {FILTER}"),
    prompt_row("None", {"prompt": ["a", None]}, "the prompt is None; every prompt must be a text, as in row 0."),
    prompt_row(
        "None among conversations",
        {"prompt": [[user()], None]},
        "the prompt is None; every prompt must be a list of messages, as in row 0.",
    ),
    prompt_row("a number", {"prompt": [5]}, "the prompt is 5; every prompt must be a text or a list of messages.", 0),
    prompt_row(
        "token ids",
        {"prompt": [[5, 6, 7]]},
        "the prompt is [5, 6, 7]; every prompt must be a text or a list of messages; decode token ids with "
        "`tokenizer.decode`.",
        0,
    ),
    prompt_row(
        "a single message",
        {"prompt": [user()]},
        "the prompt is {'role': 'user', 'content': 'hi'}; every prompt must be a text or a list of messages; put a "
        "single message into a list.",
        0,
    ),
    prompt_row(
        "a dictionary without a text",
        {"prompt": [{"text": None, "toxicity": 0.5}]},
        "the prompt is {'text': None, 'toxicity': 0.5}; every prompt must be a text or a list of messages; take its "
        "'text'.",
        0,
    ),
    prompt_row(
        "nested conversations",
        {"prompt": [[[user()]]]},
        "the prompt is [[{'role': 'user', 'content': 'hi'}]]; every prompt must be a text or a list of messages; give "
        "each conversation a row of its own.",
        0,
    ),
    prompt_row(
        "several texts",
        {"prompt": [["a", "b"]]},
        "the prompt is ['a', 'b']; every prompt must be a text or a list of messages.",
        0,
    ),
    prompt_row(
        "ShareGPT messages",
        {"prompt": [[{"from": "human", "text": "hi"}]]},
        f"message 0 has no 'content'; {FILTER}",
        0,
    ),
    prompt_row(
        "a message without a role",
        {"prompt": [[user()], [{"role": None, "content": "a"}]]},
        "message 0 has no 'role', only 'content'; give every message a 'role' and a 'content'.",
    ),
    prompt_row(
        "an unknown role",
        {"prompt": [[user()], [user(), {"role": "gpt", "content": "a"}]]},
        "message 1 has the role 'gpt'; the roles are 'system', 'user', 'assistant' and 'tool'.",
    ),
    prompt_row(
        "a role with a capital",
        {"prompt": [[{"role": "User", "content": "a"}]]},
        "message 0 has the role 'User'; the roles are 'system', 'user', 'assistant' and 'tool'.",
        0,
    ),
    prompt_row(
        "a message without content",
        {"prompt": [[user()], [user(), user(None)]]},
        f"message 1 has no 'content'; {FILTER}",
    ),
    prompt_row("empty messages", {"prompt": [[user()], [user(" ")]]}, f"the messages are empty; {FILTER}"),
    prompt_row("a number for content", {"prompt": [[user(5)]]}, "message 0 has the content 5; it must be a text.", 0),
    prompt_row(
        "an image",
        {"prompt": [[user([{"type": "text", "text": "a"}])], [user([{"type": "text", "text": "a"}, IMAGE])]]},
        f"message 0 has a part of the type 'image'; PPOTrainer trains on text alone, so {FILTER}",
    ),
    prompt_row(
        "a part without a text",
        {"prompt": [[user([{"type": "text", "text": None}])]]},
        "message 0 has the part {'type': 'text', 'text': None}; a part of a text has a 'text'.",
        0,
    ),
    prompt_row(
        "texts for parts",
        {"prompt": [[user(["a", "b"])]]},
        f"message 0 has a part of the type 'str'; PPOTrainer trains on text alone, so {FILTER}",
        0,
    ),
    prompt_row(
        "a refused system message",
        {"prompt": [[user()], [{"role": "system", "content": "a"}, user()]]},
        "the chat template refuses the conversation (System role not supported).",
        template=NO_SYSTEM,
    ),
    prompt_row(
        "a template with a mistake",
        {"prompt": [[user()]]},
        "the chat template refuses the conversation ('dict object' has no attribute 'name').",
        0,
        template="{% for m in messages %}{{ m.name.first }}{% endfor %}",
    ),
    prompt_row(
        "a template that writes nothing",
        {"prompt": [[user()]]},
        f"the tokenizer makes no token of the prompt; {FILTER}",
        0,
        template="{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}",
    ),
    prompt_row("no token", {"prompt": ["a", "日本"]}, f"the tokenizer makes no token of the prompt; {FILTER}"),
    prompt_row(
        "too long",
        {"prompt": ["a", "0123456789" * 5]},
        "the prompt has 50 tokens, more than the 40 allowed; filter or shorten it, or change `max_prompt_length` or "
        "`max_completion_length`.",
    ),
    prompt_row(
        "a token without an embedding",
        {"prompt": ["<user>", "<user><system>"]},
        "the token '<system>' has the id 5, and the model has embeddings for 5 tokens; call "
        "`model.resize_token_embeddings(len(tokenizer))`, or use the model's own tokenizer.",
        num_embeddings=5,
    ),
    prompt_row(
        "tools that are not JSON",
        {"prompt": [[user()]], "tools": ["weather"]},
        "'tools' is 'weather', which is not JSON (Expecting value: line 1 column 1 (char 0)).",
        0,
    ),
    prompt_row(
        "tools that are no list",
        {"prompt": [[user()]] * 2, "tools": [None, {"name": "weather"}]},
        "'tools' is {'name': 'weather'}; it must be a list of JSON schemas, or that list as JSON.",
    ),
    prompt_row(
        "template arguments that are no dictionary",
        {"prompt": [[user()]], "chat_template_kwargs": [["a"]]},
        "'chat_template_kwargs' is ['a']; it must be a dictionary.",
        0,
    ),
]

NEEDED = "'text', 'messages', or 'prompt' and 'completion'"
PTX = [
    Case(
        "ptx: a dictionary of splits",
        lambda: check_columns(TEXTS, None, DatasetDict(train=TEXTS)),
        TypeError,
        "`ptx_dataset` is a DatasetDict with the splits train; give one of them, such as `dataset['train']`.",
    ),
    Case(
        "ptx: a stream",
        lambda: ptx(TEXTS.to_iterable_dataset()),
        TypeError,
        f"`ptx_dataset` must be a `datasets.Dataset` with columns {NEEDED}, got IterableDataset; cut a stream into one "
        "with `Dataset.from_list(list(stream.take(n)))`.",
    ),
    Case("ptx: no rows", lambda: ptx({"text": []}), ValueError, "`ptx_dataset` is empty; give at least one row."),
    Case(
        "ptx: prompts alone",
        lambda: ptx({"prompt": ["a"]}),
        ValueError,
        f"`ptx_dataset` has the columns ['prompt']; it needs {NEEDED}.",
    ),
    Case(
        "ptx: ShareGPT",
        lambda: ptx({"conversations": [[{"from": "human", "value": "hi"}]]}),
        ValueError,
        f"`ptx_dataset` has the columns ['conversations']; it needs {NEEDED}; {CONVERT}, and 'conversations' to "
        "'messages'.",
    ),
    Case(
        "ptx: conversations without a template",
        lambda: ptx({"messages": [[user()]]}, template=False),
        ValueError,
        "`ptx_dataset` holds conversations but the tokenizer has no chat template; give texts.",
    ),
    ptx_row("ptx: None", {"text": ["a", None]}, "'text' is None; it must be a text, as in row 0."),
    ptx_row("ptx: empty", {"text": ["a", " "]}, f"'text' is empty; {FILTER}"),
    ptx_row("ptx: no completion", {"prompt": ["a", "b"], "completion": ["a", ""]}, f"'completion' is empty; {FILTER}"),
    ptx_row("ptx: a number", {"text": [5]}, "'text' is 5; it must be a text or a list of messages.", 0),
    ptx_row(
        "ptx: a text for messages",
        {"messages": [[user()], None]},
        "'messages' is None; it must be a list of messages, as in row 0.",
    ),
    ptx_row(
        "ptx: an unknown role",
        {"messages": [[user()], [{"role": "human", "content": "a"}]]},
        "message 0 has the role 'human'; the roles are 'system', 'user', 'assistant' and 'tool'.",
    ),
    ptx_row(
        "ptx: an image",
        {"prompt": [[user([IMAGE])]], "completion": [[{"role": "assistant", "content": "a"}]]},
        f"message 0 has a part of the type 'image'; PPOTrainer trains on text alone, so {FILTER}",
        0,
    ),
    ptx_row(
        "ptx: a refused system message",
        {"messages": [[user()], [{"role": "system", "content": "a"}, user()]]},
        "the chat template refuses the conversation (System role not supported).",
        template=NO_SYSTEM,
    ),
    ptx_row(
        "ptx: a prompt that leaves no room",
        {"prompt": ["a", "0123456789" * 5], "completion": ["b", "c"]},
        "nothing is left to predict after the first 40 tokens (`ptx_max_length` is 40); filter or shorten it, or raise "
        "`ptx_max_length`.",
    ),
    ptx_row(
        "ptx: a token without an embedding",
        {"prompt": ["<user>", "<user><system>"], "completion": ["<user>", "<user>"]},
        "the token '<system>' has the id 5, and the model has embeddings for 5 tokens; call "
        "`model.resize_token_embeddings(len(tokenizer))`, or use the model's own tokenizer.",
        num_embeddings=5,
    ),
]


@table([*DATASETS, *PROMPTS, *PTX])
def test_rows_that_cannot_be_used(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("row", [1, 1003])
def test_the_row_is_counted_over_the_whole_dataset(row: int) -> None:
    texts = ["a"] * 2000
    texts[row] = ""
    with pytest.raises(ValueError, match=f"`train_dataset` row {row}: the prompt is empty"):
        prompts({"prompt": texts})
    with pytest.raises(ValueError, match=f"`ptx_dataset` row {row}: 'text' is empty"):
        ptx({"text": texts})


def test_good_rows_pass() -> None:
    tools = {"tools": [None, []], "chat_template_kwargs": [None, {}]}
    custom = "{% for m in messages %}{{ 'critic' if m.role == 'critic' else m.role }}{{ m.content }}{% endfor %}"
    prompts({"prompt": ["a", "b"], "images": [None, None]}, num_embeddings=VOCAB_SIZE)
    prompts({"prompt": [[user()], [user(), user("a")]], **tools}, num_embeddings=VOCAB_SIZE)
    prompts({"prompt": [[{"role": "critic", "content": "a"}]]}, template=custom)
    prompts({"prompt": [[{"role": "system", "content": "be brief"}]]})
    ptx({"prompt": ["", "a"], "completion": ["a", "b"]}, num_embeddings=VOCAB_SIZE)
    ptx({"messages": [[user()]], "tools": [None]})


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_the_first_row_is_refused_before_the_model_is_loaded(name: str, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": [[user()]]})
    with (
        mock.patch.object(assembly, "build_actor_critic", side_effect=AssertionError("loaded")),
        pytest.raises(ValueError, match=f"`{name}` holds conversations but the tokenizer has no chat template"),
    ):
        scripted.trainer(tmp_path, processing_class=tiny_tokenizer(chat_template=False), **{name: rows})
