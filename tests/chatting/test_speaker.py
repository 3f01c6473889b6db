# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Answers of a model in a chat: greedy ones are `generate`'s, prompts the chat template's, streaming the whole text."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests import families
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_tokenizer
from trl_ext.chatting.opening import load, plan
from trl_ext.chatting.speaker import Speaker
from trl_ext.running.finished import Sampling
from trl_ext.text.tokens import set_padding

GREEDY = Sampling(max_completion_length=8, temperature=0.0)


def speaker(name: str, sampling: Sampling = GREEDY, dtype: str = "float32", **options) -> Speaker:
    folder = families.base(name, dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_padding(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Speaker(name, model, tokenizer, sampling, conversational=tokenizer.chat_template is not None, **options)


def generated(model: PreTrainedModel, ids: list[int], count: int, pad: int) -> list[int]:
    """The greedy completion of transformers' own `generate`, with the token that ends it."""
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=pad
        )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3", "gpt_neox"])
def test_greedy_answers_are_those_of_generate(name, dtype):
    one = speaker(name, dtype=dtype)
    answer = one.answer("How are you?", seed=0)
    prompt = one.tokenizer("How are you?")["input_ids"]
    if one.conversational:
        prompt = one.tokenizer.apply_chat_template(
            [{"role": "user", "content": "How are you?"}], add_generation_prompt=True, return_dict=False
        )
    assert answer.ids == generated(one.model, prompt, 8, one.tokenizer.pad_token_id)


@pytest.mark.parametrize("name", ["qwen2", "llama", "mistral", "phi3", "gemma2", "deepseek_v3"])
def test_the_history_is_what_the_chat_template_writes(name):
    one = speaker(name)
    first = one.answer("How are you?", seed=0)
    one.remember(first)
    second = one.answer("And now?", seed=1)
    messages = [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And now?"},
    ]
    assert second.prompt == messages
    prompt = one.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert second.ids == generated(one.model, prompt, 8, one.tokenizer.pad_token_id)
    one.remember(second)
    assert one.undo() == "And now?" and one.messages == messages[:2]
    one.reset()
    assert one.undo() is None and one.prompt("a") == [{"role": "user", "content": "a"}]


def test_a_system_message_begins_every_conversation():
    one = speaker("qwen2", system="Be brief.")
    one.remember(one.answer("How are you?", seed=0))
    one.reset()
    assert one.prompt("a") == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]


@pytest.mark.parametrize("name", ["qwen2", "llama", "mistral", "gpt_neox", "opt"])
def test_what_streams_becomes_the_answer(name, monkeypatch):
    monkeypatch.setattr("trl_ext.chatting.speaker._PAUSE", 0.0)
    one = speaker(name, Sampling(max_completion_length=12))
    shown: list[str] = []
    answer = one.answer("How are you?", seed=3, on_text=shown.append)
    assert answer == one.answer("How are you?", seed=3) and shown[-1] == answer.text
    assert len(shown) > 8 and not any(text.endswith("\ufffd") for text in shown[:-1])
    grown = [text for text in shown if answer.text.startswith(text)]
    assert len(grown) >= len(shown) - 2, "a decoder may change the last word, and nothing before it"


def test_an_answer_is_stopped_after_the_token_that_was_made():
    one = speaker("qwen2")
    asked = iter([False, False, True])
    answer = one.answer("How are you?", seed=0, stop=lambda: next(asked))
    whole = one.answer("How are you?", seed=0)
    assert answer.stopped and not answer.terminated and answer.ids == whole.ids[:3]
    assert not whole.stopped


def test_the_end_counts_neither_in_the_text_nor_in_the_length():
    model = tiny_causal_lm(eos_token_id=[2, *range(40, 120)])
    one = Speaker("tiny", model, tiny_tokenizer(), Sampling(max_completion_length=30), conversational=True)
    answers = [one.answer("the cat", seed=seed) for seed in range(8)]
    ended = [answer for answer in answers if answer.terminated]
    assert ended and all(answer.length == len(answer.ids) - 1 for answer in ended)
    assert all(answer.text == one.tokenizer.decode(answer.ids[:-1], skip_special_tokens=True) for answer in ended)


def test_an_answer_fits_into_what_the_context_leaves():
    model = tiny_causal_lm(eos_token_id=2)  # 128 positions
    one = Speaker("tiny", model, tiny_tokenizer(), Sampling(max_completion_length=500), conversational=False)
    said = "the cat sat on the mat " * 12
    used, context = one.room(said)
    assert context == 128 and 60 < used < 128
    assert one.answer(said, seed=0).length <= 128 - used
    with pytest.raises(ValueError, match="The prompt has .* tokens, and the context of tiny 128; shorten it."):
        one.answer(said * 3, seed=0)


def test_the_baseline_of_an_adapter_is_its_base_without_a_second_copy(tmp_path):
    tokenizer = tiny_tokenizer()
    save_tiny(tmp_path / "base", tiny_causal_lm(), tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    talk = load(plan(str(tmp_path / "run"), sampling={"temperature": 0.0, "max_completion_length": 10}))
    ours, theirs = talk.answers("the cat")
    assert talk.speakers[0].model is talk.speakers[1].model
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    alone = Speaker("base", whole, tokenizer, Sampling(10, 0.0), conversational=True)
    assert theirs.ids == alone.answer("the cat", seed=0).ids != ours.ids
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    alone = Speaker("run", merged, tokenizer, Sampling(10, 0.0), conversational=True)
    assert ours.ids == alone.answer("the cat", seed=0).ids
