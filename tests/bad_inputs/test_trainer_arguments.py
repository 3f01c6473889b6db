# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Arguments of `PPOTrainer` that are refused before a model is loaded, each with the sentence that answers.

The model is named by a folder that does not exist: a case that came as far as loading would end in another error.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig, TrainingArguments
from trl import GRPOConfig

from tests import scripted
from tests.bad_inputs.case import Case, check, table
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext import AdaptiveKL, FixedKL, PPOConfig, PPOTrainer, ToxicityReward

NOT_LOADED = "folder/that/does/not/exist"
CPU: dict[str, Any] = {"output_dir": "unused", "report_to": "none", "use_cpu": True}


def trainer(settings: dict[str, Any] | None = None, **arguments: Any) -> Callable[[], PPOTrainer]:
    def call() -> PPOTrainer:
        given = {"model": NOT_LOADED, "reward_funcs": scripted.reward, "train_dataset": scripted.prompts(8)} | arguments
        return PPOTrainer(**{"args": PPOConfig(**CPU, **(settings or {}))} | given)

    return call


def wrong_type(name: str, message: str, **arguments: Any) -> Case:
    return Case(name, trainer(**arguments), TypeError, message)


def wrong(name: str, message: str, settings: dict[str, Any] | None = None, **arguments: Any) -> Case:
    return Case(name, trainer(settings, **arguments), ValueError, message)


def unknown(name: str, help: str, value: Any = None) -> Case:
    return wrong_type(f"unknown-{name}", f"PPOTrainer has no argument `{name}`: {help}", **{name: value})


