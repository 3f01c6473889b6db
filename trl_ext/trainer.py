# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`PPOTrainer`: PPO inside the Hugging Face Trainer's own loop."""

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging

from . import checkpoint, resuming
from ._compat import BaseTrainer
from .actor_critic import ActorCritic, build_actor_critic
from .arguments import check_arguments
from .assembly import (
    PAPER,
    add_adapter_rewards,
    build_generation_engine,
    build_kl_controller,
    build_supervised_data,
    check_datasets,
    check_devices,
    check_inputs,
    check_output_dir,
    count_episodes,
    leaves_parameters_unused,
    loading_device,
    mapping,
    max_prompt_length,
    policy_tokenizer,
    run_configuration,
)
from .config import PPOConfig
from .experience.advantages import add_logged, named_rewards
from .experience.collector import Collector, Experience
from .experience.engines import Completions, GenerationEngine
from .experience.prompts import EpochSeed, RolloutRows, RolloutSampler
from .experience.rollout import Rollout, pass_order
from .experience.supervised import SupervisedBatch
from .kl_control import KLController
from .learning import StepGate, drop_gradients, gradients_are_finite, restored, token_losses
from .messages.advice import answers_unknown
from .micro_batches import MicroBatches
from .monitoring import MetricBuffer, PhaseProgress, SampleTable, TokenMeans, log_samples, observe_rollout
from .objectives import masked_mean, masked_sum
from .processes import together
from .rewards import RewardRunner, check_reward_models
from .text.tokens import set_padding

logger = logging.get_logger(__name__)


