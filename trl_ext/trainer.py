# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`PPOTrainer`: PPO inside the Hugging Face Trainer's own loop."""

import copy
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from . import assembly, checkpoint, identity, learning, resuming
from ._compat import BaseTrainer
from .actor_critic import ActorCritic
from .actor_critic.averaging import PolicyAverage, evaluated_too
from .arguments import check_arguments, prompt_columns
from .config import PPOConfig
from .experience.collector import Experience
from .experience.engines import GenerationEngine
from .experience.judging import own_random_numbers
from .experience.prompts import EpochSeed, RolloutRows, RolloutSampler
from .experience.rollout import Rollout
from .experience.supervised import SupervisedBatch
from .files import write_json
from .kl_control import KLController
from .learning import Minibatch
from .messages.advice import answers_unknown
from .model_card import PAPER, TAGS, write_model_card
from .monitoring import PhaseProgress, RunLog, SampleTable, log_samples
from .monitoring.display import LogFile, show
from .objectives import masked_sum
from .processes import reduction, together
from .rewards import RewardRunner
from .sharding import load_optimizer, without_engine, written
from .step_gate import StepGate


@answers_unknown("argument", "PPOConfig", PPOConfig.__dataclass_fields__, check_arguments)
class PPOTrainer(BaseTrainer):
    """Proximal Policy Optimization for language models (arXiv 1707.06347, arXiv 2203.02155).

    The Hugging Face Trainer owns the loop, and with it resuming, evaluation, callbacks, logging, accelerate and the
    model card. Before the first micro-batch of a rollout `_prepare_inputs` asks the collector for the rollout;
    `compute_loss` learns from slices of it for `num_ppo_epochs * num_mini_batches` optimizer steps.

    Args:
        model: The policy: a name or folder, a causal LM, a PEFT model, or an [`ActorCritic`] built by hand.
        reward_funcs: One or several of: a function `f(prompts, completions, completion_ids, **columns)` returning one
            float (or None) per sample, as in TRL; an async one; the name of a reward model, or the model. May be left
            out where `args.reward_adapters` are the reward.
        args: Settings; by default those of `PPOConfig` with an `output_dir` named after the model.
        train_dataset: Texts or conversations in the column `args.prompt_column`; reward functions get every other
            column. A stream (`IterableDataset`) needs `total_episodes` or `max_steps`.
        eval_dataset: The same for evaluation, or several by name; no stream.
        processing_class: Tokenizer of the policy; by default the one saved with it.
        reward_processing_classes: Tokenizers of reward models given in `reward_funcs`, where not saved with them.
        peft_config: LoRA configuration that the policy is wrapped in.
        quantization_config: How to quantize a policy given by name.
        kl_controller: Moves the KL coefficient; by default made of `args.kl_controller`.
        ptx_dataset: Texts of PPO-ptx, whose loss `args.ptx_coef` weighs, in a format of TRL's `SFTTrainer`.
        eval_reward_funcs: Judges of the evaluations, of the same kinds as `reward_funcs`; the policy never learns from
            them. Logged as `eval_judge/<name>/mean` and `/std`.
        compute_metrics: `f(prompts, completions, completion_ids, **columns)` returning numbers by name; called once for
            each evaluation on all of its completions, in the main process.
        callbacks: As in `transformers.Trainer`.
        optimizers: Optimizer and schedule, as in `transformers.Trainer`.

    Raises:
        ValueError, TypeError: for input that cannot work, naming what to change.
    """

    # Each minibatch is normalized by its own number of tokens, so the Trainer must not divide again.
    loss_is_scaled_for_ga = True
    _tag_names, _name, _paper = list(TAGS), "PPO", PAPER
    save_model = without_engine(BaseTrainer.save_model)

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel | ActorCritic,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        kl_controller: KLController | None = None,
        ptx_dataset: Dataset | None = None,
        eval_reward_funcs: Any = None,
        compute_metrics: Callable[..., Any] | None = None,
    ):
        args = args or assembly.default_config(model)
        parts = assembly.assemble(
            args,
            model=model,
            reward_funcs=reward_funcs,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            ptx_dataset=ptx_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            peft_config=peft_config,
            quantization_config=quantization_config,
            kl_controller=kl_controller,
            eval_reward_funcs=eval_reward_funcs,
            compute_metrics=compute_metrics,
        )
        self._sampler: RolloutSampler | None = None
        with assembly.without_liger(args):
            super().__init__(
                model=parts.actor_critic,
                args=args,
                data_collator=_identity,
                train_dataset=parts.train_dataset,
                eval_dataset=eval_dataset,
                processing_class=parts.tokenizer,
                callbacks=[*(callbacks or []), EpochSeed(lambda: self._sampler), LogFile()],
                optimizers=optimizers,
                # transformers before 5.19 reads this in place of `loss_is_scaled_for_ga`.
                compute_loss_func=_identity,
            )
        assembly.configure_processes(self.accelerator, parts.actor_critic, args, self._load_from_checkpoint)
        checkpoint.set_aside_incomplete(Path(args.output_dir), leader=args.should_save)
        self._reduce = reduction(self.accelerator)
        self.micro_batches = assembly.build_micro_batches(args, parts.actor_critic, self.accelerator)
        self.collector = assembly.build_collector(args, parts, self.micro_batches, self.accelerator, self._reduce)
        self.supervised, self.judging = parts.supervised, parts.judging
        self.progress = PhaseProgress(self.is_world_process_zero(), bars=not args.disable_tqdm)
        self.display = show(self, kl_target=getattr(parts.kl_controller, "target", None))
        self.run_log = RunLog(self._reduce)
        self._configuration, self._reward_settings = parts.configuration, identity.reward_settings(parts.rewards)
        self._gate = StepGate()
        self.critic_learner = assembly.build_critic_learner(args, parts.actor_critic, self.collector)
        self._pretraining = assembly.build_pretraining(args, parts, self.collector)
        self.policy_average = PolicyAverage(self.model, args.policy_ema_decay, self._gate)
        self.add_callback(self.policy_average)
        self._rollout: Rollout | None = None
        self.card_facts: dict[str, Any] = {}  # what `write_model_card` was told
        self._micro_step = 0  # the Trainer's micro-batches of the current optimizer step that are done
        self.model.add_model_tags(self._tag_names)
        # A seed per process, so that each samples other completions.
        set_seed(args.seed, device_specific=True)

    @property
    def rewards(self) -> RewardRunner:
        """Runner of the reward functions."""
        return self.collector.rewards

    @property
    def kl_controller(self) -> KLController:
        """Controller of the KL coefficient."""
        return self.collector.kl_controller

    @property
    def samples(self) -> SampleTable:
        """Samples of the newest rollout of training."""
        return self.collector.samples

    @property
    def generation_engine(self) -> GenerationEngine:
        """Engine that samples completions; may be replaced."""
        return self.collector.engine

    @generation_engine.setter
    def generation_engine(self, engine: GenerationEngine) -> None:
        self.collector.engine = engine

    # ---- data ----

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = prompt_columns(self.train_dataset, self.eval_dataset, self.args.prompt_column)

    def get_train_dataloader(self):
        """Return batches of one process's share of a rollout, and placeholders for its further micro-batches."""
        self._sampler = assembly.build_sampler(self.args, self.train_dataset)
        self.collector.ahead.follow(RolloutRows(self.train_dataset), self._sampler, self.args.steps_per_rollout)
        return self._get_dataloader(
            RolloutRows(self.train_dataset),
            description="Training",
            batch_size=self.args.local_batch_size,
            sampler_fn=lambda _: self._sampler,
            is_training=True,
        )

    def set_initial_training_values(self, args: PPOConfig, dataloader: Any) -> Any:
        """Return the Trainer's count of steps, which `total_episodes` decides where it is given."""
        self.run_log.begin_run()
        if (episodes := args.total_episodes) is not None:
            args = copy.copy(args)
            args.max_steps = -(-episodes // args.batch_size) * args.steps_per_rollout
        return super().set_initial_training_values(args, dataloader)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Make a rollout when its first micro-batch is asked for, and choose the samples of an optimizer step."""
        if isinstance(inputs, Rollout | SupervisedBatch):
            return inputs  # a micro-batch, on its way through the Trainer
        args = self.args
        rollout_number, step = divmod(self.state.global_step, args.steps_per_rollout)
        self._gate.is_warming_up = rollout_number < args.critic_warmup_rollouts
        if self._micro_step == 0 and step == 0:
            self._gate.begin_rollout(args.learning_rate)
            if not self.state.global_step:
                self.pretrain_critic()
            experience = self._collect(inputs, self.progress, training=True)
            if self.critic_learner is not None:
                experience = self.critic_learner.learn_from(experience, (args.seed, rollout_number), self.progress)
            self.run_log.begin_rollout(experience.metrics, experience.speed, args.batch_size)
            self._rollout = experience.rollout
        if self._micro_step == 0:
            assert self._rollout is not None
            rows = self._rollout.minibatch(step, args.num_mini_batches, (args.seed, rollout_number))
            seed = (self.state.global_step, args.process_index)
            texts = None if self.supervised is None else self.supervised.batch(len(rows), seed, rows.device)
            self._minibatch = Minibatch(self._rollout, rows, texts, self._reduce)
        return inputs

    def _collect(self, rows: list[dict[str, Any]], progress: PhaseProgress, *, training: bool) -> Experience:
        seen = [] if self.policy_average.is_in_place else self.callback_handler.callbacks
        options: dict[str, Any] = {"training": training, "policy_learns": not self._gate.is_warming_up}
        return self.collector.collect(self.model, rows, progress, callbacks=seen, state=self.state, **options)

    # ---- learning ----

    def pretrain_critic(self) -> dict[str, Any] | None:
        """Train the critic on completions of the policy as it is; `train` does so before its first rollout.

        Returns:
            The report that is written as `critic_pretraining.json` into `output_dir`, by the first call; None where
            `critic_pretraining_episodes` is 0.
        """
        pretraining = self._pretraining
        return None if pretraining is None else pretraining.run(self.progress, self.state, self.log)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Learn from one micro-batch; with the last one of an optimizer step, decide whether the step is taken."""
        self._prepare_inputs(inputs)
        args = self.args
        # The Trainer calls this `gradient_accumulation_steps` times for each optimizer step, and a minibatch may have
        # fewer micro-batches: the first calls then have nothing to do.
        idle = args.gradient_accumulation_steps - args.local_mini_batch_size // args.micro_batch_size
        last = self._micro_step == args.gradient_accumulation_steps - 1
        loss = torch.zeros((), device=args.device)
        micro_steps = (args.gradient_accumulation_steps, "micro-batches", self._micro_step)
        with self.progress.phase("learn", *micro_steps), self.model.hold():
            if self._micro_step >= idle and not self._gate.stopped:
                loss = self._learn(model, self._micro_step - idle)
            if last and args.device.type != "cpu":
                torch.accelerator.synchronize(args.device)  # the backward pass is part of the phase
        self._micro_step = 0 if last else self._micro_step + 1
        if last:
            self._finish_step()
        return loss if torch.isfinite(loss) else torch.zeros_like(loss)

    def _learn(self, model: nn.Module, number: int) -> Tensor:
        """Add the gradients of a micro-batch of the minibatch."""

        def start_again() -> None:
            self.model.zero_grad()
            self.run_log.restart_step()

        backward = partial(super().training_step, model)
        size = self.args.micro_batch_size
        return learning.learn(self._minibatch, number, size, self.micro_batches, backward, start_again)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch: sums over its tokens, divided by those of the whole global minibatch.

        DDP averages gradients over processes; each process's loss is its share of a sum, times their number.
        """
        scale = self.accelerator.num_processes
        if isinstance(inputs, SupervisedBatch):  # PPO-ptx
            mask = inputs.texts.completion_mask
            out = self.collector.forward(model, inputs.texts, role="actor", temperature=1.0, entropy="none")
            self.run_log.text_losses.add({"ptx_loss": -out.logps}, mask)
            return -self.args.ptx_coef * scale * masked_sum(out.logps, mask) / inputs.tokens
        out, losses = self._token_losses(model, inputs)
        self.run_log.losses.add(losses, inputs.completion_mask)
        loss = masked_sum(losses["loss"], inputs.completion_mask) / self._minibatch.tokens * scale
        return (loss, out) if return_outputs else loss

    def _token_losses(self, model: nn.Module, batch: Rollout) -> tuple[Any, dict[str, Tensor]]:
        options: dict[str, Any] = {"entropy": "gradient" if self.args.entropy_coef else "value"}
        options["role"] = "actor" if self.critic_learner is not None and torch.is_grad_enabled() else "actor_critic"
        out = self.collector.forward(model, batch, ref_states=batch.ref_states, **options)
        return out, learning.token_losses(out, batch, self.args.loss_options, self.model.return_scale.std)

    def _finish_step(self) -> None:
        """Take or drop the gradients of a finished optimizer step, and log it."""
        args, metrics = self.args, self.run_log.take_step()
        scaled = getattr(self.accelerator, "scaler", None) is not None
        options: dict[str, Any] = {"step": self.state.global_step, "scaled": scaled, "reduce": self._reduce}
        skipped = self._gate.decide(self.model, metrics, args.step_limits, empty=self._minibatch.is_empty, **options)
        seconds, learned = self.progress.take_seconds().get("learn", 0.0), metrics if self._gate.is_open else {}
        self.run_log.end_step(learned, skipped=skipped, seconds=seconds, steps_per_rollout=args.steps_per_rollout)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the Trainer's optimizer behind a gate, with groups for a critic that has its own learning rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            assembly.arrange_optimizer(self.args, optimizer, self.model, self._gate)
        self._gate.guard(optimizer)
        return optimizer

    # ---- evaluation and logs ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, with the same random numbers every time and without taking any from training."""
        seed = self.args.seed + self.args.process_index
        with self.progress.phase("eval"), own_random_numbers(seed, self.accelerator.device):
            return super().evaluate(*args, **kwargs)

    @without_engine
    @evaluated_too
    def evaluation_loop(self, *args: Any, **kwargs: Any):
        """Run the Trainer's loop, and add PPO's metrics under its prefix (`eval_reward`, ...)."""
        self.judging.begin()
        casts = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        with learning.restored(self.model) if casts else nullcontext():
            output = super().evaluation_loop(*args, **kwargs)
        prefix, is_main = kwargs.get("metric_key_prefix", "eval"), self.is_world_process_zero()
        output.metrics.update(self.run_log.take_evaluation(prefix))
        output.metrics.update(self.judging.take(prefix, is_main=is_main))
        return output

    @torch.no_grad()
    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Sample and score one batch of evaluation prompts, and take the losses that it would give."""
        progress = PhaseProgress(self.progress.enabled, bars=self.progress.bars)
        experience = self._collect(inputs, progress, training=False)
        self.judging.add(experience.batch, self.state)

        def losses(batch: Rollout) -> dict[str, Tensor]:
            return self._token_losses(model, batch)[1]

        with progress.phase("learn"):
            means = learning.mean_losses(experience.rollout, losses, self.micro_batches, self._reduce)
        seconds, valid = progress.take_seconds()["learn"], experience.rollout.valid.sum()
        counted = (int(self._reduce(valid)), experience.counts, experience.moments)
        self.run_log.add_evaluated(experience.metrics | means, experience.speed, seconds, *counted)
        return torch.tensor(means["loss"], device=self.args.device), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add PPO's metrics to the Trainer's, and show samples."""
        self.run_log.complete(logs, self.args.episodes_at(self.state.global_step))
        if "learning_rate" in logs and self.args.log_completions and self.is_world_process_zero():
            self.samples.print()
            log_samples(self.samples, self.args.report_to, self.state.global_step, self.callback_handler.callbacks)
        super().log(logs, *args, **kwargs)

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        average = self.policy_average.gathered()
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with self.progress.phase("write"):
            self.policy_average.save_both(folder, self.processing_class, state_dict, average)
            self.processing_class.save_pretrained(folder)
            write_json(folder / "ppo_config.json", self.args.to_dict())
            write_model_card(folder, self)

    def create_model_card(self, *args: Any, dataset_name: str | None = None, **kwargs: Any) -> None:
        """Write the model card of `output_dir` again, as a push does."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, self, dataset_name=dataset_name)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save everything the next optimizer step depends on, then declare the checkpoint complete."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with together(f"Writing {folder}"):
            resuming.check_finite(self.model, self.optimizer, self.state.global_step)
        # Older checkpoints are deleted only once this one is whole.
        rotation, leader = resuming.without_rotation(self.args), self.args.should_save
        with self.progress.phase("save"), rotation as limit, checkpoint.writing(folder, leader=leader):
            super()._save_checkpoint(model, trial)
            if not self.args.save_only_model and self._rollout is not None:
                resuming.save_rollouts(folder, self.args.process_index, self._rollout, self.collector.ahead)
                if self.critic_learner is not None and self.args.should_save:
                    self.critic_learner.save(folder)
            resuming.write_state(folder, self.args.process_index, self._ppo_state())
        if self.args.should_save:
            checkpoint.rotate(folder, limit, self.state.best_model_checkpoint)

    def _ppo_state(self) -> dict[str, Any]:
        settings = {"configuration": self._configuration, "reward settings": self._reward_settings}
        return settings | {name: part.state_dict() for name, part in self._stateful.items()}

    @property
    def _stateful(self) -> dict[str, resuming.Stateful]:
        """What a resumed run goes on with beside the Trainer's own files, by its name in the checkpoint."""
        return {
            "kl_controller": self.kl_controller,
            "rewards": self.rewards,
            "constraints": self.rewards.constraints,
            "run_log": self.run_log,
            "gate": self._gate,
            "micro_batches": self.micro_batches,
        }

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's own loop; `resume_from_checkpoint=True` means the newest checkpoint that is whole."""
        place, leader = (resume_from_checkpoint, self.args.output_dir), self.args.should_save
        found = resuming.find_checkpoint(*place, self._configuration, self.args.process_index, leader=leader)
        with closing(self.collector), self.display.training(enabled=self.progress.enabled, bars=self.progress.bars):
            return super().train(found, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        with together(f"Resuming from {folder}"), resuming.loading(folder), written(self.model):
            resuming.warn_of_changes(folder, self._reward_settings, self.args.to_dict())
            self.policy_average.load_both(folder)

    def _load_best_model(self) -> None:
        folder = Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name  # may have moved
        with together(f"Loading {folder}"), resuming.loading(folder), written(self.model):
            self.policy_average.load_both(folder)
        self.state.best_model_checkpoint = str(folder)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder, process = Path(checkpoint_folder), self.args.process_index
        with together(f"Resuming from {folder}"), resuming.loading(folder):
            with resuming.own_optimizer_settings(self.optimizer, self.lr_scheduler):
                super()._load_optimizer_and_scheduler(checkpoint_folder)
                load_optimizer(self.model, folder)
            if self.critic_learner is not None:
                self.critic_learner.load(folder)
            resuming.restore(self._stateful, resuming.read_state(folder, process))
            self._rollout = resuming.load_rollouts(folder, process, self.collector.ahead, self.accelerator.device)


def _identity(batch: Any) -> Any:
    return batch
