# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Settings that `PPOConfig` refuses in Python, each with the sentence that answers."""

import math
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.training_args import ParallelMode

from tests.bad_inputs.case import Case, check, table
from trl_ext import PPOConfig
from trl_ext.checks import training_arguments


def config(**settings: Any) -> Callable[[], PPOConfig]:
    return lambda: PPOConfig(**{"output_dir": "unused", "report_to": "none", "use_cpu": True} | settings)


def case(error: type[Exception], message: str, **settings: Any) -> Case:
    name = "-".join(f"{name}={reprlib.repr(value)}" for name, value in settings.items())
    return Case(name, config(**settings), error, message)


TYPES = [
    case(TypeError, "`temperature` must be a number, got '0.7'.", temperature="0.7"),
    case(TypeError, "`learning_rate` must be a number, got '1e-5'.", learning_rate="1e-5"),
    case(TypeError, "`gamma` must be a number, got True.", gamma=True),
    case(TypeError, "`kl_coef` must be a number, got None.", kl_coef=None),
    case(TypeError, "`kl_target` must be a number or None, got [6.0].", kl_target=[6.0]),
    case(TypeError, "`num_ppo_epochs` must be an integer, got True.", num_ppo_epochs=True),
    case(TypeError, "`num_mini_batches` must be an integer, got 2.0.", num_mini_batches=2.0),
    case(TypeError, "`total_episodes` must be an integer or None, got 10000.0.", total_episodes=1e4),
    case(TypeError, "`max_completion_length` must be an integer, got '64'.", max_completion_length="64"),
    case(TypeError, "`per_device_train_batch_size` must be an integer, got 4.5.", per_device_train_batch_size=4.5),
    case(TypeError, "`seed` must be an integer, got '42'.", seed="42"),
    case(TypeError, "`shuffle_dataset` must be True or False, got 'false'.", shuffle_dataset="false"),
    case(TypeError, "`whiten_rewards` must be True or False, got 1.", whiten_rewards=1),
    case(TypeError, "`bf16` must be True or False or None, got 'yes'.", bf16="yes"),
    case(TypeError, "`critic` must be a string, got None.", critic=None),
    case(TypeError, "`output_dir` must be a string or None, got 5.", output_dir=5),
    case(TypeError, "`stop_strings` must be a list of strings or None, got '###'.", stop_strings="###"),
    case(TypeError, "`stop_strings` must be a list of strings, got ['###', 2].", stop_strings=["###", 2]),
    case(TypeError, "`reward_weights` must be a list of numbers or None, got 1.0.", reward_weights=1.0),
    case(TypeError, "`reward_weights` must be a list of numbers, got [1.0, '2'].", reward_weights=[1.0, "2"]),
    case(TypeError, "`reward_weights` must be a list of numbers, got [1.0, None].", reward_weights=[1.0, None]),
    case(TypeError, "`reward_adapters` must be a list of strings or None, got 'a'.", reward_adapters="a"),
    case(TypeError, "`model_init_kwargs` must be a mapping or its JSON or None, got 4.", model_init_kwargs=4),
    case(TypeError, "`hub_token` must be a string or None, got a value of type list.", hub_token=["hf_secret"]),
]
RANGES = [
    case(ValueError, "`learning_rate` must be a finite number, got inf.", learning_rate=math.inf),
    case(ValueError, "`learning_rate` must be 0 or more, got nan.", learning_rate=math.nan),
    case(ValueError, "`learning_rate` must be 0 or more, got -1e-06.", learning_rate=-1e-6),
    case(ValueError, "`critic_learning_rate` must be a finite number or None, got inf.", critic_learning_rate=math.inf),
    case(ValueError, "`kl_coef` must be 0 or more, got nan.", kl_coef=math.nan),
    case(ValueError, "`kl_coef` must be a finite number, got inf.", kl_coef=math.inf),
    case(ValueError, "`temperature` must be above 0, got nan.", temperature=math.nan),
    case(ValueError, "`temperature` must be a finite number, got inf.", temperature=math.inf),
    case(ValueError, "`temperature` must be above 0, got 0.", temperature=0),
    case(ValueError, "`top_p` must be above 0 and at most 1, got 1.5.", top_p=1.5),
    case(ValueError, "`cliprange` must be above 0 and below 1, got 1.", cliprange=1),
    case(ValueError, "`lam` must be between 0 and 1, got 1.01.", lam=1.01),
    case(ValueError, "`kl_coef_end` must be 0 or more, got -0.1.", kl_coef_end=-0.1),
    case(ValueError, "`max_ratio` must be a finite number or None, got inf.", max_ratio=math.inf),
    case(ValueError, "`max_grad_norm` must be 0 or more, got nan.", max_grad_norm=math.nan),
    case(ValueError, "`weight_decay` must be a finite number, got -inf.", weight_decay=-math.inf),
    case(ValueError, "`adam_beta2` must be at least 0 and below 1, got 1.0.", adam_beta2=1.0),
    case(ValueError, "`reward_weights` must be a number, got nan.", reward_weights=[1.0, math.nan]),
    case(ValueError, "`reward_clip_range` must be a number, got nan.", reward_clip_range=[math.nan, 1.0]),
    case(ValueError, "`seed` must be between 0 and 4294967295, got -1.", seed=-1),
    case(ValueError, "`num_train_epochs` must be above 0, got 0.", num_train_epochs=0),
    case(ValueError, "`gradient_accumulation_steps` must be at least 1, got 0.", gradient_accumulation_steps=0),
    case(ValueError, "`num_completions_to_print` must be at least 1, got 0.", num_completions_to_print=0),
    case(
        ValueError, "`vf_coef` must be a finite number, got 100000000000000000...0000000000000000000.", vf_coef=10**400
    ),
]
CHOICES = [
    case(ValueError, "`kl_estimator` must be one of k1, k2, k3, exact, got k4.", kl_estimator="k4"),
    case(
        ValueError,
        "`kl_loss_coef` 0.1 penalizes the KL a second time beside `kl_estimator='exact'`, which has a loss of its own; "
        "leave it out and set `kl_coef`.",
        kl_estimator="exact",
        kl_loss_coef=0.1,
    ),
    case(ValueError, "`kl_loss_estimator` must be one of k2, k3, got k1.", kl_loss_estimator="k1"),
    case(ValueError, "`eval_strategy` must be one of no, steps, epoch, got step.", eval_strategy="step"),
    case(
        ValueError,
        "`lr_scheduler_type` has no choice 'cosin': did you mean `cosine`?",
        lr_scheduler_type="cosin",
    ),
    case(
        ValueError,
        "`optim` has no choice 'adamw_8bits': did you mean `adamw_8bit` or `adamw_bnb_8bit` or `ademamix_8bit`?",
        optim="adamw_8bits",
    ),
    case(
        ValueError,
        "`generation_kwargs` is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1).",
        generation_kwargs="{min_new_tokens: 2}",
    ),
    case(ValueError, "`model_init_kwargs` must be a mapping or its JSON, got 'float16'.", model_init_kwargs="float16"),
]


