# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts: from text or conversation to tokens, what is refused before a run, and in which order they are drawn."""

from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerControl, TrainerState

from tests.tiny_models import EOS_ID, prompt_dataset, tiny_tokenizer
from trl_ext.experience.prompt_checks import check_prompts
from trl_ext.experience.prompts import (
    PLACEHOLDER,
    EpochSeed,
    RolloutRows,
    RolloutSampler,
    tokenize_prompts,
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_text_is_tokenized_as_it_is(tiny_tokenizer):
    rows = tokenize_prompts(["the cat", "a dog\nran "], tiny_tokenizer)
    assert [tiny_tokenizer.decode(row) for row in rows] == ["the cat", "a dog\nran "]


@pytest.mark.parametrize("text", ["the cat", "the cat<eos>", "e"])
def test_an_eos_that_the_tokenizer_appends_is_taken_off_but_not_the_users_own(text):
    plain, appends = tiny_tokenizer(), tiny_tokenizer()
    appends.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", EOS_ID)]
    )
    assert appends(text)["input_ids"][-1] == EOS_ID
    expected = plain(text)["input_ids"]
    assert tokenize_prompts([text], plain) == [expected]
    assert tokenize_prompts([text, text], appends) == [[1, *expected]] * 2, "BOS stays"


def test_a_conversation_ends_with_the_assistants_header(tiny_tokenizer):
    rows = tokenize_prompts([[user("hi")], [user("a"), assistant("b"), user("c")]], tiny_tokenizer)
    texts = [tiny_tokenizer.decode(row) for row in rows]
    assert texts == ["<user>hi<eos><assistant>", "<user>a<eos><assistant>b<eos><user>c<eos><assistant>"]


def test_an_assistants_last_message_is_continued(tiny_tokenizer):
    rows = tokenize_prompts([[user("hi"), assistant("well, the")]], tiny_tokenizer)
    assert tiny_tokenizer.decode(rows[0]) == "<user>hi<eos><assistant>well, the"


def test_the_chat_template_adds_bos_only_once():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert tokenize_prompts([[user("hi")]], tokenizer)[0].count(1) == 1


def test_chat_template_kwargs_reach_the_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template + "{% if thinking %}think{% endif %}"
    rows = [tokenize_prompts([[user("hi")]], tokenizer, kwargs)[0] for kwargs in (None, {"thinking": True})]
    assert [tokenizer.decode(row)[-5:] for row in rows] == ["tant>", "think"]


# ---- what is refused ----


def check(data: object, max_length: int | None = 20, **options: bool) -> None:
    check_prompts(data, "train_dataset", tiny_tokenizer(**options), max_length)


@pytest.mark.parametrize("conversational", [False, True])
def test_good_prompts_pass(conversational):
    check(prompt_dataset(8, conversational), None)
    check(prompt_dataset(8, conversational), 40)
    check(prompt_dataset(8).add_column("label", [1] * 8), 40)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompt": []}, "`train_dataset` is empty"),
        ({}, r"no column 'prompt' \(it has none\)"),
        ({"text": ["a"], "label": [1]}, r"no column 'prompt' \(it has text, label\)"),
        ({"prompt": ["a", ""]}, "row 1: the prompt is empty"),
        ({"prompt": ["a", "b", " \n\t"]}, "row 2: the prompt is empty"),
        ({"prompt": [[user("a")], []]}, "row 1: the prompt is empty"),
        ({"prompt": ["a", None]}, "row 1: the prompt is None; every prompt must be a text"),
        ({"prompt": [None]}, "row 0: the prompt is None; every prompt must be a text"),
        ({"prompt": [[user("a")], None]}, "row 1: the prompt is None; every prompt must be a list of messages"),
        ({"prompt": [[5, 6, 7]]}, r"row 0: the prompt is \[5, 6, 7\]; every prompt must be a text"),
        ({"prompt": [5]}, "row 0: the prompt is 5; every prompt must be a text"),
        ({"prompt": ["a", "0123456789" * 3]}, "row 1: the prompt has 30 tokens, more than the 20 allowed"),
        ({"prompt": [[user("0123456789" * 2)]]}, "row 0: the prompt has 23 tokens, more than the 20 allowed"),
        ({"prompt": ["a"] * 1003 + [""]}, "row 1003: the prompt is empty"),
        ({"prompt": ["a"] * 1003 + ["0123456789" * 3]}, "row 1003: the prompt has 30 tokens"),
    ],
)
def test_bad_prompts_are_named(rows, message):
    with pytest.raises(ValueError, match=message) as error:
        check(Dataset.from_dict(rows))
    assert "\n" not in str(error.value)


def test_a_prompt_of_exactly_the_allowed_length_passes():
    check(Dataset.from_dict({"prompt": ["0123456789" * 2]}), 20)


