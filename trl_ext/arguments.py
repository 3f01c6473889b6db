# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of `PPOTrainer`'s arguments: before anything is loaded, and of the datasets once the model is known."""

import dataclasses
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils.quantization_config import QuantizationConfigMixin

from .actor_critic import ActorCritic
from .checks.deepspeed import zero_stage
from .checks.training_arguments import asks_for_fsdp
from .config import PPOConfig
from .experience.engines import check_vllm, server_url
from .experience.judging import check_best_metric, check_compute_metrics
from .experience.prompt_checks import check_prompt_column, check_prompts
from .experience.stream import check_stream
from .experience.supervised import text_columns
from .kl_control import KLController, all_settings, check_bounds, kl_bound
from .rewards import check_reward_models, reward_names
from .rewards.base import Synchronized, iter_parts
from .text.prompt_column import PROMPT, find_prompt_column
from .text.rows import is_conversation
from .text.tokens import check_tokenizer, check_vocabulary

_BY_NAME = "give arguments by name, `PPOTrainer(model=..., reward_funcs=..., args=..., train_dataset=...)`."


def check_arguments(
    model: Any,
    reward_funcs: Any = None,
    args: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    processing_class: Any = None,
    reward_processing_classes: Any = None,
    callbacks: Any = None,
    optimizers: Any = (None, None),
    quantization_config: Any = None,
    peft_config: Any = None,
    kl_controller: Any = None,
    ptx_dataset: Any = None,
    eval_reward_funcs: Any = None,
    compute_metrics: Any = None,
) -> None:
    """Check the kinds of `PPOTrainer`'s arguments, and whether they fit together.

    Raises:
        TypeError: for an object of the wrong kind, also where arguments come in another trainer's order.
        ValueError: for arguments that are missing or contradict each other.
    """
    _check_model(model)
    _check_args(args)
    # The defaults alone, since a PPOConfig made here would set up devices.
    settings = args or SimpleNamespace(**{field.name: field.default for field in dataclasses.fields(PPOConfig)})
    functions = _check_rewards(reward_funcs, model, settings)
    _check_reward_tokenizers(reward_processing_classes, len(functions))
    if processing_class is not None:
        check_tokenizer(processing_class)
    _check_kind("peft_config", peft_config, PeftConfig, "a PeftConfig, for instance `LoraConfig(...)`")
    quantization = "a configuration, for instance `BitsAndBytesConfig(...)`"
    _check_kind("quantization_config", quantization_config, QuantizationConfigMixin, quantization)
    _check_callbacks(callbacks)
    _check_optimizers(optimizers, settings)
    _check_controller(kl_controller, settings)
    _check_datasets(train_dataset, eval_dataset, settings)
    _check_judging(eval_reward_funcs, compute_metrics, functions, model, eval_dataset, settings)
    if (ptx_dataset is None) != (settings.ptx_coef == 0):
        raise ValueError(
            f"`ptx_coef` is {settings.ptx_coef} and `ptx_dataset` is {'missing' if ptx_dataset is None else 'given'}; "
            "PPO-ptx needs both."
        )
    if _has_adapter(model, peft_config):
        _check_adapter_settings(settings)
    if not isinstance(model, str) and settings.model_init_kwargs and settings.critic in ("head", "adapter", "copy"):
        warnings.warn("`model_init_kwargs` has no effect: `model` is loaded already.", stacklevel=4)


def check_before_loading(
    args: PPOConfig,
    reward_funcs: Any,
    reward_processing_classes: Any,
    train_dataset: Any,
    eval_dataset: Any,
    ptx_dataset: Any,
    eval_reward_funcs: Any = None,
) -> None:
    """Check devices, engine, `output_dir`, named reward models, constraints on rewards, and the kinds of the datasets.

    Raises:
        TypeError, ValueError, ImportError: naming what to change.
    """
    if args.n_gpu > 1:  # the Trainer's DataParallel splits batches in ways that PPO cannot follow
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process; start the script with `accelerate launch`, or make one "
            "visible with CUDA_VISIBLE_DEVICES."
        )
    if args.use_vllm:
        url = server_url(args.vllm_server_base_url, args.vllm_server_host, args.vllm_server_port)
        check_vllm(args.vllm_mode, url)
    check_output_dir(args.output_dir)
    check_reward_models(reward_funcs, reward_processing_classes)
    check_reward_models(eval_reward_funcs)
    if args.reward_constraints and not args.reward_adapters:  # adapters have their names once they are loaded
        check_bounds(args.reward_constraints, reward_names(reward_funcs))
    check_columns(train_dataset, eval_dataset, ptx_dataset, args.prompt_column)


