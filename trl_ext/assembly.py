# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`assemble`: the parts of a PPO trainer; the one place that reads the configuration to build something."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

from . import sharding
from .actor_critic import ActorCritic, ForwardOutput, build_actor_critic
from .actor_critic.checkpointing import checkpoint_every_layer
from .actor_critic.merged import check_mergeable
from .actor_critic.names import find_policy, load_tokenizer
from .actor_critic.saved_critic import check_reading
from .arguments import check_before_loading, check_datasets, check_first_rows, count_embeddings
from .checks.deepspeed import zero_stage
from .checks.training_arguments import asks_for_fsdp, checkpointing_kwargs, mapping
from .config import PPOConfig
from .critic_learning import CriticLearner, CriticOptions, CriticPretraining
from .experience.ahead import RolloutAhead
from .experience.collector import Collector
from .experience.engines import GenerationEngine
from .experience.judging import Judging
from .experience.prompt_checks import RowCheck
from .experience.prompts import RolloutSampler
from .experience.rollout import forward
from .experience.so_far import RewardsSoFar
from .experience.stream import StreamRows, check_stream
from .experience.supervised import SupervisedData
from .identity import run_identity
from .kl_control import KLController, function_bounds, make_controller
from .micro_batches import MicroBatches
from .monitoring import SampleTable
from .monitoring.console import CONSOLE
from .processes import Reduce
from .rewards import PreferenceReward, RewardRunner, reward_names
from .rewards.base import JUDGE
from .sampling import build_engine
from .step_gate import StepGate, split_critic
from .text.tokens import set_padding


@dataclass
class Parts:
    """The parts of a PPO trainer.

    Attributes:
        actor_critic: Policy, critic, reference and reward adapters.
        tokenizer: Tokenizer of the policy, with a pad token.
        rewards: Runs the reward functions, reward adapters included.
        kl_controller: Moves the KL coefficient.
        supervised: Texts of PPO-ptx, if there are any.
        engine: Samples completions.
        forward: Forward pass of a model over a rollout, at the sampling temperature.
        train_dataset: Rows to train on.
        judging: Judges of evaluations and `compute_metrics`.
        configuration: Settings and contents that a checkpoint and the run that resumes it must have in common.
    """

    actor_critic: ActorCritic
    tokenizer: PreTrainedTokenizerBase
    rewards: RewardRunner
    kl_controller: KLController
    supervised: SupervisedData | None
    engine: GenerationEngine
    forward: Callable[..., ForwardOutput]
    train_dataset: Dataset | StreamRows
    judging: Judging
    configuration: dict[str, Any]


def shown(function: Callable[..., Parts]) -> Callable[..., Parts]:
    """Show on the console of the main process what `assemble` is doing."""

    @wraps(function)
    def call(args: PPOConfig, **given: Any) -> Parts:
        if args.process_index != 0:
            return function(args, **given)
        with CONSOLE.activity("checking the settings", bars=not args.disable_tqdm):
            return function(args, **given)

    return call


