# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward models that are LoRA adapters on the policy's base."""

import copy
import dataclasses
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.functional import set_requires_grad
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from trl_ext._compat import AdapterSwitch

from .names import first_tokenizer
from .trunk import causal_lm, hidden_states, text_trunk
from .value_head import ValueHead

HEAD_KEYS = ("base_model.model.score.weight", "base_model.model.classifier.weight")


class RewardAdapter(NamedTuple):
    """The parts of a reward adapter besides its LoRA weights.

    Attributes:
        head: Maps a hidden state to the reward, frozen, float32.
        name: Name in logs: that of the adapter's folder.
        tokenizer: Tokenizer of the adapter's training, with the padding token of `RewardTrainer`; None where none is
            found.
    """

    head: ValueHead
    name: str
    tokenizer: PreTrainedTokenizerBase | None


class AdapterRewardModel(nn.Module):
    """A reward model on the policy's trunk, with the interface of a transformers sequence classifier of one label.

    `trl_ext.rewards.PreferenceReward` takes it like any other reward model.

    Args:
        model: The policy as a transformers model, to which the adapter has been added.
        switch: Switch of the model's adapters.
        adapter: Name of the adapter.
        parts: Head, name and tokenizer of the reward model.

    Attributes:
        tokenizer: Tokenizer of the reward model's training, if known.
        config: Copy of the policy's configuration with one label and the padding token of the training.
    """

    # Reward functions with such a model are called without a time limit, in the thread of the policy.
    shares_base = True

    def __init__(self, model: PreTrainedModel, switch: AdapterSwitch, adapter: str, parts: RewardAdapter):
        super().__init__()
        self.head = parts.head.to(model.device)
        self.name_or_path = parts.name
        self.tokenizer = parts.tokenizer
        self.config = copy.deepcopy(model.config)
        self.config.num_labels = 1
        pad = None if parts.tokenizer is None else parts.tokenizer.pad_token_id
        self.config.get_text_config().pad_token_id = pad
        # A tuple, so that the policy is not registered as a submodule of its own submodule.
        self._shared = (model, switch, adapter)

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return self._shared[0].device

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> SequenceClassifierOutput:
        """Return the rewards of B texts, read at the position that the head was trained at.

        A transformers classifier reads the last token that is not `config.pad_token_id`. Where padding and EOS are one
        token, as `RewardTrainer` sets it for tokenizers without padding, that is the token before the EOS. A text of
        nothing but such tokens is read at its first token.

        Args:
            input_ids: Token ids, shape (B, L), padded on either side.
            attention_mask: 1 for real tokens, shape (B, L).

        Returns:
            An output whose `logits` are the rewards, float32, shape (B, 1).
        """
        model, switch, adapter = self._shared
        with switch.use(adapter):
            states = hidden_states(text_trunk(model), input_ids, attention_mask)
        real = attention_mask.bool()
        pad = self.config.get_text_config().pad_token_id
        read = real if pad is None else real & (input_ids != pad)
        positions = torch.arange(real.shape[1], device=real.device)
        last, first = (positions * read).argmax(dim=1), real.int().argmax(dim=1)
        place = last.where(read.any(dim=1), first)
        rewards = self.head(states[torch.arange(len(place), device=place.device), place])
        return SequenceClassifierOutput(logits=rewards.unsqueeze(1))


def add_reward_adapter(policy: PeftModel, folder: str | os.PathLike, adapter: str) -> RewardAdapter:
    """Add a frozen LoRA reward adapter, as TRL's `RewardTrainer` saves one, to the policy's base.

    Returns:
        Head, name and tokenizer of the reward model.

    Raises:
        FileNotFoundError: when there is no adapter in `folder`.
        ValueError: when the adapter is no LoRA, has no head for one label, or belongs to another base.
    """
    path = Path(folder)
    config, weights, head = read_reward_adapter(path)
    _check_base(policy, config, folder)
    try:
        policy.add_adapter(adapter, config)
    except ValueError as error:
        raise ValueError(_other_base(folder, config, str(error).splitlines()[-1].strip())) from error
    problem = fill_adapter(policy, weights, adapter)
    if problem is not None:
        raise ValueError(_other_base(folder, config, problem))
    set_requires_grad(policy, adapter, False)
    return RewardAdapter(head.requires_grad_(False), path.resolve().name, _training_tokenizer(path, config, policy))