def check_output_dir(path: str) -> Path:
    """Make the output folder and return its absolute path; raise ValueError where it cannot be written into."""
    folder = Path(path).expanduser().resolve()
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"`output_dir` {path!r} cannot be written ({error.strerror}); choose another.") from None
    return folder


def check_columns(train: Any, evaluation: Any, ptx: Any = None, prompt_column: str = PROMPT) -> None:
    """Refuse datasets of a wrong kind or with wrong columns."""
    for name, dataset in _named(train, evaluation).items():
        stream = name == "train_dataset" and isinstance(dataset, IterableDataset)
        column = (check_stream if stream else check_prompt_column)(dataset, name, prompt_column)
        if column != PROMPT and PROMPT in (dataset.column_names or ()):
            warnings.warn(
                f"`{name}` has a column 'prompt' beside {column!r}, which `prompt_column` names; reward functions get "
                f"{column!r} as their prompts, and not the column 'prompt': rename it where they need it.",
                stacklevel=5,
            )
    if ptx is not None:
        text_columns(ptx)


def prompt_columns(train: Any, evaluation: Any, given: str) -> list[str]:
    """Return the columns of the prompts of all datasets, which have been checked."""
    found = {find_prompt_column(dataset.column_names, given) for dataset in _named(train, evaluation).values()}
    return sorted(filter(None, found))