@shown
def assemble(
    args: PPOConfig,
    *,
    model: Any,
    reward_funcs: Any,
    train_dataset: Dataset | IterableDataset,
    eval_dataset: Dataset | dict[str, Dataset] | None,
    ptx_dataset: Dataset | None,
    processing_class: PreTrainedTokenizerBase | None,
    reward_processing_classes: Any,
    peft_config: PeftConfig | None,
    quantization_config: BitsAndBytesConfig | None,
    kl_controller: KLController | None,
    eval_reward_funcs: Any = None,
    compute_metrics: Callable[..., Any] | None = None,
) -> Parts:
    """Check the arguments of a trainer, seed the generators, and load and build its parts.

    The arguments are those of `PPOTrainer`.

    Raises:
        ValueError, TypeError: before anything is loaded where that can be; later for models, tokenizers and datasets
            that do not fit together.
    """
    datasets = (train_dataset, eval_dataset, ptx_dataset)
    check_before_loading(args, reward_funcs, reward_processing_classes, *datasets, eval_reward_funcs)
    check_reading(args.critic, args.critic_reads_reward_every)
    set_seed(args.seed)  # adapters and heads are initialised at random
    init_kwargs = {"trust_remote_code": args.trust_remote_code, **mapping(args.model_init_kwargs)}
    template_kwargs = mapping(args.chat_template_kwargs)
    if asks_for_fsdp(args):
        check_not_quantized(model, quantization_config, init_kwargs, "FSDP")
    if zero_stage(args) == 3:
        check_not_quantized(model, quantization_config, init_kwargs, "ZeRO-3")
    if args.merges_while_sampling:
        check_mergeable(model, peft_config, quantization_config, init_kwargs)
    tokenizer = processing_class or policy_tokenizer(model, init_kwargs)
    check_first_rows(train_dataset, eval_dataset, tokenizer, template_kwargs, args.prompt_column)
    CONSOLE.now("loading the policy and its reference", long=True)
    actor_critic = build_actor_critic(
        model,
        args.critic,
        peft_config=peft_config,
        quantization_config=quantization_config,
        critic_lora_rank=args.critic_lora_rank,
        critic_target_modules=args.critic_target_modules,
        num_critics=args.num_critics,
        reward_adapters=args.reward_adapters or (),
        init_kwargs=init_kwargs,
        device=loading_device(args),
    )
    if args.critic_reads_reward_every is not None:
        actor_critic.value_head.read_rewards()
    elif actor_critic.value_head.reads_rewards:
        raise ValueError("`model` has a critic that reads rewards: set `critic_reads_reward_every`.")
    if args.use_liger_kernel:
        actor_critic.apply_liger_kernel(args.liger_kernel_config)
    set_padding(tokenizer)
    limit = max_prompt_length(args, actor_critic.config)
    CONSOLE.now("checking the prompts")
    check_datasets(train_dataset, eval_dataset, tokenizer, limit, template_kwargs, actor_critic, args.prompt_column)
    if isinstance(train_dataset, IterableDataset):
        train_dataset = stream_rows(args, train_dataset, tokenizer, limit, count_embeddings(actor_critic))
    reward_funcs, reward_processing_classes = add_adapter_rewards(
        reward_funcs, reward_processing_classes, actor_critic, tokenizer, args
    )
    CONSOLE.now("loading the rewards")
    runner = partial(
        RewardRunner,
        retries=args.reward_retries,
        backoff=args.reward_backoff,
        timeout=args.reward_timeout,
        max_reward_failures=args.max_reward_failures,
        chat_template_kwargs=template_kwargs,
        device=args.device,
        policy=actor_critic,
    )
    rewards = runner(
        reward_funcs,
        weights=args.reward_weights,
        constraints=function_bounds(args.reward_constraints),
        processing_classes=reward_processing_classes,
        clip_range=(args.reward_clip_range[0], args.reward_clip_range[1]) if args.reward_clip_range else None,
    )
    judges = runner(eval_reward_funcs, kind=JUDGE) if reward_names(eval_reward_funcs) else None
    episodes = count_episodes(args, train_dataset)
    kl_controller = kl_controller or make_controller(args.kl_controller, vars(args), episodes)
    CONSOLE.now("comparing models and data with earlier checkpoints")
    supervised = None
    if ptx_dataset is not None:
        supervised = SupervisedData(
            ptx_dataset,
            tokenizer,
            max_length=args.ptx_max_length,
            seed=args.seed,
            chat_template_kwargs=template_kwargs,
            num_embeddings=count_embeddings(actor_critic),
        )
    return Parts(
        actor_critic,
        tokenizer,
        rewards,
        kl_controller,
        supervised,
        engine=build_engine(args, actor_critic, tokenizer),
        forward=partial(forward, temperature=args.temperature, chunk_size=args.logits_chunk_size),
        train_dataset=train_dataset,
        judging=Judging(judges, compute_metrics),
        configuration=run_configuration(args, actor_critic, kl_controller)
        | run_identity(actor_critic, tokenizer, train_dataset, ptx_dataset, rewards),
    )


def check_not_quantized(model: Any, quantization_config: Any, init_kwargs: dict[str, Any], sharder: str) -> None:
    """Refuse a quantized policy with FSDP or ZeRO-3, before it is loaded.

    Raises:
        ValueError: when the policy is, or will be, quantized.
    """
    config = find_policy(model, init_kwargs).config if isinstance(model, str) else getattr(model, "config", None)
    given = quantization_config or init_kwargs.get("quantization_config")
    if given is not None or getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"A quantized `model` is not supported with {sharder}, which would leave its weights whole on every GPU; "
            f"leave {sharder} out (one copy of a 4-bit model for each GPU), or the quantization."
        )


def build_micro_batches(args: PPOConfig, model: ActorCritic, accelerator: Accelerator) -> MicroBatches:
    """Return the sizes of the passes; neither several processes nor DeepSpeed can begin a step again."""
    fixed = accelerator.num_processes > 1 or zero_stage(args) is not None
    options: dict[str, Any] = {"fixed": fixed, "trained": model.trained_share}
    options["checkpoint"] = partial(checkpoint_every_layer, model, checkpointing_kwargs(args))
    return MicroBatches(args.micro_batch_size, "per_device_train_batch_size", **options)


