# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The parts of a causal LM: trunk and head; and checks that they compute the same in training and eval."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from trl_ext._compat import portable_attention
from trl_ext.objectives.exact_kl import Comparison, compare, logprobs_entropy_and_kl
from trl_ext.objectives.logprobs import logprobs_and_entropy

from .float_head import float32_logits

# Logits of a micro-batch that are kept until its backward pass: 64 MiB in float32, cheaper than computing them twice.
KEPT_LOGITS = 2**24
# Logits at a time on a CPU: 16 MiB, which suits caches and allocator. An accelerator is faster with larger chunks, for
# which it reads the head's weights less often.
CPU_LOGITS = 2**22


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def text_trunk(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformer stack that reads text, without its head.

    In a model that also reads images (Gemma 3), the stack is the language model beside the vision tower.
    """
    trunk = model.base_model
    inner = getattr(trunk, "language_model", None)
    return inner if isinstance(inner, PreTrainedModel) else trunk


def modules_beside_text(model: PreTrainedModel) -> list[str]:
    """Return the names, inside `base_model`, of the parts that do not read text, such as a vision tower."""
    text = text_trunk(model)
    if text is model.base_model:
        return []
    return [name for name, module in model.base_model.named_children() if module is not text]


def layer_weights(trunk: nn.Module) -> int:
    """Return the number of weights of a transformer stack without its embeddings."""
    tables = {id(module.weight) for module in trunk.modules() if isinstance(module, nn.Embedding)}
    return sum(p.numel() for p in trunk.parameters() if id(p) not in tables)


def hidden_states(trunk: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the last hidden states of `trunk` (a model without its head), shape (B, L, D).

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
    """Return a causal LM's logits for hidden states of any leading shape, as its `forward` would in float32.

    The head is called as a module, with any adapter or quantized weight in it.
    """
    out = float32_logits(model.get_output_embeddings(), hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / getattr(config, "logits_scaling", 1.0)  # Cohere, Granite
    if scale != 1.0:  # a pass over all logits
        out = out * scale
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
    return torch.tanh(out / softcap) * softcap if softcap else out


def token_scores(
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    *,
    chunk_size: int,
    reference: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Return log-probabilities and entropies of `targets` under a causal LM's head, each of shape (N,).

    Args:
        model: The causal LM.
        hidden: Last hidden states before each target, shape (N, D).
        targets: Token ids, shape (N,).
        chunk_size: Most tokens whose logits are in memory at a time; fewer on a CPU with a large vocabulary.
        reference: The reference's last hidden states, shape (N, D), and its function from them to logits; the KL to
            it then comes third, with a gradient.
        options: `temperature` and `entropy` of [`logprobs_and_entropy`].
    """
    frozen = _is_frozen(model.get_output_embeddings())
    many = len(targets) * model.config.get_text_config().vocab_size > KEPT_LOGITS
    options |= {"frozen_head": frozen, "recompute": many and len(targets) > chunk_size}
    options |= {"chunk_size": _chunk_size(model, hidden, chunk_size)}
    head = partial(logits, model)
    if reference is None:
        return logprobs_and_entropy(hidden, targets, head, **options)
    ref_hidden, ref_head = reference
    return logprobs_entropy_and_kl(hidden, ref_hidden, targets, head, ref_head, **options)


def compare_tokens(
    model: PreTrainedModel,
    hidden: Tensor,
    ref_hidden: Tensor,
    targets: Tensor,
    ref_head: Callable[[Tensor], Tensor],
    *,
    temperature: float,
    chunk_size: int,
) -> Comparison:
    """Compare a policy with its reference at N states; see [`compare`].

    Args:
        model: The policy.
        hidden: Its last hidden states before each target, shape (N, D).
        ref_hidden: The reference's, shape (N, D).
        targets: Token ids, shape (N,).
        ref_head: Maps the reference's hidden states to its logits.
        temperature: Sampling temperature.
        chunk_size: As in [`token_scores`], so that the log-probabilities are the same to the last bit.
    """
    size = _chunk_size(model, hidden, chunk_size)
    head = partial(logits, model)
    return compare(hidden, ref_hidden, targets, head, ref_head, temperature=temperature, chunk_size=size)


def _is_frozen(head: nn.Module) -> bool:
    return not any(p.requires_grad for p in head.parameters())


def _chunk_size(model: PreTrainedModel, hidden: Tensor, most: int) -> int:
    """Return how many tokens' logits are computed at a time, at most `most`."""
    vocab_size = model.config.get_text_config().vocab_size
    # Where a large head is trained, every chunk's part of its gradient costs more than small chunks save.
    small = _is_frozen(model.get_output_embeddings()) or vocab_size * hidden.shape[-1] <= 2 * CPU_LOGITS
    return min(most, max(1, CPU_LOGITS // vocab_size)) if hidden.device.type == "cpu" and small else most


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """Check that [`hidden_states`] and [`logits`] agree with the model's own `forward`.

    An architecture with an unknown scaling of logits would otherwise silently train on wrong probabilities.

    Raises:
        ValueError: when the logits differ.
    """
    ids = torch.tensor([[1, 2, 3]], device=model.device) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    with _mode(model):
        theirs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        ours = logits(model, hidden_states(text_trunk(model), ids, mask)).float()
    # The model rounds softcapping and scaling to its dtype; `logits` computes them in float32.
    tolerance = 1e-2 if model.dtype == torch.float32 else 5e-2
    if not torch.allclose(ours, theirs, atol=tolerance * theirs.abs().max().item() + 1e-6):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the head in a way trl_ext does not know "
            f"(largest difference {(ours - theirs).abs().max():.3g}); please report this architecture."
        )


@torch.no_grad()
def check_trunk(trunk: PreTrainedModel, option: str) -> int:
    """Check that hidden states depend neither on later tokens nor on padding.

    An encoder as critic would see the completion in the value of the state before it. A model that ignores the
    attention mask (RWKV) gives a prompt different probabilities in every batch. Both would go unnoticed.

    Returns:
        Width D of the hidden states, which differs from `config.hidden_size` behind a projection (OPT-350m).

    Raises:
        ValueError: when hidden states depend on later tokens or on padding.
    """
    first, tail, other, pad = [1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11], [6, 6, 6]
    ids = torch.tensor([first + tail, first + other, pad + first], device=trunk.device)
    mask = torch.ones_like(ids)
    mask[2, :3] = 0
    with _mode(trunk):
        states = hidden_states(trunk, ids % trunk.config.get_text_config().vocab_size, mask).float()
    alone, continued, padded = states[0, :5], states[1, :5], states[2, 3:]
    exact = trunk.dtype == torch.float32 and not getattr(trunk, "is_quantized", False)
    bound = (1e-2 if exact else 1e-1) * alone.abs().mean()
    if (continued - alone).abs().mean() > bound:
        raise ValueError(
            f"`{option}` is a {type(trunk).__name__}, which reads later tokens too; PPO needs a decoder, an encoder "
            "belongs in `reward_funcs`."
        )
    if (padded - alone).abs().mean() > bound:
        raise ValueError(
            f"`{option}` is a {type(trunk).__name__}, which ignores the attention mask, so that padding changes its "
            "output; use an architecture that masks padding."
        )
    return states.shape[-1]


@contextmanager
def _mode(model: PreTrainedModel, *, training: bool = False) -> Iterator[None]:
    """Set eval or training mode for a block, without kernels that need an accelerator and half precision."""
    was_training = model.training
    model.train(training)
    try:
        with portable_attention(model):
            yield
    finally:
        model.train(was_training)


def disable_randomness(model: nn.Module) -> None:
    """Turn off the random parts of training mode: dropout (also LoRA's), layer drop, and the noise of routers.

    Eval mode is no alternative: transformers checkpoints activations in training mode only.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        attributes = vars(module)
        # Attention reads its rate from a plain float attribute (`attention_dropout` in Llama).
        for name, value in attributes.items():
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)
        # Mixture-of-experts layers with jitter; PhiMoE's router also draws the experts.
        if any("jitter" in name for name in attributes):
            module.register_forward_pre_hook(_in_eval_mode)


def _in_eval_mode(module: nn.Module, _: Any) -> None:
    module.training = False


@torch.no_grad()
def check_deterministic(trunk: PreTrainedModel, option: str) -> None:
    """Check that training mode and eval mode compute the same.

    Otherwise the ratio to the old policy would not be 1 before the first update, and the KL to the reference not 0.

    Raises:
        ValueError: when the two modes differ.
    """
    ids = torch.tensor([range(1, 9)], device=trunk.device) % trunk.config.get_text_config().vocab_size
    outputs = []
    for training in (False, True):
        with _mode(trunk, training=training):
            outputs.append(hidden_states(trunk, ids, torch.ones_like(ids)).float())
    evaluating, learning = outputs
    if (evaluating - learning).abs().mean() > 1e-2 * evaluating.abs().mean():
        raise ValueError(
            f"`{option}` is a {type(trunk).__name__}, which computes something else in training mode, in a way that "
            "trl_ext cannot turn off; please report this architecture."
        )