def check_first_rows(
    train: Any,
    evaluation: Any,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any],
    prompt_column: str,
) -> None:
    """Check the first prompt of every dataset, before the model is loaded: mostly the others are of its kind.

    Raises:
        ValueError: as `check_prompts`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `check_datasets` gives them
        for name, dataset in _named(train, evaluation).items():
            if not isinstance(dataset, IterableDataset):
                first = dataset.select([0])
                check_prompts(first, name, tokenizer, None, chat_template_kwargs, prompt_column=prompt_column)


def check_datasets(
    train: Any,
    evaluation: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    chat_template_kwargs: dict[str, Any],
    model: ActorCritic,
    prompt_column: str,
) -> None:
    """Check the tokenizer against the model, and every prompt of every dataset that can be read beforehand.

    Raises:
        TypeError, ValueError: as `check_prompts`.
    """
    num_embeddings = count_embeddings(model)
    check_vocabulary(tokenizer, num_embeddings)
    for name, dataset in _named(train, evaluation).items():
        if not isinstance(dataset, IterableDataset):
            check_prompts(dataset, name, tokenizer, max_length, chat_template_kwargs, num_embeddings, prompt_column)


def count_embeddings(model: ActorCritic) -> int:
    """Return the number of tokens that the policy has embeddings for."""
    return model.causal_lm.get_input_embeddings().weight.shape[0]


def _named(train: Any, evaluation: Any) -> dict[str, Any]:
    """Return the datasets with prompts by their names in messages."""
    named = {"train_dataset": train, "eval_dataset": evaluation}
    if isinstance(evaluation, dict):
        named = {"train_dataset": train} | {f"eval_dataset[{key!r}]": value for key, value in evaluation.items()}
    return {name: dataset for name, dataset in named.items() if dataset is not None}


def _check_model(model: Any) -> None:
    if isinstance(model, TrainingArguments | PreTrainedTokenizerBase | Dataset):
        raise TypeError(f"The first argument of PPOTrainer is the model, got a {type(model).__name__}; {_BY_NAME}")
    if model is None or model == "":
        raise ValueError("`model` is missing; give the name or folder of a causal language model, or the loaded model.")
    if not isinstance(model, str | Path | nn.Module):
        raise TypeError(f"`model` must be a name, a folder, a loaded model or an ActorCritic, got {_described(model)}.")


def _check_args(args: Any) -> None:
    if isinstance(args, PPOConfig):
        args.check()
    elif isinstance(args, TrainingArguments):
        name = f"{type(args).__module__.split('.')[0]}'s {type(args).__name__}"
        raise TypeError(f"`args` must be the PPOConfig of trl_ext, got {name}; use `from trl_ext import PPOConfig`.")
    elif isinstance(args, nn.Module | PreTrainedTokenizerBase):
        raise TypeError(f"`args` must be a PPOConfig, got a {type(args).__name__}; {_BY_NAME}")
    elif args is not None:
        raise TypeError(f"`args` must be a PPOConfig, got {_described(args)}; make one with `PPOConfig(...)`.")


def _check_rewards(reward_funcs: Any, model: Any, args: Any) -> list[Any]:
    """Check the reward functions, and return them as a list without the reward adapters."""
    functions = _check_functions("reward_funcs", reward_funcs, model)
    adapters = len(args.reward_adapters or [])
    if not functions and not adapters:
        raise ValueError(
            "`reward_funcs` is missing; give a function, a reward model or its name, or set `reward_adapters` of "
            "PPOConfig."
        )
    weights = args.reward_weights
    if weights is not None and len(weights) != len(functions) + adapters:
        raise ValueError(
            f"`reward_weights` has {len(weights)} values for {len(functions) + adapters} reward functions; give one "
            "for each."
        )
    moving = [part for function in functions for part in iter_parts(function) if isinstance(part, Synchronized)]
    if moving and args.metric_for_best_model in ("reward", "eval_reward"):
        warnings.warn(
            f"`metric_for_best_model='{args.metric_for_best_model}'` compares rewards of {type(moving[0]).__name__}, "
            "whose unit moves with the training; judge the best model by `eval_reward_funcs`.",
            stacklevel=5,
        )
    return functions


def _check_functions(name: str, given: Any, model: Any) -> list[Any]:
    """Check the functions and models of an argument, and return them as a list."""
    if isinstance(given, TrainingArguments | PreTrainedTokenizerBase | Dataset):
        raise TypeError(f"`{name}` is a {type(given).__name__}; {_BY_NAME}")
    functions = list(given) if isinstance(given, list | tuple) else [given] if given is not None else []
    for function in functions:
        if isinstance(function, type):
            raise TypeError(f"`{name}` has the class {function.__name__}; give an object, `{function.__name__}(...)`.")
        if not (isinstance(function, str | nn.Module) or callable(function)):
            raise TypeError(f"`{name}` must be functions, reward models or their names, got {_described(function)}.")
        if function is model and not isinstance(model, str):
            raise ValueError(f"`{name}` has the policy itself; load the reward model as an object of its own.")
    return functions


def _check_judging(
    eval_reward_funcs: Any, compute_metrics: Any, rewards: list[Any], model: Any, evaluation: Any, args: Any
) -> None:
    """Check `eval_reward_funcs` and `compute_metrics`, and a `metric_for_best_model` that names a judge."""
    judges = _check_functions("eval_reward_funcs", eval_reward_funcs, model)
    sets = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    if compute_metrics is not None:
        columns = {name for rows in sets.values() for name in getattr(rows, "column_names", None) or ()}
        check_compute_metrics(compute_metrics, sorted(columns))
    if args.metric_for_best_model:
        check_best_metric(args.metric_for_best_model, reward_names(judges), [name for name in sets if name])
    if (judges or compute_metrics is not None) and evaluation is None:
        name = "eval_reward_funcs" if judges else "compute_metrics"
        warnings.warn(f"`{name}` has no effect without `eval_dataset`; give one.", stacklevel=5)
    for name, judge in zip(reward_names(judges), judges, strict=True):
        if any(judge is reward or (isinstance(judge, str) and judge == reward) for reward in rewards):
            warnings.warn(
                f"`eval_reward_funcs` has '{name}', which `reward_funcs` trains on: a reward judges nothing; give "
                "another function or model.",
                stacklevel=5,
            )


def _check_reward_tokenizers(tokenizers: Any, count: int) -> None:
    given = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers]
    for tokenizer in given:
        _check_kind("reward_processing_classes", tokenizer, PreTrainedTokenizerBase, "tokenizers")
    if isinstance(tokenizers, list | tuple) and len(given) != count:
        raise ValueError(
            f"`reward_processing_classes` has {len(given)} entries for {count} reward functions; give one for each, "
            "None for functions."
        )


def _check_callbacks(callbacks: Any) -> None:
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        raise TypeError(f"`callbacks` must be a list of TrainerCallback objects, got {_described(callbacks)}.")
    for callback in callbacks or []:
        is_class = isinstance(callback, type) and issubclass(callback, TrainerCallback)
        if not (is_class or isinstance(callback, TrainerCallback)):
            raise TypeError(f"`callbacks` must be a list of TrainerCallback objects, got {_described(callback)}.")


def _check_optimizers(optimizers: Any, args: Any) -> None:
    if not isinstance(optimizers, list | tuple) or len(optimizers) != 2:
        raise TypeError(
            f"`optimizers` must be a pair, (optimizer, scheduler) or (None, None), got {_described(optimizers)}."
        )
    optimizer, scheduler = optimizers
    _check_kind("optimizers", optimizer, torch.optim.Optimizer, "a pair that begins with a torch optimizer")
    if scheduler is not None and not hasattr(scheduler, "step"):
        raise TypeError(f"`optimizers` must be a pair that ends with a scheduler, got {_described(scheduler)}.")
    if optimizer is not None and asks_for_fsdp(args):
        raise ValueError("`optimizers` cannot be given with FSDP, which replaces the parameters; use `optim`.")
    if optimizer is not None and zero_stage(args) is not None and args.critic_warmup_rollouts:
        raise ValueError(
            "`optimizers` cannot be given with DeepSpeed and `critic_warmup_rollouts`, which needs groups of the "
            "critic's own; use `optim`."
        )
    if optimizer is not None and args.critic_learning_rate is not None:
        warnings.warn("`critic_learning_rate` has no effect: `optimizers` is given.", stacklevel=5)


def _check_controller(controller: Any, args: Any) -> None:
    if controller is None:
        return
    _check_kind("kl_controller", controller, KLController, "an object, for instance `AdaptiveKL(target=3.0)`")
    if (bound := kl_bound(args.reward_constraints)) is not None:
        raise ValueError(
            f"`reward_constraints` has '{bound}', and PPOTrainer was given the controller {controller!r}, which holds "
            "the KL in its own way: leave one of them out."
        )
    fields = PPOConfig.__dataclass_fields__
    for name in ("kl_controller", *all_settings()):
        if getattr(args, name) != fields[name].default:
            warnings.warn(
                f"`{name}` of PPOConfig has no effect: PPOTrainer was given the controller {controller!r}.",
                stacklevel=5,
            )


def _check_datasets(train: Any, evaluation: Any, args: Any) -> None:
    if train is None:
        raise ValueError("`train_dataset` is missing; give a `datasets.Dataset` with a column 'prompt'.")
    if isinstance(train, IterableDataset):
        _check_stream_settings(args)
    if evaluation is None and args.eval_strategy != "no":
        raise ValueError(
            f"`eval_strategy` is '{args.eval_strategy.value}' and `eval_dataset` is missing; give one, or set "
            "`eval_strategy='no'`."
        )
    metric = args.metric_for_best_model or ""
    chooses = args.load_best_model_at_end or args.save_strategy == "best"
    if isinstance(evaluation, dict) and chooses:
        prefixes = [f"eval_{name}_" for name in evaluation]
        if not any(metric.startswith((prefix, prefix.removeprefix("eval_"))) for prefix in prefixes):
            raise ValueError(
                f"`metric_for_best_model` is '{metric}', which is not measured with several evaluation data sets; use "
                f"for instance '{prefixes[0]}reward'."
            )
    column = args.prompt_column
    is_rows = isinstance(train, Dataset) and column in train.column_names and len(train) > 0
    if args.chat_template_kwargs and is_rows and not is_conversation(train[0][column]):
        warnings.warn("`chat_template_kwargs` has no effect: the prompts are texts, not conversations.", stacklevel=5)


def _check_stream_settings(args: Any) -> None:
    if args.total_episodes is None and args.max_steps <= 0:
        raise ValueError(
            "`train_dataset` is a stream, which does not tell its length; set `total_episodes` or `max_steps`."
        )
    if args.dataloader_num_workers:
        raise ValueError(
            f"`dataloader_num_workers` is {args.dataloader_num_workers}, and each worker would read another part of "
            "the stream in `train_dataset`; leave it at 0."
        )


def _check_adapter_settings(args: Any) -> None:
    """Refuse settings that do not work with adapters."""
    if args.torch_compile and args.gradient_checkpointing:
        raise ValueError(
            "`torch_compile` with a LoRA adapter and `gradient_checkpointing` is not supported; leave one of them out."
        )
    if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant") and args.gradient_checkpointing:
        raise ValueError(
            "`gradient_checkpointing_kwargs` sets `use_reentrant=True`, which gives adapters no gradient; leave it out."
        )


def _has_adapter(model: Any, peft_config: Any) -> bool:
    policy = model.policy if isinstance(model, ActorCritic) else model
    saved = isinstance(model, str | Path) and (Path(model) / "adapter_config.json").is_file()
    return peft_config is not None or isinstance(policy, PeftModel) or saved


def _check_kind(name: str, value: Any, kind: Any, wanted: str) -> None:
    if value is not None and (isinstance(value, type) or not isinstance(value, kind)):
        raise TypeError(f"`{name}` must be {wanted}, got {_described(value)}.")


def _described(value: Any) -> str:
    """Return the kind of a value in words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return f"the text {value[:80]!r}"
    name = type(value).__name__
    if isinstance(value, list | tuple):
        return f"a {name} of {len(value)}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