BY_NAME = "give arguments by name, `PPOTrainer(model=..., reward_funcs=..., args=..., train_dataset=...)`."
REFERENCE = "leave it out, the reference is made of `model`: its base without the adapter, or a frozen copy."
TOKENIZER, CONFIG = tiny_tokenizer(), PPOConfig(**CPU)
UNKNOWN = [
    unknown("ref_model", REFERENCE),
    unknown("reward_model", "a reward model is one of `reward_funcs`, given by name or as an object."),
    unknown(
        "value_model",
        "name a folder or a model of the Hub in `critic` of PPOConfig, or use one of its other choices.",
    ),
    unknown("tokenizer", "use `processing_class`."),
    unknown("config", "use `args`, a PPOConfig."),
    unknown("dataset", "use `train_dataset`."),
    unknown("data_collator", "leave it out, prompts of a rollout are tokenized and padded by the trainer."),
    unknown("preprocess_logits_for_metrics", "use `compute_metrics` of PPOTrainer, a function of completions."),
    unknown("judge", "use `eval_reward_funcs`."),
    unknown("response_length", "in PPOConfig, use `max_completion_length`.", 53),
    unknown("learning_rate", "give it to PPOConfig.", 1e-5),
    unknown("num_ppo_epochs", "give it to PPOConfig.", 4),
    unknown("reward_func", "use `reward_funcs`."),
    unknown("trainset", "did you mean `train_dataset`?"),
    unknown("qqq", "`help(PPOTrainer)` lists all."),
]
ORDER = [
    Case(
        "config-first",
        lambda: PPOTrainer(CONFIG, TOKENIZER, NOT_LOADED),
        TypeError,
        f"The first argument of PPOTrainer is the model, got a PPOConfig; {BY_NAME}",
    ),
    Case(
        "tokenizer-first",
        lambda: PPOTrainer(TOKENIZER, scripted.reward),
        TypeError,
        f"The first argument of PPOTrainer is the model, got a {type(TOKENIZER).__name__}; {BY_NAME}",
    ),
    Case(
        "grpo-config-second",
        lambda: PPOTrainer(NOT_LOADED, CONFIG),
        TypeError,
        f"`reward_funcs` is a PPOConfig; {BY_NAME}",
    ),
    Case(
        "model-third",
        lambda: PPOTrainer(NOT_LOADED, scripted.reward, TOKENIZER),
        TypeError,
        f"`args` must be a PPOConfig, got a {type(TOKENIZER).__name__}; {BY_NAME}",
    ),
    Case(
        "twice",
        lambda: PPOTrainer(NOT_LOADED, scripted.reward, model=NOT_LOADED),
        TypeError,
        "PPOTrainer: multiple values for argument 'model'; give every argument once, by its name.",
    ),
    Case(
        "too-many",
        lambda: PPOTrainer(*[None] * 16),
        TypeError,
        "PPOTrainer: too many positional arguments; give every argument once, by its name.",
    ),
    Case(
        "no-model",
        lambda: PPOTrainer(reward_funcs=scripted.reward),
        TypeError,
        "PPOTrainer: missing a required argument: 'model'; give every argument once, by its name.",
    ),
]
KINDS = [
    wrong_type(
        "model-dict", "`model` must be a name, a folder, a loaded model or an ActorCritic, got a dict.", model={}
    ),
    wrong_type(
        "model-class",
        "`model` must be a name, a folder, a loaded model or an ActorCritic, got the class Linear.",
        model=torch.nn.Linear,
    ),
    wrong_type(
        "args-dict", "`args` must be a PPOConfig, got a dict; make one with `PPOConfig(...)`.", args={"lam": 1.0}
    ),
    wrong_type(
        "args-path",
        "`args` must be a PPOConfig, got the text 'config.yaml'; make one with `PPOConfig(...)`.",
        args="config.yaml",
    ),
    wrong_type(
        "args-class",
        "`args` must be a PPOConfig, got the class PPOConfig; make one with `PPOConfig(...)`.",
        args=PPOConfig,
    ),
    wrong_type(
        "args-of-grpo",
        "`args` must be the PPOConfig of trl_ext, got trl's GRPOConfig; use `from trl_ext import PPOConfig`.",
        args=GRPOConfig(**CPU, bf16=False),
    ),
    wrong_type(
        "args-of-transformers",
        "`args` must be the PPOConfig of trl_ext, got transformers's TrainingArguments; use `from trl_ext import "
        "PPOConfig`.",
        args=TrainingArguments(**CPU),
    ),
    wrong_type(
        "reward-number", "`reward_funcs` must be functions, reward models or their names, got an int.", reward_funcs=1
    ),
    wrong_type(
        "reward-class",
        "`reward_funcs` has the class ToxicityReward; give an object, `ToxicityReward(...)`.",
        reward_funcs=[ToxicityReward],
    ),
    wrong_type(
        "tokenizer-name",
        "`processing_class` is a str; give the tokenizer itself, `AutoTokenizer.from_pretrained('gpt2')`.",
        processing_class="gpt2",
    ),
    wrong_type(
        "peft-dict",
        "`peft_config` must be a PeftConfig, for instance `LoraConfig(...)`, got a dict.",
        peft_config={"r": 8},
    ),
    wrong_type(
        "peft-class",
        "`peft_config` must be a PeftConfig, for instance `LoraConfig(...)`, got the class LoraConfig.",
        peft_config=LoraConfig,
    ),
    wrong_type(
        "quantization-dict",
        "`quantization_config` must be a configuration, for instance `BitsAndBytesConfig(...)`, got a dict.",
        quantization_config={"load_in_4bit": True},
    ),
    wrong_type(
        "callbacks-function",
        "`callbacks` must be a list of TrainerCallback objects, got a function.",
        callbacks=[scripted.reward],
    ),
    wrong_type(
        "callbacks-text", "`callbacks` must be a list of TrainerCallback objects, got the text 'x'.", callbacks="x"
    ),
    wrong_type(
        "optimizers-one",
        "`optimizers` must be a pair, (optimizer, scheduler) or (None, None), got a SGD.",
        optimizers=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
    ),
    wrong_type(
        "optimizers-three",
        "`optimizers` must be a pair, (optimizer, scheduler) or (None, None), got a tuple of 3.",
        optimizers=(None, None, None),
    ),
    wrong_type(
        "optimizers-class",
        "`optimizers` must be a pair that begins with a torch optimizer, got the class AdamW.",
        optimizers=(torch.optim.AdamW, None),
    ),
    wrong_type(
        "controller-text",
        "`kl_controller` must be an object, for instance `AdaptiveKL(target=3.0)`, got the text 'adaptive'.",
        kl_controller="adaptive",
    ),
    wrong_type(
        "controller-class",
        "`kl_controller` must be an object, for instance `AdaptiveKL(target=3.0)`, got the class AdaptiveKL.",
        kl_controller=AdaptiveKL,
    ),
    wrong_type(
        "reward-tokenizer-text",
        "`reward_processing_classes` must be tokenizers, got the text 'gpt2'.",
        reward_processing_classes="gpt2",
    ),
]
CONTRADICTIONS = [
    wrong(
        "model-none",
        "`model` is missing; give the name or folder of a causal language model, or the loaded model.",
        model=None,
    ),
    wrong(
        "no-reward",
        "`reward_funcs` is missing; give a function, a reward model or its name, or set `reward_adapters` of "
        "PPOConfig.",
        reward_funcs=[],
    ),
    wrong(
        "no-data",
        "`train_dataset` is missing; give a `datasets.Dataset` with a column 'prompt'.",
        train_dataset=None,
    ),
    wrong(
        "no-eval-data",
        "`eval_strategy` is 'steps' and `eval_dataset` is missing; give one, or set `eval_strategy='no'`.",
        {"eval_strategy": "steps"},
    ),
    wrong(
        "best-of-several",
        "`metric_for_best_model` is 'eval_reward', which is not measured with several evaluation data sets; use for "
        "instance 'eval_a_reward'.",
        {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5, "load_best_model_at_end": True},
        eval_dataset={"a": scripted.prompts(2), "b": scripted.prompts(2)},
    ),
    wrong(
        "weights",
        "`reward_weights` has 2 values for 1 reward functions; give one for each.",
        {"reward_weights": [1.0, 2.0]},
    ),
    wrong(
        "reward-tokenizers",
        "`reward_processing_classes` has 1 entries for 2 reward functions; give one for each, None for functions.",
        reward_funcs=[scripted.reward, scripted.reward],
        reward_processing_classes=[TOKENIZER],
    ),
    wrong(
        "ptx-data-missing",
        "`ptx_coef` is 0.1 and `ptx_dataset` is missing; PPO-ptx needs both.",
        {"ptx_coef": 0.1},
    ),
    wrong(
        "ptx-coef-missing",
        "`ptx_coef` is 0.0 and `ptx_dataset` is given; PPO-ptx needs both.",
        ptx_dataset=scripted.prompts(2),
    ),
    wrong(
        "compiled-adapters",
        "`torch_compile` with a LoRA adapter and `gradient_checkpointing` is not supported; leave one of them out.",
        {"torch_compile": True},
        peft_config=LoraConfig(),
    ),
    wrong(
        "reentrant-adapters",
        "`gradient_checkpointing_kwargs` sets `use_reentrant=True`, which gives adapters no gradient; leave it out.",
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        peft_config=LoraConfig(),
    ),
]