LENGTH = "use `max_completion_length`."
UNKNOWN = [
    case(TypeError, f"PPOConfig has no setting `response_length`: {LENGTH}", response_length=53),
    case(TypeError, f"PPOConfig has no setting `max_new_tokens`: {LENGTH}", max_new_tokens=53),
    case(
        TypeError,
        "PPOConfig has no setting `stop_token`: leave it out, a completion ends at every EOS token of the model; "
        "further texts go into `stop_strings`.",
        stop_token="eos",
    ),
    case(TypeError, "PPOConfig has no setting `init_kl_coef`: use `kl_coef`.", init_kl_coef=0.2),
    case(
        TypeError,
        "PPOConfig has no setting `beta`: use `kl_coef` for the penalty in the reward, `kl_loss_coef` for a loss.",
        beta=0.04,
    ),
    case(TypeError, "PPOConfig has no setting `ppo_epochs`: use `num_ppo_epochs`.", ppo_epochs=4),
    case(
        TypeError,
        "PPOConfig has no setting `mini_batch_size`: set `num_mini_batches`, the number of optimizer steps in each "
        "pass over a rollout.",
        mini_batch_size=4,
    ),
    case(
        TypeError,
        "PPOConfig has no setting `num_generations`: leave it out, PPO samples one completion per prompt; repeat a "
        "prompt in the data set for more.",
        num_generations=8,
    ),
    case(
        TypeError,
        "PPOConfig has no setting `vllm_model_impl`: leave it out, vLLM chooses its own implementation of a model.",
        vllm_model_impl="transformers",
    ),
    case(
        TypeError,
        "PPOConfig has no setting `reward_model_path`: in PPOTrainer, a reward model is one of `reward_funcs`, given "
        "by name or as an object.",
        reward_model_path="rm",
    ),
    case(TypeError, "PPOConfig has no setting `tokenizer`: in PPOTrainer, use `processing_class`.", tokenizer=None),
    case(TypeError, "PPOConfig has no setting `peft_config`: give it to PPOTrainer.", peft_config=None),
    case(TypeError, "PPOConfig has no setting `evaluation_strategy`: use `eval_strategy`.", evaluation_strategy="no"),
    case(
        TypeError,
        "PPOConfig has no setting `kl_coeff`: did you mean `kl_coef` or `kl_coef_end` or `kl_loss_coef`?",
        kl_coeff=0.1,
    ),
    case(TypeError, "PPOConfig has no setting `zzz`: `help(PPOConfig)` lists all.", zzz=1),
    Case(
        "twice",
        lambda: PPOConfig("unused", output_dir="other"),
        TypeError,
        "PPOConfig: multiple values for argument 'output_dir'; give every setting once, by its name.",
    ),
]


