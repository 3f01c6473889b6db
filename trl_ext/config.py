# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`PPOConfig`: every setting of a PPO run in one flat dataclass, checked before anything is loaded."""

import copy
import warnings
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from ._compat import DICT_FIELDS, BaseConfig
from .checks.combinations import (
    MAPPINGS,
    check_combinations,
    distribution_settings,
    warn_where_doubtful,
    warn_without_effect,
)
from .checks.fields import AboveOne, Coefficient, Count, CountOrZero, Fraction, Limits, Positive, check_fields
from .checks.kl_bound import follow_kl_bound
from .checks.options import documented, option
from .checks.training_arguments import (
    INHERITED_LIMITS,
    check_engine,
    check_supported,
    choose_best_metric,
    has_bf16,
    warn_ignored,
)
from .critic_learning import CriticOptions, PretrainingOptions
from .critic_modes import CRITIC_MODES
from .experience.advantages import AdvantageOptions
from .experience.engine_gap import GapOptions
from .experience.engines import ENGINES
from .kl_control import CONTROLLERS, SHAPES
from .learning import LossOptions
from .messages.advice import TRAINER_ARGUMENTS, answers_unknown
from .messages.redaction import redacted
from .step_gate import StepLimits

Options = TypeVar("Options")

# AdamW's, for a critic with an optimizer of its own and values in standard deviations of the return.
OWN_CRITIC_LEARNING_RATE = 3e-4
SAMPLED_AT_A_TIME = 64  # on a CPU, and where no plan says otherwise


