# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Logits in float32, whatever the dtype of the head's weights and of autocast."""

from typing import Any

import torch
from torch import Tensor, autograd, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

# Weights of a half-precision head that are cast to float32 at a time: 128 MiB.
CAST_AT_A_TIME = 2**25


def float32_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Return the output of a language model's head in float32.

    bf16 has 8 significant bits: the head under autocast would round a logit of 20 by up to 0.06, differently in every
    composition of a batch, which is a large part of PPO's clip range.

    Args:
        head: A linear layer, with or without adapters, quantized or not.
        hidden: Hidden states, shape (N, D).

    Returns:
        Logits, float32, shape (N, V). A quantized head computes in its own dtype.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        if type(head) is nn.Linear and head.weight.dtype != torch.float32:
            out = _CastLinear.apply(hidden.float(), head.weight)
            return out if head.bias is None else out + head.bias.float()
        parameters = dict(head.named_parameters())
        if all(p.dtype == torch.float32 for p in parameters.values()):
            return head(hidden.float())
        if all(p.is_floating_point() for p in parameters.values()):  # adapters on a head in half precision
            return functional_call(head, {name: p.float() for name, p in parameters.items()}, (hidden.float(),))
    return head(hidden).float()


class _CastLinear(autograd.Function):
    """`hidden @ weight.T` in float32 from a weight in half precision, which is cast some rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        out = hidden.new_empty(len(hidden), len(weight))
        for rows in _slices(weight):
            torch.mm(hidden, weight[rows].float().T, out=out[:, rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        hidden, weight = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _slices(weight):
            if grad_hidden is not None:
                grad_hidden.addmm_(grad[:, rows], weight[rows].float())
            if grad_weight is not None:
                grad_weight[rows] = (grad[:, rows].T @ hidden).to(weight.dtype)
        return grad_hidden, grad_weight


def _slices(weight: Tensor) -> list[slice]:
    size = max(1, CAST_AT_A_TIME // weight.shape[1])
    return [slice(start, start + size) for start in range(0, len(weight), size)]
