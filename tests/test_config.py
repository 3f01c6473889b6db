# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What is refused before a run, what is derived, and how settings come from a command line or a file."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import TrlParser

from trl_ext import PPOConfig
from trl_ext._compat import BaseConfig
from trl_ext.checks import training_arguments


def config(**settings: Any) -> PPOConfig:
    return PPOConfig(output_dir="unused", report_to="none", use_cpu=True, **settings)


def parsed(*args: str) -> PPOConfig:
    (result,) = TrlParser((PPOConfig,)).parse_args_and_config(["--output_dir", "unused", "--use_cpu", *args])
    return result


NOT_POSITIVE = [
    *("max_completion_length", "num_ppo_epochs", "num_mini_batches", "logits_chunk_size", "total_episodes"),
    *("max_prompt_length", "temperature", "importance_sampling_cap", "top_p"),
    *("repetition_penalty", "cliprange", "cliprange_high", "cliprange_value", "target_approx_kl", "max_loss"),
    *("critic_learning_rate", "lam_adaptive_alpha", "reward_timeout", "kl_target", "kl_horizon", "dual_clip"),
    "max_ratio",
]
NEGATIVE = [
    *("vf_coef", "entropy_coef", "kl_coef", "kl_loss_coef", "critic_warmup_rollouts", "reward_retries", "gamma"),
    *("lam", "lam_critic", "max_reward_failures", "missing_eos_penalty", "min_p", "top_k"),
    "local_rollout_forward_batch_size",
]
ABOVE_ONE = ["cliprange", "gamma", "lam", "lam_critic", "max_reward_failures", "top_p", "min_p"]
OUT_OF_RANGE = [
    *((name, 0) for name in NOT_POSITIVE),
    *((name, -1) for name in NEGATIVE),
    *((name, 1.5) for name in ABOVE_ONE),
    *((name, 1.0) for name in ("dual_clip", "max_ratio")),
    *((name, math.nan) for name in ("kl_coef", "temperature", "gamma", "cliprange")),
    ("kl_controller", "adaptative"),
    ("kl_estimator", "k4"),
    ("kl_loss_estimator", "k1"),
    ("reward_clip_range", [1.0, 1.0]),
    ("reward_clip_range", [1.0]),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be ") as error:
        config(**{name: value})
    assert str(error.value).endswith(f", got {value}.") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_coef": 0.0, "gamma": 0.0, "lam": 0.0, "lam_critic": 1.0, "vf_coef": 0.0, "max_reward_failures": 1.0},
        {"cliprange_value": None, "max_ratio": None, "reward_retries": 0, "missing_eos_penalty": 0.0},
        {"kl_controller": "adaptive", "kl_target": 3.0, "reward_clip_range": [-1.0, 0.0]},
        {"kl_controller": "pid", "kl_target": 3.0},
        {"kl_controller": "scheduled", "kl_coef_end": 0.0},
        {"use_transformers_continuous_batching": True},
    ],
)
def test_the_edges_of_a_range_are_fine_and_silent(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = config(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_controller": "adaptive"}, "`kl_controller='adaptive'` needs `kl_target`"),
        ({"kl_controller": "pid"}, "`kl_controller='pid'` needs `kl_target`"),
        ({"kl_controller": "scheduled"}, "`kl_controller='scheduled'` needs `kl_coef_end`"),
        (
            {"kl_controller": "scheduled", "kl_schedule": "exponential", "kl_coef_end": 0.0},
            "`kl_schedule='exponential'` multiplies the coefficient",
        ),
    ],
)
def test_a_controller_needs_its_target(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    "setting", [{"min_p": 0.1}, {"repetition_penalty": 1.2}, {"stop_strings": ["."]}, {"generation_kwargs": {"a": 1}}]
)
def test_continuous_batching_refuses_what_it_would_ignore(setting):
    with pytest.raises(ValueError, match=f"`use_transformers_continuous_batching`.*`{next(iter(setting))}`"):
        config(use_transformers_continuous_batching=True, **setting)


# ---- sizes ----


