# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The options of the instruction-following recipe."""

from dataclasses import dataclass, field
from typing import Literal

from trl_ext.messages.printable import is_plain_name, one_line
from trl_ext.rewards.combine import AGGREGATIONS

STAGES = ("sft", "reward", "ppo", "eval")


@dataclass
class InstructArguments:
    """Which stages run, on which data, with which reward."""

    stages: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={"help": "What to do: sft, reward, ppo, eval, or some of them. What is done already is skipped."},
    )

    # Supervised fine-tuning
    sft_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Demonstrations: columns prompt and completion, messages, or text. Default: the chosen sides of "
            "the preference data."
        },
    )
    sft_split: str = field(default="train", metadata={"help": "Its split, also a slice."})
    sft_learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of the `sft` stage."})
    sft_epochs: float = field(default=1.0, metadata={"help": "Passes over the demonstrations."})
    sft_batch_size: int = field(default=16, metadata={"help": "Demonstrations per optimizer step and process."})
    sft_max_length: int = field(default=1024, metadata={"help": "Tokens of a demonstration; longer ones are cut."})

    # Reward model
    preference_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Pairs with chosen and rejected (and prompt): texts, conversations, or whole dialogues in the "
            "'Human: ... Assistant: ...' format. Default: sampled from the policy and ranked by the embedded judge."
        },
    )
    preference_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    preference_split: str = field(default="train", metadata={"help": "Its split, also a slice."})
    preference_eval_dataset: str | None = field(
        default=None, metadata={"help": "Held-out pairs. Default: some of the pairs, which are then not trained on."}
    )
    preference_eval_split: str = field(default="test", metadata={"help": "Their split."})
    preference_skip_bad: bool = field(
        default=False, metadata={"help": "Leave out pairs without two different sides, instead of stopping."}
    )
    num_preference_pairs: int = field(default=8000, metadata={"help": "Pairs to sample for the embedded example."})
    num_preference_eval: int = field(default=400, metadata={"help": "Pairs held out to measure the reward model on."})
    label_noise: float = field(
        default=0.15, metadata={"help": "Share of the sampled training pairs whose order is wrong on purpose."}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "A trained reward model (one label) to use; the `reward` stage only tests it."}
    )
    reward_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the `reward` stage."})
    reward_epochs: float = field(default=1.0, metadata={"help": "Passes over the pairs."})
    reward_batch_size: int = field(default=16, metadata={"help": "Pairs per optimizer step and process."})
    reward_max_length: int = field(
        default=1024, metadata={"help": "Tokens of a pair; longer dialogues lose their first turns, or are left out."}
    )
    num_reward_models: int = field(
        default=1, metadata={"help": "Reward models to train, with different heads and orders of the pairs."}
    )

    # What PPO makes of it
    aggregation: Literal[*AGGREGATIONS, "warm", "first"] = field(  # type: ignore[valid-type]
        default="mean",
        metadata={
            "help": "What several reward models come to: their mean, minimum, mean minus `aggregation_k` standard "
            "deviations or variances, one model with averaged weights (WARM), or only the first."
        },
    )
    aggregation_k: float = field(default=1.0, metadata={"help": "How many standard deviations or variances."})
    shaping: Literal["none", "log_sigmoid", "par"] = field(
        default="none",
        metadata={"help": "Bound the reward: log sigmoid, or PAR against a completion of the initial policy."},
    )
    length_debias: bool = field(default=False, metadata={"help": "Remove the part of the reward that length explains."})
    calibration_prompts: int = field(
        default=256,
        metadata={"help": "Completions of the initial policy that get reward 0 on average, with deviation 1."},
    )
    ptx_dataset: str | None = field(
        default=None,
        metadata={"help": "Texts for the language-model loss (`ptx_coef`). Default: the demonstrations, if given."},
    )
    ppo_folder: str = field(
        default="ppo", metadata={"help": "Name of the PPO run in the output directory; several runs share the rest."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts of PPO. Default: those of the preference data."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "Its split, also a slice."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts: texts or conversations."})
    judge_model: str | None = field(
        default=None,
        metadata={"help": "Another reward model that watches and evaluates as gold reward, and never trains."},
    )

    # Evaluation
    num_eval_prompts: int = field(default=400, metadata={"help": "Prompts on which the policies are compared."})
    num_monitor_prompts: int = field(default=96, metadata={"help": "Of these, those that are watched in training."})
    gold_kl_budget: float | None = field(
        default=None,
        metadata={"help": "Keep the checkpoint with the best gold reward among those below this KL, in nats."},
    )
    stop_on_alarm: bool = field(default=False, metadata={"help": "End PPO when the monitor raises an alarm."})
    num_report_samples: int = field(default=24, metadata={"help": "Completions shown side by side in the report."})
    compare_with: str | None = field(
        default=None, metadata={"help": "`ppo_folder` of another run, whose curves the report shows beside this one's."}
    )
    offline_cache_dir: str | None = field(
        default=None, metadata={"help": "Where the embedded model is kept. Default: $TRL_EXT_CACHE or ~/.cache."}
    )

    def __post_init__(self):
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise ValueError(f"`stages` must be some of {', '.join(STAGES)}, got {unknown or 'none'}.")
        if not 0 <= self.label_noise < 0.5:
            raise ValueError(f"`label_noise` must be at least 0 and below 0.5, got {self.label_noise}.")
        counts = (
            "num_preference_pairs", "num_preference_eval", "num_reward_models", "num_eval_prompts",
            "num_monitor_prompts", "sft_batch_size", "reward_batch_size",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.calibration_prompts < 2:
            raise ValueError(f"`calibration_prompts` must be at least 2, got {self.calibration_prompts}.")
        if self.ppo_folder in ("sft", "reward") or not is_plain_name(self.ppo_folder):
            raise ValueError(
                f"`ppo_folder` must be a plain name other than sft and reward, got '{one_line(self.ppo_folder)}'."
            )
        if self.compare_with is not None and not is_plain_name(self.compare_with):
            raise ValueError(
                f"`compare_with` must be the plain name of a `ppo_folder` in the output directory, got "
                f"'{one_line(self.compare_with)}'."
            )
        if self.reward_model is not None and self.num_reward_models > 1:
            raise ValueError("`reward_model` is one model that exists; leave `num_reward_models` at 1.")