@answers_unknown("argument", "PPOConfig", PPOConfig.__dataclass_fields__, check_arguments)
class PPOTrainer(BaseTrainer):
    """Proximal Policy Optimization for language models (arXiv 1707.06347, arXiv 2203.02155).

    The Hugging Face Trainer owns the loop, and with it resuming, evaluation, callbacks, logging, accelerate and the
    model card. Before the first micro-batch of a rollout `_prepare_inputs` samples, scores and evaluates a batch of
    completions; `compute_loss` learns from slices of it for `num_ppo_epochs * num_mini_batches` optimizer steps.

    Args:
        model: The policy: a name or folder, a causal LM, a PEFT model, or an [`ActorCritic`] built by hand.
        reward_funcs: One or several of: a function `f(prompts, completions, completion_ids, **columns)` returning one
            float (or None) per sample, as in TRL; an async one; the name of a reward model, or the model. May be left
            out where `args.reward_adapters` are the reward.
        args: Settings; by default those of `PPOConfig` with an `output_dir` named after the model.
        train_dataset: Column "prompt" with texts or conversations; reward functions get every other column.
        eval_dataset: The same for evaluation, or several by name.
        processing_class: Tokenizer of the policy; by default the one saved with it.
        reward_processing_classes: Tokenizers of reward models given in `reward_funcs`, where not saved with them.
        peft_config: LoRA configuration that the policy is wrapped in.
        quantization_config: How to quantize a policy given by name.
        kl_controller: Moves the KL coefficient; by default built from `args.kl_controller`.
        ptx_dataset: Texts to keep predicting, weighted by `args.ptx_coef`, in a format of TRL's `SFTTrainer`.
        callbacks, optimizers: As in `transformers.Trainer`.

    Raises:
        ValueError, TypeError: for input that cannot work, naming what to change.
    """

    # Each minibatch is normalized by its own number of tokens, so the Trainer must not divide again.
    loss_is_scaled_for_ga = True
    _tag_names = ["trl", "trl_ext", "ppo"]
    _name = "PPO"
    _paper = PAPER

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel | ActorCritic,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        kl_controller: KLController | None = None,
        ptx_dataset: Dataset | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path or type(model).__name__
            args = PPOConfig(output_dir=f"{Path(name).name}-PPO")
        check_devices(args.n_gpu)
        check_output_dir(args.output_dir)
        check_reward_models(reward_funcs, reward_processing_classes)
        check_inputs(train_dataset, eval_dataset, ptx_dataset, processing_class)
        set_seed(args.seed)  # adapters and heads are initialised at random
        init_kwargs = {"trust_remote_code": args.trust_remote_code, **mapping(args.model_init_kwargs)}
        tokenizer = processing_class or policy_tokenizer(model, init_kwargs)
        actor_critic = build_actor_critic(
            model,
            args.critic,
            peft_config=peft_config,
            quantization_config=quantization_config,
            critic_lora_rank=args.critic_lora_rank,
            reward_adapters=args.reward_adapters or (),
            init_kwargs=init_kwargs,
            device=loading_device(args),
        )
        if args.use_liger_kernel:
            actor_critic.apply_liger_kernel(args.liger_kernel_config)
        set_padding(tokenizer)
        self.chat_template_kwargs = mapping(args.chat_template_kwargs)
        limit = max_prompt_length(args, actor_critic.config)
        check_datasets(train_dataset, eval_dataset, tokenizer, limit, self.chat_template_kwargs, actor_critic)

        total_episodes = count_episodes(args, train_dataset)
        self._sampler: RolloutSampler | None = None
        liger, args.use_liger_kernel = args.use_liger_kernel, False  # done; the Trainer would say that it cannot
        try:
            super().__init__(
                model=actor_critic,
                args=args,
                data_collator=_identity,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                callbacks=[*(callbacks or []), EpochSeed(lambda: self._sampler)],
                optimizers=optimizers,
                # transformers before 5.19 knows no `loss_is_scaled_for_ga` and asks whether this is set instead.
                compute_loss_func=_identity,
            )
        finally:
            args.use_liger_kernel = liger
        ddp = self.accelerator.ddp_handler
        if ddp is not None and args.ddp_find_unused_parameters is None:
            ddp.find_unused_parameters = leaves_parameters_unused(actor_critic.config, args)
        checkpoint.set_aside_incomplete(Path(args.output_dir), leader=self.args.should_save)
        reward_funcs, reward_processing_classes = add_adapter_rewards(
            reward_funcs, reward_processing_classes, actor_critic, tokenizer, args
        )
        self.rewards = RewardRunner(
            reward_funcs,
            weights=args.reward_weights,
            processing_classes=reward_processing_classes,
            retries=args.reward_retries,
            backoff=args.reward_backoff,
            timeout=args.reward_timeout,
            max_reward_failures=args.max_reward_failures,
            clip_range=(args.reward_clip_range[0], args.reward_clip_range[1]) if args.reward_clip_range else None,
            chat_template_kwargs=self.chat_template_kwargs,
            device=self.accelerator.device,
            policy=actor_critic,
        )
        self.kl_controller = kl_controller or build_kl_controller(args, total_episodes)
        self.supervised = build_supervised_data(args, ptx_dataset, tokenizer, actor_critic)
        self.generation_engine: GenerationEngine = build_generation_engine(args, actor_critic, tokenizer)
        self.progress = PhaseProgress(enabled=self.is_world_process_zero() and not args.disable_tqdm)
        self.samples = SampleTable(args.num_completions_to_print)
        self._metrics, self._eval_metrics = MetricBuffer(), MetricBuffer()
        self._experience: Experience | None = None
        self._stopped = False  # whether the rest of this rollout's passes is skipped
        self._micro_step = 0  # the Trainer's micro-batches of the current optimizer step that are done
        self._episodes_here = 0  # completions sampled since `train` was called
        self._gate = StepGate()
        several = self.accelerator.num_processes > 1
        self.micro_batches = MicroBatches(args.micro_batch_size, "per_device_train_batch_size", fixed=several)
        self.collector = Collector(
            self._sample,
            lambda batch, **kwargs: self._forward(self.model, batch, **kwargs),
            self.rewards,
            tokenizer,
            chat_template_kwargs=self.chat_template_kwargs,
            micro_batches=self.micro_batches,
            missing_eos_penalty=args.missing_eos_penalty,
            importance_sampling_cap=args.importance_sampling_cap if args.importance_sampling_correction else None,
            advantages=args.advantage_options,
            reduce=self._reduce,
            device=self.accelerator.device,
        )
        self._step_means, self._ptx_means = TokenMeans(), TokenMeans()
        self._ptx: SupervisedBatch | None = None
        self._configuration = run_configuration(
            self.args, self.accelerator.num_processes, actor_critic, self.kl_controller
        ) | resuming.run_identity(actor_critic, tokenizer, train_dataset, ptx_dataset, self.rewards)
        self._reward_settings = resuming.reward_settings(self.rewards)
        self.model.add_model_tags(self._tag_names)
        # A seed per process, so that each samples something else.
        set_seed(args.seed, device_specific=True)

    # ---- data ----

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt"]

    def get_train_dataloader(self):
        """Batches of one process's share of a rollout, and a placeholder for each further micro-batch of it."""

        def sampler(dataset: RolloutRows) -> RolloutSampler:
            self._sampler = RolloutSampler(
                len(dataset),
                self.args.batch_size,
                self.args.gradient_accumulation_steps * self.args.steps_per_rollout,
                shuffle=self.args.shuffle_dataset,
                seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            )
            return self._sampler

        return self._get_dataloader(
            RolloutRows(self.train_dataset),
            description="Training",
            batch_size=self.args.local_batch_size,
            sampler_fn=sampler,
            is_training=True,
        )

    def set_initial_training_values(self, args: PPOConfig, dataloader: Any) -> Any:
        """The Trainer's count of steps, which `total_episodes` decides where it is given."""
        self._episodes_here, episodes = 0, args.total_episodes
        if episodes is not None:
            args = copy.copy(args)
            args.max_steps = -(-episodes // args.batch_size) * args.steps_per_rollout
        return super().set_initial_training_values(args, dataloader)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Make a rollout when its first micro-batch is asked for, and choose the samples of an optimizer step."""
        if isinstance(inputs, Rollout | SupervisedBatch):
            return inputs  # a micro-batch, on its way through the Trainer
        args, steps = self.args, self.args.steps_per_rollout
        rollout_number, step = divmod(self.state.global_step, steps)
        if self._micro_step == 0 and step == 0:
            self._gate.check_progress(args.learning_rate)
            self._experience = self._collect(inputs, self.progress, training=True)
            self._episodes_here += args.batch_size
            self._stopped = False
        assert self._experience is not None
        rollout = self._experience.rollout
        epoch, minibatch = divmod(step, args.num_mini_batches)
        order = pass_order(len(rollout), epoch, (args.seed, rollout_number, epoch)).to(rollout.input_ids.device)
        rows = order[minibatch * args.local_mini_batch_size :][: args.local_mini_batch_size]
        if self._micro_step == 0:
            self._rows_in_step = rows
            self._tokens_in_step = self._reduce(rollout.completion_mask[rows].sum().float()).clamp(min=1)
            if self.supervised is not None:
                key = (self.state.global_step, self.args.process_index)
                texts = self.supervised.batch(len(rows), key, self.accelerator.device)
                self._ptx = SupervisedBatch(texts, self._reduce(texts.completion_mask.sum().float()).clamp(min=1))
        return rows

    # ---- experience ----

    def _collect(self, rows: list[dict[str, Any]], progress: PhaseProgress, *, training: bool) -> Experience:
        """Make a rollout and show it to callbacks; in training, to the KL controller and the sample table too."""
        self.model.eval()
        kl_coef = self.kl_controller.coef
        experience = self.collector.collect(rows, progress, kl_coef=kl_coef, state=self.state, training=training)
        rollout, metrics, batch, scores = experience.rollout, experience.metrics, experience.batch, experience.scores
        assert batch is not None and scores is not None
        callbacks = self.callback_handler.callbacks
        kl = metrics["kl"]
        metrics |= observe_rollout(callbacks, batch, scores, metrics, state=self.state, training=training)
        if training:
            self.kl_controller.update(kl, int(self._reduce(rollout.valid.sum())))
            rewards = named_rewards(scores, self.rewards.names)
            advantages = masked_mean(rollout.advantages, rollout.completion_mask, dim=1).tolist()
            step = self.state.global_step
            self.samples.fill(batch.prompts, batch.completions, rewards, advantages, step, scores.extra)
        return experience._replace(metrics=add_logged(metrics, scores, self.rewards.clashes))

    def _sample(self, prompt_ids: list[list[int]], on_progress: Any) -> Completions:
        with self.accelerator.autocast(), self.model.hold():
            return self.generation_engine(self.model.causal_lm, prompt_ids, on_progress)

    def _all_rows(self, rollout: Rollout) -> Tensor:
        return torch.arange(len(rollout), device=rollout.scores.device)

    def _forward(self, model: nn.Module, batch: Rollout, **kwargs: Any) -> Any:
        options = {"temperature": self.args.temperature, "chunk_size": self.args.logits_chunk_size} | kwargs
        return model(batch.input_ids, batch.attention_mask, batch.completion_mask, **options)

    # ---- learning ----

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; with the last one of an optimizer step, the decision whether the step is taken."""
        self._prepare_inputs(inputs)
        args, skip = self.args, self._stopped
        # The Trainer calls this `gradient_accumulation_steps` times for each optimizer step, and a minibatch may have
        # fewer micro-batches: the first calls then have nothing to do.
        idle = args.gradient_accumulation_steps - args.local_mini_batch_size // args.micro_batch_size
        last = self._micro_step == args.gradient_accumulation_steps - 1
        loss = torch.zeros((), device=args.device)
        with self.progress.phase("learn"), self.model.hold():
            if self._micro_step >= idle and not skip:
                loss = self._learn(model, self._micro_step - idle)
            if last and args.device.type != "cpu":
                torch.accelerator.synchronize(args.device)  # the backward pass is part of the phase
        self._micro_step = 0 if last else self._micro_step + 1
        if last:
            self._finish_step(skip)
        return loss if torch.isfinite(loss) else torch.zeros_like(loss)

    def _learn(self, model: nn.Module, last: int) -> Tensor:
        """Add the gradients of the micro-batch `last`, in pieces where memory does not suffice for all of it.

        Memory can run out halfway through a backward pass. Some gradients are in then and nobody knows which, so the
        optimizer step begins again, with smaller pieces; the rollout stays.
        """
        assert self._experience is not None
        rollout, micro = self._experience.rollout, self.args.micro_batch_size
        losses: Any = None

        def learn(micro_steps: range) -> None:
            nonlocal losses
            for i in micro_steps:
                positions = self._all_rows(rollout)[i * micro : (i + 1) * micro].split(self.micro_batches.size)
                pieces: list[Any] = [rollout.select(self._rows_in_step[piece]) for piece in positions]
                if self._ptx is not None:
                    pieces += [SupervisedBatch(self._ptx.texts.select(p), self._ptx.tokens) for p in positions]
                losses = sum(super(PPOTrainer, self).training_step(model, piece) for piece in pieces)

        micro_steps = range(last, last + 1)
        while not self.micro_batches.attempt(partial(learn, micro_steps), "learning from"):
            self.model.zero_grad()
            self._step_means, self._ptx_means = TokenMeans(), TokenMeans()
            micro_steps = range(last + 1)
        return losses

    def compute_loss(
        self, model: nn.Module, inputs: Rollout, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch: sums over its tokens, divided by the tokens of the whole global minibatch."""
        if isinstance(inputs, SupervisedBatch):
            return self._supervised_loss(model, inputs)
        out, losses = self._token_losses(model, inputs)
        self._step_means.add(losses, inputs.completion_mask)
        loss = masked_sum(losses["loss"], inputs.completion_mask) / self._tokens_in_step
        # DDP averages gradients over processes; the loss above is each one's share of a sum.
        loss = loss * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    def _token_losses(self, model: nn.Module, batch: Rollout) -> tuple[Any, dict[str, Tensor]]:
        out = self._forward(model, batch, entropy="gradient" if self.args.entropy_coef else "value")
        return out, token_losses(out, batch, self.args.loss_options)

    def _supervised_loss(self, model: nn.Module, batch: SupervisedBatch) -> Tensor:
        """The language-model loss of PPO-ptx: its share of a mean over the tokens of the whole global minibatch."""
        mask = batch.texts.completion_mask
        out = self._forward(model, batch.texts, role="actor", temperature=1.0, entropy="none")
        self._ptx_means.add({"ptx_loss": -out.logps}, mask)
        return -self.args.ptx_coef * self.accelerator.num_processes * masked_sum(out.logps, mask) / batch.tokens

    def _finish_step(self, skipped: bool) -> None:
        """After the last micro-batch of an optimizer step: take its gradients, or drop them and say why."""
        experience, args = self._experience, self.args
        assert experience is not None
        metrics = self._step_means.take(self._reduce) if not skipped else {}
        if self._ptx is not None and not skipped:
            metrics |= self._ptx_means.take(self._reduce)
        scaler = getattr(self.accelerator, "scaler", None)
        drop = skipped or self._is_unusable(metrics)
        if self.state.global_step // args.steps_per_rollout < args.critic_warmup_rollouts:
            drop_gradients(p for _, p in self.model.actor_parameters())
        # fp16's scaler finds infinite gradients itself, skips the step and scales by less the next time.
        unusable = not drop and not gradients_are_finite(self.model.parameters(), self._reduce)
        if unusable and scaler is None:
            logger.warning(f"Step {self.state.global_step}: minibatch skipped, its gradient is not finite.")
            drop = True
        if drop:
            drop_gradients(self.model.parameters(), keep_one=scaler is not None)
        self._gate.is_open = not drop
        bound = args.target_approx_kl
        if bound is not None and not skipped and metrics["approx_kl"] > bound:
            self._stopped = True
        seconds = self.progress.take_seconds().get("learn", 0.0)
        self._metrics.update(experience.metrics | ({} if drop else metrics))
        self._metrics.update({"skipped_minibatches": float(drop or unusable), "time/learn": seconds})
        self._metrics.add("tokens_per_second", experience.speed(seconds * args.steps_per_rollout))

    def _is_unusable(self, metrics: dict[str, float]) -> bool:
        """Whether a minibatch must not be learned from; every process comes to the same answer."""
        loss, ratio = metrics["loss"], metrics["ratio/mean"]
        finite = abs(loss) < float("inf") and abs(ratio) < float("inf")
        too_far = self.args.max_ratio is not None and ratio > self.args.max_ratio
        too_large = self.args.max_loss is not None and abs(loss) > self.args.max_loss
        if finite and not too_far and not too_large:
            return False
        logger.warning(
            f"Step {self.state.global_step}: minibatch skipped, its loss is {loss:.4g} and its mean ratio {ratio:.4g}; "
            "if this happens often, lower `learning_rate` or `num_ppo_epochs`."
        )
        return True

    def _reduce(self, tensor: Tensor, operation: str = "sum") -> Tensor:
        """Sum, or largest value, over processes."""
        if self.accelerator.num_processes == 1:
            return tensor
        if operation == "max":
            return self.accelerator.gather(tensor).max()
        return self.accelerator.reduce(tensor, reduction="sum")

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's optimizer behind a gate, with groups for the critic when it has its own learning rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.args.critic_learning_rate is not None:
            critic = {id(p) for _, p in self.model.critic_parameters()}
            for group in list(optimizer.param_groups):
                split = {**group, "params": [p for p in group["params"] if id(p) in critic]}
                group["params"] = [p for p in group["params"] if id(p) not in critic]
                if split["params"]:
                    optimizer.add_param_group({**split, "lr": self.args.critic_learning_rate})
        self._gate.guard(optimizer)
        return optimizer

    # ---- evaluation and logs ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, with the same random numbers every time and without taking any from training."""
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.args.seed + self.args.process_index)
            metrics = super().evaluate(*args, **kwargs)
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        """The Trainer's loop, with PPO's metrics added under its prefix (`eval_reward`, ...)."""
        prefix = kwargs.get("metric_key_prefix", "eval")
        casts = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        with restored(self.model) if casts else nullcontext():
            output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update({f"{prefix}_{name}": value for name, value in self._eval_metrics.flush().items()})
        return output

    @torch.no_grad()
    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Sample and score one batch of evaluation prompts, and take the losses it would give."""
        progress, means = PhaseProgress(enabled=self.progress.enabled), TokenMeans()
        experience = self._collect(inputs, progress, training=False)
        rollout, metrics = experience.rollout, experience.metrics

        def measure(rows: Tensor) -> None:
            batch = rollout.select(rows)
            means.add(self._token_losses(model, batch)[1], batch.completion_mask)

        with progress.phase("learn"):
            self.micro_batches.run(self._all_rows(rollout), measure, "in a forward pass over")
        metrics |= means.take(self._reduce)
        metrics["time/learn"] = progress.take_seconds()["learn"]
        metrics["tokens_per_second"] = experience.speed(metrics["time/learn"])
        self._eval_metrics.update(metrics, weight=int(self._reduce(rollout.valid.sum())))
        return torch.tensor(metrics["loss"], device=self.args.device), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add PPO's metrics to the Trainer's, and show samples."""
        if "train_samples_per_second" in logs:
            # The Trainer counts every pass over a rollout as new samples.
            logs["train_samples_per_second"] = round(self._episodes_here / logs["train_runtime"], 3)
        if "learning_rate" in logs:
            logs.pop("loss", None)  # absent where no minibatch was learned from
            logs.update(self._metrics.flush())
            if self.args.log_completions and self.is_world_process_zero():
                self.samples.print()
                log_samples(self.samples, self.args.report_to, self.state.global_step, self.callback_handler.callbacks)
        super().log(logs, *args, **kwargs)

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        checkpoint.write_json(folder / "ppo_config.json", self.args.to_dict())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save everything the next optimizer step depends on, then declare the checkpoint complete."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with together(f"Writing {folder}"):
            resuming.check_finite(self.model, self.optimizer, self.state.global_step)
        # An older checkpoint may go only once this one counts.
        with resuming.without_rotation(self.args) as limit, checkpoint.writing(folder, leader=self.args.should_save):
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model and self._experience is not None:
                self._experience.rollout.save(folder / f"rollout_{self.args.process_index}.safetensors")
            checkpoint.write_json(resuming.state_file(folder, self.args.process_index), self._ppo_state())
        if self.args.should_save:
            checkpoint.rotate(folder, limit, self.state.best_model_checkpoint)

    def _ppo_state(self) -> dict[str, Any]:
        experience = self._experience
        assert experience is not None
        return {
            "configuration": self._configuration,
            "reward settings": self._reward_settings,
            "kl_controller": self.kl_controller.state_dict(),
            "rewards": self.rewards.state_dict(),
            "metrics": self._metrics.state_dict(),
            "rollout_metrics": experience.metrics,
            "rollout_speed": [experience.tokens, experience.seconds],
            "stopped": self._stopped,
            "gate": self._gate.state_dict(),
            "micro-batch": self.micro_batches.size,
        }

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own loop, with `resume_from_checkpoint=True` for the newest checkpoint that is whole."""
        found = resuming.find_checkpoint(resume_from_checkpoint, self.args.output_dir, leader=self.args.should_save)
        return super().train(found, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder, process = Path(resume_from_checkpoint), self.args.process_index
        with together(f"Resuming from {folder}"), resuming.loading(folder):
            resuming.check_checkpoint(folder, self._configuration, process)
            resuming.warn_of_changed_rewards(folder, self._reward_settings)
            self.model.load_pretrained(folder)

    def _load_best_model(self) -> None:
        folder = Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name  # may have moved
        with together(f"Loading {folder}"), resuming.loading(folder):
            self.model.load_pretrained(folder)
        self.state.best_model_checkpoint = str(folder)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder, process = Path(checkpoint_folder), self.args.process_index
        with together(f"Resuming from {folder}"), resuming.loading(folder):
            super()._load_optimizer_and_scheduler(checkpoint_folder)
            state = resuming.read_state(folder, process)
            self.kl_controller.load_state_dict(state["kl_controller"])
            self.rewards.load_state_dict(state["rewards"])
            self._metrics.load_state_dict(state["metrics"])
            self._stopped, self.micro_batches.size = state["stopped"], state["micro-batch"]
            self._gate.load_state_dict(state.get("gate"))
            rollout = Rollout.load(folder / f"rollout_{process}.safetensors", self.accelerator.device)
            self._experience = Experience(rollout, state["rollout_metrics"], *state["rollout_speed"])


def _identity(batch: Any) -> Any:
    return batch
