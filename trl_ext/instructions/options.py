# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The options of the instruction recipe: one dataclass for each stage, and one for the rest."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from trl_ext.checks.fields import Count, CountOrZero, Limits, Positive
from trl_ext.checks.options import CheckedOptions, option
from trl_ext.messages.printable import is_plain_name, one_line
from trl_ext.rewards.combine import AGGREGATIONS
from trl_ext.running.best_eta import BUDGET_HELP, ETAS_HELP, check_budget

__all__ = ["STAGES", "PPOStage", "PreferenceData", "RewardStage", "RunOptions", "SupervisedStage"]

STAGES = ("sft", "reward", "ppo", "eval")
# A value of `critic`: the critic starts from the reward model of the `reward` stage.
RUNS_REWARD = "reward"


@dataclass
class RunOptions(CheckedOptions):
    """Options that change the result of no stage: which stages run, and how the policies are compared and shown."""

    stages: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={"help": "Stages to run: sft, reward, ppo, eval, or some of them; a stage that is done is skipped."},
    )
    ppo_folder: str = option("ppo", "Name of the PPO run in the output directory; several runs share the rest.")
    num_eval_prompts: Count = option(400, "Prompts on which the policies are compared.")
    category_column: str | None = option(
        None,
        "Column of the prompts with the category of each: which categories lost gold reward is said at the end. "
        "Default: kind, in the embedded example.",
    )
    category_samples: Count = option(4, "Completions per prompt that tell losses by category from noise.")
    num_report_samples: CountOrZero = option(24, "Completions shown side by side in the report.")
    compare_with: str | None = option(
        None, "`ppo_folder` of another run, whose curves the report shows beside those of this run."
    )
    offline_cache_dir: str | None = option(None, "Folder of the embedded model. Default: $TRL_EXT_CACHE or ~/.cache.")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise ValueError(f"`stages` must be some of {', '.join(STAGES)}, got {unknown or 'none'}.")
        self.stages = [stage for stage in STAGES if stage in self.stages]
        if self.ppo_folder in ("sft", "reward") or not is_plain_name(self.ppo_folder):
            raise ValueError(
                f"`ppo_folder` must be a plain name other than sft and reward, got '{one_line(self.ppo_folder)}'."
            )
        if self.compare_with is not None and not is_plain_name(self.compare_with):
            raise ValueError(
                f"`compare_with` must be the plain name of a `ppo_folder` in the output directory, got "
                f"'{one_line(self.compare_with)}'."
            )


@dataclass
class SupervisedStage(CheckedOptions):
    """The `sft` stage: demonstrations and training."""

    sft_dataset: str | None = option(
        None,
        "Demonstrations: columns prompt and completion, messages, or text. Default: the chosen sides of the "
        "preference data.",
    )
    sft_split: str = option("train", "Split of the demonstrations, also a slice.")
    sft_learning_rate: float = option(2e-5, "Learning rate of the `sft` stage.")
    sft_epochs: float = option(1.0, "Passes over the demonstrations.")
    sft_batch_size: Count = option(16, "Demonstrations per optimizer step and process.")
    sft_max_length: int = option(1024, "Tokens of a demonstration; longer ones are cut.")


@dataclass
class PreferenceData(CheckedOptions):
    """Preference pairs to train on and to measure on."""

    preference_dataset: str | None = option(
        None,
        "Pairs with chosen and rejected (and prompt): texts, conversations, or whole dialogues in the 'Human: ... "
        "Assistant: ...' format. Default: sampled from the policy and ranked by the embedded judge.",
    )
    preference_config: str | None = option(None, "Configuration of a dataset of the Hub.")
    preference_split: str = option("train", "Split of the pairs, also a slice.")
    preference_eval_dataset: str | None = option(
        None, "Held-out pairs. Default: some of the pairs, which are then not trained on."
    )
    preference_eval_split: str = option("test", "Split of the held-out pairs.")
    preference_skip_bad: bool = option(
        False,
        "Leave out pairs that lack a side, have one answer twice or answer different prompts, instead of stopping.",
    )
    num_preference_eval: Count = option(400, "Pairs held out to measure the reward model on.")


@dataclass
class RewardStage(CheckedOptions):
    """The `reward` stage: sampled pairs, and training."""

    num_preference_pairs: Count = option(8000, "Most pairs to sample for the embedded example.")
    answers_per_prompt: Annotated[int, Limits(at_least=2)] = option(
        4, "Answers to sample to each prompt of the embedded example; two of different quality are a pair."
    )
    label_noise: Annotated[float, Limits(at_least=0, below=0.5)] = option(
        0.15, "Share of the sampled training pairs whose order is wrong on purpose."
    )
    reward_model: str | None = option(
        None, "A trained reward model (one label) to use; the `reward` stage then only measures it."
    )
    reward_learning_rate: float = option(1e-5, "Learning rate of the `reward` stage.")
    reward_epochs: float = option(1.0, "Passes over the pairs.")
    reward_batch_size: Count = option(16, "Pairs per optimizer step and process.")
    reward_max_length: int = option(1024, "Tokens of a pair; longer dialogues lose their first turns, or are left out.")
    num_reward_models: Count = option(1, "Reward models to train, with different heads and orders of the pairs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_model is not None and self.num_reward_models > 1:
            raise ValueError("`reward_model` is one model that exists; leave `num_reward_models` at 1.")


@dataclass
class PPOStage(CheckedOptions):
    """The `ppo` stage: how the reward models become one reward, prompts, judge and watch."""

    aggregation: Literal[*AGGREGATIONS, "warm", "first"] = option(  # type: ignore[valid-type]
        "mean",
        "How several reward models become one reward: their mean, minimum, mean minus `aggregation_k` standard "
        "deviations or variances, one model with averaged weights (WARM), or the first model alone.",
    )
    aggregation_k: float = option(1.0, "Number of standard deviations or variances.")
    shaping: Literal["none", "log_sigmoid", "par"] = option(
        "none", "Bound of the reward: log sigmoid, or PAR against a completion of the initial policy."
    )
    length_debias: bool = option(False, "Remove the part of the reward that length explains.")
    calibration_prompts: Annotated[int, Limits(at_least=2)] = option(
        256, "Completions of the initial policy whose rewards get mean 0 and deviation 1."
    )
    ptx_dataset: str | None = option(
        None, "Texts for the language-model loss (`ptx_coef`). Default: the demonstrations, if given."
    )
    dataset_name: str | None = option(None, "Prompts of PPO. Default: those of the preference data.")
    dataset_config: str | None = option(None, "Configuration of a dataset of the Hub.")
    dataset_split: str = option("train", "Split of the prompts, also a slice.")
    judge_model: str | None = option(
        None, "Another reward model, which watches and evaluates as gold reward and never trains."
    )
    num_monitor_prompts: Count = option(96, "Evaluation prompts that are watched during training.")
    gold_kl_budget: float | None = option(
        None, "Keep the checkpoint with the best gold reward among those below this KL, in nats."
    )
    keep_best_eta: list[Annotated[float, Limits(above=0)]] | None = option(None, ETAS_HELP)
    kl_budget: Positive | None = option(None, BUDGET_HELP)
    stop_on_alarm: bool = option(False, "End PPO when the monitor raises an alarm.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget(self.kl_budget, self.keep_best_eta)
