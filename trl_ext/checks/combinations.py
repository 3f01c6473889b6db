# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of `PPOConfig` that concern several settings at once: contradictions, doubtful settings, and idle ones."""

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Container
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig

from trl_ext.critic_modes import CRITIC_MODES
from trl_ext.kl_control import all_settings, function_bounds, make_controller, parse_constraints, settings_of
from trl_ext.messages.printable import brief
from trl_ext.messages.suggestion import suggestion

from .deepspeed import zero_stage
from .generation import APPLIED_LAST, OWN, SHAPING, switched_on
from .training_arguments import asks_for_fsdp, checkpointing_kwargs

# Settings that cannot be had on a model that is gathered for a rollout, with the reason.
NOT_GATHERED = {
    "use_transformers_continuous_batching": "it was never run on a gathered model",
    "use_vllm": "its copy of the weights comes from one process",
    "merge_adapters_while_sampling": "it was never run on a gathered model",
    "cache_implementation": "it was never run on a gathered model",
}
NOT_WITH_FSDP = {"critic_warmup_rollouts": "its checkpoints need the optimizer's state of every weight"} | NOT_GATHERED
# Settings of vLLM that one of its modes does not read.
_COLOCATED = ("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_enable_sleep_mode")
_SERVER = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout")
MAPPINGS = (
    *("model_init_kwargs", "chat_template_kwargs", "generation_kwargs"),
    "transformers_continuous_batching_config",
)


def check_combinations(args: Any, engine: Callable[..., Any]) -> None:
    """Refuse settings of a `PPOConfig` that contradict each other.

    Args:
        args: The settings.
        engine: Constructor of the engine that samples; its parameters are the settings that the engine follows.

    Raises:
        ValueError: with the names of the settings.
    """
    for name in MAPPINGS:
        if isinstance(value := getattr(args, name), str):
            raise ValueError(f"`{name}` must be a mapping or its JSON, got {brief(value)}.")
    _check_controller(args)
    _check_sampling(args, inspect.signature(engine).parameters)
    _check_vllm(args)
    parse_constraints(args.reward_constraints or ())
    bounds, weights = args.reward_clip_range, args.reward_weights
    if bounds is not None and (len(bounds) != 2 or bounds[0] >= bounds[1]):
        raise ValueError(f"`reward_clip_range` must be a lower and a higher bound, got {bounds}.")
    band = args.mask_ratio_range
    if band is not None and (len(band) != 2 or not band[0] < 1 < band[1]):
        raise ValueError(f"`mask_ratio_range` must be a ratio below 1 and one above 1, such as 0.5 2, got {band}.")
    if weights is not None and not any(weights):
        raise ValueError(f"`reward_weights` are {weights}, so nothing would be learned; set at least one of them.")
    for name in ("critic_lora_rank", "critic_target_modules", "num_critics"):
        if _is_set(args, name) and args.critic != "adapter":
            raise ValueError(f"`{name}` {getattr(args, name)} needs `critic='adapter'`; leave it out otherwise.")
    if args.critic_target_modules is not None and not all(args.critic_target_modules or [""]):
        raise ValueError(f"`critic_target_modules` must name layers, got {args.critic_target_modules}.")
    if args.kl_estimator == "exact" and args.kl_loss_coef > 0:
        raise ValueError(
            f"`kl_loss_coef` {args.kl_loss_coef} penalizes the KL a second time beside `kl_estimator='exact'`, which "
            "has a loss of its own; leave it out and set `kl_coef`."
        )
    if _checkpoints_reentrantly(args) and args.critic == "adapter":
        raise ValueError("`critic='adapter'` needs checkpointing with `use_reentrant=False`.")
    _check_checkpointing(args)
    _check_critic(args)
    sharder = "FSDP" if asks_for_fsdp(args) else "ZeRO-3" if zero_stage(args) == 3 else ""
    for name, reason in {"FSDP": NOT_WITH_FSDP, "ZeRO-3": NOT_GATHERED}.get(sharder, {}).items():
        if value := getattr(args, name):
            raise ValueError(f"`{name}` {value} is not supported with {sharder}: {reason}; leave it out.")
    if args.max_steps == 0:
        raise ValueError("`max_steps` must be at least 1, or -1 to count by `num_train_epochs`, got 0.")
    _check_sizes(args)