@pytest.mark.parametrize(
    ("batch", "accumulation", "parts", "message"),
    [
        (4, 2, 3, "`num_mini_batches` 3 does not divide .* 4 x `gradient_accumulation_steps` 2 = 8 .* divisor of 8"),
        (2, 1, 4, "`num_mini_batches` 4 does not divide .* = 2 completions"),
        (4, 3, 2, "4 x `gradient_accumulation_steps` 3 = 12 .* leave 6 per step, which is not a multiple of"),
    ],
)
def test_sizes_that_do_not_divide_are_all_named(batch, accumulation, parts, message):
    with pytest.raises(ValueError, match=message):
        config(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_mini_batches=parts)


@pytest.mark.parametrize(
    ("batch", "accumulation", "parts", "epochs", "expected"),
    [
        # completions per rollout, per optimizer step, per forward pass; steps per rollout
        (8, 1, 1, 4, (8, 8, 8, 4)),
        (4, 4, 2, 3, (16, 8, 4, 6)),
        (4, 2, 8, 1, (8, 1, 1, 8)),
        (6, 2, 4, 2, (12, 3, 3, 8)),
    ],
)
def test_derived_sizes(batch, accumulation, parts, epochs, expected):
    made = config(
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=parts,
        num_ppo_epochs=epochs,
    )
    sizes = (made.local_batch_size, made.local_mini_batch_size, made.micro_batch_size, made.steps_per_rollout)
    assert sizes == expected and made.batch_size == expected[0]


def test_derived_sizes_are_no_fields():
    """TRL's last PPO offered them on the command line, where setting them did nothing."""
    names = {f.name for f in dataclasses.fields(PPOConfig)}
    derived = {name for name, value in vars(PPOConfig).items() if isinstance(value, property)}
    assert {"batch_size", "local_batch_size", "micro_batch_size"} <= derived and not derived & names


def test_the_batch_is_counted_over_all_processes(monkeypatch):
    monkeypatch.setattr(PPOConfig, "world_size", 4)
    made = config(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    assert (made.local_batch_size, made.batch_size) == (6, 24)


# ---- doubtful ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_estimator": "k3"}, "`kl_estimator='k3'` inside the reward gives a biased gradient"),
        ({"kl_estimator": "k2"}, "`kl_estimator='k2'` inside the reward gives a biased gradient"),
        ({"top_p": 0.9}, "`top_p` changes the distribution that is sampled"),
        ({"top_k": 50, "min_p": 0.1}, "`top_k`, `min_p` changes the distribution"),
        (
            {"generation_kwargs": {"no_repeat_ngram_size": 3}},
            r"`generation_kwargs.no_repeat_ngram_size` changes .*; leave it off or set `importance_sampling_correction",
        ),
        (
            {"generation_kwargs": {"typical_p": 0.9}},
            r"`generation_kwargs.typical_p` changes .* learned; leave it off\.$",
        ),
        ({"repetition_penalty": 1.1}, "`repetition_penalty` changes"),
    ],
)
def test_the_doubtful_warns_with_the_fix(settings, message):
    with pytest.warns(UserWarning, match=message):
        config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_estimator": "k3", "kl_coef": 0.0},
        {"top_p": 0.9, "importance_sampling_correction": True},
        {"generation_kwargs": {"typical_p": 1.0, "no_repeat_ngram_size": 0}, "importance_sampling_correction": True},
        {"generation_kwargs": {"typical_p": 1.0, "guidance_scale": None, "min_length": 0}},
    ],
)
def test_what_the_warning_asks_for_is_silent(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config(**settings)


# ---- defaults, command line, files ----


def test_defaults():
    made = config()
    assert made.learning_rate == 3e-6 and made.remove_unused_columns is False
    # Huang et al., details 15, 17, 18 and 5.
    assert made.gamma == 1.0 and made.kl_estimator == "k1" and made.whiten_advantages and not made.whiten_rewards
    assert made.lr_scheduler_type == "linear"


def test_bf16_is_off_on_a_cpu(monkeypatch):
    """Also on that of a machine with a GPU."""
    assert config().bf16 is False and config(bf16=True).bf16 is True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert config().bf16 is False


def test_bf16_is_off_where_a_gpu_emulates_it(monkeypatch):
    """A Turing card emulates bfloat16: slower than float32, and no more exact than on newer cards."""
    for emulated in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, e=emulated: including_emulation or not e
        )
        assert training_arguments.has_bf16(use_cpu=False) is not emulated
        assert training_arguments.has_bf16(use_cpu=True) is False