@table([*UNKNOWN, *ORDER, *KINDS, *CONTRADICTIONS])
def test_bad_arguments(case: Case) -> None:
    check(case)


def test_the_policy_is_no_reward_model() -> None:
    model = tiny_causal_lm()
    message = "`reward_funcs` has the policy itself; load the reward model as an object of its own."
    check(Case("policy", trainer(model=model, reward_funcs=model), ValueError, message))


def test_a_configuration_changed_after_it_was_made_is_checked() -> None:
    args = PPOConfig(**CPU)
    args.num_ppo_epochs = 0
    check(Case("changed", trainer(args=args), ValueError, "`num_ppo_epochs` must be at least 1, got 0."))


def test_settings_beside_a_controller_and_a_loaded_model_warn(tmp_path: Path) -> None:
    def made() -> PPOTrainer:
        return scripted.trainer(tmp_path, kl_controller=FixedKL(0.1), kl_coef=0.2)

    message = "`kl_coef` of PPOConfig has no effect: PPOTrainer was given the controller FixedKL(0.1)."
    check(Case("controller", made, UserWarning, message))

    def loaded() -> PPOTrainer:
        return scripted.trainer(tmp_path, model_init_kwargs={"dtype": "float32"}, chat_template_kwargs={"a": 1})

    check(Case("loaded", loaded, UserWarning, "`model_init_kwargs` has no effect: `model` is loaded already."))
    texts = "`chat_template_kwargs` has no effect: the prompts are texts, not conversations."
    check(Case("texts", loaded, UserWarning, texts))


def test_what_is_right_is_accepted_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    scripted.trainer(
        tmp_path,
        kl_controller=AdaptiveKL(target=3.0),
        reward_funcs=[scripted.reward, scripted.reward],
        reward_weights=[1.0, 0.0],
        peft_config=LoraConfig(target_modules="all-linear"),
    )
    assert [str(w.message) for w in recwarn if "has no effect" in str(w.message)] == []
    with pytest.raises(ValueError, match="'folder/that/does/not/exist' is a folder that does not exist"):
        trainer(quantization_config=BitsAndBytesConfig(load_in_8bit=True), peft_config=LoraConfig())()