ENGINES = [
    case(
        ValueError,
        "`accelerator_config` sets `split_batches=True`, which is not supported: every process samples "
        "`per_device_train_batch_size * gradient_accumulation_steps`.",
        accelerator_config={"split_batches": True},
    ),
    case(
        ValueError,
        "`accelerator_config` sets `dispatch_batches=True`, which is not supported: every process reads its own "
        "prompts.",
        accelerator_config='{"dispatch_batches": true}',
    ),
    case(
        ValueError,
        "`accelerator_config` sets `even_batches=False`, which is not supported: a process with fewer batches to "
        "evaluate would leave the others waiting.",
        accelerator_config={"even_batches": False},
    ),
    case(
        ValueError,
        "`accelerator_config` sets `num_steps=4`; use `gradient_accumulation_steps`, which sizes a rollout.",
        accelerator_config={"gradient_accumulation_kwargs": {"num_steps": 4}},
    ),
    case(
        ValueError,
        "`accelerator_config` has no `split_batch`: did you mean `split_batches` or `dispatch_batches`?",
        accelerator_config={"split_batch": True},
    ),
    case(
        ValueError,
        "`accelerator_config` 'missing.json' is no file; give a mapping, its JSON, or the path of a JSON file.",
        accelerator_config="missing.json",
    ),
    case(
        ValueError,
        "`ddp_static_graph` is True, which is not supported: a skipped minibatch has another graph than the one "
        "before; leave it out.",
        ddp_static_graph=True,
    ),
    case(ValueError, "FSDP needs several processes; start with `accelerate launch` or `torchrun`.", fsdp=True),
    case(
        ValueError,
        "`auto_find_batch_size` is True, which is not supported: it would change the size of the rollouts; leave it "
        "out, micro-batches shrink by themselves where memory runs out.",
        auto_find_batch_size=True,
    ),
    case(
        ValueError,
        "`neftune_noise_alpha` is 5.0, which is not supported: noise in the embeddings makes old and new "
        "log-probabilities differ; leave it out.",
        neftune_noise_alpha=5.0,
    ),
    case(
        ValueError,
        "`ignore_data_skip` is True, which is not supported: a resumed run goes on in the middle of a rollout; leave "
        "it out.",
        ignore_data_skip=True,
    ),
    case(
        ValueError,
        "`include_for_metrics` is ['inputs'], which is not supported: `compute_metrics` of PPOTrainer is a "
        "function of completions and their columns; leave it out.",
        include_for_metrics=["inputs"],
    ),
    case(
        ValueError,
        "`include_num_input_tokens_seen` is 'all', which is not supported: tokens are sampled, not read from the data "
        "set; leave it out, `tokens_per_second` is logged.",
        include_num_input_tokens_seen=True,
    ),
    case(
        ValueError,
        "`train_sampling_strategy` is 'sequential', which is not supported: a rollout is a batch of prompts in random "
        "order; leave it out, `shuffle_dataset=False` keeps the order of the data set.",
        train_sampling_strategy="sequential",
    ),
    case(
        ValueError,
        "`dataloader_in_order` is False, which is not supported: batches out of order would mix rollouts; leave it "
        "out.",
        dataloader_in_order=False,
    ),
    case(
        ValueError,
        "`dataloader_persistent_workers` needs `dataloader_num_workers` above 0; leave it out otherwise.",
        dataloader_persistent_workers=True,
    ),
    case(
        ValueError,
        "`optim='galore_adamw_layerwise'` takes its steps inside the backward pass, before PPO can drop one; use "
        "another, for instance 'adamw_torch' or 'paged_adamw_8bit'.",
        optim="galore_adamw_layerwise",
    ),
    case(ValueError, "`fp16` needs a GPU; leave it out, on a CPU training runs in float32.", fp16=True),
    case(
        ValueError,
        "`load_best_model_at_end` needs `eval_strategy` and `save_strategy` to be the same, got 'epoch' and 'steps'.",
        load_best_model_at_end=True,
        eval_strategy="epoch",
    ),
]
COMBINATIONS = [
    case(
        ValueError,
        "`kl_controller='adaptive'` needs `kl_target` (KL that the controller holds, in nats per completion).",
        kl_controller="adaptive",
    ),
    case(
        ValueError,
        "`kl_controller='pid'`: `kl_coef` is multiplied and must be between 0.0001 and 100, got 0.0.",
        kl_controller="pid",
        kl_target=3.0,
        kl_coef=0.0,
    ),
    *(
        case(
            ValueError,
            f"`every_n_layers` in `gradient_checkpointing_kwargs` must be an integer of at least 1, got {every!r}.",
            gradient_checkpointing_kwargs={"every_n_layers": every},
        )
        for every in (0, "2", 1.5, True)
    ),
    case(ValueError, "`stop_strings` must not have an empty text, got ['a', ''].", stop_strings=["a", ""]),
    case(
        ValueError,
        "`generation_kwargs` has no `guidance_scales`: did you mean `guidance_scale`?",
        generation_kwargs={"guidance_scales": 3},
    ),
    case(
        ValueError,
        "`transformers_continuous_batching_config` has no `max_memory`: did you mean `max_memory_percent`?",
        transformers_continuous_batching_config={"max_memory": 0.5},
    ),
    case(
        ValueError,
        "`use_vllm` and `use_transformers_continuous_batching` are two ways to sample; leave one of them out.",
        use_vllm=True,
        use_transformers_continuous_batching=True,
    ),
    case(
        ValueError,
        "`use_vllm` cannot do `generation_kwargs`; leave one of them out.",
        use_vllm=True,
        generation_kwargs={"min_new_tokens": 2},
    ),
    case(
        ValueError,
        "`use_transformers_continuous_batching` cannot do `cache_implementation`; leave one of them out.",
        use_transformers_continuous_batching=True,
        cache_implementation="static",
    ),
    case(
        ValueError,
        "`generation_kwargs` has top_h, typical_p, whose effect `importance_sampling_correction` cannot see; leave "
        "one of them out.",
        generation_kwargs={"typical_p": 0.9, "top_h": 0.4},
        importance_sampling_correction=True,
    ),
    case(ValueError, "`cache_implementation` must be one of static, got hybrid.", cache_implementation="hybrid"),
    case(
        ValueError,
        "`cache_implementation` is set, and again in `generation_kwargs`; leave one of them out.",
        cache_implementation="static",
        generation_kwargs={"cache_implementation": "offloaded"},
    ),
    case(ValueError, "`vllm_mode` must be one of colocate, server, got local.", use_vllm=True, vllm_mode="local"),
    case(
        ValueError,
        "`async_rollouts` needs an engine that samples while this process learns; set `use_vllm` and "
        "`vllm_mode='server'`, or leave `async_rollouts` out.",
        async_rollouts=True,
        use_vllm=True,
    ),
    case(TypeError, "`async_rollouts` must be True or False, got 1.", async_rollouts=1),
    case(
        TypeError,
        "PPOConfig has no setting `max_staleness`: use `async_rollouts`, which samples one rollout ahead.",
        max_staleness=1,
    ),
    case(
        ValueError,
        "`reward_weights` are [0.0, 0.0], so nothing would be learned; set at least one of them.",
        reward_weights=[0.0, 0.0],
    ),
    case(
        ValueError,
        "`critic_lora_rank` 8 needs `critic='adapter'`; leave it out otherwise.",
        critic_lora_rank=8,
    ),
    case(
        ValueError,
        "`critic_target_modules` ['up_proj'] needs `critic='adapter'`; leave it out otherwise.",
        critic_target_modules=["up_proj"],
    ),
    case(
        ValueError,
        "`num_critics` 2 needs `critic='adapter'`; leave it out otherwise.",
        num_critics=2,
    ),
    case(
        ValueError,
        "`critic_target_modules` must name layers, got [].",
        critic="adapter",
        critic_target_modules=[],
    ),
    case(
        ValueError,
        "`max_steps` must be at least 1, or -1 to count by `num_train_epochs`, got 0.",
        max_steps=0,
    ),
    case(ValueError, "`critic_held_out` must be between 0 and 0.5, got 0.6.", critic_held_out=0.6),
    case(
        ValueError,
        "`reward_clip_range` must be a lower and a higher bound, got [1.0, 2.0, 3.0].",
        reward_clip_range=[1.0, 2.0, 3.0],
    ),
]
IDLE = "has no effect"
WARNINGS = [
    case(
        UserWarning,
        f"`critic_reads_reward_every` {IDLE} with completions of at most 16 tokens.",
        critic_reads_reward_every=16,
        max_completion_length=16,
    ),
    case(
        UserWarning, f"`critic_reads_reward_every` {IDLE} with `vf_coef` 0.", critic_reads_reward_every=1, vf_coef=0.0
    ),
    case(UserWarning, f"`kl_target` {IDLE} with `kl_controller='fixed'`.", kl_target=6.0),
    case(
        UserWarning,
        f"`kl_horizon` {IDLE} with `kl_controller='pid'`.",
        kl_horizon=100,
        kl_controller="pid",
        kl_target=3.0,
    ),
    case(
        UserWarning,
        "`kl_horizon` 3 is short beside a rollout of 8 episodes: one update may change the coefficient by more than "
        "half; choose 4 or more, or leave it out.",
        kl_horizon=3,
        kl_controller="adaptive",
        kl_target=3.0,
    ),
    case(UserWarning, f"`kl_coef_end` {IDLE} with `kl_controller='fixed'`.", kl_coef_end=0.0),
    case(UserWarning, f"`kl_schedule` {IDLE} with `kl_controller='fixed'`.", kl_schedule="cosine"),
    case(UserWarning, f"`kl_loss_estimator` {IDLE} without `kl_loss_coef`.", kl_loss_estimator="k3"),
    case(UserWarning, f"`use_bias_correction_kl` {IDLE} without `kl_loss_coef`.", use_bias_correction_kl=False),
    case(UserWarning, f"`ptx_max_length` {IDLE} without `ptx_coef`.", ptx_max_length=64),
    case(
        UserWarning,
        f"`importance_sampling_cap` {IDLE} without `importance_sampling_correction`.",
        importance_sampling_cap=3.0,
    ),
    case(
        UserWarning,
        f"`transformers_continuous_batching_config` {IDLE} without `use_transformers_continuous_batching`.",
        transformers_continuous_batching_config={"max_memory_percent": 0.5},
    ),
    case(UserWarning, f"`max_engine_gap` {IDLE} without `importance_sampling_correction`.", max_engine_gap=1.0),
    case(UserWarning, f"`vllm_mode` {IDLE} without `use_vllm`.", vllm_mode="server"),
    case(
        UserWarning,
        "`async_rollouts` samples from the policy of one rollout ago; without `importance_sampling_correction` its "
        "samples count as the present policy's.",
        async_rollouts=True,
        use_vllm=True,
        vllm_mode="server",
        importance_sampling_correction=False,
    ),
    case(UserWarning, f"`vllm_server_port` {IDLE} without `use_vllm`.", vllm_server_port=8001),
    case(
        UserWarning,
        f"`vllm_server_port` {IDLE} with `vllm_mode='colocate'`.",
        use_vllm=True,
        vllm_server_port=8001,
    ),
    case(
        UserWarning,
        f"`vllm_enable_sleep_mode` {IDLE} with `vllm_mode='server'`.",
        use_vllm=True,
        vllm_mode="server",
        vllm_enable_sleep_mode=True,
    ),
    case(
        UserWarning,
        f"`vllm_server_port` {IDLE} beside `vllm_server_base_url`.",
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url="http://localhost:8001",
        vllm_server_port=8001,
    ),
    case(
        UserWarning,
        f"`merge_adapters_while_sampling` {IDLE} with `use_vllm`, which has weights of its own.",
        use_vllm=True,
        merge_adapters_while_sampling=True,
    ),
    case(
        UserWarning,
        "`merge_adapters_while_sampling` samples from weights that are rounded otherwise than those that learn; leave "
        "`importance_sampling_correction` out.",
        merge_adapters_while_sampling=True,
        importance_sampling_correction=False,
    ),
    case(UserWarning, f"`critic_learning_rate` {IDLE} with `vf_coef` 0.", critic_learning_rate=1e-4, vf_coef=0.0),
    case(
        UserWarning,
        f"`vf_coef` {IDLE} with `critic_epochs`, in which the critic learns by itself.",
        critic_epochs=2,
        vf_coef=0.5,
    ),
    case(
        UserWarning,
        f"`critic_mini_batches` {IDLE} without `critic_epochs` or `critic_pretraining_episodes`.",
        critic_mini_batches=2,
    ),
    case(
        UserWarning,
        f"`critic_pretraining_epochs` {IDLE} without `critic_pretraining_episodes`.",
        critic_pretraining_epochs=2,
        critic_epochs=2,
    ),
    case(
        UserWarning,
        f"`cliprange_high` {IDLE} with one optimizer step per rollout, before which the policy has not moved.",
        cliprange_high=0.28,
        num_ppo_epochs=1,
    ),
    case(
        UserWarning,
        f"`max_steps` {IDLE} beside `total_episodes`, which decides the length of the run.",
        max_steps=10,
        total_episodes=64,
    ),
    case(
        UserWarning,
        f"`num_train_epochs` {IDLE} beside `max_steps`, which decides the length of the run.",
        max_steps=10,
        num_train_epochs=1.0,
    ),
    case(
        UserWarning,
        "`total_episodes` 100 is rounded up to 104, since a rollout has 8 completions.",
        total_episodes=100,
    ),
    case(UserWarning, f"`num_completions_to_print` {IDLE} without `log_completions`.", num_completions_to_print=2),
    case(UserWarning, f"`label_smoothing_factor` {IDLE}: PPO's loss has no labels.", label_smoothing_factor=0.1),
    case(
        UserWarning,
        f"`average_tokens_across_devices` {IDLE}: losses are always means over the tokens of all processes.",
        average_tokens_across_devices=False,
    ),
    case(
        UserWarning,
        f"`eval_accumulation_steps` {IDLE}: an evaluation keeps no predictions.",
        eval_accumulation_steps=2,
    ),
]


