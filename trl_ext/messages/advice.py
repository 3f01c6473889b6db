# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Names of settings in other trainers, and what to write here instead; for Python and for command lines."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .suggestion import suggestion

T = TypeVar("T")

_LENGTH = "use `max_completion_length`."
_STOP = "leave it out, a completion ends at every EOS token of the model; further texts go into `stop_strings`."
_POLICY = "the policy is `model` of PPOTrainer, in the recipes `model_name_or_path`."
_REFERENCE = "leave it out, the reference is made of `model`: its base without the adapter, or a frozen copy."
_REWARD = "a reward model is one of `reward_funcs`, given by name or as an object."
_VALUE = "name a folder or a model of the Hub in `critic` of PPOConfig, or use one of its other choices."
_BATCH = "set `per_device_train_batch_size` and `gradient_accumulation_steps`; their product is sampled per rollout."
_MINIBATCH = "set `num_mini_batches`, the number of optimizer steps in each pass over a rollout."
_EPOCHS = "use `num_ppo_epochs`."
_CLIP, _CLIP_HIGH, _CLIP_VALUE = "use `cliprange`.", "use `cliprange_high`.", "use `cliprange_value`."
_KL = "use `kl_coef` for the penalty in the reward, `kl_loss_coef` for a loss."
_ENTROPY, _LAMBDA, _RATE, _CRITIC_RATE = (
    *("use `entropy_coef`.", "use `lam`."),
    *("use `learning_rate`.", "use `critic_learning_rate`."),
)
_GROUP = "leave it out, PPO samples one completion per prompt; repeat a prompt in the data set for more."
_ENGINE = "vLLM is not supported; `use_transformers_continuous_batching` is the fast way to sample."
_SCALE = "use `whiten_rewards`, or wrap the reward function in `trl_ext.rewards.RunningNormalization`."
_FIXED_REFERENCE = "leave it out, the reference does not move during a run."
_ONE_LOSS = "leave it out, PPO has one loss; `cliprange`, `dual_clip` and `kl_loss_coef` shape it."
_LORA = "give PPOTrainer a `peft_config=LoraConfig(...)`; in the recipes set `use_peft`."
_QUANTIZATION = "give PPOTrainer a `quantization_config=BitsAndBytesConfig(...)`; in the recipes set `load_in_4bit`."
_LOADING = "put it into `model_init_kwargs`."
_TOKENIZER = "use `processing_class`."
_PROMPTS = "leave it out, prompts are a column `prompt` of `train_dataset`."
_TRACKER = "use `report_to` and `run_name`."
_COLLATOR = "leave it out, prompts of a rollout are tokenized and padded by the trainer."
_NO_TOOLS = "leave it out, a completion is one turn of the policy without tools."
_METRICS = "write a reward function; with a weight of 0 it is measured and not learned from."
_OPTIMIZER = "use `optimizers=(optimizer, scheduler)`."
_GONE = "leave it out, transformers 5 has no such setting."