def _check_checkpointing(args: Any) -> None:
    """Refuse a choice of layers that is no choice, or that the installed transformers would not follow."""
    every = checkpointing_kwargs(args).get("every_n_layers")
    if every is None:
        return
    if type(every) is not int or every < 1:
        raise ValueError(
            f"`every_n_layers` in `gradient_checkpointing_kwargs` must be an integer of at least 1, got {every!r}."
        )
    enable = getattr(PreTrainedModel, "activation_checkpointing_enable", None)
    if enable is None or "every_n_layers" not in inspect.signature(enable).parameters:
        raise ValueError(
            "`every_n_layers` in `gradient_checkpointing_kwargs` needs a newer transformers; upgrade it, or leave "
            "`every_n_layers` out."
        )


def _check_controller(args: Any) -> None:
    chosen = args.kl_controller
    for setting, needed in settings_of(chosen).items():
        if needed and getattr(args, setting) is None:
            meaning = args.__dataclass_fields__[setting].metadata["help"].rstrip(".")
            raise ValueError(f"`kl_controller='{chosen}'` needs `{setting}` ({meaning}).")
    try:
        make_controller(chosen, vars(args), episodes=1)
    except ValueError as error:
        raise ValueError(f"`kl_controller='{chosen}'`: {error}") from None


def _check_sampling(args: Any, followed: Container[str]) -> None:
    used = [n for n in ("min_p", "stop_strings", "cache_implementation", "generation_kwargs") if getattr(args, n)]
    used += ["repetition_penalty"] if args.repetition_penalty != 1.0 else []
    if unknown := [name for name in used if name not in followed]:
        raise ValueError(
            f"`use_{args.engine}` cannot do {', '.join(f'`{n}`' for n in unknown)}; leave one of them out."
        )
    if "" in (args.stop_strings or []):
        raise ValueError(f"`stop_strings` must not have an empty text, got {args.stop_strings}.")
    given = args.generation_kwargs or {}
    if taken := OWN & given.keys():
        raise ValueError(
            f"`generation_kwargs` has {', '.join(sorted(taken))}, which PPO decides; use the field of PPOConfig where "
            "there is one."
        )
    if args.corrects_for_engine and (unseen := switched_on(APPLIED_LAST, given)):
        raise ValueError(
            f"`generation_kwargs` has {', '.join(unseen)}, whose effect `importance_sampling_correction` "
            "cannot see; leave one of them out."
        )
    if args.cache_implementation is not None and "cache_implementation" in given:
        raise ValueError("`cache_implementation` is set, and again in `generation_kwargs`; leave one of them out.")
    batching = [field.name for field in dataclasses.fields(ContinuousBatchingConfig)]
    _check_keys("generation_kwargs", given, list(GenerationConfig().to_dict()))
    _check_keys("transformers_continuous_batching_config", args.transformers_continuous_batching_config or {}, batching)


def distribution_settings(args: Any) -> list[str]:
    """Return the settings that make the distribution that is sampled another than the one that is learned."""
    given = switched_on(SHAPING | APPLIED_LAST, args.generation_kwargs)
    fields = [name for name in ("top_p", "top_k", "min_p", "repetition_penalty") if _is_set(args, name)]
    return [*fields, *(f"generation_kwargs.{name}" for name in given)]


def _check_vllm(args: Any) -> None:
    if args.async_rollouts and (not args.use_vllm or args.vllm_mode != "server"):
        raise ValueError(
            "`async_rollouts` needs an engine that samples while this process learns; set `use_vllm` and "
            "`vllm_mode='server'`, or leave `async_rollouts` out."
        )
    if not args.use_vllm:
        return
    if args.use_transformers_continuous_batching:
        raise ValueError(
            "`use_vllm` and `use_transformers_continuous_batching` are two ways to sample; leave one of them out."
        )
    if args.world_size > 1:
        raise ValueError(
            f"`use_vllm` is not supported with {args.world_size} processes, with which it was never run; start one "
            "process, or leave `use_vllm` out."
        )