@table([*TYPES, *RANGES, *CHOICES, *UNKNOWN, *ENGINES, *COMBINATIONS, *WARNINGS])
def test_bad_settings(case: Case) -> None:
    check(case)


LAUNCHED = {
    "MEGATRON_LM": "The launcher asks for Megatron-LM, which is not supported; start with `torchrun`.",
    "FSDP": "FSDP needs several processes; start with `accelerate launch` or `torchrun`.",
}


@pytest.mark.parametrize("engine", LAUNCHED)
def test_engines_of_the_launcher_are_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    check(Case(engine, config(), ValueError, LAUNCHED[engine]))


# A setting of FSDP, the settings of PPOConfig beside it, and the message.
SHARDED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"version": 1}, {}, "`version=1`, which is not supported: FSDP1 flattens parameters"),
    ({"auto_wrap_policy": "NO_WRAP"}, {}, "`auto_wrap_policy=no_wrap`, which is not supported: only layers"),
    ({"cpu_ram_efficient_loading": True}, {}, "`cpu_ram_efficient_loading=true`, which is not supported: all"),
    ({"activation_checkpointing": True}, {}, "`activation_checkpointing=true`, .*set `gradient_checkpointing`"),
    ({"cpu_offload": True}, {}, "`cpu_offload=true`, which is not supported: PPO reads"),
    ({}, {"bf16_full_eval": True}, "`bf16_full_eval` is not supported with FSDP; use `bf16` or float32."),
    ({}, {"critic_warmup_rollouts": 2}, "`critic_warmup_rollouts` 2 is not supported with FSDP: its checkpoints"),
    ({}, {"use_transformers_continuous_batching": True}, "is not supported with FSDP: it was never run"),
    ({}, {"merge_adapters_while_sampling": True}, "is not supported with FSDP: it was never run on a gathered model"),
    (
        {},
        {"cache_implementation": "static"},
        "`cache_implementation` static is not supported with FSDP: it was never run",
    ),
    ({}, {"use_vllm": True}, "`use_vllm` True is not supported with FSDP: its copy of the weights comes from one"),
    ({}, {"critic_epochs": 2}, "`critic_epochs` 2 trains the critic outside of FSDP"),
]