ADVICE: dict[str, str] = {
    # TRL's PPOConfig and PPOTrainer
    "response_length": _LENGTH,
    "stop_token": _STOP,
    "stop_token_id": _STOP,
    "sft_model_path": _POLICY,
    "reward_model_path": _REWARD,
    "reward_model": _REWARD,
    "reward_models": _REWARD,
    "reward_func": "use `reward_funcs`.",
    "reward_function": "use `reward_funcs`.",
    "reward_functions": "use `reward_funcs`.",
    "reward_tokenizer": "use `reward_processing_classes`.",
    "reward_processing_class": "use `reward_processing_classes`.",
    "value_model": _VALUE,
    "critic_model": _VALUE,
    "ref_model": _REFERENCE,
    "reference_model": _REFERENCE,
    "create_reference_model": _REFERENCE,
    "model_adapter_name": "leave it out, the trainer names the adapters; the policy's adapter stays 'default'.",
    "ref_adapter_name": _REFERENCE,
    "policy": "use `model`.",
    "policy_model": "use `model`.",
    "actor_model": "use `model`.",
    "sft_model": "use `model`.",
    "config": "use `args`, a PPOConfig.",
    "training_args": "use `args`, a PPOConfig.",
    "tokenizer": _TOKENIZER,
    "dataset": "use `train_dataset`.",
    "data_collator": _COLLATOR,
    "exp_name": "use `run_name`.",
    "num_sample_generations": "use `log_completions` and `num_completions_to_print`.",
    "dataset_num_proc": "leave it out, prompts are tokenized rollout by rollout.",
    "ds3_gather_for_generation": "leave it out, DeepSpeed is not supported.",
    "batch_size": _BATCH,
    "local_batch_size": _BATCH,
    "generation_batch_size": _BATCH,
    "rollout_batch_size": _BATCH,
    "steps_per_generation": _BATCH,
    "micro_batch_size": "use `per_device_train_batch_size`.",
    "mini_batch_size": _MINIBATCH,
    "local_mini_batch_size": _MINIBATCH,
    "num_total_batches": "use `total_episodes`.",
    "world_size": "leave it out, the launcher (`accelerate launch`, `torchrun`) decides.",
    # TRL's first PPO
    "ppo_epochs": _EPOCHS,
    "noptepochs": _EPOCHS,
    "init_kl_coef": "use `kl_coef`.",
    "adap_kl_ctrl": "use `kl_controller='adaptive'` with `kl_target`.",
    "target": "use `kl_target`.",
    "horizon": "use `kl_horizon`.",
    "kl_penalty": "use `kl_estimator`.",
    "kl_ctl": "use `kl_controller`.",
    "target_kl": "use `target_approx_kl`.",
    "early_stopping": "use `target_approx_kl`.",
    "ratio_threshold": "use `max_ratio`.",
    "steps": "use `total_episodes`.",
    "use_score_scaling": _SCALE,
    "use_score_norm": _SCALE,
    "score_clip": "use `reward_clip_range`.",
    "log_with": _TRACKER,
    "tracker_kwargs": _TRACKER,
    "tracker_project_name": _TRACKER,
    "task_name": "use `run_name`.",
    "model_name": _POLICY,
    "query_dataset": "use `train_dataset`.",
    "is_peft_model": _LORA,
    "optimize_cuda_cache": "use `torch_empty_cache_steps`.",
    "optimize_device_cache": "use `torch_empty_cache_steps`.",
    "forward_batch_size": "use `local_rollout_forward_batch_size`.",
    "backward_batch_size": "use `per_device_train_batch_size`.",
    "optimizer": _OPTIMIZER,
    "lr_scheduler": _OPTIMIZER,
    "num_shared_layers": "leave it out, a critic on the policy's own trunk is `critic='head'`.",
    # TRL's GRPO, RLOO, online DPO, SFT and model arguments
    "beta": _KL,
    "epsilon": _CLIP,
    "epsilon_high": _CLIP_HIGH,
    "delta": "use `dual_clip`.",
    "num_iterations": _EPOCHS,
    "num_generations": _GROUP,
    "num_generations_eval": _GROUP,
    "max_new_tokens": _LENGTH,
    "max_length": "use `max_prompt_length` and `max_completion_length`.",
    "max_seq_length": "use `max_prompt_length` and `max_completion_length`.",
    "loss_type": _ONE_LOSS,
    "importance_sampling_level": _ONE_LOSS,
    "multi_objective_aggregation": "leave it out, rewards are summed with `reward_weights`.",
    "scale_rewards": "use `whiten_rewards` or `whiten_advantages`.",
    "normalize_advantages": "use `whiten_advantages`.",
    "mask_truncated_completions": "use `missing_eos_penalty`, or `bootstrap_truncated`.",
    "disable_dropout": "leave it out, dropout is always off, so that old and new log-probabilities agree.",
    "sync_ref_model": _FIXED_REFERENCE,
    "ref_model_sync_steps": _FIXED_REFERENCE,
    "ref_model_mixup_alpha": _FIXED_REFERENCE,
    "use_adaptive_entropy": _ENTROPY,
    "entropy_target": _ENTROPY,
    "entropy_coef_min": _ENTROPY,
    "entropy_coef_max": _ENTROPY,
    "entropy_coef_delta": _ENTROPY,
    "top_entropy_quantile": "leave it out, every completion token is learned from.",
    "router_aux_loss_coef": "leave it out, the router of a mixture of experts has no loss of its own here.",
    "use_transformers_paged": "use `use_transformers_continuous_batching`.",
    "cache_implementation": "put it into `generation_kwargs`.",
    "pad_to_multiple_of": _COLLATOR,
    "use_vllm": _ENGINE,
    "vllm_importance_sampling_correction": "use `importance_sampling_correction`.",
    "vllm_importance_sampling_cap": "use `importance_sampling_cap`.",
    "log_unique_prompts": "leave it out, `log_completions` shows every prompt beside its completion.",
    "dataset_text_field": _PROMPTS,
    "packing": _PROMPTS,
    "formatting_func": _PROMPTS,
    "judge": "a judge is one of `reward_funcs`.",
    "rollout_func": _NO_TOOLS,
    "tools": _NO_TOOLS,
    "environment_factory": _NO_TOOLS,
    "use_peft": _LORA,
    "lora_config": _LORA,
    "lora_r": _LORA,
    "lora_alpha": _LORA,
    "lora_dropout": _LORA,
    "lora_target_modules": _LORA,
    "load_in_4bit": _QUANTIZATION,
    "load_in_8bit": _QUANTIZATION,
    "bnb_config": "use `quantization_config`.",
    "model_name_or_path": "use `model`.",
    "dtype": _LOADING,
    "torch_dtype": _LOADING,
    "attn_implementation": _LOADING,
    "device_map": "leave it out, the trainer places the model; several GPUs go through `accelerate launch`.",
    # transformers
    "evaluation_strategy": "use `eval_strategy`.",
    "no_cuda": "use `use_cpu`.",
    "use_mps_device": _GONE,
    "warmup_ratio": "use `warmup_steps`; below 1 it is a share of all steps.",
    "overwrite_output_dir": "leave it out; `resume_from_checkpoint` decides whether a run goes on.",
    "group_by_length": "leave it out, `shuffle_dataset` decides the order of the prompts.",
    "per_gpu_train_batch_size": "use `per_device_train_batch_size`.",
    "per_gpu_eval_batch_size": "use `per_device_eval_batch_size`.",
    "adafactor": "use `optim='adafactor'`.",
    "save_safetensors": "leave it out, everything is saved as safetensors.",
    "push_to_hub_token": "use `hub_token`.",
    "push_to_hub_model_id": "use `hub_model_id`.",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR.",
    "half_precision_backend": _GONE,
    "fp16_opt_level": _GONE,
    "fp16_backend": _GONE,
    "past_index": _GONE,
    "include_inputs_for_metrics": _METRICS,
    "compute_metrics": _METRICS,
    "preprocess_logits_for_metrics": _METRICS,
    "compute_loss_func": _ONE_LOSS,
    "model_init": "use `model`.",
    "optimizer_cls_and_kwargs": _OPTIMIZER,
    # OpenRLHF, verl, trlX, LLaMA-Factory, Stable-Baselines3
    "lr": _RATE,
    "actor_learning_rate": _RATE,
    "actor_lr": _RATE,
    "critic_lr": _CRITIC_RATE,
    "value_learning_rate": _CRITIC_RATE,
    "gae_lambda": _LAMBDA,
    "lambd": _LAMBDA,
    "discount": "use `gamma`.",
    "discount_factor": "use `gamma`.",
    "clip_range": _CLIP,
    "clip_ratio": _CLIP,
    "eps_clip": _CLIP,
    "clip_eps": _CLIP,
    "clip_range_vf": _CLIP_VALUE,
    "value_clip": _CLIP_VALUE,
    "ent_coef": _ENTROPY,
    "entropy_coeff": _ENTROPY,
    "value_coef": "use `vf_coef`.",
    "value_loss_coef": "use `vf_coef`.",
    "n_epochs": _EPOCHS,
    "max_tokens": _LENGTH,
    "max_response_length": _LENGTH,
    "freezing_steps": "use `critic_warmup_rollouts`.",
}


