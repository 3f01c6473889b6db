# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reading prompts, loading models, and sampling for evaluation."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model

from eval.quality.generation import sample_completions
from eval.quality.loading import load_model, load_tokenizer, read_prompts, render
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_tokenizer

ROWS = [{"prompt": "the cat"}, {"prompt": "a dog ran"}, {"prompt": "you are"}]
TEXTS = [row["prompt"] for row in ROWS]


@pytest.fixture
def sources(tmp_path):
    data = Dataset.from_list(ROWS)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    data.to_parquet(tmp_path / "a.parquet")
    data.to_csv(tmp_path / "a.csv")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict({"validation": data}).save_to_disk(tmp_path / "splits")
    nested = [{"prompt": {"text": text, "toxicity": 0.5}} for text in TEXTS]
    (tmp_path / "nested.jsonl").write_text("\n".join(map(json.dumps, nested)))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.txt", "a.parquet", "a.csv", "saved", "splits", "nested.jsonl"]
)
def test_every_kind_of_source(sources, name):
    split = "validation" if name == "splits" else "train"
    assert read_prompts(str(sources / name), split=split) == TEXTS
    assert read_prompts(str(sources / name), split=split, limit=2) == TEXTS[:2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "does not exist"),
        ("empty.jsonl", "", "is empty"),
        ("other.jsonl", '{"text": "a"}', "no column 'prompt', only text"),
        ("broken.jsonl", "{", "cannot be read"),
        ("list.jsonl", "3", "must be a JSON object"),
        ("blank.jsonl", '{"prompt": " "}', "Prompt 0 of .* is empty"),
        ("number.jsonl", '{"prompt": 3}', "Prompt 0 of .* is 3"),
        ("null.jsonl", '{"prompt": {"text": null}}', "Prompt 0 of .* is None"),
    ],
)
def test_bad_prompts_are_one_line_that_names_the_source(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(str(path))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_missing_split(sources):
    with pytest.raises(ValueError, match="no split 'train', only validation"):
        read_prompts(str(sources / "splits"))


def test_conversations_are_rendered_with_the_chat_template():
    conversation = [{"role": "user", "content": "hi"}]
    assert render([conversation], tiny_tokenizer()) == (["<user>hi<eos><assistant>"], False)
    with pytest.raises(ValueError, match="no chat template"):
        render([conversation], tiny_tokenizer(chat_template=False))
    with pytest.raises(ValueError, match="1 of 2 prompts are texts"):
        render([conversation, "hi"], tiny_tokenizer())


def test_adapter_and_base_tokenizer(tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm())
    model = get_peft_model(load_model(base), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    loaded = load_model(str(tmp_path / "adapter"))
    torch.testing.assert_close(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert not torch.allclose(loaded(input_ids=ids).logits, load_model(base)(input_ids=ids).logits)
    assert not loaded.training
    assert load_tokenizer(str(tmp_path / "adapter")).get_vocab() == load_tokenizer(base).get_vocab()


def test_unknown_models(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_lengths_and_ends(pad_is_eos):
    tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos)
    # Several ids end a completion, early and often; 3 is not the tokenizer's.
    model = tiny_causal_lm(eos_token_id=[2, 3, *range(40, 70)])
    samples = sample_completions(model, tokenizer, list(TEXTS), num_samples=8, max_new_tokens=6, batch_size=5)
    assert samples.prompts == [text for text in TEXTS for _ in range(8)]
    assert any(samples.terminated) and not all(samples.terminated)
    for length, terminated, empty, text in zip(
        samples.lengths, samples.terminated, samples.empty, samples.texts, strict=True
    ):
        assert (length < 6) if terminated else (length == 6)
        assert not any(tokenizer.decode([i]) in text for i in (2, 3))
        assert empty == (text.strip() == "") and (length > 0 or empty)


def test_every_completion_is_its_own_prompts():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    # Logits this large leave one token, so that a completion depends on nothing but its prompt.
    model.lm_head.weight.data *= 1e4
    alone = [sample_completions(model, tokenizer, [text], max_new_tokens=4).texts[0] for text in TEXTS]
    assert len(set(alone)) == 3
    together = sample_completions(model, tokenizer, list(TEXTS), num_samples=2, max_new_tokens=4, batch_size=4)
    assert together.texts == [text for text in alone for _ in range(2)]


def test_only_eos_yields_empty_terminated_completions():
    samples = sample_completions(tiny_causal_lm(eos_token_id=list(range(160))), tiny_tokenizer(), list(TEXTS))
    assert samples.lengths == [0, 0, 0] and samples.texts == ["", "", ""]
    assert all(samples.terminated) and all(samples.empty)


def test_generation_config_of_the_model_does_not_leak():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    plain = sample_completions(model, tokenizer, list(TEXTS), num_samples=4, max_new_tokens=8)
    for name, value in {"top_k": 1, "repetition_penalty": 5.0, "min_p": 0.9, "no_repeat_ngram_size": 1}.items():
        setattr(model.generation_config, name, value)
    assert sample_completions(model, tokenizer, list(TEXTS), num_samples=4, max_new_tokens=8) == plain
    assert model.generation_config.top_k == 1


def test_seeded_and_without_side_effects():
    model, tokenizer = tiny_causal_lm().train(), tiny_tokenizer()
    before = torch.get_rng_state()
    first = sample_completions(model, tokenizer, list(TEXTS), seed=1)
    assert first == sample_completions(model, tokenizer, list(TEXTS), seed=1)
    assert first != sample_completions(model, tokenizer, list(TEXTS), seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_too_long_a_prompt():
    with pytest.raises(ValueError, match="Prompt 0 has .* tokens, and with 127 new ones exceeds the model's context"):
        sample_completions(tiny_causal_lm(), tiny_tokenizer(), ["the cat sat on the mat"], max_new_tokens=127)
