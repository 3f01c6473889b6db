# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions, KL controllers and actor-critics inside TRL's own PPOTrainer, which exists up to trl 1.12.

```python
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl_ext.integrations.trl_ppo import KLCoefCallback, RewardFunctionModel, ppo_models

models = ppo_models(build_actor_critic(name, "adapter", peft_config=LoraConfig(...)))
reward_model = RewardFunctionModel([ToxicityReward(...), my_function], models.model, tokenizer)
trainer = PPOTrainer(args, tokenizer, reward_model=reward_model, train_dataset=tokenized, **models._asdict())
trainer.add_callback(KLCoefCallback(AdaptiveKL(target=3.0), trainer))
```

Raises:
    ImportError: under trl 1.13 and newer.
"""

import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.modeling_outputs import BaseModelOutput

from trl_ext._compat import AdapterSwitch
from trl_ext.actor_critic import ActorCritic
from trl_ext.actor_critic.adapters import CRITIC_ADAPTERS, REFERENCE_ADAPTER
from trl_ext.actor_critic.trunk import causal_lm, hidden_states
from trl_ext.kl_control import KLController
from trl_ext.rewards import RewardRunner
from trl_ext.rewards.tokens import refuse_token_rewards
from trl_ext.text.decoding import as_completions, decode_answers

try:
    from trl.experimental.ppo import PPOTrainer
except ImportError:
    raise ImportError(
        f"trl {version('trl')} has no PPOTrainer: it was removed in 1.13. Use `trl_ext.PPOTrainer`, which takes reward "
        "functions, a KL controller and an ActorCritic directly, or install trl<=1.12 for this module."
    ) from None


class RewardFunctionModel(nn.Module):
    """Any reward functions as the `reward_model` of TRL's PPOTrainer.

    TRL asks its reward model for hidden states of the policy's tokens. This model decodes the tokens with the policy's
    tokenizer and calls the functions with texts, so that a classifier can use its own tokenizer. TRL does not pass on
    the length of the prompts; it is that of the last call of `policy.generate`, whose completions TRL scores next.

    TRL derives its masks from the padding token. Where that is the EOS token, the EOS at the end of a completion is
    masked; it is restored in `completion_ids`.

    Args:
        rewards: One or several reward functions, models or their names, or a `RewardRunner`. Without a `RewardRunner`
            every failed sample ends the run: TRL cannot skip a sample.
        policy: The `model` given to the trainer; its `generate` is wrapped.
        processing_class: The policy's tokenizer, as given to the trainer.
        dataset: The prompts in a column "input_ids", tokenized as for the trainer, and the columns that the functions
            need; a column "prompt" (text or conversation) replaces the decoded prompts. By default functions get the
            decoded prompts and no columns. The trainer's own dataset has "input_ids" alone.

    Raises:
        RewardTypeError: when scoring: a function gives token rewards, and TRL takes one number a completion.
        ValueError: the dataset has no "input_ids", or one prompt twice with different columns; when scoring: a prompt
            is not in the dataset, or no function has a reward for a sample.
        RuntimeError: when scoring before `policy` has generated, so that it is not the trainer's policy.
    """

    base_model_prefix = "backbone"

    def __init__(
        self,
        rewards: Any,
        policy: Any,
        processing_class: PreTrainedTokenizerBase,
        dataset: Dataset | None = None,
    ):
        super().__init__()
        self.rewards = rewards if isinstance(rewards, RewardRunner) else RewardRunner(rewards, max_reward_failures=0.0)
        self.processing_class = processing_class
        self._prompt_length: int | None = None
        self._rows = None if dataset is None else self._by_prompt(dataset)
        generate = policy.generate

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if "input_ids" in kwargs:  # as TRL calls it
                self._prompt_length = kwargs["input_ids"].shape[1]
            return generate(*args, **kwargs)

        policy.generate = watched

    def _by_prompt(self, dataset: Dataset) -> dict[tuple[int, ...], dict[str, Any]]:
        """Return the columns of each prompt, by its tokens without padding."""
        if "input_ids" not in dataset.column_names:
            raise ValueError(
                "`dataset` has no column 'input_ids'; give the prompts tokenized as the trainer gets them."
            )
        rows: dict[tuple[int, ...], dict[str, Any]] = {}
        for row in dataset:
            ids = tuple(i for i in row.pop("input_ids") if i != self.processing_class.pad_token_id)
            row.pop("attention_mask", None)
            if rows.setdefault(ids, row) != row:
                raise ValueError(
                    f"`dataset` has the prompt {self.processing_class.decode(ids)!r:.60} twice with different columns, "
                    "which cannot be told apart by its tokens; keep one of them."
                )
        return rows

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **unused: Any) -> BaseModelOutput:
        """Return rewards as hidden states, shape (B, P + C, 1), the same at every position: TRL reads one of them.

        Args:
            input_ids: Left-padded prompts followed by right-padded completions, shape (B, P + C).
            attention_mask: False where the token is the padding token, shape (B, P + C).
        """
        if self._prompt_length is None:
            raise RuntimeError("`policy` has not generated: give this class the model that the trainer is given.")
        samples = [
            self._split(ids, mask) for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
        ]
        prompt_ids, completion_ids = ([sample[i] for sample in samples] for i in range(2))
        prompts, columns = self._prompts(prompt_ids)
        texts = decode_answers(self.processing_class, prompts, prompt_ids, completion_ids)
        completions = as_completions(prompts, texts)
        scores = self.rewards(prompts, completions, completion_ids, columns)
        for name in scores.token_functions:
            refuse_token_rewards(name, [[]], "TRL's PPOTrainer")
        if not scores.valid.all():
            unscored = completions[scores.valid.tolist().index(False)]
            raise ValueError(
                f"No reward function has a reward for the completion {unscored!r:.60}, and TRL's PPOTrainer cannot "
                "skip a sample; return a number for each, or use `trl_ext.PPOTrainer`."
            )
        rewards = scores.total.to(input_ids.device)[:, None, None].expand(*input_ids.shape, 1)
        return BaseModelOutput(hidden_states=(rewards,))

    def score(self, rewards: Tensor) -> Tensor:
        """Return the hidden states, which are the rewards already."""
        return rewards

    def _split(self, ids: list[int], mask: list[bool]) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt and of its completion, without padding."""
        tokenizer, start = self.processing_class, self._prompt_length
        prompt = [i for i, real in zip(ids[:start], mask[:start], strict=True) if real]
        completion, real = ids[start:], mask[start:]
        if not all(real):
            completion = completion[: real.index(False)]
            if tokenizer.pad_token_id == tokenizer.eos_token_id:
                completion.append(tokenizer.eos_token_id)
        return prompt, completion

    def _prompts(self, prompt_ids: list[list[int]]) -> tuple[list[Any], dict[str, list]]:
        """Return prompts for the functions, and the other columns."""
        if self._rows is None:
            return self.processing_class.batch_decode(prompt_ids, skip_special_tokens=True), {}
        rows = []
        for ids in prompt_ids:
            if tuple(ids) not in self._rows:
                raise ValueError(
                    f"The prompt {self.processing_class.decode(ids)!r:.60} is not in `dataset`; give it every prompt "
                    "that the trainer has, those for evaluation too."
                )
            rows.append(self._rows[tuple(ids)])
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        prompts = columns.pop("prompt", None)
        return prompts or self.processing_class.batch_decode(prompt_ids, skip_special_tokens=True), columns


