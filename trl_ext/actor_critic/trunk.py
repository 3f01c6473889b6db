# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a causal LM is made of: its trunk, its head, its dropout."""

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..objectives.logprobs import logprobs_and_entropy
from .float_head import float32_logits

# Logits of a micro-batch that may be kept until its backward pass: as float32 64 MiB, which is cheaper than the time to
# compute them twice.
KEPT_LOGITS = 2**24
# Logits at a time on a CPU: 16 MiB, which its caches and its allocator take far better than more. An accelerator would
# read the head's weights more often for it.
CPU_LOGITS = 2**22


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def hidden_states(trunk: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """
    Last hidden states of `trunk` (a model without its head), shape (B, L, D).

    Position ids count real tokens only, so that left padding does not shift a sequence.

    Args:
        trunk: The transformer stack.
        input_ids: Token ids, shape (B, L).
        attention_mask: 1 for real tokens, shape (B, L).
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    # Models with ALiBi (BLOOM, MPT) take positions from the attention mask instead.
    if "position_ids" in inspect.signature(trunk.forward).parameters:
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return trunk(**inputs).last_hidden_state


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """
    Logits of a causal LM for hidden states of any leading shape, as its own `forward` would compute them in float32.

    The head is called as a module, so that an adapter or a quantized weight in it counts.
    """
    out = float32_logits(model.get_output_embeddings(), hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / getattr(config, "logits_scaling", 1.0)  # Cohere, Granite
    if scale != 1.0:  # a pass over all logits
        out = out * scale
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
    return torch.tanh(out / softcap) * softcap if softcap else out


def token_scores(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, *, chunk_size: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """
    Log-probabilities and entropies of `targets` under a causal LM's head, each of shape (N,).

    Args:
        model: The causal LM.
        hidden: Its last hidden states before each target, shape (N, D).
        targets: Token ids, shape (N,).
        chunk_size: Most tokens whose logits are held at a time; a CPU holds fewer of a large vocabulary.
        options: `temperature` and `entropy` of [`logprobs_and_entropy`].
    """
    vocab_size = model.config.get_text_config().vocab_size
    frozen = not any(p.requires_grad for p in model.get_output_embeddings().parameters())
    recompute = len(targets) > chunk_size and len(targets) * vocab_size > KEPT_LOGITS
    # Where a large head is trained, every chunk's part of its gradient costs more than small chunks save.
    if hidden.device.type == "cpu" and (frozen or vocab_size * hidden.shape[-1] <= 2 * CPU_LOGITS):
        chunk_size = min(chunk_size, max(1, CPU_LOGITS // vocab_size))
    return logprobs_and_entropy(
        hidden,
        targets,
        lambda h: logits(model, h),
        chunk_size=chunk_size,
        frozen_head=frozen,
        recompute=recompute,
        **options,
    )


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """
    Check that [`hidden_states`] and [`logits`] give what the model's own `forward` gives.

    An architecture that scales its logits in a way not known here would otherwise train on wrong probabilities without
    any sign of it.

    Raises:
        ValueError: when they differ.
    """
    ids = torch.tensor([[1, 2, 3]], device=model.device) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    was_training = model.training
    model.eval()
    theirs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    ours = logits(model, hidden_states(model.base_model, ids, mask)).float()
    model.train(was_training)
    if not torch.allclose(ours, theirs, atol=1e-2 * theirs.abs().max().item() + 1e-6):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the head in a way trl_ext does not know "
            f"(largest difference {(ours - theirs).abs().max():.3g}); please report this architecture."
        )


@torch.no_grad()
def check_causal(trunk: PreTrainedModel) -> None:
    """
    Check that hidden states depend on the tokens before them alone.

    With an encoder as critic the value of a state would know the completion that follows, and nothing would show it.

    Raises:
        ValueError: when they do not.
    """
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=trunk.device) % trunk.config.get_text_config().vocab_size
    was_training = trunk.training
    trunk.eval()
    one, other = hidden_states(trunk, ids, torch.ones_like(ids))[:, :-1].float()
    trunk.train(was_training)
    if not torch.allclose(one, other, atol=1e-2 * one.abs().max().item() + 1e-6):
        raise ValueError(
            f"`critic` is a {type(trunk).__name__}, which reads later tokens too; a critic needs a decoder, "
            "an encoder belongs in `reward_funcs`."
        )


def disable_dropout(model: nn.Module) -> None:
    """
    Turn every kind of dropout off, LoRA's included, whatever mode the model is in.

    Modules cannot simply stay in eval mode: transformers checkpoints activations in training mode only.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention reads its rate from a plain float attribute (`attention_dropout` in Llama).
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


class ValueHead(nn.Linear):
    """
    Maps hidden states (..., D) to values (...), in float32 whatever the trunk's precision.

    Starts at zero: every value is 0 before the first update, so the first advantages are the rewards themselves.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float()).squeeze(-1)