def test_conversations_need_a_chat_template():
    with pytest.raises(ValueError, match="holds conversations but the tokenizer has no chat template"):
        check(prompt_dataset(2, conversational=True), chat_template=False)
    check(prompt_dataset(2), 40, chat_template=False)


@pytest.mark.parametrize("data", [[{"prompt": "a"}], {"prompt": ["a"]}, prompt_dataset(2).to_iterable_dataset()])
def test_something_that_is_no_dataset_is_refused(data):
    with pytest.raises(TypeError, match=f"`train_dataset` must be a `datasets.Dataset` .* got {type(data).__name__}"):
        check(data)


# ---- the order ----


def rollouts(sampler: RolloutSampler) -> list[list[int]]:
    """The rows of each rollout, after checking that placeholders stand for them in its other micro-batches."""
    drawn, size = list(sampler), sampler.rollout_size
    assert len(drawn) == len(sampler)
    parts = [drawn[i : i + size] for i in range(0, len(drawn), size)]
    firsts = parts[:: sampler.repeats]
    placeholders = [[PLACEHOLDER] * size] * (sampler.repeats - 1)
    assert parts == [part for first in firsts for part in (first, *placeholders)]
    return firsts


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_rollout_comes_as_often_as_it_is_learned_from(repeats):
    sampler = RolloutSampler(10, 4, repeats, shuffle=False, seed=0)
    assert rollouts(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7]], "the incomplete third rollout is dropped"
    assert len(sampler) == 8 * repeats
    shuffled = rollouts(RolloutSampler(10, 4, repeats, shuffle=True, seed=0))
    assert len({i for part in shuffled for i in part}) == 8


def test_without_shuffling_every_prompt_has_its_turn():
    sampler, drawn = RolloutSampler(10, 4, 1, shuffle=False, seed=0), []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        drawn += [i for part in rollouts(sampler) for i in part]
    assert drawn == [*range(10)] * 4
    assert [i for number in range(10) for i in sampler.rollout(number)] == drawn


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = RolloutSampler(40, 4, 2, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return rollouts(sampler)

    assert order(0, 0) == order(0, 0) and order(3, 2) == order(3, 2)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(7, 0)
    again = RolloutSampler(40, 4, 2, shuffle=True, seed=0)
    assert rollouts(again) == rollouts(again), "iterating changes nothing"
    again.set_epoch(1)
    assert rollouts(again) == order(0, 1), "as in a run resumed in the second epoch"


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_smaller_than_a_rollout_is_drawn_from_several_times(shuffle):
    (drawn,) = rollouts(RolloutSampler(3, 8, 2, shuffle=shuffle, seed=0))
    assert sorted(drawn.count(i) for i in range(3)) == [2, 3, 3]
    assert {0, 1, 2} == set(drawn[:3]) == set(drawn[3:6])


def test_each_process_learns_from_its_own_part_of_a_rollout():
    """The Trainer cuts the order into batches of one process's share and deals them out in turn."""
    sampler = RolloutSampler(8, 4, 3, shuffle=True, seed=0)
    whole = rollouts(sampler)
    batches = BatchSampler(sampler, batch_size=2, drop_last=False)
    shares = [list(BatchSamplerShard(batches, num_processes=2, process_index=i)) for i in range(2)]
    for process, share in enumerate(shares):
        placeholders = [[PLACEHOLDER] * 2] * 2
        assert share == [part for first in whole for part in (first[2 * process :][:2], *placeholders)]


def test_a_row_is_read_once_for_a_rollout():
    """Reading images or long columns again for every micro-batch took seconds."""
    read = []

    class Watched:
        def __getitems__(self, indices: list[int]) -> list[dict]:
            read.extend(indices)
            return [{"prompt": f"p{i}"} for i in indices]

        def __len__(self) -> int:
            return 8

    loader = DataLoader(
        RolloutRows(Watched()), batch_size=4, sampler=RolloutSampler(8, 4, 3, shuffle=False, seed=0), collate_fn=list
    )
    batches = list(loader)
    assert read == list(range(8)) and len(batches) == 6
    assert [batch[0] for batch in batches] == [{"prompt": "p0"}, None, None, {"prompt": "p4"}, None, None]
    assert RolloutRows(prompt_dataset(3))[1] == prompt_dataset(3)[1]


def test_the_callback_passes_the_epoch_on():
    sampler = RolloutSampler(4, 2, 1, shuffle=True, seed=0)
    state = TrainerState(epoch=2.0)
    EpochSeed(lambda: sampler).on_epoch_begin(SimpleNamespace(), state, TrainerControl())
    assert sampler.epoch == 2
    EpochSeed(lambda: None).on_epoch_begin(SimpleNamespace(), state, TrainerControl())
