# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Advice for names of settings in other trainers, for Python and for command lines."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .suggestion import suggestion

T = TypeVar("T")

# Advice, and the names that it answers: of TRL's trainers old and new, transformers, OpenRLHF, verl, trlX,
# LLaMA-Factory and Stable-Baselines3.
_ANSWERED: dict[str, str] = {
    "use `max_completion_length`.": "response_length max_new_tokens max_tokens max_response_length",
    "leave it out, a completion ends at every EOS token of the model; further texts go into `stop_strings`.": (
        "stop_token stop_token_id"
    ),
    "the policy is `model` of PPOTrainer, in the recipes `model_name_or_path`.": "sft_model_path model_name",
    "a reward model is one of `reward_funcs`, given by name or as an object.": (
        "reward_model_path reward_model reward_models"
    ),
    "use `reward_funcs`.": "reward_func reward_function reward_functions",
    "use `reward_processing_classes`.": "reward_tokenizer reward_processing_class",
    "name a folder or a model of the Hub in `critic` of PPOConfig, or use one of its other choices.": (
        "value_model critic_model"
    ),
    "leave it out, the reference is made of `model`: its base without the adapter, or a frozen copy.": (
        "ref_model reference_model create_reference_model ref_adapter_name"
    ),
    "leave it out, the trainer names the adapters; the policy's adapter stays 'default'.": "model_adapter_name",
    "use `model`.": "policy policy_model actor_model sft_model model_name_or_path model_init",
    "use `args`, a PPOConfig.": "config training_args",
    "use `processing_class`.": "tokenizer",
    "use `train_dataset`.": "dataset query_dataset",
    "leave it out, prompts of a rollout are tokenized and padded by the trainer.": "data_collator pad_to_multiple_of",
    "use `run_name`.": "exp_name task_name",
    "use `log_completions` and `num_completions_to_print`.": "num_sample_generations",
    "leave it out, prompts are tokenized rollout by rollout.": "dataset_num_proc",
    "leave it out, FSDP2 and ZeRO-3 gather the weights for generation by themselves.": ("ds3_gather_for_generation"),
    "set `per_device_train_batch_size` and `gradient_accumulation_steps`; their product is sampled per rollout.": (
        "batch_size local_batch_size generation_batch_size rollout_batch_size steps_per_generation"
    ),
    "use `per_device_train_batch_size`.": "micro_batch_size backward_batch_size per_gpu_train_batch_size",
    "set `num_mini_batches`, the number of optimizer steps in each pass over a rollout.": (
        "mini_batch_size local_mini_batch_size"
    ),
    "use `total_episodes`.": "num_total_batches steps",
    "leave it out, the launcher (`accelerate launch`, `torchrun`) decides.": "world_size",
    "use `num_ppo_epochs`.": "ppo_epochs noptepochs num_iterations n_epochs",
    "use `kl_coef`.": "init_kl_coef",
    "use `kl_controller='adaptive'` with `kl_target`.": "adap_kl_ctrl",
    "use `kl_target`.": "target",
    "use `kl_horizon`.": "horizon",
    "use `kl_estimator`.": "kl_penalty",
    "use `kl_controller`.": "kl_ctl",
    "use `target_approx_kl`.": "target_kl early_stopping",
    "use `max_ratio`.": "ratio_threshold",
    "use `whiten_rewards`, or wrap the reward function in `trl_ext.rewards.RunningNormalization`.": (
        "use_score_scaling use_score_norm"
    ),
    "use `reward_clip_range`.": "score_clip",
    "use `report_to` and `run_name`.": "log_with tracker_kwargs tracker_project_name",
    "give PPOTrainer a `peft_config=LoraConfig(...)`; in the recipes set `use_peft`.": (
        "is_peft_model use_peft lora_config lora_r lora_alpha lora_dropout lora_target_modules"
    ),
    "use `torch_empty_cache_steps`.": "optimize_cuda_cache optimize_device_cache",
    "use `local_rollout_forward_batch_size`.": "forward_batch_size",
    "use `optimizers=(optimizer, scheduler)`.": "optimizer lr_scheduler optimizer_cls_and_kwargs",
    "leave it out, a critic on the policy's own trunk is `critic='head'`.": "num_shared_layers",
    "use `kl_coef` for the penalty in the reward, `kl_loss_coef` for a loss.": "beta",
    "use `cliprange`.": "epsilon clip_range clip_ratio eps_clip clip_eps",
    "use `cliprange_high`.": "epsilon_high",
    "use `dual_clip`.": "delta",
    "leave it out, PPO samples one completion per prompt; repeat a prompt in the data set for more.": (
        "num_generations num_generations_eval"
    ),
    "use `max_prompt_length` and `max_completion_length`.": "max_length max_seq_length",
    "leave it out, PPO has one loss; `cliprange`, `dual_clip` and `kl_loss_coef` shape it.": (
        "loss_type importance_sampling_level compute_loss_func"
    ),
    "leave it out, rewards are summed with `reward_weights`.": "multi_objective_aggregation",
    "use `whiten_rewards` or `whiten_advantages`.": "scale_rewards",
    "use `whiten_advantages`.": "normalize_advantages",
    "use `missing_eos_penalty`, or `bootstrap_truncated`.": "mask_truncated_completions",
    "leave it out, dropout is always off, so that old and new log-probabilities agree.": "disable_dropout",
    "leave it out, the reference is fixed during a run.": ("sync_ref_model ref_model_sync_steps ref_model_mixup_alpha"),
    "use `entropy_coef`.": (
        "use_adaptive_entropy entropy_target entropy_coef_min entropy_coef_max entropy_coef_delta ent_coef "
        "entropy_coeff"
    ),
    "leave it out, every completion token is learned from.": "top_entropy_quantile",
    "leave it out, the router of a mixture of experts has no loss of its own here.": "router_aux_loss_coef",
    "use `use_transformers_continuous_batching`.": "use_transformers_paged",
    "leave it out, a colocated vLLM runs on the policy's device.": "vllm_tensor_parallel_size",
    "leave it out, the vLLM server is given weights as files.": "vllm_group_port",
    "use `importance_sampling_correction`.": "vllm_importance_sampling_correction",
    "use `importance_sampling_cap`.": "vllm_importance_sampling_cap vllm_importance_sampling_clip_max",
    "use `importance_sampling_cap` and `mask_ratio_range`.": (
        "vllm_importance_sampling_mode vllm_importance_sampling_clip_min"
    ),
    "use `async_rollouts`, which samples one rollout ahead.": "max_staleness async_train",
    "leave it out, with `async_rollouts` the server samples one rollout at a time, from new weights each.": (
        "max_inflight_tasks queue_maxsize weight_sync_steps"
    ),
    "leave it out, vLLM chooses its own implementation of a model.": "vllm_model_impl",
    "leave it out, completions are free text.": "vllm_structured_outputs_regex",
    "leave it out, `log_completions` shows every prompt beside its completion.": "log_unique_prompts",
    "leave it out, prompts are a column `prompt` of `train_dataset`.": "dataset_text_field packing formatting_func",
    "leave it out, a completion is one turn of the policy without tools.": "rollout_func tools environment_factory",
    "give PPOTrainer a `quantization_config=BitsAndBytesConfig(...)`; in the recipes set `load_in_4bit`.": (
        "load_in_4bit load_in_8bit"
    ),
    "use `quantization_config`.": "bnb_config",
    "put it into `model_init_kwargs`.": "dtype torch_dtype attn_implementation",
    "leave it out, the trainer places the model; for several GPUs use `accelerate launch`.": "device_map",
    "use `eval_strategy`.": "evaluation_strategy",
    "use `use_cpu`.": "no_cuda",
    "leave it out, transformers 5 has no such setting.": (
        "use_mps_device half_precision_backend fp16_opt_level fp16_backend past_index"
    ),
    "use `warmup_steps`; below 1 it is a share of all steps.": "warmup_ratio",
    "leave it out; `resume_from_checkpoint` decides whether a run goes on.": "overwrite_output_dir",
    "leave it out, `shuffle_dataset` decides the order of the prompts.": "group_by_length",
    "use `per_device_eval_batch_size`.": "per_gpu_eval_batch_size",
    "use `optim='adafactor'`.": "adafactor",
    "leave it out, everything is saved as safetensors.": "save_safetensors",
    "use `hub_token`.": "push_to_hub_token",
    "use `hub_model_id`.": "push_to_hub_model_id",
    "set the environment variable TENSORBOARD_LOGGING_DIR.": "logging_dir",
    "use `compute_metrics` of PPOTrainer, a function of completions.": (
        "include_inputs_for_metrics preprocess_logits_for_metrics"
    ),
    "use `eval_reward_funcs`.": "eval_reward_func eval_reward_functions judge judges",
    "use `learning_rate`.": "lr actor_learning_rate actor_lr",
    "use `critic_learning_rate`.": "critic_lr value_learning_rate",
    "use `lam`.": "gae_lambda lambd",
    "use `gamma`.": "discount discount_factor",
    "use `cliprange_value`.": "clip_range_vf value_clip",
    "use `vf_coef`.": "value_coef value_loss_coef",
    "use `critic_warmup_rollouts`.": "freezing_steps",
}
ADVICE = {name: text for text, names in _ANSWERED.items() for name in names.split()}

# Arguments of PPOTrainer, which a configuration does not take.
TRAINER_ARGUMENTS = (
    *("model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class"),
    *("reward_processing_classes", "callbacks", "optimizers", "quantization_config", "peft_config", "ptx_dataset"),
    *("eval_reward_funcs", "compute_metrics"),
)


def advice(name: str, known: Iterable[str]) -> str:
    """Return advice on an unknown name.

    Args:
        name: The name, without dashes.
        known: Names that exist.

    Returns:
        A text to put behind a colon; empty where there is no advice and no similar name.
    """
    return ADVICE.get(name) or suggestion(name, known)


def answers_unknown(
    kind: str, other: str = "", names: Iterable[str] = (), check: Callable[..., None] | None = None
) -> Callable[[type[T]], type[T]]:
    """Make a class decorator that answers wrong arguments of `__init__` with advice.

    The class keeps its signature. Its `__init__` raises TypeError, in one sentence, for an unknown keyword, for an
    argument given twice, and for too many or too few arguments.

    Args:
        kind: The word for an argument of this class.
        other: Name of the class with the other settings of a run; empty for a class without settings of a run, for
            which there is no advice on other trainers' names.
        names: Arguments of the class `other`.
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
