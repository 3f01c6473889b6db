# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward models, classifiers and judges that will not do, and their tokenizers."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.bad_inputs.case import Case, check, table
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext.actor_critic import load_reward_ensemble
from trl_ext.rewards import PreferenceReward, RewardRunner, ToxicityReward, check_reward_models
from trl_ext.rewards.base import RewardValueError
from trl_ext.rewards.warm import average_reward_models

ROOT = Path(tempfile.mkdtemp())
TURNS = [{"role": "user", "content": "a"}]
ANSWER = [{"role": "assistant", "content": "b"}]


@cache
def saved(name: str) -> str:
    """Folders of models, each with one thing wrong."""
    folder = ROOT / name
    if name == "causal":
        return save_tiny(folder, tiny_causal_lm())
    if name == "two-labels":
        return save_tiny(folder, tiny_classifier(["LABEL_0", "LABEL_1"]))
    if name == "no-head":
        model = AutoModel.from_config(tiny_classifier(["s"]).config)
        return save_tiny(folder, model)
    if name == "adapter-without-head":
        get_peft_model(tiny_causal_lm(), LoraConfig(r=2)).save_pretrained(folder)
        return str(folder)
    save_tiny(folder, tiny_classifier(["s"]))
    if name == "no-tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    if name == "broken-config":
        (folder / "config.json").write_text("{")
    if name == "unknown-type":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "martian"}))
    if name == "truncated":
        (folder / "model.safetensors").write_bytes(b"1234")
    if name == "no-weights":
        (folder / "model.safetensors").unlink()
    return str(folder)


def scalar(**sizes: Any) -> Any:
    return tiny_classifier(["s"], **sizes)


def preference(model: Any = None, **options: Any) -> PreferenceReward:
    return PreferenceReward(model or scalar(), **({"tokenizer": tiny_tokenizer()} | options))


def positions(count: int) -> Any:
    model = scalar()
    config = model.config
    config.max_position_embeddings = count
    return AutoModelForSequenceClassification.from_config(config)


def refusing() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    return tokenizer


def grown() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    return tokenizer


def damaged() -> Any:
    model = scalar()
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    return model