def _check_keys(name: str, given: dict[str, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(
                f"`{name}` has no `{key}`: {suggestion(str(key), known) or 'see transformers for its keys.'}"
            )


def _check_critic(args: Any) -> None:
    """Refuse an optimizer of the critic's own where the critic's parameters or gradients are not its to step on."""
    used = [f"`{n}` {getattr(args, n)}" for n in ("critic_epochs", "critic_pretraining_episodes") if getattr(args, n)]
    if not used:
        return
    sharder = "FSDP" if asks_for_fsdp(args) else "DeepSpeed" if zero_stage(args) is not None else None
    if sharder is not None:
        raise ValueError(
            f"{' and '.join(used)} trains the critic outside of {sharder}, which shards what trains it; leave it out, "
            f"or leave {sharder} out."
        )
    if _checkpoints_reentrantly(args):
        raise ValueError(f"{' and '.join(used)} needs checkpointing with `use_reentrant=False`.")
    if args.fp16:
        raise ValueError(f"{' and '.join(used)} has no gradient scaler, which `fp16` needs; use `bf16` or float32.")


def _check_sizes(args: Any) -> None:
    local, parts = args.local_batch_size, args.num_mini_batches
    sizes = (
        f"`per_device_train_batch_size` {args.per_device_train_batch_size} x `gradient_accumulation_steps` "
        f"{args.gradient_accumulation_steps} = {local} completions per rollout"
    )
    if local % parts:
        raise ValueError(f"`num_mini_batches` {parts} does not divide {sizes}; choose a divisor of {local}.")
    if args.local_mini_batch_size % args.micro_batch_size:
        raise ValueError(
            f"{sizes} in {parts} minibatches leave {args.local_mini_batch_size} per step, which is not a multiple of "
            f"`per_device_train_batch_size`; choose one that divides {args.local_mini_batch_size}."
        )


def warn_where_doubtful(args: Any) -> None:
    """Warn of settings that are allowed and rarely wanted."""
    if args.kl_estimator in ("k2", "k3") and args.kl_coef > 0:
        _warn(
            f"`kl_estimator='{args.kl_estimator}'` inside the reward gives a biased gradient of the KL; use 'k1' "
            "there, or `kl_loss_coef` with `kl_loss_estimator`."
        )
    shortest = math.ceil(0.4 * args.batch_size)  # an update changes it by 0.2 * episodes / horizon at most
    if args.kl_controller == "adaptive" and args.kl_horizon and args.kl_horizon < shortest:
        _warn(
            f"`kl_horizon` {args.kl_horizon} is short beside a rollout of {args.batch_size} episodes: one update may "
            f"change the coefficient by more than half; choose {shortest} or more, or leave it out."
        )
    used = distribution_settings(args)
    unseen = switched_on(APPLIED_LAST, args.generation_kwargs)
    remedy = "" if unseen else " or set `importance_sampling_correction=True`"
    if used and not args.corrects_for_engine:
        _warn(
            f"{', '.join(f'`{n}`' for n in used)} changes the distribution that is sampled but not the one that is "
            f"learned; leave it off{remedy}."
        )
    if args.async_rollouts and not args.corrects_for_engine:
        _warn(
            "`async_rollouts` samples from the policy of one rollout ago; without `importance_sampling_correction` its "
            "samples count as the present policy's."
        )
    if args.merges_while_sampling and not args.corrects_for_engine:
        _warn(
            "`merge_adapters_while_sampling` samples from weights that are rounded otherwise than those that learn; "
            "leave `importance_sampling_correction` out."
        )
    if function_bounds(args.reward_constraints) and args.metric_for_best_model in ("reward", "eval_reward"):
        _warn(
            f"`metric_for_best_model='{args.metric_for_best_model}'` knows nothing of `reward_constraints`, so a model "
            "out of bounds may be the best; keep the last model, or choose another metric."
        )
    episodes, size = args.total_episodes, args.batch_size
    if episodes is not None and episodes % size:
        _warn(
            f"`total_episodes` {episodes} is rounded up to {-(-episodes // size) * size}, since a rollout has {size} "
            "completions."
        )


def warn_without_effect(args: Any) -> None:
    """Warn of settings that another setting switches off."""
    controller, read_by_it = f"`kl_controller='{args.kl_controller}'`", settings_of(args.kl_controller)
    own, apart = args.critic_epochs is not None, args.learns_critic_apart
    one_step = "one optimizer step per rollout, before which the policy has not moved"
    # When the settings are read, the settings, and why they are not read otherwise.
    conditions: list[tuple[bool, tuple[str, ...], str]] = [
        *((setting in read_by_it, (setting,), f"with {controller}") for setting in all_settings()),
        (
            args.num_critics > 1 or args.critic not in CRITIC_MODES,  # an earlier run's may be two
            ("critic_agreement_share",),
            "without `num_critics` 2",
        ),
        (args.kl_loss_coef > 0, ("kl_loss_estimator", "use_bias_correction_kl"), "without `kl_loss_coef`"),
        (args.ptx_coef > 0, ("ptx_max_length",), "without `ptx_coef`"),
        (
            args.corrects_for_engine,
            ("importance_sampling_cap", "max_engine_gap", "max_engine_capped"),
            "without `importance_sampling_correction`",
        ),
        (not args.use_vllm, ("merge_adapters_while_sampling",), "with `use_vllm`, which has weights of its own"),
        (args.use_vllm, ("vllm_mode", *_COLOCATED, *_SERVER), "without `use_vllm`"),
        (not args.use_vllm or args.vllm_mode == "colocate", _COLOCATED, "with `vllm_mode='server'`"),
        (not args.use_vllm or args.vllm_mode == "server", _SERVER, "with `vllm_mode='colocate'`"),
        (
            args.vllm_server_base_url is None,
            ("vllm_server_host", "vllm_server_port"),
            "beside `vllm_server_base_url`",
        ),
        (
            args.use_transformers_continuous_batching,
            ("transformers_continuous_batching_config",),
            "without `use_transformers_continuous_batching`",
        ),
        (
            args.vf_coef > 0 or apart,
            ("critic_learning_rate", "cliprange_value", "critic_reads_reward_every"),
            "with `vf_coef` 0",
        ),
        (
            (args.critic_reads_reward_every or 0) < args.max_completion_length,
            ("critic_reads_reward_every",),
            f"with completions of at most {args.max_completion_length} tokens",
        ),
        (args.vf_coef > 0 or own, ("critic_warmup_rollouts", "scale_returns"), "with `vf_coef` 0"),
        (not own, ("vf_coef",), "with `critic_epochs`, in which the critic learns by itself"),
        (
            apart,
            ("critic_mini_batches", "critic_max_grad_norm"),
            "without `critic_epochs` or `critic_pretraining_episodes`",
        ),
        (
            args.critic_pretraining_episodes > 0,
            ("critic_pretraining_epochs", "critic_pretraining_learning_rate"),
            "without `critic_pretraining_episodes`",
        ),
        (args.steps_per_rollout > 1, ("cliprange_high", "dual_clip", "target_approx_kl"), f"with {one_step}"),
        (
            args.steps_per_rollout > 1 or args.corrects_for_engine,
            ("mask_ratio_range",),
            f"with {one_step}",
        ),
        (args.total_episodes is None, ("max_steps",), "beside `total_episodes`, which decides the length of the run"),
        (
            args.total_episodes is None and args.max_steps < 0,
            ("num_train_epochs",),
            f"beside `{'max_steps' if args.total_episodes is None else 'total_episodes'}`, which decides the length of "
            "the run",
        ),
        (args.log_completions, ("num_completions_to_print",), "without `log_completions`"),
    ]
    for read, names, reason in conditions:
        for name in names:
            if not read and _is_set(args, name):
                _warn(f"`{name}` has no effect {reason}.")


def _checkpoints_reentrantly(args: Any) -> bool:
    return bool(checkpointing_kwargs(args).get("use_reentrant"))


def _is_set(args: Any, name: str) -> bool:
    return bool(getattr(args, name) != args.__dataclass_fields__[name].default)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=7)