class KLCoefCallback(TrainerCallback):
    """Sets `args.kl_coef` of TRL's PPOTrainer by a KL controller.

    After every update the controller gets `objective/kl`: nats per completion, by `args.kl_estimator`, over the batch
    of all processes. TRL reads `args.kl_coef` again for each batch. Logs get `kl_coef`, the coefficient of the update.

    ```python
    trainer.add_callback(KLCoefCallback(AdaptiveKL(init_coef=0.05, target=3.0), trainer))
    ```

    Args:
        controller: KL controller, whose coefficient replaces `args.kl_coef` from the start.
        trainer: The trainer, to which the callback must then be added.

    Raises:
        TypeError: another kind of trainer.
    """

    def __init__(self, controller: KLController, trainer: PPOTrainer):
        if not isinstance(trainer, PPOTrainer):
            raise TypeError(f"`trainer` is a {type(trainer).__name__}; give a trl.experimental.ppo.PPOTrainer.")
        self.controller = controller
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set `kl_coef`."""
        args.kl_coef = self.controller.coef
        # TRL calls loggers before other callbacks, but this callback must add to a log line before them. The callbacks
        # before it, already called for this event, move back by one.
        callbacks = self._trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Update the controller with the KL of an update."""
        if "objective/kl" not in logs:
            return
        logs["kl_coef"] = state.log_history[-1]["kl_coef"] = self.controller.coef
        self.controller.update(logs["objective/kl"], args.batch_size)
        args.kl_coef = self.controller.coef