def build_collector(
    args: PPOConfig, parts: Parts, micro_batches: MicroBatches, accelerator: Accelerator, reduce: Reduce
) -> Collector:
    """Return the collector of a trainer that has its accelerator; the arguments are those of [`Collector`]."""
    template_kwargs, every = mapping(args.chat_template_kwargs), args.critic_reads_reward_every
    so_far = None if every is None else RewardsSoFar(every, parts.rewards, parts.tokenizer, template_kwargs, reduce)
    return Collector(
        parts.engine,
        parts.forward,
        parts.rewards,
        parts.tokenizer,
        parts.kl_controller,
        SampleTable(args.num_completions_to_print),
        prompt_column=args.prompt_column,
        chat_template_kwargs=template_kwargs,
        micro_batches=micro_batches,
        num_mini_batches=args.num_mini_batches,
        missing_eos_penalty=args.missing_eos_penalty,
        engine_gap=args.engine_gap_options if args.corrects_for_engine else None,
        ahead=RolloutAhead(args.async_rollouts),
        advantages=args.advantage_options,
        held_out=args.held_out_share,
        scale_returns=args.scales_returns,
        so_far=so_far,
        accelerator=accelerator,
        reduce=reduce,
    )


def build_critic_learner(args: PPOConfig, model: ActorCritic, collector: Collector) -> CriticLearner | None:
    """Return the learner of the critic's own passes over a rollout; None where the critic learns with the policy."""
    if args.critic_epochs is None:
        return None
    return _critic_learner(args, args.critic_options, args.own_critic_learning_rate, model, collector)


def build_pretraining(args: PPOConfig, parts: Parts, collector: Collector) -> CriticPretraining | None:
    """Return the critic's pretraining, which has an optimizer of its own; None where there is none."""
    if not args.critic_pretraining_episodes:
        return None
    options = replace(args.critic_options, cliprange_value=None)  # there are no old values to clip by
    rate = args.critic_pretraining_learning_rate or args.own_critic_learning_rate
    learner = _critic_learner(args, options, rate, parts.actor_critic, collector)
    collect = partial(collector.collect_for_critic, parts.actor_critic)
    return CriticPretraining(learner, collect, parts.train_dataset, args.pretraining_options)


def _critic_learner(
    args: PPOConfig, options: CriticOptions, learning_rate: float, model: ActorCritic, collector: Collector
) -> CriticLearner:
    return CriticLearner(
        model,
        options,
        learning_rate=learning_rate,
        weight_decay=args.weight_decay,
        micro_batches=collector.micro_batches,
        autocast=collector.accelerator.autocast,
        reduce=collector.reduce,
    )


def loading_device(args: PPOConfig) -> torch.device | None:
    """Return the device that models by name are loaded onto: this process's, or None where FSDP shards them."""
    return None if asks_for_fsdp(args) else args.device