# Arguments of PPOTrainer, which a configuration does not take.
TRAINER_ARGUMENTS = (
    *("model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class"),
    *("reward_processing_classes", "callbacks", "optimizers", "quantization_config", "peft_config", "ptx_dataset"),
)


def advice(name: str, known: Iterable[str]) -> str:
    """Answer an unknown name with what to write instead.

    Args:
        name: As the user wrote it, without dashes.
        known: Names that exist.

    Returns:
        A text to put behind a colon; empty where nothing is known and no name is near.
    """
    if name.startswith("vllm_") and name not in ADVICE:
        return _ENGINE
    return ADVICE.get(name) or suggestion(name, known)


def answers_unknown(
    kind: str, other: str = "", names: Iterable[str] = (), check: Callable[..., None] | None = None
) -> Callable[[type[T]], type[T]]:
    """Decorate a class so that arguments that its `__init__` cannot take are answered with advice.

    The class keeps its signature. Its `__init__` raises TypeError, in one sentence, for an unknown keyword, for an
    argument given twice, too many or too few.

    Args:
        kind: The word for an argument of this class.
        other: Name of the class that the other half of a run's settings goes to; empty for a class without settings of
            a run, which other trainers' names do not concern.
        names: Arguments of that class.
        check: Called with the arguments before the class's own `__init__`.
    """

    def decorate(cls: type[T]) -> type[T]:
        init: Any = cls.__init__
        known = inspect.signature(init).parameters
        elsewhere = [name for name in names if name not in known]

        @functools.wraps(init)
        def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in kwargs:
                if name not in known:
                    help = _for_keyword(name, list(known), elsewhere, other)
                    raise TypeError(
                        f"{cls.__name__} has no {kind} `{name}`: {help or f'`help({cls.__name__})` lists all.'}"
                    )
            try:
                given = inspect.signature(init).bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{cls.__name__}: {error}; give every {kind} once, by its name.") from None
            if check is not None:
                check(*given.args[1:], **given.kwargs)
            init(self, *args, **kwargs)

        setattr(cls, "__init__", checked_init)  # noqa: B010 - mypy does not let a method be assigned
        return cls

    return decorate


def _for_keyword(name: str, known: list[str], elsewhere: list[str], other: str) -> str:
    if name in elsewhere:
        return f"give it to {other}."
    text = advice(name, known) if other else suggestion(name, known)
    needs_owner = other not in text and any(f"`{there}`" in text for there in elsewhere)
    return f"in {other}, {text}" if needs_owner else text
