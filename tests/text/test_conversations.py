# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Conversations and texts as the policy reads them: token for token what TRL's trainers read."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer, SFTConfig, SFTTrainer

from tests import scripted
from tests.real_tokenizers import MISTRAL_TEMPLATE, real_tokenizer, trl_template
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext.experience.prompt_checks import check_prompts
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.experience.supervised import SupervisedData
from trl_ext.text.decoding import decode_answers
from trl_ext.text.rows import render

# A tokenizer and a template that is made for another one serve as well: what is compared are two ways to use them.
TEMPLATES = ["llama3", "gemma", "gemma3", "phi3", "qwen2_5", "qwen3", "deepseekv3", "glm4moe", "cohere", "mistral"]
TOKENIZERS = ["mistral v1", "qwen", "deepseek"]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CONVERSATIONS = [
    [user("hi")],
    [user("What is 2 + 2?"), assistant("4"), user("And 3 + 3?\nTell me.")],
    [user(" spaces "), assistant("ok"), user("é 日本 🦤")],
]


def templated(tokenizer: str, template: str) -> PreTrainedTokenizerBase:
    made = real_tokenizer(tokenizer)
    if made.bos_token is None:
        made.bos_token = "<|endoftext|>"  # for templates that write one
    made.chat_template = MISTRAL_TEMPLATE if template == "mistral" else trl_template(template)
    return made


def grpo_ids(tokenizer: PreTrainedTokenizerBase, prompts: list) -> list[list[int]]:
    """What TRL's GRPOTrainer makes of prompts."""
    trainer = SimpleNamespace(
        processing_class=tokenizer,
        _is_vlm=False,
        environment_factories=None,
        tools=None,
        chat_template=None,
        chat_template_kwargs={},
    )
    return GRPOTrainer._tokenize_prompts(trainer, prompts)[0]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_conversations_are_tokenized_as_in_grpo(name, template):
    tokenizer = templated(name, template)
    assert tokenize_prompts(CONVERSATIONS, tokenizer) == grpo_ids(tokenizer, CONVERSATIONS)


@pytest.mark.parametrize("name", [*TOKENIZERS, "mistral v3", "tekken", "tiny"])
def test_texts_are_tokenized_as_in_grpo(name):
    tokenizer, texts = real_tokenizer(name), ["the cat", " a dog\n\nran ", "x"]
    assert tokenize_prompts(texts, tokenizer) == grpo_ids(tokenizer, texts)


@pytest.mark.parametrize("template", ["llama3", "gemma", "gemma3", "mistral", "deepseekv3"])
@pytest.mark.parametrize("name", ["mistral v1", "mistral v3"])
def test_a_template_that_writes_bos_gets_no_second_one(name, template):
    """Conversations, texts that were rendered beforehand, and demonstrations."""
    tokenizer = templated(name, template)
    bos = tokenizer.bos_token_id
    assert tokenizer("a")["input_ids"][0] == bos, "the tokenizer itself writes one too"
    conversation = [user("hi")]
    (expected,) = grpo_ids(tokenizer, [conversation])
    assert expected[0] == bos and expected.count(bos) == 1
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert tokenizer(text)["input_ids"].count(bos) == 2, "as it would be without care"
    assert tokenize_prompts([conversation], tokenizer) == tokenize_prompts([text], tokenizer) == [expected]
    rows: list[dict[str, list]] = [
        {"prompt": [conversation], "completion": [[assistant("hello")]]},
        {"messages": [[*conversation, assistant("hello")]]},
        {"text": [text + "hello"]},
        {"prompt": [text], "completion": ["hello"]},
    ]
    for columns in rows:
        data = SupervisedData(Dataset.from_dict(columns), tokenizer, max_length=64, seed=0)
        ids = data.batch(1, (0,)).input_ids[0].tolist()
        assert ids[:4] == expected[:4] and ids.count(bos) == 1


def test_a_text_with_two_bos_tokens_of_its_own_keeps_both():
    tokenizer = real_tokenizer("mistral v1")
    assert tokenize_prompts(["<s><s>hi", "hi"], tokenizer)[0].count(1) == 3
    assert [row.count(1) for row in tokenize_prompts(["<s>hi", "hi", "<s>"], tokenizer)] == [1, 1, 1]


def test_a_sep_that_the_tokenizer_appends_is_taken_off():
    tokenizer = real_tokenizer("word piece")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    cat = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert tokenize_prompts(["the cat", "[SEP]"], tokenizer) == [[cls, *cat], [cls, sep]]