@answers_unknown("setting", "PPOTrainer", TRAINER_ARGUMENTS)
@documented
@dataclass
class PPOConfig(BaseConfig):
    r"""Configuration of [`PPOTrainer`]; a `transformers.TrainingArguments` with the settings of PPO.

    Names are TRL's wherever TRL has one. As in TRL's last PPO, `per_device_train_batch_size *
    gradient_accumulation_steps` is what one process samples per rollout; each rollout is learned from `num_ppo_epochs`
    times, in `num_mini_batches` optimizer steps each time. One step of the Trainer (`max_steps`, `logging_steps`,
    `save_steps`, the learning-rate schedule) is one optimizer step.

    Defaults that differ from `TrainingArguments`: `learning_rate` 3e-6, `logging_steps` 10, `gradient_checkpointing`
    True, `remove_unused_columns` False (reward functions see every column), and `bf16`, which is on where a GPU
    supports it and off on CPU.

    Raises:
        TypeError: for a value of another type than the field's.
        ValueError: for a value out of range or sizes that do not divide, naming the value and what would fit.
    """

    _VALID_DICT_FIELDS = [*DICT_FIELDS, *MAPPINGS]

    # Parameters of TrainingArguments with another default.
    learning_rate: float = option(3e-6, "Initial learning rate of the policy.")
    remove_unused_columns: bool | None = option(
        False, "Drop every column but the prompts'; reward functions then see no other column."
    )

    # Model and data
    model_init_kwargs: dict[str, Any] | str | None = option(
        None, "Keyword arguments of `from_pretrained` when `model` is given by name."
    )
    trust_remote_code: bool = option(False, "Let models and tokenizers run code of their own repository.")
    critic: str = option(
        "head",
        "Where values come from: "
        + ", ".join(f"'{name}' ({mode.help})" for name, mode in CRITIC_MODES.items())
        + ", the folder of an earlier run, whose critic goes on learning, or the name or folder of a separate model; a "
        "reward model also initialises the value head.",
    )
    critic_lora_rank: Count | None = option(
        None, "Rank of the critic's LoRA adapter (`critic='adapter'`); None: the same as the policy's."
    )
    critic_target_modules: list[str] | None = option(
        None,
        "Layers of the critic's LoRA adapter (`critic='adapter'`): names, such as up_proj down_proj, or one regular "
        "expression; None: the policy's layers.",
    )
    num_critics: Annotated[int, Limits(at_least=1, at_most=2)] = option(
        1,
        "LoRA critics (`critic='adapter'`): two learn from disjoint halves of the prompts, and values are their mean "
        "(AsyPPO).",
    )
    critic_agreement_share: Annotated[float, Limits(at_least=0, below=1)] = option(
        0.2,
        "With two critics, share of the tokens whose advantages count as 0: those where the critics agree most, which "
        "teach the policy least; 0 is off.",
    )
    prompt_column: str = option(
        "prompt",
        "Column of the prompts: texts, conversations, or dictionaries with 'text'. Without a column 'prompt', the "
        "messages before the answer in 'messages' or 'conversations' (ShareGPT too).",
    )
    shuffle_dataset: bool = option(
        True, "Shuffle the prompts, anew in every epoch; a stream is read in its own order: use its `shuffle`."
    )
    max_prompt_length: Count | None = option(
        None,
        "Longest prompt allowed, in tokens; longer ones are an error. Default: what the model's context leaves after "
        "`max_completion_length`.",
    )
    chat_template_kwargs: dict[str, Any] | str | None = option(
        None, "Extra arguments of the chat template, for conversational prompts."
    )

    # Generation
    max_completion_length: Count = option(256, "Most tokens sampled per completion.")
    temperature: Positive = option(1.0, "Sampling temperature; every log-probability is taken at this temperature too.")
    top_p: Annotated[float, Limits(above=0, at_most=1)] = option(1.0, "Nucleus sampling; 1.0 is off.")
    top_k: CountOrZero = option(0, "Top-k sampling; 0 is off.")
    min_p: Fraction | None = option(None, "Min-p sampling; None is off.")
    repetition_penalty: Positive = option(1.0, "Repetition penalty while sampling; 1.0 is off.")
    stop_strings: list[str] | None = option(None, "Texts that end a completion, besides every EOS token of the model.")
    generation_kwargs: dict[str, Any] | str | None = option(
        None, "Further arguments of transformers' GenerationConfig."
    )
    cache_implementation: Literal["static"] | None = option(
        None,
        "'static': sample with a KV cache of fixed size, with which `generate` compiles the pass of a token on a GPU; "
        "finished completions then stay in the batch.",
    )
    local_rollout_forward_batch_size: CountOrZero = option(
        SAMPLED_AT_A_TIME,
        "Prompts sampled at a time on each process; 0: as many as a GPU has room for, by the plan of the run.",
    )
    merge_adapters_while_sampling: bool = option(
        False,
        "Merge the policy's adapter into copies of the base's weights while sampling, which spares products at every "
        "token and takes the memory of the copies; not with a quantized base.",
    )
    use_transformers_continuous_batching: bool = option(
        False, "Sample with transformers' continuous batching instead of `generate`."
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = option(
        None, "Arguments of transformers' ContinuousBatchingConfig."
    )
    use_vllm: bool = option(False, "Sample with vLLM instead of `generate`.")
    vllm_mode: Literal["colocate", "server"] = option(
        "colocate", "Where vLLM runs: in this process ('colocate'), or as a server that `vllm serve` has started."
    )
    vllm_gpu_memory_utilization: Annotated[float, Limits(above=0, at_most=1)] = option(
        0.3, "Share of the GPU's memory that a colocated vLLM takes for its copy of the weights and its cache."
    )
    vllm_max_model_length: Count | None = option(
        None,
        "Most tokens of a prompt and its completion in a colocated vLLM; None: `max_prompt_length` and "
        "`max_completion_length` together, or the model's context.",
    )
    vllm_enable_sleep_mode: bool = option(
        False, "Let a colocated vLLM give the GPU's memory back between rollouts; waking it takes time."
    )
    vllm_server_base_url: str | None = option(None, "Address of the vLLM server, in place of host and port.")
    vllm_server_host: str = option("0.0.0.0", "Host of the vLLM server.")
    vllm_server_port: Annotated[int, Limits(at_least=1, at_most=65535)] = option(8000, "Port of the vLLM server.")
    vllm_server_timeout: Positive = option(
        240.0, "Seconds that the vLLM server may take for a rollout, or for new weights."
    )
    async_rollouts: bool = option(
        False,
        "Have the vLLM server (`vllm_mode='server'`) sample the next rollout while the policy learns from one. Its "
        "samples are those of the policy before that learning; `importance_sampling_correction` makes up for it.",
    )
    importance_sampling_correction: bool | None = option(
        None,
        "Weight each token by pi_old / pi_engine, capped, where the sampling engine's log-probabilities differ from "
        "the training path's; None: with `use_vllm` or `merge_adapters_while_sampling`.",
    )
    importance_sampling_cap: Positive = option(2.0, "Upper bound of the importance-sampling weight.")
    max_engine_gap: Positive | None = option(
        0.1,
        "With `importance_sampling_correction`, largest mean |log pi_old - log pi_engine| of a rollout, in nats: a "
        "warning beyond it, and the end of the run beyond 4 times it; None is off. Twice as large for rollouts "
        "that `async_rollouts` sampled ahead. Not checked with `top_p` and the like, which open a gap themselves.",
    )
    max_engine_capped: Annotated[float, Limits(above=0, at_most=1)] | None = option(
        0.05, "The same for the share of the tokens whose weight is capped."
    )

    # PPO
    total_episodes: Count | None = option(
        None, "Completions to sample in the whole run; overrides `num_train_epochs` and `max_steps`."
    )
    num_ppo_epochs: Count = option(4, "Passes over each rollout.")
    num_mini_batches: Count = option(1, "Optimizer steps in each pass over a rollout.")
    cliprange: Annotated[float, Limits(above=0, below=1)] = option(0.2, "The ratio is clipped below at 1 - cliprange.")
    cliprange_high: Positive | None = option(
        None, "The ratio is clipped above at 1 + cliprange_high; None: the same as below."
    )
    dual_clip: AboveOne | None = option(
        None, "Dual clip: bound (> 1) of the ratio that multiplies a negative advantage; None is off."
    )
    mask_ratio_range: list[Coefficient] | None = option(
        None,
        "Least and greatest ratio pi / pi_old (below and above 1) of the tokens that get a policy gradient, whatever "
        "the sign of the advantage; with `importance_sampling_correction` of pi_old / pi_engine too. None is off.",
    )
    cliprange_value: Positive | None = option(
        0.2, "Values are clipped to this distance from the old ones; None is off."
    )
    vf_coef: Coefficient = option(0.1, "Weight of the value loss.")
    entropy_coef: Coefficient = option(0.0, "Weight of the entropy bonus.")
    gamma: Fraction = option(1.0, "Discount factor.")
    lam: Fraction = option(0.95, "Lambda of GAE.")
    lam_critic: Fraction | None = option(
        None, "Lambda of the value targets (decoupled GAE, VC-PPO); None: the same as `lam`."
    )
    lam_adaptive_alpha: Positive | None = option(
        None, "Length-adaptive lambda of the policy, 1 - 1 / (alpha * length) (VAPO); None is off."
    )
    whiten_advantages: bool = option(True, "Whiten advantages over the tokens of the global batch.")
    whiten_rewards: bool = option(False, "Scale token rewards to unit variance over the global batch, mean kept.")
    missing_eos_penalty: Coefficient | None = option(
        None, "Subtracted from the score of a completion that did not end by itself."
    )
    bootstrap_truncated: bool = option(
        False, "Let truncated completions bootstrap from the value after their last token, instead of 0."
    )
    ptx_coef: Coefficient = option(
        0.0, "Weight of the language-model loss on `ptx_dataset` (PPO-ptx, InstructGPT); 0 is off."
    )
    ptx_max_length: Count = option(512, "Tokens of each text of `ptx_dataset` that are used.")
    target_approx_kl: Positive | None = option(
        None, "Skip the rest of a rollout's passes once a minibatch's approximate KL exceeds this."
    )
    max_ratio: AboveOne | None = option(10.0, "Skip a minibatch whose mean ratio exceeds this; None is off.")
    max_loss: Positive | None = option(None, "Skip a minibatch whose absolute loss exceeds this; None is off.")
    critic_learning_rate: Positive | None = option(
        None,
        "Learning rate of the critic; None: the same as `learning_rate`, or 3e-4 in passes of its own "
        "(`critic_epochs`, `critic_pretraining_episodes`).",
    )
    critic_warmup_rollouts: CountOrZero = option(0, "Rollouts at the start in which only the critic learns.")
    critic_epochs: Count | None = option(
        None,
        "Passes of the critic's own over each rollout, by torch's AdamW with `weight_decay` at a constant learning "
        "rate; None: the critic learns with the policy, by `vf_coef`.",
    )
    critic_mini_batches: Count = option(4, "Optimizer steps in each of the critic's own passes over a rollout.")
    critic_max_grad_norm: Positive = option(1.0, "Clips the norm of the gradient in the critic's own steps.")
    scale_returns: bool | None = option(
        None,
        "Learn values in standard deviations of the return (PopArt), so that `vf_coef`, `critic_learning_rate` and "
        "`cliprange_value` do not depend on the unit of the reward; None: with `critic_epochs` or "
        "`critic_pretraining_episodes`.",
    )
    critic_reads_reward_every: Count | None = option(
        None,
        "Score the beginning of each completion anew after every so many tokens, for the critic to read: it "
        "then need not learn the reward function by heart; None: it does not read rewards.",
    )
    critic_held_out: Annotated[float, Limits(at_least=0, at_most=0.5)] | None = option(
        None,
        "Share of the prompts from which the critic never learns, to measure `explained_variance/held_out`; None: 0.1 "
        "with `critic_epochs` or `critic_pretraining_episodes`, else 0.",
    )
    critic_pretraining_episodes: CountOrZero = option(
        0, "Completions of the first policy on which the critic is trained before PPO begins; 0 is off."
    )
    critic_pretraining_epochs: Count = option(6, "Most passes over the completions of the critic's pretraining.")
    critic_pretraining_learning_rate: Positive | None = option(
        None, "First learning rate of the critic's pretraining, which falls to 0; None: the critic's own."
    )
    policy_ema_decay: Annotated[float, Limits(above=0, below=1)] | None = option(
        None,
        "Decay (in (0, 1)) of an exponential moving average of the policy over optimizer steps, saved in `ema/` and "
        "evaluated beside the last policy, as `eval_ema_reward`; None is off.",
    )
    logits_chunk_size: Count = option(512, "Most completion tokens whose logits are held at a time.")

    # KL to the reference
    kl_coef: Coefficient = option(0.05, "Initial coefficient of the KL penalty in the reward.")
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = option(
        "k1",
        "KL that is penalized: an estimate for each sampled token, in the reward (k1 is the unbiased one there), or "
        "'exact', over the whole vocabulary at each state: in the loss, and for the states to come in the advantages.",
    )
    kl_loss_coef: Coefficient = option(0.0, "Weight of an additional KL loss.")
    kl_loss_estimator: Literal["k2", "k3"] = option(
        "k2", "Estimate used by the KL loss; k2 has the gradient of the reverse KL."
    )
    use_bias_correction_kl: bool = option(
        True,
        "Weight the KL loss of each token by pi / pi_old, held constant, so that its gradient is a KL's in every "
        "minibatch, not in the first alone.",
    )
    kl_controller: Literal[tuple(CONTROLLERS)] = option(  # type: ignore[valid-type]
        "fixed", "How the coefficient moves; ignored when the trainer is given a controller."
    )
    kl_target: Positive | None = option(None, "KL that the controller holds, in nats per completion.")
    kl_horizon: Annotated[int, Limits(above=0)] | None = option(
        None, "Horizon of the adaptive controller in episodes; None fits it to the batch."
    )
    kl_coef_end: Coefficient | None = option(None, "Final coefficient of a schedule.")
    kl_schedule: Literal[SHAPES] = option(  # type: ignore[valid-type]
        "linear", "Curve of a schedule from `kl_coef` to `kl_coef_end`."
    )

    # Rewards
    reward_adapters: list[str] | None = option(
        None,
        "Folders of LoRA reward models that TRL's RewardTrainer trained on the policy's base: each is one more reward "
        "function, which shares that base with the policy.",
    )
    reward_weights: list[float] | None = option(None, "Weight of each reward function; all 1 by default.")
    reward_constraints: list[str] | None = option(
        None,
        "Bounds on the means of reward functions, such as 'toxicity <= 0.05': a multiplier that a controller moves "
        "takes the place of the function's weight, and begins at it. The others are maximized. 'kl <= 1' is the same "
        "as `kl_controller` pid and `kl_target` 1.",
    )
    reward_clip_range: list[Annotated[float, Limits(infinite=True)]] | None = option(
        None, "Lower and upper bound of the summed reward."
    )
    reward_retries: CountOrZero = option(2, "Calls after the first for a reward function that raises.")
    reward_backoff: Coefficient = option(
        0.2, "Seconds before the first retry, doubled before each further one; at most a minute."
    )
    reward_timeout: Positive | None = option(None, "Seconds a reward function may take per call; None is no limit.")
    max_reward_failures: Fraction = option(
        0.1, "Fraction of a batch that may stay without a score; the run stops at more."
    )

    # Logging
    log_completions: bool = option(False, "Print a table of samples at every log, and send it to the loggers.")
    num_completions_to_print: Count = option(5, "Rows of the sample table.")

    def __post_init__(self) -> None:
        check_fields(self, get_type_hints(PPOConfig, include_extras=True), INHERITED_LIMITS)
        if getattr(self, "bf16", None) is None:
            # TRL turns bf16 on everywhere; emulated bf16 is slower than float32 and less exact.
            self.bf16 = not self.fp16 and has_bf16(use_cpu=self.use_cpu)
        choose_best_metric(self)
        follow_kl_bound(self)
        check_engine(self)
        with warnings.catch_warnings():
            # TRL's own default sets a field that transformers has renamed, which no user can change.
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
            super().__post_init__()
        check_supported(self)
        check_combinations(self, ENGINES[self.engine])
        for warn in (warn_ignored, warn_where_doubtful, warn_without_effect):
            warn(self)

    def check(self) -> None:
        """Check every setting again, for a configuration that was changed after it was made.

        Raises:
            TypeError, ValueError: as the constructor.
        """
        check_fields(self, get_type_hints(PPOConfig, include_extras=True), INHERITED_LIMITS)
        follow_kl_bound(self)
        check_supported(self)
        check_combinations(self, ENGINES[self.engine])

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as JSON types with secrets hidden, for files, loggers and reports."""
        own = copy.copy(self)
        for name in MAPPINGS:  # transformers writes dtypes as text into the dictionaries themselves
            setattr(own, name, redacted(getattr(self, name), name))
        return redacted(super(PPOConfig, own).to_dict())

    def __repr__(self) -> str:
        return f"PPOConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    __str__ = __repr__

    @property
    def local_batch_size(self) -> int:
        """Completions that one process samples per rollout."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def batch_size(self) -> int:
        """Completions in one rollout over all processes."""
        return self.local_batch_size * self.world_size

    @property
    def local_mini_batch_size(self) -> int:
        """Completions of one process in an optimizer step."""
        return self.local_batch_size // self.num_mini_batches

    @property
    def micro_batch_size(self) -> int:
        """Completions in one forward and backward pass."""
        return min(self.per_device_train_batch_size, self.local_mini_batch_size)

    @property
    def scoring_batch_size(self) -> int:
        """Texts in a forward pass of a reward adapter or of an evaluation."""
        return self.local_rollout_forward_batch_size or SAMPLED_AT_A_TIME

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps taken on each rollout."""
        return self.num_ppo_epochs * self.num_mini_batches

    def episodes_at(self, step: int) -> int:
        """Return the completions sampled over all processes once `step` optimizer steps are taken."""
        return -(-step // self.steps_per_rollout) * self.batch_size

    @property
    def engine(self) -> str:
        """Name in `ENGINES` of the engine that samples."""
        return next((name for name in ENGINES if getattr(self, f"use_{name}", False)), "generate")

    @property
    def corrects_for_engine(self) -> bool:
        """Whether tokens are weighted by pi_old / pi_engine."""
        chosen = self.importance_sampling_correction
        return self.use_vllm or self.merges_while_sampling if chosen is None else chosen

    @property
    def merges_while_sampling(self) -> bool:
        """Whether the policy's adapter is merged into its base while it samples; vLLM has weights of its own."""
        return self.merge_adapters_while_sampling and not self.use_vllm

    @property
    def engine_gap_options(self) -> GapOptions:
        """Options of the correction for the engine."""
        return self._options(GapOptions)

    @property
    def same_distribution(self) -> bool:
        """Whether the engine samples from the distribution that is learned, at the same temperature."""
        return not distribution_settings(self)

    @property
    def advantage_options(self) -> AdvantageOptions:
        """Options that turn scores into advantages and returns."""
        return self._options(AdvantageOptions)

    @property
    def learns_critic_apart(self) -> bool:
        """Whether the critic has passes of its own, during PPO or before."""
        return self.critic_epochs is not None or self.critic_pretraining_episodes > 0

    @property
    def scales_returns(self) -> bool:
        """Whether values are learned in standard deviations of the return."""
        return self.learns_critic_apart if self.scale_returns is None else self.scale_returns

    @property
    def held_out_share(self) -> float:
        """Share of the prompts from which the critic never learns."""
        default = 0.1 if self.learns_critic_apart else 0.0
        return default if self.critic_held_out is None else self.critic_held_out

    @property
    def own_critic_learning_rate(self) -> float:
        """Learning rate of an optimizer of the critic's own."""
        return self.critic_learning_rate or OWN_CRITIC_LEARNING_RATE

    @property
    def critic_options(self) -> CriticOptions:
        """Options of the critic's own optimizer steps."""
        return self._options(CriticOptions)

    @property
    def pretraining_options(self) -> PretrainingOptions:
        """Size and length of the critic's pretraining."""
        return self._options(PretrainingOptions)

    @property
    def loss_options(self) -> LossOptions:
        """Bounds and weights of the loss."""
        return self._options(LossOptions)

    @property
    def step_limits(self) -> StepLimits:
        """Bounds beyond which a minibatch, or the rest of the passes over a rollout, is skipped."""
        return self._options(StepLimits)

    def _options(self, kind: type[Options]) -> Options:
        return kind(**{option.name: getattr(self, option.name) for option in fields(kind)})  # type: ignore[arg-type]
