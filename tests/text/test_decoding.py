# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The text that a policy wrote, with real tokenizers of every make."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from eval.quality.cli import sample_completions
from tests import scripted
from tests.real_tokenizers import EXACT, MISTRAL_TEMPLATE, real_tokenizer
from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext import PPOConfig
from trl_ext.actor_critic import ActorCritic
from trl_ext.evaluation.sampling import Policy
from trl_ext.experience.engines import TransformersEngine
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.instructions.sampling import sample_answers
from trl_ext.rewards.rules import SentenceEndReward
from trl_ext.text.decoding import as_completions, characters_in_tokens, decode_alone, decode_answers, decode_completions

TEXTS = st.lists(
    st.sampled_from(
        ["the", "cat", " ", "  ", "\n", "\n\n", " sat", ".", ", ", "é", "😀", "日本", " na", "ïve", "x", "\t", " don't"]
    ),
    min_size=1,
    max_size=6,
).map("".join)
TOKENIZERS = {name: real_tokenizer(name) for name in (*EXACT, "tiny", "word piece")}


def common(left: list[int], right: list[int]) -> int:
    """Tokens that two lists begin with."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS.map("The {}".format), completion=TEXTS)
def test_a_tokenized_text_is_decoded_to_exactly_that_text(name, prompt, completion):
    """Where a token reaches over the border, the border moves to before that token, and nothing is lost."""
    tokenizer = TOKENIZERS[name]
    ids, prompt_ids = tokenizer(prompt + completion)["input_ids"], tokenizer(prompt)["input_ids"]
    n = common(ids, prompt_ids)
    (text,) = decode_completions(tokenizer, [ids[:n]], [ids[n:]])
    if n == len(prompt_ids):
        assert text == completion
    else:
        assert text.endswith(completion) and (prompt + completion).endswith(text)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(max_examples=60, deadline=None)
@given(text=TEXTS.map("the {}".format), data=st.data())
def test_prompt_and_completion_are_the_text_of_all_tokens(name, text, data):
    """Whatever tokens were sampled, as a policy that has learned nothing samples them."""
    tokenizer = TOKENIZERS[name]
    prompt_ids = tokenizer(text)["input_ids"]
    known = st.lists(st.integers(0, len(tokenizer) - 1), max_size=6)
    completion_ids = data.draw(known)
    whole, prompt = (
        tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt_ids + completion_ids, prompt_ids)
    )
    (completion,) = decode_completions(tokenizer, [prompt_ids], [completion_ids])
    if whole.startswith(prompt):
        assert prompt + completion == whole
    else:
        # The text of the prompt is known, and is not what its tokens would read like before another completion.
        assert completion == decode_alone(tokenizer, completion_ids)


@pytest.mark.parametrize("name", ["mistral v1", "mistral v3", "slow"])
def test_the_space_before_the_first_word_is_kept(name):
    """The fault: 13 of 32 rewards scored "theThe cat sat" for "the" and " cat sat"."""
    tokenizer = TOKENIZERS[name]
    prompt_ids, ids = tokenizer("the")["input_ids"], tokenizer("the cat sat")["input_ids"]
    completion_ids = ids[len(prompt_ids) :]
    assert tokenizer.decode(completion_ids) == "cat sat", "the tokenizer alone forgets it"
    assert decode_completions(tokenizer, [prompt_ids], [completion_ids]) == [" cat sat"]
    assert decode_alone(tokenizer, completion_ids) == " cat sat"


def test_special_tokens_are_left_out_of_prompt_and_completion():
    tokenizer = TOKENIZERS["mistral v3"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    the, cat = tokenizer("the", add_special_tokens=False)["input_ids"], tokenizer("the cat")["input_ids"][-1]
    assert decode_completions(tokenizer, [[bos, *the, eos]], [[cat, eos]]) == [" cat"]
    deepseek = TOKENIZERS["deepseek"]
    assert deepseek.pad_token_id == deepseek.eos_token_id
    ids = deepseek("the cat")["input_ids"]
    assert decode_completions(deepseek, [ids[:1]], [[*ids[1:], deepseek.eos_token_id]]) == [" cat"]


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_empty_completions_are_empty_texts(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer("the cat")["input_ids"]
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    assert decode_completions(tokenizer, [ids, ids], [[], ends]) == ["", ""]
    assert decode_completions(tokenizer, [], []) == []
    assert decode_alone(tokenizer, []) == ""


def test_invalid_bytes_at_the_border_leave_the_prompt_alone():
    """Llama's decoder spoils a whole run of bytes for one that is wrong: here the prompt's last character."""
    tokenizer = TOKENIZERS["mistral v1"]
    prompt_ids = tokenizer("see 🦤")["input_ids"]
    byte = tokenizer.convert_tokens_to_ids("<0x80>")
    assert not tokenizer.decode([*prompt_ids, byte], skip_special_tokens=True).startswith("see 🦤")
    assert decode_completions(tokenizer, [prompt_ids], [[byte]]) == ["\ufffd"]
    the = tokenizer.convert_tokens_to_ids("▁the")
    assert decode_completions(tokenizer, [prompt_ids], [[byte, the]]) == ["\ufffd the"]


def test_clean_up_at_the_border_leaves_the_prompt_alone():
    tokenizer = TOKENIZERS["word piece"]
    prompt_ids = tokenizer("the cat '", add_special_tokens=False)["input_ids"]
    completion_ids = tokenizer("the mat", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(prompt_ids + completion_ids) == "the cat'the mat"
    assert decode_completions(tokenizer, [prompt_ids], [completion_ids]) == [" the mat"]


@pytest.mark.parametrize("name", [*EXACT, "tiny"])
def test_characters_are_counted_as_tokens_complete_them(name):
    tokenizer = TOKENIZERS[name]
    text = " the cat sat" if name == "tiny" else " the 🦤 ran. é"
    ids = tokenizer("a" + text)["input_ids"]
    ids = ids[len(tokenizer("a")["input_ids"]) :]
    counts = [characters_in_tokens(tokenizer, ids, n) for n in range(len(ids) + 1)]
    assert decode_alone(tokenizer, ids) == text
    assert counts[0] == 0 and counts[-1] == len(text) and counts == sorted(counts)
    if name.startswith("mistral"):  # the bird is four bytes, and none of the first three is a character
        before = text.index("🦤")
        assert counts.count(before) == 4 and before + 1 in counts


# ---- answers in a conversation ----


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answers(tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]], rendered: str) -> tuple[str, list[int]]:
    """What is read when the policy goes on with `rendered`, and all tokens."""
    (prompt_ids,) = tokenize_prompts([prompt], tokenizer)
    prefix: Any = tokenizer.decode(prompt_ids)
    ids = tokenizer(prefix + rendered, add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt_ids)] == prompt_ids
    (text,) = decode_answers(tokenizer, [prompt], [prompt_ids], [ids[len(prompt_ids) :]])
    return text, ids


@pytest.mark.parametrize("name", ["mistral v1", "mistral v3", "tekken"])
def test_a_space_that_the_template_writes_is_no_part_of_the_answer(name):
    """So that the conversation with the answer, rendered, is what the policy read and wrote: no text of two spaces."""
    tokenizer = real_tokenizer(name)
    tokenizer.chat_template = MISTRAL_TEMPLATE
    text, ids = answers(tokenizer, [user("hi")], " Hello there</s>")
    assert text == "Hello there"
    whole = [user("hi"), {"role": "assistant", "content": text}]
    assert tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"] == ids
    assert answers(tokenizer, [user("hi")], "Hello")[0] == "Hello", "a policy that leaves the space out wrote none"


def test_an_answer_that_the_policy_goes_on_with_keeps_its_space():
    tokenizer = real_tokenizer("mistral v1")
    begun = [user("hi"), {"role": "assistant", "content": "Well,"}]
    assert answers(tokenizer, begun, " hello</s>")[0] == " hello"


@pytest.mark.parametrize("name", ["qwen", "deepseek", "tiny"])
def test_templates_without_a_space_leave_the_answer_as_it_is(name):
    tokenizer = real_tokenizer(name)
    (prompt_ids,) = tokenize_prompts([[user("hi")]], tokenizer)
    ids = tokenizer(" the cat", add_special_tokens=False)["input_ids"]
    assert decode_answers(tokenizer, [[user("hi")]], [prompt_ids], [ids]) == [" the cat"]


def test_a_template_that_refuses_answers_takes_nothing_off():
    tokenizer = real_tokenizer("tiny")
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        "<user>{{ message.content }}{% endfor %}"
    )
    (prompt_ids,) = tokenize_prompts([[user("hi")]], tokenizer)
    ids = tokenizer(" the cat")["input_ids"]
    assert decode_answers(tokenizer, [[user("hi")]], [prompt_ids], [ids]) == [" the cat"]


def test_answers_have_the_format_of_their_prompts():
    assert as_completions(["a", "b"], ["c", "d"]) == ["c", "d"]
    assert as_completions([[user("a")]], ["c"]) == [[{"role": "assistant", "content": "c"}]]
    assert as_completions([], []) == []


# ---- wherever completions are decoded ----


def check_texts(tokenizer: PreTrainedTokenizerBase, prompts: list[str], completions: list[str], ids: list) -> None:
    """Every text is what its tokens say behind their prompt, and some begin with the space that would get lost."""
    for prompt, completion, completion_ids in zip(prompts, completions, ids, strict=True):
        whole = tokenizer(prompt)["input_ids"] + completion_ids
        assert prompt + completion == tokenizer.decode(whole, skip_special_tokens=True)
    assert sum(text.startswith(" ") for text in completions) > len(completions) / 4


def test_reward_functions_get_the_text_that_was_written(tmp_path):
    tokenizer, seen = TOKENIZERS["mistral v1"], []

    def reward(prompts: list[str], completions: list[str], completion_ids: list, **columns: Any) -> list[float]:
        check_texts(tokenizer, prompts, completions, completion_ids)
        seen.extend(completions)
        return [float(len(text)) for text in completions]

    model = tiny_causal_lm(vocab_size=len(tokenizer))
    settings: dict[str, Any] = {"total_episodes": 32, "per_device_train_batch_size": 16}
    made = scripted.trainer(
        tmp_path, scripted=False, model=model, reward_funcs=reward, processing_class=tokenizer, **settings
    )
    made.train()
    assert len(seen) == 32


def test_recipes_judge_the_text_that_was_written(tmp_path):
    tokenizer, model = TOKENIZERS["mistral v1"], tiny_causal_lm(vocab_size=len(TOKENIZERS["mistral v1"]))
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, max_completion_length=4)
    prompts = [f"the cat {i}" for i in range(32)]
    engine = TransformersEngine(tokenizer, eos_token_ids=[2], max_new_tokens=4)
    samples = Policy(ActorCritic(model, "head"), tokenizer, engine).sample(prompts, 0)
    check_texts(tokenizer, prompts, samples.completions, samples.completion_ids)
    name = save_tiny(tmp_path / "policy", model, tokenizer)
    texts = sample_answers(name, tokenizer, prompts, args, 0, {})
    assert sum(text.startswith(" ") for text in texts) > 8


def test_evaluation_scores_the_text_that_was_written():
    """The samples' perplexity is that of the tokens the model sampled, not of words run together."""
    tokenizer, model = TOKENIZERS["mistral v1"], tiny_causal_lm(vocab_size=len(TOKENIZERS["mistral v1"]))
    samples = sample_completions(model, tokenizer, ["the cat", "a dog"], num_samples=16, max_new_tokens=4)
    assert sum(text.startswith(" ") for text in samples.completions) > 8


def test_a_window_of_tokens_ends_before_a_character_that_it_cuts():
    """The bird is four tokens: none of it is within a window of the first three, and so the stop after it is not."""
    tokenizer = TOKENIZERS["mistral v1"]
    ids = tokenizer.convert_tokens_to_ids(["▁the", "<0xF0>", "<0x9F>", "<0xA6>", "<0xA4>", "."])
    assert decode_alone(tokenizer, ids) == " the🦤."

    def reward(end: int) -> float:
        return SentenceEndReward(end=end, unit="tokens", tokenizer=tokenizer)([""], [""], [ids])[0]

    assert [reward(end) for end in range(1, 7)] == [-1.0] * 5 + [0.0]