@pytest.mark.parametrize("template", ["llama3", "gemma", "phi3", "qwen2_5", "deepseekv3", "mistral"])
@settings(max_examples=8, deadline=None)
@given(text=st.sampled_from(["Well,", "Well, the", "a\nb", "{", "é 🦤", "4"]))
def test_a_begun_answer_is_continued(template, text):
    """The rendered answer begins with the prompt: what the policy adds ends the same turn."""
    tokenizer = templated("qwen", template)
    conversation = [user("hi"), assistant(text)]
    (ids,) = tokenize_prompts([conversation], tokenizer)
    longer = tokenizer.apply_chat_template([user("hi"), assistant(text + "END")], tokenize=False)
    prompt = tokenizer.decode(ids)
    assert longer[: longer.index("END")] == prompt
    assert render(conversation, tokenizer, {}) == prompt


def sft_rows(tokenizer: PreTrainedTokenizerBase, columns: dict[str, list], tmp_path: Any) -> list[tuple[list, int]]:
    """Tokens of each row as TRL's SFTTrainer makes them, and where what is predicted begins."""
    trainer = SFTTrainer(
        model=tiny_causal_lm(vocab_size=16),
        args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_length=None, bf16=False),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )
    found = []
    for row in trainer.train_dataset:
        labels = row.get("labels") or row["input_ids"]
        found.append((row["input_ids"], max(1, next(i for i, label in enumerate(labels) if label != -100))))
    return found


SFT_TEMPLATES = [("qwen", "qwen2_5"), ("mistral v1", "mistral"), ("mistral v1", "llama3"), ("deepseek", "phi3")]


@pytest.mark.parametrize(("name", "template"), SFT_TEMPLATES)
def test_demonstrations_are_tokenized_as_in_sft(name, template, tmp_path):
    tokenizer = templated(name, template)
    formats: list[dict[str, list]] = [
        {"text": ["the cat sat", " a dog", f"ran{tokenizer.eos_token}"]},
        {"prompt": ["the cat", "a dog"], "completion": [" sat", " ran"]},
        {"messages": [[*c, assistant("yes, I do")] for c in CONVERSATIONS]},
        {"prompt": CONVERSATIONS, "completion": [[assistant("yes")]] * 3},
    ]
    for columns in formats:
        data = SupervisedData(Dataset.from_dict(columns), tokenizer, max_length=1024, seed=0)
        ours = [(given + predicted, len(given)) for given, predicted in data._tokens(list(data.dataset))]
        assert ours == sft_rows(tokenizer, columns, tmp_path)


@pytest.mark.parametrize(("name", "template"), SFT_TEMPLATES)
def test_what_is_predicted_begins_with_the_first_token_that_the_prompt_alone_does_not_have(name, template):
    """As in SFTTrainer since TRL 1.16; before, it began behind as many tokens as the prompt alone has."""
    tokenizer = templated(name, template)
    rows = {"prompt": ["a do"], "completion": ["g ran"]}
    data = SupervisedData(Dataset.from_dict(rows), tokenizer, max_length=1024, seed=0)
    ((given, predicted),) = data._tokens(list(data.dataset))
    alone, whole = tokenizer("a do")["input_ids"], tokenizer("a dog ran" + tokenizer.eos_token)["input_ids"]
    assert given + predicted == whole
    assert given == alone[: len(given)] and predicted[0] not in alone[len(given) : len(given) + 1]


def test_a_demonstration_goes_on_with_a_begun_answer():
    tokenizer = tiny_tokenizer()
    columns = {"prompt": [[user("hi"), assistant("well,")]], "completion": [[assistant(" the cat")]]}
    ((given, predicted),) = _tokens(columns, tokenizer)
    assert tokenizer.decode(given) == "<user>hi<eos><assistant>well,"
    assert tokenizer.decode(predicted) == " the cat<eos>"


