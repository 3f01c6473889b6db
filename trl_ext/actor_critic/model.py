# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`ActorCritic`: actor, critic, reference and reward models in one module."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from trl_ext._compat import AdapterSwitch
from trl_ext.critic_modes import CRITIC_FOLDER
from trl_ext.folders import apply_umask
from trl_ext.objectives.logprobs import EntropyMode
from trl_ext.sharding import is_sharded, part_of

from .adapters import (
    CRITIC_ADAPTERS,
    QUANTIZATION_FILE,
    REFERENCE_ADAPTER,
    add_role_adapters,
    load_adapter_weights,
    save_adapter,
)
from .loading import (
    QUANTIZED,
    check_roles,
    compute_dtype,
    critic_options,
    has_adapter,
    load_critic,
    load_policy,
    load_weights,
    policy_config,
)
from .names import record_base
from .output import ForwardOutput, Role, compare, score, states_before
from .precision import adapters_in_float32, check_trained_dtypes
from .return_scale import ReturnScale
from .reward_adapter import AdapterRewardModel, add_reward_adapter
from .saved_critic import (
    adapter_folders,
    find_saved_critic,
    load_critic_weights,
    load_value_head,
    read_critic_adapter,
    read_record,
    reads_rewards,
    save_critic,
)
from .trunk import (
    causal_lm,
    check_deterministic,
    check_logits,
    check_trunk,
    disable_randomness,
    layer_weights,
    logits,
    text_trunk,
)
from .value_head import ValueHead

REFERENCE_FOLDER = "reference"


