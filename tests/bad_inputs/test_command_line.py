# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Bad command lines of the recipes: each is answered by one line that names the option as it is typed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.integrations import get_available_reporting_integrations

from recipes import detoxification, instruction_following
from tests.bad_inputs.case import Case, check, table
from trl_ext.running.cli import RecipeParser

TRACKERS = ", ".join(get_available_reporting_integrations()) or "none is"
DETOX, INSTRUCT = detoxification.make_parser, instruction_following.make_parser


def row(command: str, message: str, parser: Callable[[], RecipeParser] = DETOX) -> Case:
    """A command line without quotes."""
    return Case(command or "''", lambda: parser().parse(command.split()), ValueError, message)


def unknown(command: str, answer: str, parser: Callable[[], RecipeParser] = DETOX) -> Case:
    """An option that there is not."""
    return row(command, f"Unknown option `{command.split()[0]}`: {answer}", parser)


CASES = [
    # values
    row("--kl_coef abc", "`--kl_coef` must be a number, got 'abc'."),
    row("--kl-coef abc", "`--kl_coef` must be a number, got 'abc'."),
    row("--kl_coef=abc", "`--kl_coef` must be a number, got 'abc'."),
    row("--kl_coef nan", "`--kl_coef` must be a number, got 'nan'."),
    row("--kl_coef", "`--kl_coef` needs a value."),
    row("--kl_coef --vf_coef 1", "`--kl_coef` needs a value."),
    row("--stop_strings", "`--stop_strings` needs a value."),
    row("--num_ppo_epochs 2.5", "`--num_ppo_epochs` must be a whole number, got '2.5'."),
    row("--num_ppo_epochs 1e3", "`--num_ppo_epochs` must be a whole number, got '1e3'."),
    row("--use_peft maybe", "`--use_peft` must be true or false, got 'maybe'."),
    row("--bf16 on", "`--bf16` must be true or false, got 'on'."),
    row("--reward_weights 1 x", "`--reward_weights` must be a list of numbers, got 'x'."),
    row(
        "--kl_controller pidd",
        "`--kl_controller` must be one of fixed, adaptive, pid, scheduled, got 'pidd'; did you mean 'pid'?",
    ),
    row("--toxicity_output score", "`--toxicity_output` must be one of logit, log_odds, probability, got 'score'."),
    row(
        "--lr_scheduler_type lin",
        "`--lr_scheduler_type` must be one of linear, cosine, cosine_with_restarts, polynomial, constant, "
        "constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau, cosine_with_min_lr, cosine_warmup_with_min_lr, "
        "warmup_stable_decay, greedy, got 'lin'; did you mean 'linear'?",
    ),
    row(
        "--model_init_kwargs {a",
        "`--model_init_kwargs` must be a mapping (on the command line JSON, '{\"name\": value}'), got another text.",
    ),
    row(
        "--liger_kernel_config [1]",
        "`--liger_kernel_config` must be a mapping (on the command line JSON, '{\"name\": value}'), got another text.",
    ),
    row("--no_average_tokens_across_devices=4", "`--no_average_tokens_across_devices` takes no value."),
    row("--kl_coef -1", "`--kl_coef` must be 0 or more, got -1.0."),
    row("--reward_timeout -1", "`--reward_timeout` must be above 0, got -1.0."),
    row("--max_reward_failures 7", "`--max_reward_failures` must be between 0 and 1, got 7.0."),
    row(
        "--kl_controller scheduled",
        "`--kl_controller='scheduled'` needs `--kl_coef_end` (Final coefficient of a schedule).",
    ),
    row("--num_eval_prompts 0", "`--num_eval_prompts` must be at least 1, got 0."),
    row(
        "--frontier_samples 1",
        "`--frontier_samples` must be at least 2, got 1.",
    ),
    row(
        "--report_to notepad",
        f"`--report_to` 'notepad' is no tracker that is installed here ({TRACKERS}); install it, or take 'none'.",
    ),
    row("--stages sft dance", "`--stages` must be some of sft, reward, ppo, eval, got ['dance'].", INSTRUCT),
    row("--label_noise 0.5", "`--label_noise` must be at least 0 and below 0.5, got 0.5.", INSTRUCT),
    row("--num_reward_models 0", "`--num_reward_models` must be at least 1, got 0.", INSTRUCT),
    row("--calibration_prompts 1", "`--calibration_prompts` must be at least 2, got 1.", INSTRUCT),
    row(
        "--reward_model x --num_reward_models 2",
        "`--reward_model` is one model that exists; leave `--num_reward_models` at 1.",
        INSTRUCT,
    ),
    # options that there are not
    unknown("--kl_cof 1", "did you mean `--kl_coef` or `--kl_coef_end` or `--kl_loss_coef`?"),
    unknown("-kl_coef 1", "did you mean `--kl_coef`?"),
    unknown("--KL_coef 1", "did you mean `--kl_coef`?"),
    unknown("\u2014kl_coef 1", "did you mean `--kl_coef`?"),
    unknown("--kl_c 1", "did you mean `--kl_coef`?"),
    unknown("--datasetname x", "did you mean `--dataset_name` or `--eval_dataset_name` or `--data_seed`?"),
    unknown("--qqqqqq", "`--help` lists all of them."),
    unknown(
        "--reward_modl x", "did you mean `--reward_model` or `--num_reward_models` or `--reward_timeout`?", INSTRUCT
    ),
    # TRL's and Python's names
    unknown("--response_length 53", "use `--max_completion_length`."),
    unknown("--max_new_tokens 53", "use `--max_completion_length`."),
    unknown("--reward_model_path x", "use `--toxicity_model`."),
    unknown("--reward_model_path x", "use `--reward_model`.", INSTRUCT)._replace(name="--reward_model_path, instruct"),
    unknown("--reward_model x", "use `--toxicity_model`."),
    unknown("--reward_funcs x", "use `--toxicity_model`."),
    unknown("--sft_model_path x", "use `--model_name_or_path`."),
    unknown("--model x", "use `--model_name_or_path`."),
    unknown("--beta 0.1", "use `--kl_coef` for the penalty in the reward, `--kl_loss_coef` for a loss."),
    unknown(
        "--num_generations 8",
        "leave it out, PPO samples one completion per prompt; repeat a prompt in the data set for more.",
    ),
    unknown("--vllm_tensor_parallel_size 2", "leave it out, a colocated vLLM runs on the policy's device."),
    unknown(
        "--ref_model x",
        "leave it out, the reference is made of `--model_name_or_path`: its base without the adapter, or a frozen "
        "copy.",
    ),
    unknown("--tokenizer x", "leave it out, a model brings its own tokenizer."),
    unknown("--processing_class x", "leave it out, a model brings its own tokenizer."),
    unknown("--peft_config x", "use `--use_peft`."),
    unknown("--quantization_config x", "use `--load_in_4bit`."),
    unknown("--train_dataset x", "use `--dataset_name` and `--prompt_column`."),
    unknown("--optimizer x", "use `--optim`, `--learning_rate` and `--lr_scheduler_type`."),
    unknown("--torch_dtype bfloat16", "use `--dtype`."),
    unknown("--judge x", "use `--judge_model`."),
    unknown(
        "--batch_size 8",
        "set `--per_device_train_batch_size` and `--gradient_accumulation_steps`; their product is sampled per "
        "rollout.",
    ),
    unknown("--lr 1", "use `--learning_rate`."),
    # what stands alone
    row("mine.yaml", "`mine.yaml` stands alone; give a file of settings as `--config mine.yaml`."),
    row("--use_cpu true mine.yml", "`mine.yml` stands alone; give a file of settings as `--config mine.yml`."),
    row(
        "--chat_instruction Continue this",
        "`this` belongs to no option; options begin with `--`, and values of several words are quoted.",
    ),
    # `--config`
    row("--config", "`--config` needs the path of a YAML file, once."),
    row("--config=", "`--config` needs the path of a YAML file, once."),
    row("--config a.yaml --config b.yaml", "`--config` needs the path of a YAML file, once."),
    row(
        "--config gone.yaml",
        "`--config gone.yaml` is no file, and no configuration of the recipes has this name: known are "
        "cards/12gb_llama_8b, cards/16gb_qwen_14b, cards/24gb_llama_8b, cards/8gb_llama_3b, "
        "detoxification/gpt_neo_125m, detoxification/pretrained_critic, detoxification/qwen2.5_0.5b_instruct, "
        "detoxification/reading_critic, "
        "instruction_following/defended, instruction_following/over_optimized, "
        "instruction_following/qwen2.5_0.5b_ultrafeedback, instruction_following/qwen2.5_1.5b_hh, "
        "ppo/qwen2.5_0.5b_instruct.",
    ),
    row(
        "--config cards/8gb_lama_3b",
        "`--config cards/8gb_lama_3b` is no file, and no configuration of the recipes has this name: did you mean "
        "`cards/8gb_llama_3b` or `cards/24gb_llama_8b` or `cards/12gb_llama_8b`?",
    ),
    row("--config=.", "The file '.' cannot be read (Is a directory); give an existing YAML file."),
]  # fmt: skip


@table(CASES)
def test_a_bad_command_line_is_answered_in_one_line(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(case)
    assert list(tmp_path.iterdir()) == [], "a refusal comes before anything is written"