def _tokens(columns: dict[str, list], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    data = SupervisedData(Dataset.from_dict(columns), tokenizer, max_length=1024, seed=0)
    return data._tokens(list(data.dataset))


# ---- what a row brings for its template ----


def test_tools_of_a_row_reach_the_template():
    """As in TRL's apply_chat_template; as dictionaries or as JSON."""
    tokenizer = real_tokenizer("qwen")
    other = {"type": "function", "function": {"name": "time", "description": "The time.", "parameters": None}}
    expected = [
        tokenizer.apply_chat_template([user("hi")], tools=tools, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        for tools in ([TOOL], None)
    ]
    for tools in ([[TOOL], None], [json.dumps([TOOL]), ""], [[TOOL], []]):
        columns = {"prompt": [[user("hi")], [user("hi")]], "tools": tools}
        assert tokenize_prompts(columns["prompt"], tokenizer, {}, columns) == expected
    dataset = Dataset.from_dict({"prompt": [[user("hi")]] * 2, "tools": [[TOOL], [other]]})
    assert dataset[0]["tools"][0]["function"].keys() == {"name", "description", "parameters"}
    check_prompts(dataset, "train_dataset", tokenizer, None)
    rows = tokenize_prompts(dataset["prompt"][:], tokenizer, {}, dataset[:])
    assert rows[0] == expected[0] and "null" not in tokenizer.decode(rows[1])
    demonstration = {"prompt": [[user("hi")]], "completion": [[assistant("yes")]], "tools": [[TOOL]]}
    assert _tokens(demonstration, tokenizer)[0][0] == expected[0]


def test_the_trainer_renders_prompts_with_their_tools(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if tools %}{{ tools[0].function.name }}{% endif %}" + tokenizer.chat_template
    seen: list[list[int]] = []

    class Engine(scripted.ScriptedEngine):
        def __call__(self, model: Any, prompt_ids: list[list[int]], on_progress: Any = None) -> Any:
            seen.extend(prompt_ids)
            return super().__call__(model, prompt_ids, on_progress)

    prompts = Dataset.from_dict({"prompt": [[user("hi")]] * 8, "tools": [json.dumps([TOOL])] * 8})
    made = scripted.trainer(
        tmp_path,
        processing_class=tokenizer,
        train_dataset=prompts,
        reward_funcs=lambda completions, tools, **columns: [float(len(c[0]["content"])) for c in completions],
        total_episodes=8,
    )
    made.generation_engine = Engine()
    made.train()
    assert {tokenizer.decode(ids) for ids in seen} == {"weather<user>hi<eos><assistant>"}


def test_template_arguments_of_a_row_win_over_those_of_the_run():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{% if mood %}{{ mood }}{% endif %}"
    columns = {"prompt": [[user("a")], [user("a")]], "chat_template_kwargs": [{"mood": "sad"}, None]}
    rows = tokenize_prompts(columns["prompt"], tokenizer, {"mood": "gay"}, columns)
    assert [tokenizer.decode(row)[-3:] for row in rows] == ["sad", "gay"]


def test_parts_of_text_are_one_text_and_missing_keys_do_not_count():
    """`datasets` gives each dictionary the keys of all the others; templates take a key `image` for an image."""
    tokenizer = real_tokenizer("qwen")
    tokenizer.chat_template = trl_template("qwen2_5_vl")
    parts = [{"type": "text", "text": "the cat", "image": None}, {"type": "text", "text": " sat", "image": None}]
    prompts = [[{"role": "user", "content": parts, "tool_calls": None}]]
    check_prompts(Dataset.from_dict({"prompt": prompts}), "train_dataset", tokenizer, None)
    (ids,) = tokenize_prompts(prompts, tokenizer)
    assert "user\nthe cat sat<|im_end|>" in tokenizer.decode(ids) and "image" not in tokenizer.decode(ids)
    assert tokenize_prompts([[user("the cat sat")]], tiny_tokenizer()) == tokenize_prompts(prompts, tiny_tokenizer())


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_arguments_of_one_tool_call_do_not_get_the_names_of_another():
    """`datasets` adds them with the value None, at any depth."""
    calls = [call("weather", city="Paris", when={"day": "today"}), call("time", when={"hour": "noon"}, zone="CET")]
    prompts = [
        [
            user("hi"),
            {"role": "assistant", "content": "", "tool_calls": [one]},
            {"role": "tool", "content": "ok"},
            user("and?"),
        ]
        for one in calls
    ]
    filled = Dataset.from_dict({"prompt": prompts})
    arguments = filled[0]["prompt"][1]["tool_calls"][0]["function"]["arguments"]
    assert arguments["zone"] is None and arguments["when"]["hour"] is None
    for tokenizer in (real_tokenizer("qwen"), templated("qwen", "qwen3")):
        expected = grpo_ids(tokenizer, prompts)
        text = tokenizer.decode(expected[0])
        assert '"Paris"' in text and "zone" not in text and "null" not in text
        assert tokenize_prompts(filled["prompt"][:], tokenizer) == expected
        demonstration = {"prompt": filled["prompt"][:], "completion": [[assistant("yes")]] * 2}
        assert [prompt for prompt, _ in _tokens(demonstration, tokenizer)] == expected


def test_what_the_policy_writes_after_tools_is_its_answer():
    tokenizer = real_tokenizer("qwen")
    columns = {"prompt": [[user("hi")]], "tools": [[TOOL]]}
    (prompt_ids,) = tokenize_prompts(columns["prompt"], tokenizer, {}, columns)
    ids = tokenizer(" the cat<|im_end|>")["input_ids"]
    assert decode_answers(tokenizer, columns["prompt"], [prompt_ids], [ids]) == [" the cat"]
