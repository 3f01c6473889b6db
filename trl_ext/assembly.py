# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a trainer checks and builds from its arguments before the run."""

import os
import textwrap
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from .actor_critic import ActorCritic
from .actor_critic.names import find_policy, load_tokenizer
from .config import PPOConfig
from .experience.engines import ENGINES, GenerationEngine, eos_token_ids
from .experience.prompts import check_prompt_column, check_prompts
from .experience.supervised import SupervisedData, text_columns
from .kl_control import KLController, make_controller
from .rewards import PreferenceReward
from .text.tokens import check_tokenizer, check_vocabulary

# For the model card.
PAPER = {
    "title": "Fine-Tuning Language Models from Human Preferences",
    "id": "1909.08593",
    "citation": textwrap.dedent("""\
        @article{ziegler2019fine,
            title  = {{Fine-Tuning Language Models from Human Preferences}},
            author = {Ziegler, Daniel M. and Stiennon, Nisan and Wu, Jeffrey and Brown, Tom B. and Radford, Alec and
                      Amodei, Dario and Christiano, Paul and Irving, Geoffrey},
            year   = 2019,
            eprint = {arXiv:1909.08593},
        }"""),
}


def mapping(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A field of the configuration that may also be given as JSON, which `TrainingArguments` has parsed by now."""
    assert not isinstance(value, str)
    return dict(value or {})


def check_devices(n_gpu: int) -> None:
    """Refuse the Trainer's DataParallel, which splits batches in ways PPO cannot follow."""
    if n_gpu > 1:
        raise ValueError(
            f"{n_gpu} GPUs are visible to one process; start the script with `accelerate launch`, or make one visible "
            "with CUDA_VISIBLE_DEVICES."
        )


def check_output_dir(output_dir: str) -> None:
    """Fail before any work when nothing could be saved."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        probe = Path(output_dir) / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"`output_dir` {output_dir!r} cannot be written ({error.strerror}); choose another.") from None


def loading_device(args: PPOConfig) -> torch.device | None:
    """Where models by name are loaded to: onto this process's device, unless FSDP shards them from the host."""
    return None if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" else args.device


def policy_tokenizer(model: Any, init_kwargs: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the policy, before any model is loaded.

    Raises:
        ValueError: when there is no such policy, or it has no tokenizer.
    """
    name = model
    if isinstance(model, str):
        find_policy(model, init_kwargs)
    else:
        name = getattr(getattr(model, "config", None), "name_or_path", None)
        if not name:
            raise ValueError(
                f"`processing_class` is missing, and the {type(model).__name__} does not say where its tokenizer is; "
                "give the tokenizer of `model`."
            )
    return load_tokenizer(name, init_kwargs)


def max_prompt_length(args: PPOConfig, config: Any) -> int | None:
    """Longest prompt, in tokens, that leaves room for a completion in the model's context; None if it has no limit."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return args.max_prompt_length
    room = context - args.max_completion_length
    if room < 1:
        raise ValueError(
            f"`max_completion_length` {args.max_completion_length} leaves no room for a prompt in the model's context "
            f"of {context} tokens; lower it."
        )
    return room if args.max_prompt_length is None else min(room, args.max_prompt_length)


def check_inputs(train: Any, evaluation: Any, ptx: Any, processing_class: Any) -> None:
    """Refuse datasets and tokenizers of a wrong kind before any model is loaded."""
    if processing_class is not None:
        check_tokenizer(processing_class)
    for name, dataset in _named(train, evaluation).items():
        check_prompt_column(dataset, name)
    if ptx is not None:
        text_columns(ptx)


def check_datasets(
    train: Any,
    evaluation: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    chat_template_kwargs: dict[str, Any],
    model: ActorCritic,
) -> None:
    """Check the tokenizer against the model, and every prompt of every dataset; raises what `check_prompts` raises."""
    num_embeddings = count_embeddings(model)
    check_vocabulary(tokenizer, num_embeddings)
    for name, dataset in _named(train, evaluation).items():
        check_prompts(dataset, name, tokenizer, max_length, chat_template_kwargs, num_embeddings)


def count_embeddings(model: ActorCritic) -> int:
    """Tokens that the policy has embeddings for."""
    return model.causal_lm.get_input_embeddings().weight.shape[0]


def _named(train: Any, evaluation: Any) -> dict[str, Any]:
    """The datasets with prompts, by what to call them in messages."""
    if train is None:
        raise ValueError("`train_dataset` is missing; give a `datasets.Dataset` with a column 'prompt'.")
    named = {"train_dataset": train, "eval_dataset": evaluation}
    if isinstance(evaluation, dict):
        named = {"train_dataset": train} | {f"eval_dataset[{key!r}]": value for key, value in evaluation.items()}
    return {name: dataset for name, dataset in named.items() if dataset is not None}


def count_episodes(args: PPOConfig, dataset: Dataset) -> int:
    """Completions the run will sample."""
    if args.total_episodes is not None:
        return args.total_episodes
    if args.max_steps > 0:
        return -(-args.max_steps // args.steps_per_rollout) * args.batch_size
    return int(args.num_train_epochs * max(1, len(dataset) // args.batch_size) * args.batch_size)


def add_adapter_rewards(
    reward_funcs: Any,
    processing_classes: Any,
    actor_critic: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> tuple[list[Any], Any]:
    """Reward functions and their tokenizers, with the reward adapters on the policy's base behind those given."""
    given = [] if reward_funcs is None else reward_funcs
    functions = list(given) if isinstance(given, list | tuple) else [given]
    adapters = [
        PreferenceReward(
            model,
            tokenizer=model.tokenizer or tokenizer,
            chat_template=getattr(model.tokenizer, "chat_template", None) or tokenizer.chat_template,
            append_eos=True,
            chat_template_kwargs=mapping(args.chat_template_kwargs),
            batch_size=args.local_rollout_forward_batch_size,
        )
        for model in (actor_critic.reward_models if actor_critic.sum_reward_models else ())
    ]
    if isinstance(processing_classes, list | tuple):
        processing_classes = [*processing_classes, *[None] * len(adapters)]
    return functions + adapters, processing_classes


def leaves_parameters_unused(config: Any, args: PPOConfig) -> bool:
    """Whether a backward pass may reach only a part of the trained parameters, which DDP must then search for.

    A pass over completions gives log-probabilities and values, and so reaches every trained parameter of every kind of
    critic. The language-model loss of PPO-ptx does not reach the critic, and the router of a mixture of experts may
    pass an expert over.
    """
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return args.ptx_coef > 0 or any(getattr(config.get_text_config(), name, None) for name in experts)


def build_kl_controller(args: PPOConfig, total_episodes: int) -> KLController:
    """The controller that `args.kl_controller` names."""
    return make_controller(args.kl_controller, vars(args), total_episodes)


def build_supervised_data(
    args: PPOConfig, dataset: Dataset | None, tokenizer: PreTrainedTokenizerBase, model: ActorCritic
) -> SupervisedData | None:
    """The texts of PPO-ptx, where there are any."""
    if dataset is None:
        return None
    return SupervisedData(
        dataset,
        tokenizer,
        max_length=args.ptx_max_length,
        seed=args.seed,
        chat_template_kwargs=mapping(args.chat_template_kwargs),
        num_embeddings=count_embeddings(model),
    )


def run_configuration(
    args: PPOConfig,
    num_processes: int,
    model: ActorCritic,
    kl_controller: KLController,
) -> dict[str, Any]:
    """What a checkpoint and the run that resumes it must have in common."""
    return {
        "per-process rollout size": args.local_batch_size,
        "number of processes": num_processes,
        "num_ppo_epochs": args.num_ppo_epochs,
        "num_mini_batches": args.num_mini_batches,
        "micro-batch size": args.micro_batch_size,
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        "critic": model.critic_kind,
        "adapters": isinstance(model.policy, PeftModel),
        "KL controller": type(kl_controller).__name__,
        "ptx_coef": args.ptx_coef,
        "seed": args.seed,
    }


def build_generation_engine(
    args: PPOConfig, model: ActorCritic, tokenizer: PreTrainedTokenizerBase
) -> GenerationEngine:
    """Return the engine that `args` asks for."""
    values: dict[str, Any] = {
        "eos_token_ids": eos_token_ids(model.causal_lm, tokenizer),
        "max_new_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "stop_strings": args.stop_strings,
        "batch_size": args.local_rollout_forward_batch_size,
        "return_logps": args.importance_sampling_correction,
        "generation_kwargs": mapping(args.generation_kwargs),
        "config": mapping(getattr(args, f"{args.engine}_config", None)),
    }
    engine = ENGINES[args.engine]
    return engine(tokenizer, **{name: values[name] for name in values if name in signature(engine).parameters})