@pytest.mark.parametrize(("setting", "others", "message"), SHARDED)
def test_what_fsdp_cannot_do(
    setting: dict[str, Any], others: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PPOConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    monkeypatch.setattr(training_arguments, "FSDP_DEVICES", ("cpu",))
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # transformers sets it, and would leave it set
    with pytest.raises(ValueError, match=message):
        config(fsdp=True, fsdp_config=setting, **others)()


def test_fsdp_needs_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PPOConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    message = (
        "FSDP needs GPUs: with `use_cpu`, or where no GPU is visible, accelerate would not shard the model; leave FSDP "
        "out."
    )
    check(Case("fsdp", config(fsdp=True), ValueError, message))
    monkeypatch.setattr(training_arguments, "FSDP_DEVICES", ("cpu",))
    assert config(fsdp=True)().fsdp


def test_the_launcher_is_asked_for_fsdp_as_the_settings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PPOConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    monkeypatch.setattr(training_arguments, "FSDP_DEVICES", ("cpu",))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    old = (
        "The launcher sets `fsdp_version: 1`, which is not supported: FSDP1 flattens parameters, from which PPO cannot "
        "tell the critic's; set 2."
    )
    check(Case("fsdp", config(), ValueError, old))
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert config()().fsdp is None


def test_a_configuration_changed_later_is_checked_again() -> None:
    made = config()()
    made.check()
    made.temperature = math.nan
    check(Case("changed", made.check, ValueError, "`temperature` must be above 0, got nan."))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("eval_reward", True)),
        ({"metric_for_best_model": "eval_kl"}, ("eval_kl", False)),
        ({"metric_for_best_model": "eval_loss"}, ("eval_loss", False)),
        ({"metric_for_best_model": "eval_kl", "greater_is_better": True}, ("eval_kl", True)),
    ],
)
def test_the_best_model_has_the_highest_reward(settings: dict[str, Any], expected: tuple[str, bool]) -> None:
    made = config(load_best_model_at_end=True, eval_strategy="steps", eval_steps=5, save_steps=5, **settings)()
    assert (made.metric_for_best_model, made.greater_is_better) == expected


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({"learning_rate": np.float32(0.5)}, 0.5),
        ({"total_episodes": np.int64(64)}, 64),
        ({"stop_strings": ("a", "b")}, ["a", "b"]),
        ({"critic": Path("folder/critic")}, "folder/critic"),
        ({"reward_clip_range": (-math.inf, 1)}, [-math.inf, 1]),
        ({"gamma": 1}, 1),
    ],
)
def test_equivalents_of_plain_values_become_plain(settings: dict[str, Any], plain: Any) -> None:
    value = getattr(config(**settings)(), next(iter(settings)))
    assert value == plain and type(value) is type(plain)