def policy_tokenizer(model: Any, init_kwargs: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved with the policy, before any model is loaded.

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
    """Return the longest prompt, in tokens, that leaves room for a completion in the context; None for no limit."""
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


def stream_rows(
    args: PPOConfig, stream: IterableDataset, tokenizer: PreTrainedTokenizerBase, limit: int | None, num_embeddings: int
) -> StreamRows:
    """Return the rows that a run takes from a stream; the longest prompt has `limit` tokens."""
    name = "train_dataset"
    column = check_stream(stream, name, args.prompt_column)
    check = RowCheck(name, column, tokenizer, limit, mapping(args.chat_template_kwargs), num_embeddings)
    num_rollouts = -(-count_episodes(args, stream) // args.batch_size)
    return StreamRows(stream, num_rollouts * args.batch_size, args.batch_size, check)


def count_episodes(args: PPOConfig, dataset: Any) -> int:
    """Return the number of completions that the run samples."""
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
    """Return reward functions and their tokenizers: the given ones, then the reward adapters on the policy's base."""
    given = [] if reward_funcs is None else reward_funcs
    functions = list(given) if isinstance(given, list | tuple) else [given]
    adapters = [
        PreferenceReward(
            model,
            tokenizer=model.tokenizer or tokenizer,
            chat_template=getattr(model.tokenizer, "chat_template", None) or tokenizer.chat_template,
            append_eos=True,
            chat_template_kwargs=mapping(args.chat_template_kwargs),
            batch_size=args.scoring_batch_size,
        )
        for model in (actor_critic.reward_models if actor_critic.sum_reward_models else ())
    ]
    if isinstance(processing_classes, list | tuple):
        processing_classes = [*processing_classes, *[None] * len(adapters)]
    return functions + adapters, processing_classes


def default_config(model: Any) -> PPOConfig:
    """Return the configuration of a trainer that was given none, with an `output_dir` named after the model."""
    name = model if isinstance(model, str) else model.config.name_or_path or type(model).__name__
    return PPOConfig(output_dir=f"{Path(name).name}-PPO")


def build_sampler(args: PPOConfig, train_dataset: Dataset | StreamRows) -> RolloutSampler:
    """Return the sampler that draws the prompts of every rollout; a stream is read in its own order."""
    return RolloutSampler(
        len(train_dataset),
        args.batch_size,
        args.gradient_accumulation_steps * args.steps_per_rollout,
        shuffle=args.shuffle_dataset and not isinstance(train_dataset, StreamRows),
        seed=args.data_seed if args.data_seed is not None else args.seed,
    )


def arrange_optimizer(args: PPOConfig, optimizer: torch.optim.Optimizer, model: ActorCritic, gate: StepGate) -> None:
    """Give the critic groups of its own in a new optimizer, where it has its own rate, optimizer or steps."""
    rate = 0.0 if args.critic_epochs is not None else args.critic_learning_rate
    waits = args.critic_warmup_rollouts > 0 and zero_stage(args) is not None
    split_critic(optimizer, model.critic_parameters(), args.learning_rate if waits and rate is None else rate)
    if waits:
        gate.silence(p for _, p in model.actor_parameters())


@contextmanager
def without_liger(args: PPOConfig) -> Iterator[None]:
    """Hide `use_liger_kernel` in a block: the kernels are applied, and the Trainer would refuse the option."""
    chosen, args.use_liger_kernel = args.use_liger_kernel, False
    try:
        yield
    finally:
        args.use_liger_kernel = chosen


def configure_processes(
    accelerator: Accelerator, model: ActorCritic, args: PPOConfig, load: Callable[[str], object]
) -> None:
    """Set what PPO needs of FSDP and DeepSpeed, and make DDP search for parameters that a pass may leave out.

    Args:
        accelerator: The Trainer's.
        model: The model that it will prepare.
        args: The settings.
        load: Loads the weights of a checkpoint, which the Trainer leaves to DeepSpeed's engine.
    """
    sharding.configure(accelerator, model, load, bf16=args.bf16, max_grad_norm=args.max_grad_norm)
    ddp = accelerator.ddp_handler
    if ddp is not None and args.ddp_find_unused_parameters is None:
        ddp.find_unused_parameters = leaves_parameters_unused(model.config, args)


def leaves_parameters_unused(config: Any, args: PPOConfig) -> bool:
    """Return whether a backward pass may leave trained parameters out, which DDP must then search for.

    A pass over completions gives log-probabilities and values, and so reaches every trained parameter of every kind of
    critic. The language-model loss of PPO-ptx does not reach the critic, nor does any loss of the policy where the
    critic has passes of its own, and the router of a mixture of experts may pass an expert over.
    """
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return (
        args.ptx_coef > 0
        or args.critic_epochs is not None
        or any(getattr(config.get_text_config(), name, None) for name in experts)
    )


def run_configuration(args: PPOConfig, model: ActorCritic, kl_controller: KLController) -> dict[str, Any]:
    """Return the settings that a checkpoint and the run that resumes it must have in common."""
    return {
        "per-process rollout size": args.local_batch_size,
        "number of processes": args.world_size,
        "FSDP": asks_for_fsdp(args),
        "ZeRO stage": zero_stage(args),
        "num_ppo_epochs": args.num_ppo_epochs,
        "num_mini_batches": args.num_mini_batches,
        "micro-batch size": args.micro_batch_size,
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        **{name: getattr(args, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty", "stop_strings")},
        "generation_kwargs": str(dict(sorted(mapping(args.generation_kwargs).items()))),  # a value may be no JSON
        "shuffle_dataset": args.shuffle_dataset,
        "data_seed": args.data_seed,
        "critic": model.critic_kind,
        "passes of the critic's own": args.critic_epochs is not None,
        "critic_held_out": args.held_out_share,
        "scale_returns": args.scales_returns,
        "num_critics": model.num_critics,
        "critic_reads_reward_every": args.critic_reads_reward_every,
        "critic_learning_rate of its own": args.critic_learning_rate is not None,
        "adapters": isinstance(model.policy, PeftModel),
        "KL controller": type(kl_controller).__name__,
        "exact KL in the loss": args.kl_estimator == "exact",
        "ptx_coef": args.ptx_coef,
        "seed": args.seed,
    }