class PPOModels(NamedTuple):
    """The models of an `ActorCritic` by the names of TRL's arguments, to be passed as `**models._asdict()`."""

    model: nn.Module
    ref_model: nn.Module
    value_model: nn.Module


def ppo_models(actor_critic: ActorCritic) -> PPOModels:
    """Return policy, reference and value model for TRL's PPOTrainer, made of one [`ActorCritic`].

    With LoRA all three are views of one base, which may be quantized, instead of three or four models. TRL's reference
    without a second model, by PEFT's `disable_adapter`, turns off the gradients of all inactive adapters, so that the
    critic would not learn; here switching adapters leaves gradients alone.

    TRL saves only the policy; `actor_critic.save_pretrained` saves the critic too.

    Args:
        actor_critic: With any kind of critic. Activation checkpointing must be switched on before, in `actor_critic`.

    Raises:
        ValueError: for two critics, of whose halves of the prompts TRL knows nothing, and for a critic that reads
            rewards.
    """
    if actor_critic.num_critics > 1:
        raise ValueError("TRL's PPO trains one critic, and this ActorCritic has two; make it with `num_critics=1`.")
    if actor_critic.value_head.reads_rewards:
        raise ValueError("TRL's PPO scores whole completions only, and this critic reads rewards of their beginnings.")
    policy = actor_critic.policy
    if actor_critic.reference is not None:
        return PPOModels(policy, actor_critic.reference, _ValueModel(actor_critic))
    # TRL switches checkpointing off and on around generation; PEFT's own method would recompute under a wrong adapter.
    policy.gradient_checkpointing_enable = actor_critic.gradient_checkpointing_enable
    return PPOModels(policy, _Reference(policy), _ValueModel(actor_critic))


class _Reference(nn.Module):
    """The frozen adapter of an actor-critic, or its base, as a causal LM without weights of its own."""

    def __init__(self, policy: PeftModel):
        super().__init__()
        model, switch = causal_lm(policy), AdapterSwitch(policy)
        adapter = REFERENCE_ADAPTER if REFERENCE_ADAPTER in policy.peft_config else None

        # A closure, not an attribute: the policy must not be a submodule of its own reference.
        def answer(**inputs: Any) -> Any:
            with switch.use(adapter):
                return model(**{**inputs, "output_hidden_states": False, "use_cache": False})

        self._answer = answer

    def forward(self, **inputs: Any) -> Any:
        """Return an output with the reference's logits."""
        return self._answer(**inputs)


class _ValueModel(nn.Module):
    """The critic with TRL's interface: a backbone with hidden states, and a `score` of the last ones."""

    base_model_prefix = "backbone"

    def __init__(self, actor_critic: ActorCritic):
        super().__init__()
        self.value_head = actor_critic.value_head
        self.critic = actor_critic.critic
        policy, kind = actor_critic.policy, actor_critic.critic_kind
        trunk = actor_critic.critic if actor_critic.critic is not None else causal_lm(policy).base_model
        switch = AdapterSwitch(policy)

        # A closure, as in the reference: the shared weights belong to the policy alone.
        def states(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            if kind != "adapter":
                return hidden_states(trunk, input_ids, attention_mask)
            with switch.use(CRITIC_ADAPTERS[0]):
                return hidden_states(trunk, input_ids, attention_mask)

        self._states: Callable[[Tensor, Tensor], Tensor] = states

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **unused: Any) -> BaseModelOutput:
        """Return hidden states of the critic, shape (B, L, D)."""
        return BaseModelOutput(hidden_states=(self._states(input_ids, attention_mask.long()),))

    def score(self, states: Tensor) -> Tensor:
        """Return values, shape (B, L, 1)."""
        return self.value_head(states).unsqueeze(-1)