OWN_FIELDS = [
    f for f in dataclasses.fields(PPOConfig) if f.name not in {f.name for f in dataclasses.fields(BaseConfig)}
]
# A value other than the default for every setting, as typed and as read.
TYPED: dict[str, tuple[list[str], Any]] = {
    "model_init_kwargs": (['{"dtype": "float16"}'], {"dtype": "float16"}),
    "trust_remote_code": (["true"], True),
    "critic": (["adapter"], "adapter"),
    "prompt_column": (["question"], "question"),
    "shuffle_dataset": (["false"], False),
    "max_prompt_length": (["12"], 12),
    "chat_template_kwargs": (['{"enable_thinking": false}'], {"enable_thinking": False}),
    "max_completion_length": (["32"], 32),
    "temperature": (["0.7"], 0.7),
    "top_p": (["0.9"], 0.9),
    "top_k": (["50"], 50),
    "min_p": (["0.1"], 0.1),
    "repetition_penalty": (["1.2"], 1.2),
    "stop_strings": (["###", "\n"], ["###", "\n"]),
    "generation_kwargs": (['{"min_new_tokens": 2}'], {"min_new_tokens": 2}),
    "local_rollout_forward_batch_size": (["3"], 3),
    "use_transformers_continuous_batching": (["true"], True),
    "transformers_continuous_batching_config": (['{"max_memory_percent": 0.1}'], {"max_memory_percent": 0.1}),
    "use_vllm": (["true"], True),
    "async_rollouts": (["true"], True),
    "cache_implementation": (["static"], "static"),
    "merge_adapters_while_sampling": (["true"], True),
    "vllm_mode": (["server"], "server"),
    "vllm_gpu_memory_utilization": (["0.5"], 0.5),
    "vllm_max_model_length": (["1024"], 1024),
    "vllm_enable_sleep_mode": (["true"], True),
    "vllm_server_base_url": (["http://localhost:8001"], "http://localhost:8001"),
    "vllm_server_host": (["localhost"], "localhost"),
    "vllm_server_port": (["8001"], 8001),
    "vllm_server_timeout": (["60"], 60.0),
    "importance_sampling_correction": (["true"], True),
    "importance_sampling_cap": (["3"], 3.0),
    "max_engine_gap": (["0.2"], 0.2),
    "max_engine_capped": (["0.1"], 0.1),
    "total_episodes": (["512"], 512),
    "num_ppo_epochs": (["2"], 2),
    "num_mini_batches": (["4"], 4),
    "cliprange": (["0.1"], 0.1),
    "cliprange_high": (["0.28"], 0.28),
    "dual_clip": (["3"], 3.0),
    "mask_ratio_range": (["0.5", "2"], [0.5, 2.0]),
    "cliprange_value": (["0.5"], 0.5),
    "vf_coef": (["0.5"], 0.5),
    "entropy_coef": (["1e-3"], 1e-3),
    "ptx_coef": (["0.1"], 0.1),
    "ptx_max_length": (["64"], 64),
    "critic_lora_rank": (["8"], 8),
    "num_critics": (["2"], 2),
    "critic_agreement_share": (["0.1"], 0.1),
    "critic_target_modules": (["up_proj", "down_proj"], ["up_proj", "down_proj"]),
    "reward_adapters": (["a", "b"], ["a", "b"]),
    "gamma": (["0.99"], 0.99),
    "lam": (["1"], 1.0),
    "lam_critic": (["1"], 1.0),
    "lam_adaptive_alpha": (["0.5"], 0.5),
    "whiten_advantages": (["false"], False),
    "whiten_rewards": (["true"], True),
    "missing_eos_penalty": (["1"], 1.0),
    "bootstrap_truncated": (["true"], True),
    "target_approx_kl": (["0.02"], 0.02),
    "max_ratio": (["2"], 2.0),
    "max_loss": (["100"], 100.0),
    "policy_ema_decay": (["0.99"], 0.99),
    "critic_learning_rate": (["1e-5"], 1e-5),
    "critic_warmup_rollouts": (["2"], 2),
    "critic_epochs": (["3"], 3),
    "critic_mini_batches": (["2"], 2),
    "critic_max_grad_norm": (["0.5"], 0.5),
    "scale_returns": (["true"], True),
    "critic_held_out": (["0.2"], 0.2),
    "critic_reads_reward_every": (["4"], 4),
    "critic_pretraining_episodes": (["512"], 512),
    "critic_pretraining_epochs": (["3"], 3),
    "critic_pretraining_learning_rate": (["1e-3"], 1e-3),
    "logits_chunk_size": (["128"], 128),
    "kl_coef": (["0.2"], 0.2),
    "kl_estimator": (["k3"], "k3"),
    "kl_loss_coef": (["0.01"], 0.01),
    "kl_loss_estimator": (["k3"], "k3"),
    "use_bias_correction_kl": (["false"], False),
    "kl_controller": (["adaptive"], "adaptive"),
    "kl_target": (["6"], 6.0),
    "kl_horizon": (["1000"], 1000),
    "kl_coef_end": (["0.01"], 0.01),
    "kl_schedule": (["cosine"], "cosine"),
    "reward_weights": (["1", "0.5"], [1.0, 0.5]),
    "reward_constraints": (["toxicity <= 0.05", "length >= 8"], ["toxicity <= 0.05", "length >= 8"]),
    "reward_clip_range": (["-2", "2"], [-2.0, 2.0]),
    "reward_retries": (["0"], 0),
    "reward_backoff": (["2"], 2.0),
    "reward_timeout": (["30"], 30.0),
    "max_reward_failures": (["0.5"], 0.5),
    "log_completions": (["true"], True),
    "num_completions_to_print": (["3"], 3),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_setting_can_be_typed():
    assert {f.name for f in OWN_FIELDS} == set(TYPED)
    # The other engines refuse some of the others.
    engines = [["use_transformers_continuous_batching"], ["use_vllm", "vllm_mode", "async_rollouts"]]
    apart = ("use_transformers_continuous_batching", "use_vllm", "async_rollouts")
    for names in ([name for name in TYPED if name not in apart], *engines):
        made = parsed(*(word for name in names for word in (f"--{name}", *TYPED[name][0])))
        for name in names:
            value = getattr(made, name)
            assert value == TYPED[name][1] and type(value) is type(TYPED[name][1]), name
    assert all(TYPED[f.name][1] != f.default for f in OWN_FIELDS)


def test_every_setting_is_explained():
    text = TrlParser((PPOConfig,)).format_help()
    assert all(f"--{f.name} " in text and f.metadata["help"] for f in OWN_FIELDS)


def test_settings_from_a_file(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        "temperature: 0.7\nstop_strings: ['###', 'User:']\nkl_controller: pid\nkl_target: 2\n"
        "generation_kwargs: {min_new_tokens: 2}\nreward_clip_range: [-1, 1]\nlearning_rate: 1e-5\n"
    )
    made = parsed("--config", str(tmp_path / "run.yaml"), "--temperature", "0.9")
    assert made.temperature == 0.9, "the command line goes before the file"
    assert (made.stop_strings, made.kl_controller, made.kl_target) == (["###", "User:"], "pid", 2)
    assert made.generation_kwargs == {"min_new_tokens": 2} and made.reward_clip_range == [-1, 1]
    assert made.learning_rate == 1e-5


def test_an_unknown_setting_is_an_error(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("kl_coeff: 0.1\n")
    with pytest.raises(ValueError, match="kl_coeff"):
        parsed("--config", str(tmp_path / "run.yaml"))
    with pytest.raises((ValueError, SystemExit)):
        parsed("--kl_coeff", "0.1")


def test_generation_kwargs_cannot_undo_what_learning_relies_on(tmp_path):
    with pytest.raises(ValueError, match="`generation_kwargs` has num_beams, top_p, which PPO decides"):
        PPOConfig(output_dir=str(tmp_path), generation_kwargs={"top_p": 0.9, "num_beams": 4, "no_repeat_ngram_size": 3})
    assert PPOConfig(output_dir=str(tmp_path), generation_kwargs={"no_repeat_ngram_size": 3}).generation_kwargs