def read_reward_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor], ValueHead]:
    """Read a LoRA reward adapter, as TRL's `RewardTrainer` saves one.

    Returns:
        The configuration, for a causal LM; the weights of the LoRA layers; and the head, in float32.

    Raises:
        FileNotFoundError: when there is no adapter in `folder`.
        ValueError: when the adapter is no LoRA, or has no head for one label.
    """
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"The reward adapter '{folder}' has no `{file}`; give the folder that `RewardTrainer` saved with a "
                "`peft_config`."
            )
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"The reward adapter '{folder}' is a {type(config).__name__}; only LoRA can share the base.")
    state = load_file(folder / "adapter_model.safetensors")
    head = _take_head(state, folder)
    kept = {key: value for key, value in state.items() if "lora_" in key}
    if len(kept) < len(state):
        extra = sorted(state.keys() - kept.keys())
        raise ValueError(
            f"The reward adapter '{folder}' also changes {extra[0]}, which it would share with the policy; train it "
            "with LoRA layers and `modules_to_save=['score']` only."
        )
    plain = dataclasses.replace(config, modules_to_save=None, task_type="CAUSAL_LM", inference_mode=False)
    return plain, kept, head


def fill_adapter(policy: nn.Module, weights: dict[str, Tensor], adapter: str) -> str | None:
    """Load weights into an adapter of the policy; return in words what does not fit, or None."""
    try:
        result = set_peft_model_state_dict(policy, weights, adapter_name=adapter)
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[-1].strip()
    places = sum(f".{adapter}." in f"{name}." for name, _ in policy.named_parameters())
    fits = not result.unexpected_keys and places == len(weights)
    return None if fits else f"{len(weights)} weights for {places} places"


def _training_tokenizer(path: Path, config: LoraConfig, policy: PeftModel) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer beside the adapter, or that of the base, with the padding token of `RewardTrainer`."""
    beside = str(path) if (path / "tokenizer_config.json").is_file() else None
    tokenizer = first_tokenizer(beside, config.base_model_name_or_path, causal_lm(policy).config.name_or_path)
    if tokenizer is None:
        warnings.warn(
            f"The reward adapter '{path}' has no tokenizer beside it, and none is found for its base "
            f"({config.base_model_name_or_path}): rewards are read at the last token, which is wrong if padding and "
            "EOS were one token in training; save the tokenizer of the training into the folder.",
            stacklevel=5,
        )
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as `RewardTrainer` does
    return tokenizer


def _take_head(state: dict[str, Tensor], folder: str | os.PathLike) -> ValueHead:
    """Remove the score head from an adapter's weights and return it, in float32."""
    keys = [key for key in HEAD_KEYS if key in state]
    if not keys:
        raise ValueError(
            f"The reward adapter '{folder}' holds no trained head; train it with "
            "`LoraConfig(task_type='SEQ_CLS', modules_to_save=['score'])`."
        )
    weight = state.pop(keys[0])
    bias = state.pop(keys[0].replace(".weight", ".bias"), None)
    if len(weight) != 1:
        raise ValueError(f"The reward adapter '{folder}' has {len(weight)} labels; a reward model has one.")
    head = ValueHead(weight.shape[1])
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    return head


def _check_base(policy: PeftModel, config: LoraConfig, folder: str | os.PathLike) -> None:
    """Refuse an adapter of another base, and warn of one perhaps: the adapter may fit, but its rewards are wrong."""
    ours = causal_lm(policy).config
    name = config.base_model_name_or_path
    if not name or not ours.name_or_path or Path(name).name == Path(ours.name_or_path).name:
        return
    try:
        theirs = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        theirs = ours  # no longer there: only the names can be compared
    for field in ("model_type", "num_hidden_layers", "vocab_size"):
        one, other = (getattr(c.get_text_config(), field, None) for c in (theirs, ours))
        if one != other:
            raise ValueError(_other_base(folder, config, f"`{field}` is {one} there and {other} here"))
    warnings.warn(
        f"The reward adapter '{folder}' was trained on '{name}' and the policy is '{ours.name_or_path}'; unless these "
        "are the same weights, train it on the policy's base.",
        stacklevel=5,
    )


def _other_base(folder: str | os.PathLike, config: LoraConfig, detail: str) -> str:
    return (
        f"The reward adapter '{folder}' belongs to another base ({config.base_model_name_or_path}) and does not fit "
        f"the policy's: {detail}; train one on the policy's base, or give the whole reward model in `reward_funcs`."
    )