class ActorCritic(nn.Module):
    """A policy, a critic, a reference and reward models in one module, on one base that may be quantized.

    Policy, critic and reference are all computed in `forward`, under the same DDP, autocast and activation
    checkpointing: before the first update the KL to the reference is exactly 0 and the ratio to the old policy 1.

    Args:
        policy: Causal LM, with or without PEFT adapters (its active adapter is trained), by name or object.
        critic: Where values come from. `"head"`: a value head on the policy's own trunk. `"adapter"`: a second LoRA
            adapter and a value head on the same base. `"copy"`: a separate copy of the policy. The folder of an earlier
            run, or its subfolder `critic`: that run's critic, of the kind it has. Another name, folder or model: a
            separate critic, whose value head starts with a reward model's head.
        reference_is_base: With adapters: whether the reference is the base with adapters off (True), or a frozen clone
            of the present adapter (False).
        critic_peft_config: LoRA configuration of the critic's adapter; default: the actor's.
        num_critics: With `critic="adapter"`: 1, or 2 critics with an adapter each, whose mean is the value.
        reward_adapters: Folders of LoRA reward adapters for the same base, as TRL's `RewardTrainer` saves them.
        sum_reward_models: Whether `PPOTrainer` adds the scores of `reward_models` to the reward; False where a reward
            function reads them already, such as an `Ensemble`.
        init_kwargs: Keyword arguments of `from_pretrained` for models given by name. A dtype is the policy's, and a
            separate critic's unless the policy has adapters.
        device: Device for models given by name.

    Attributes:
        actor_adapter: Name of the policy's adapter; empty without one.
        reference_adapter: Name of the reference's adapter; None where the reference is the base or a whole model.
        reward_models: One [`AdapterRewardModel`] per reward adapter, for `PreferenceReward`.

    Raises:
        ValueError: `critic="adapter"`, reward adapters or a quantized policy without a LoRA adapter of its own, or as
            `load_policy`, `load_critic`, `check_adapter` and `add_reward_adapter` raise.
    """

    def __init__(
        self,
        policy: str | PreTrainedModel | PeftModel,
        critic: str | PreTrainedModel = "head",
        *,
        reference_is_base: bool = False,
        critic_peft_config: PeftConfig | None = None,
        num_critics: int = 1,
        reward_adapters: Sequence[str | os.PathLike] = (),
        sum_reward_models: bool = True,
        init_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
    ):
        super().__init__()
        init_kwargs = init_kwargs or {}
        with_adapters = has_adapter(policy, init_kwargs)
        config = policy_config(policy, init_kwargs)
        check_roles(critic, reward_adapters, config, with_adapters=with_adapters, init_kwargs=init_kwargs)
        saved = find_saved_critic(critic) if isinstance(critic, str) else None
        self.policy = load_policy(policy, trained=True, device=device, **init_kwargs)
        self.critic: PreTrainedModel | None = None
        self.reference: nn.Module | None = None
        self.actor_adapter = ""
        self.reference_adapter: str | None = None
        self.critic_kind = saved.kind if saved else critic if critic in ("head", "adapter") else "model"
        if saved and saved.kind == "adapter":
            critic_peft_config, num_critics = read_critic_adapter(saved), saved.critics
        self._critic_adapters = CRITIC_ADAPTERS[:num_critics] if self.critic_kind == "adapter" else ()
        if with_adapters:
            adapters_in_float32(self.policy)
        check_logits(causal_lm(self.policy))
        width = check_trunk(text_trunk(causal_lm(self.policy)), "model")
        if with_adapters:
            self.actor_adapter = self.policy.active_adapter
            self.reference_adapter = None if reference_is_base else REFERENCE_ADAPTER
            add_role_adapters(self.policy, self.reference_adapter, self._critic_adapters, critic_peft_config)
        else:
            if compute_dtype(self.policy) is not None:
                raise ValueError(QUANTIZED)
            self._train_text()
            # Frozen parameters are shared. The reference has the policy's dtype: in another it would round differently.
            shared = {id(p): p for p in self.policy.parameters() if not p.requires_grad}
            self.reference = copy.deepcopy(self.policy, shared).requires_grad_(False).eval()
        if self.critic_kind == "model":
            options = critic_options(init_kwargs, with_adapters=with_adapters)
            source = str(saved.folder) if saved else critic
            self.critic, self.value_head = load_critic(source, self.policy, device=device, **options)
            self.critic.requires_grad_(True)
        else:
            self.value_head = ValueHead(width, max(1, len(self._critic_adapters)))
        self.return_scale = ReturnScale()
        if saved:
            load_critic_weights(saved, self.policy, self._critic_adapters, self.value_head)
            self.return_scale.load(saved.folder)
        self.value_head.to(self.device)
        self.return_scale.to(self.device)
        added = {f"reward{i}": add_reward_adapter(self.policy, f, f"reward{i}") for i, f in enumerate(reward_adapters)}
        if with_adapters:
            adapters_in_float32(self.policy, REFERENCE_ADAPTER)
        check_trained_dtypes(self.policy, self.critic)
        self._switch = AdapterSwitch(self.policy)  # when every adapter is there
        self.sum_reward_models = sum_reward_models
        self.reward_models = nn.ModuleList(
            AdapterRewardModel(self.causal_lm, self._switch, adapter, parts) for adapter, parts in added.items()
        )
        disable_randomness(self)  # at the end: adapters bring dropout of their own
        check_deterministic(text_trunk(self.causal_lm), "model")
        if self.critic is not None:
            check_deterministic(self.critic, "critic")

    def _train_text(self) -> None:
        """Make the text trunk and the head trainable, and freeze the rest, such as a vision tower."""
        model = causal_lm(self.policy)
        self.policy.requires_grad_(False)
        for part in (text_trunk(model), model.get_output_embeddings()):
            part.requires_grad_(True)

    # ---- roles ----

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        *,
        temperature: float = 1.0,
        chunk_size: int = 512,
        entropy: EntropyMode = "gradient",
        role: Role = "actor_critic",
        ref_states: Tensor | None = None,
        rewards_so_far: Tensor | None = None,
    ) -> ForwardOutput:
        """Return log-probabilities, entropies and values of completions, given their prompts.

        Args:
            input_ids: Left-padded prompts followed by right-padded completions, shape (B, P + C).
            attention_mask: 1 for real tokens, shape (B, P + C).
            completion_mask: True for the tokens to score, shape (B, C); holes are allowed.
            temperature: Sampling temperature.
            chunk_size: Tokens whose logits are in memory at a time.
            entropy: Entropies with gradient ("gradient"), without ("value"), or zeros ("none"), which is fastest. The
                reference's entropies are always zeros.
            role: The roles to compute; without the critic there are no values. "with_reference" is all three, without
                gradients.
            ref_states: The reference's hidden states of an earlier call with that role: the KL then comes too, with a
                gradient.
            rewards_so_far: For a critic that reads them: reward of what was written before each token and after the
                last, shape (B, C + 1); without them it gives no values.
        """
        tokens, ids = (input_ids, attention_mask), input_ids[:, -completion_mask.shape[1] :]
        options: dict[str, Any] = {"temperature": temperature, "chunk_size": chunk_size}
        if role == "reference":
            with torch.no_grad(), self._reference() as model:
                states = states_before(text_trunk(model), tokens, completion_mask)
                scores = score(model, states, ids, completion_mask, entropy="none", **options)
                return ForwardOutput(scores[0], scores[1], None)
        model = causal_lm(self.policy)
        if role == "with_reference":
            with torch.no_grad(), self.hold():
                states = states_before(text_trunk(model), tokens, completion_mask)
                values, value_gap = self._values(states, rewards_so_far, *tokens, completion_mask)
                with self._reference() as reference:
                    others = states_before(text_trunk(reference), tokens, completion_mask)
                head = self._reference_head()
                logps, spread, ref_logps, kl = compare(model, states, others, head, ids, completion_mask, **options)
                return ForwardOutput(logps, spread, values, ref_logps, kl, others[:, :-1], value_gap)
        with self.hold():
            states = states_before(text_trunk(model), tokens, completion_mask)
            given = None if ref_states is None else (ref_states, self._reference_head())
            scores = score(model, states, ids, completion_mask, entropy=entropy, reference=given, **options)
        out = ForwardOutput(scores[0], scores[1], None, kl=None if given is None else scores[2])
        if role == "actor":
            return out
        values, value_gap = self._values(states, rewards_so_far, *tokens, completion_mask)
        return out._replace(values=values, value_gap=value_gap)

    def critic_states(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        """Return the hidden states that `values` reads; arguments as in `forward`.

        Returns:
            Shape (B, C + 1, D), and (B, C + 1, 2, D) with two critics.
        """
        tokens = (input_ids, attention_mask)
        if self.critic is not None:
            return states_before(self.critic, tokens, completion_mask)
        trunk, states = text_trunk(causal_lm(self.policy)), []
        if not self._critic_adapters:
            with self.hold():
                return states_before(trunk, tokens, completion_mask)
        for name in self._critic_adapters:
            with self._switch.use(name):
                states.append(states_before(trunk, tokens, completion_mask))
        return torch.stack(states, dim=-2) if len(states) > 1 else states[0]

    def values(self, states: Tensor, critics: Tensor | None = None, rewards_so_far: Tensor | None = None) -> Tensor:
        """Return the values, in units of the reward, of the states that `critic_states` returned.

        Args:
            states: As `critic_states` returned them.
            critics: With two critics: which one is asked about each row, 0 or 1, shape (B,); None for their mean.
            rewards_so_far: As in `forward`, one for each state.

        Returns:
            Shape (B, C + 1).
        """
        values = self._all_values(states, rewards_so_far)
        if self.num_critics == 1:
            return values
        return (
            values.mean(-1)
            if critics is None
            else values[torch.arange(len(critics), device=critics.device), :, critics]
        )

    def _all_values(self, states: Tensor, rewards_so_far: Tensor | None) -> Tensor:
        """Return the values of each critic, (B, C + 1), and (B, C + 1, 2) of two."""
        so_far = None if rewards_so_far is None else self.return_scale.standardized(rewards_so_far)
        return self.return_scale(self.value_head(states, so_far))

    def _values(
        self, policy_states: Tensor, rewards_so_far: Tensor | None, *tokens: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the values, and half the difference between those of two critics; no values without what it reads."""
        if rewards_so_far is None and self.value_head.reads_rewards:
            return None, None
        states = policy_states if self.critic_kind == "head" else self.critic_states(*tokens)
        if self.num_critics == 1:
            return self.values(states, rewards_so_far=rewards_so_far), None
        first, second = self._all_values(states, rewards_so_far).unbind(-1)
        return (first + second) / 2, (second - first) / 2

    def hold(self) -> AbstractContextManager[None]:
        """Keep other threads from switching the base to another adapter for the length of a block."""
        return self._switch.hold()

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        """Yield the reference as a causal LM, for the length of a block."""
        if self.reference is not None:
            yield self.reference
            return
        with self._switch.use(self.reference_adapter):
            yield causal_lm(self.policy)

    def _reference_head(self) -> Callable[[Tensor], Tensor]:
        """Return the function from the reference's hidden states to its logits.

        Policy and reference take turns, chunk by chunk, so only the head's own adapters are switched, if it has any.
        """
        if self.reference is not None:
            return partial(logits, self.reference)
        model = causal_lm(self.policy)
        switch, adapter = AdapterSwitch(model.get_output_embeddings()), self.reference_adapter

        def head(hidden: Tensor) -> Tensor:
            # Without a lock: `forward` holds it, and a backward pass may run this in another thread.
            with switch.under(switch.only(adapter)):
                return logits(model, hidden)

        return head

    # ---- parameters ----

    @property
    def num_critics(self) -> int:
        """Number of critics, 1 or 2."""
        return self.value_head.out_features

    @property
    def trained_share(self) -> float:
        """Trained weights for each weight of the layers of policy and critic; embeddings are no layers."""
        trunks = [text_trunk(self.causal_lm), *([] if self.critic is None else [self.critic])]
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return trained / sum(map(layer_weights, trunks))

    def critic_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return names and trainable parameters that belong to the critic alone."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad and self._is_critic(name)]

    def actor_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return names and trainable parameters of the policy; with `critic="head"` the critic uses them too."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad and not self._is_critic(name)]

    def _is_critic(self, name: str) -> bool:
        if name.startswith(("value_head.", "critic.")):
            return True
        return any(f".{adapter}." in f"{name}." for adapter in self._critic_adapters)

    # ---- saving ----

    def save_pretrained(self, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the policy for `AutoModelForCausalLM` or `AutoPeftModelForCausalLM`, and the critic in a subfolder.

        Args:
            folder: Folder for the policy (or its adapter, and the quantization of its base), and the name of the model
                that training began from; its subfolder `critic` gets the value head and the critic's own weights.
            state_dict: Whole state dict of this module, where FSDP or ZeRO-3 has left this process a part of
                the weights alone.

        Raises:
            ValueError: without it in such a process.
        """
        folder = Path(folder)
        if state_dict is None and is_sharded(self):
            raise ValueError("This process has but a part of the weights: save with `PPOTrainer.save_model`.")
        critic_folder = folder / CRITIC_FOLDER
        critic_folder.mkdir(parents=True, exist_ok=True)
        self.save_policy(folder, state_dict)
        save_critic(critic_folder, self.policy, self._critic_adapters, self.critic, self.value_head, state_dict)
        self.return_scale.save(critic_folder)
        apply_umask(critic_folder)

    def save_policy(self, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the policy alone; an adapter that training started from goes into the subfolder `reference`."""
        folder, state = Path(folder), part_of(state_dict, "policy", self.policy)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.policy, PeftModel):
            save_adapter(self.policy, folder, self.actor_adapter, state)
            if self.reference_adapter is not None:
                save_adapter(self.policy, folder / REFERENCE_FOLDER, self.reference_adapter, state)
                apply_umask(folder / REFERENCE_FOLDER)
            if compute_dtype(self.causal_lm) is not None:
                quantization = self.config.quantization_config.to_json_string()
                (folder / QUANTIZATION_FILE).write_text(quantization)
        else:
            self.policy.save_pretrained(folder, state_dict=state)
        record_base(folder, self.config.name_or_path)
        apply_umask(folder, "*.safetensors")  # not those of checkpoints in it

    def load_policy(self, folder: str | os.PathLike) -> None:
        """Load the policy's weights that `save_policy` wrote from a module of the same kind."""
        if isinstance(self.policy, PeftModel):
            load_adapter_weights(self.policy, Path(folder), self.actor_adapter)
        else:
            load_weights(self.policy, Path(folder))

    def load_reference(self, folder: str | os.PathLike) -> None:
        """Load the reference's weights: those of a whole model, or of an adapter where the reference is one."""
        if self.reference_adapter is not None:
            load_adapter_weights(self.policy, Path(folder), self.reference_adapter)
        elif self.reference is not None:
            load_weights(self.reference, Path(folder))

    def load_pretrained(self, folder: str | os.PathLike) -> None:
        """Load the weights that `save_pretrained` wrote from a module of the same kind.

        Raises:
            ValueError: when `folder` holds another kind of critic, or one that cannot be read.
            FileNotFoundError: when a file is missing.
        """
        folder = Path(folder)
        critic_folder = folder / CRITIC_FOLDER
        kind, critics, _ = read_record(critic_folder, f"'{folder}'")
        if kind != self.critic_kind:
            raise ValueError(f"{folder} holds a critic of kind {kind!r}, this run has {self.critic_kind!r}.")
        if critics != self.num_critics:
            raise ValueError(f"{folder} holds {critics} critics, this run has {self.num_critics}.")
        if reads_rewards(critic_folder) and not self.value_head.reads_rewards:
            raise ValueError(f"{folder} holds a critic that reads rewards, and this run's does not.")
        self.load_policy(folder)
        for place, name in adapter_folders(critic_folder, self._critic_adapters).items():
            load_adapter_weights(self.policy, place, name)
        if self.critic is not None:
            load_weights(self.critic, critic_folder)
        load_value_head(self.value_head, critic_folder, f"'{folder}'")
        self.return_scale.load(critic_folder)

    # ---- interface of a model for the Trainer and the Hub ----

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The policy as a transformers model, its adapter injected; completions are sampled from this model."""
        return causal_lm(self.policy)

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the classes of layers, which FSDP shards and gathers one at a time."""
        models = [model for model in (self.causal_lm, self.critic) if model is not None]
        names = {name for model in models for name in model._no_split_modules or ()}
        return sorted(names & {type(module).__name__ for module in self.modules()})

    @property
    def config(self):
        """Configuration of the policy."""
        return causal_lm(self.policy).config

    @property
    def generation_config(self):
        """Generation configuration of the policy."""
        return causal_lm(self.policy).generation_config

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return causal_lm(self.policy).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the policy's trunk."""
        return causal_lm(self.policy).dtype

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Add tags to the model card."""
        causal_lm(self.policy).add_model_tags(tags)

    def apply_liger_kernel(self, kernel_config: dict[str, bool] | None = None) -> None:
        """Put Liger kernels into policy, reference and critic alike, so that policy and reference start out equal.

        The Trainer applies them to a `PreTrainedModel` only, which this module is not.

        Args:
            kernel_config: `TrainingArguments.liger_kernel_config`.

        Raises:
            ImportError: when liger-kernel is not installed.
        """
        for model in (self.causal_lm, self.reference, self.critic):
            if model is not None:
                apply_liger_kernel(model, kernel_config)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Recompute activations in the backward pass, under the adapter of the forward pass.

        Raises:
            ValueError: for reentrant checkpointing, which cannot carry the adapter over.
        """
        kwargs["gradient_checkpointing_kwargs"] = activation_checkpointing_kwargs
        self.gradient_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Do the same under the older name, which transformers before 5.20 calls."""
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        # Keys of the Trainer's own, where this is called without the Trainer.
        kwargs |= {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        if options["use_reentrant"] and self.critic_kind == "adapter":
            raise ValueError("`critic='adapter'` needs checkpointing with `use_reentrant=False`.")
        if not options["use_reentrant"]:
            options["context_fn"] = self._switch.checkpoint_contexts
        for model in (causal_lm(self.policy), self.critic):
            if model is not None:
                enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
                enable(options, **kwargs)