def two_pads() -> list[str]:
    folders = [ROOT / "warm-0", ROOT / "warm-1"]
    for folder, pad_is_eos in zip(folders, (False, True), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        save_tiny(folder, scalar(arch="llama"), tiny_tokenizer(pad_is_eos=pad_is_eos))
    return [str(folder) for folder in folders]


NOT_THERE = "cannot be loaded as a sequence-classification model: give a name on the hub or a local folder"
OFFLINE = (
    "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files"
)
CASES = [
    Case(
        "name that does not exist",
        lambda: check_reward_models("nobody/nothing"),
        RewardValueError,
        f"'nobody/nothing' {NOT_THERE} ({OFFLINE}).",
    ),
    Case(
        "misspelt name inside a reward",
        lambda: check_reward_models([ToxicityReward("nobody/nothing")]),
        RewardValueError,
        f"'nobody/nothing' {NOT_THERE} ({OFFLINE}).",
    ),
    Case(
        "configuration that is no JSON",
        lambda: check_reward_models(saved("broken-config")),
        RewardValueError,
        f"'{ROOT}/broken-config' {NOT_THERE} (It looks like the config file at '{ROOT}/broken-config/config.json' is "
        "not a valid JSON file).",
    ),
    Case(
        "weights that are no safetensors",
        lambda: RewardRunner(saved("truncated")),
        RewardValueError,
        f"'{ROOT}/truncated' {NOT_THERE} (Error while deserializing header: header too small).",
    ),
    Case(
        "folder without weights",
        lambda: RewardRunner(saved("no-weights")),
        RewardValueError,
        f"'{ROOT}/no-weights' {NOT_THERE} (Error no file named model.safetensors, or pytorch_model.bin, found in "
        f"directory {ROOT}/no-weights).",
    ),
    Case(
        "folder without a tokenizer",
        lambda: check_reward_models(saved("no-tokenizer")),
        RewardValueError,
        f"No tokenizer is found under '{ROOT}/no-tokenizer': pass `tokenizer` (it has no vocabulary).",
    ),
    Case(
        "tokenizer that does not exist",
        lambda: preference(tokenizer="nobody/nothing"),
        RewardValueError,
        f"No tokenizer is found under 'nobody/nothing': pass `tokenizer` ({OFFLINE}).",
    ),
    Case(
        "model without a tokenizer",
        lambda: PreferenceReward(scalar()),
        RewardValueError,
        "The BertForSequenceClassification names no tokenizer: pass `tokenizer`.",
    ),
    Case(
        "tokenizer of another kind",
        lambda: preference(tokenizer=3),
        RewardValueError,
        "The tokenizer of 'BertForSequenceClassification' is a int: pass `tokenizer`.",
    ),
    Case(
        "causal LM by name",
        lambda: check_reward_models(saved("causal")),
        RewardValueError,
        f"'{ROOT}/causal' is a LlamaForCausalLM, which generates text and scores none: give a model that was trained "
        "for sequence classification.",
    ),
    Case(
        "causal LM as an object",
        lambda: preference(tiny_causal_lm()),
        RewardValueError,
        "'LlamaForCausalLM' is a LlamaForCausalLM, which generates text and scores none: load it by "
        "AutoModelForSequenceClassification.",
    ),
    Case(
        "trunk as an object",
        lambda: preference(AutoModel.from_config(scalar().config)),
        RewardValueError,
        "'BertModel' is a BertModel, whose output for a text is not 1 numbers: give a sequence-classification model.",
    ),
    Case(
        "trunk by name",
        lambda: RewardRunner(saved("no-head")),
        RewardValueError,
        f"'{ROOT}/no-head' has no weights for ['classifier.bias', 'classifier.weight'], so its scores would be random: "
        "give a model trained for sequence classification.",
    ),
    Case(
        "policy adapter as a reward model",
        lambda: check_reward_models(saved("adapter-without-head")),
        RewardValueError,
        f"The adapter '{ROOT}/adapter-without-head' has no trained head, so its scores would be random: train it with "
        "LoraConfig(task_type='SEQ_CLS', modules_to_save=['score']).",
    ),
    Case(
        "classifier as a preference model",
        lambda: check_reward_models(saved("two-labels")),
        RewardValueError,
        f"A reward model has one label and '{ROOT}/two-labels' has 2: give a model trained with num_labels=1, or use "
        "ToxicityReward for a classifier.",
    ),
    Case(
        "preference model as a toxicity classifier",
        lambda: ToxicityReward(scalar(), tokenizer=tiny_tokenizer()),
        RewardValueError,
        "The model has one label, 's', like a reward model: use PreferenceReward, or pass toxic_label=0 if a high "
        "score means toxic.",
    ),
    Case(
        "labels without names",
        lambda: check_reward_models(ToxicityReward(saved("two-labels"))),
        RewardValueError,
        "The model's labels ['LABEL_0', 'LABEL_1'] do not tell which is toxic: pass toxic_label=, a label or its "
        "index.",
    ),
    Case(
        "label that the model does not have",
        lambda: check_reward_models(ToxicityReward(saved("two-labels"), toxic_label="rude")),
        RewardValueError,
        "toxic_label 'rude' is not among the model's labels ['LABEL_0', 'LABEL_1'].",
    ),
    Case(
        "index that the model does not have",
        lambda: ToxicityReward(tiny_classifier(), tokenizer=tiny_tokenizer(), toxic_label=2),
        RewardValueError,
        "toxic_label 2 is not among the model's labels ['neutral', 'toxic'].",
    ),
    Case(
        "True as a label",
        lambda: ToxicityReward(tiny_classifier(), tokenizer=tiny_tokenizer(), toxic_label=True),
        RewardValueError,
        "toxic_label True is no label: pass a label's name or its index.",
    ),
    Case(
        "all labels toxic",
        lambda: ToxicityReward(tiny_classifier(), tokenizer=tiny_tokenizer(), toxic_label=[0, 1]),
        RewardValueError,
        "toxic_label [0, 1] is all of the model's labels: leave one out.",
    ),
    Case(
        "tokenizer with more tokens than the model",
        lambda: preference(tokenizer=grown()),
        RewardValueError,
        "The tokenizer of 'BertForSequenceClassification' has token ids up to 160 ('<extra>') and the model embeddings "
        "for 160: pass the tokenizer that the model was trained with, or resize its embeddings.",
    ),
    Case(
        "more tokens than the encoder has positions",
        lambda: preference(positions(16), max_length=64),
        RewardValueError,
        "max_length is 64 and 'BertForSequenceClassification' has 16 positions: lower it, or leave it out.",
    ),
    Case(
        "texts longer than the encoder reads",
        lambda: preference(positions(8))(["a"], ["the cat sat on the mat and looked at the other cat"]),
        UserWarning,
        "1 of 1 texts have more than the 8 tokens that 'BertForSequenceClassification' reads, and lose their "
        "beginning: give a model that reads longer texts, or set max_length. There is no warning for later texts.",
    ),
    Case(
        "weights that are not finite",
        lambda: preference(damaged()),
        RewardValueError,
        "'BertForSequenceClassification' scores a text with [nan]: its weights are damaged, or too large for "
        "torch.float32.",
    ),
    Case(
        "no chat template",
        lambda: preference(tokenizer=tiny_tokenizer(chat_template=False))([TURNS], [ANSWER]),
        RewardValueError,
        "The tokenizer of reward model 'BertForSequenceClassification' has no chat template for conversations: pass "
        "chat_template=, or plain text.",
    ),
    Case(
        "template that refuses",
        lambda: preference(tokenizer=refusing())([TURNS], [ANSWER]),
        ValueError,
        "The chat template of reward model 'BertForSequenceClassification' refuses a conversation of user, assistant "
        "(System role not supported): pass chat_template=, or other prompts.",
    ),
    Case(
        "conversation and text in one batch",
        lambda: preference()(["a", TURNS], ["b", ANSWER]),
        RewardValueError,
        "'BertForSequenceClassification' got both texts and conversations: give one kind.",
    ),
    Case(
        "prompt and completion of two kinds",
        lambda: preference()(["a"], [ANSWER]),
        RewardValueError,
        "'BertForSequenceClassification' got a str as prompt and a list as completion: give two strings or two lists "
        "of messages.",
    ),
    Case(
        "number as a model",
        lambda: PreferenceReward(3),  # type: ignore[arg-type]
        TypeError,
        "A reward model is 3 (int): give a model or its name.",
    ),
    Case(
        "dtype that torch does not have",
        lambda: PreferenceReward("x", dtype="bf16"),
        ValueError,
        "dtype is 'bf16': give a floating-point type of torch, such as 'bfloat16'.",
    ),
    Case(
        "no adapter in an ensemble",
        lambda: load_reward_ensemble(saved("causal"), []),
        ValueError,
        "A reward ensemble needs at least one adapter; got no folder.",
    ),
    Case(
        "average of models with different padding",
        lambda: average_reward_models(two_pads(), ROOT / "warm-out"),
        ValueError,
        f"'{ROOT}/warm-0' and '{ROOT}/warm-1' differ in `pad_token` (<pad> and <eos>), so their heads were trained on "
        "different tokens; train them with one tokenizer.",
    ),
]


@table(CASES)
def test_bad_reward_models(case: Case) -> None:
    check(case)
