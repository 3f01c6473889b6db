# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Activations of the phases of PPO, measured on a model without weights.

Weights, gradients and optimizer state are counted on the model itself, built on PyTorch's meta device, where tensors
have sizes and no memory. Activations follow no formula either: a few layers of the model go through each phase of
PPO there, in the code that training uses, while [`Meter`] adds up living tensors; the other layers are extrapolated.
"""

import copy
import inspect
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, PeftModel
from peft.functional import set_requires_grad
from torch import Tensor, autograd, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, StaticCache

from trl_ext._compat import AdapterSwitch
from trl_ext.actor_critic.adapters import CRITIC_ADAPTERS, add_policy_adapter, with_rank
from trl_ext.actor_critic.caches import static_cache, static_length
from trl_ext.actor_critic.trunk import (
    causal_lm,
    compare_tokens,
    disable_randomness,
    logits,
    text_trunk,
    token_scores,
)

from .weights import linear_layers, meta_model, states_width

_DEPTHS = (1, 2)  # layers of the dry run, times the length of the pattern in which kinds of layers take turns

Parts = dict[str, int]  # bytes by the name of the part


class Meter(TorchDispatchMode):
    """Adds up the bytes of living tensors that were made while the meter was on.

    Args:
        vocab_size: Tensors with as many columns count as logits, all others as activations.

    Attributes:
        peaks: The most bytes at once in each `moment`, by part.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.now: Parts = {"activations": 0, "logits": 0}
        self.peaks: dict[str, Parts] = {}
        self._peak = dict(self.now)
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                key = id(tensor.untyped_storage())  # the same object for as long as the memory lives
                if key not in known and key not in self._alive:
                    self._add(tensor)
        if sum(self.now.values()) > sum(self._peak.values()):
            self._peak = dict(self.now)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        part = "logits" if tensor.shape[-1:] == (self.vocab_size,) else "activations"
        key, size = id(storage), storage.nbytes()
        self.now[part] += size
        self._alive.add(key)

        def freed() -> None:
            self.now[part] -= size
            self._alive.discard(key)

        weakref.finalize(storage, freed)

    @contextmanager
    def moment(self, name: str) -> Iterator[None]:
        """Measure a block; tensors that are alive from before count too."""
        self._peak = dict(self.now)
        yield
        self.peaks[name] = self._peak


class _Product(autograd.Function):
    """The tensors that bitsandbytes allocates around the product with a quantized weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "QuantizedStandIn") -> Tensor:
        ctx.layer = layer
        if layer.is_int8:
            ctx.save_for_backward(x)
            rounded = x.to(torch.int8)  # noqa: F841  alive together with the sums of its products
            sums = x.new_empty(*x.shape[:-1], layer.out_features, dtype=torch.int32)  # noqa: F841
            return x.new_empty(*x.shape[:-1], layer.out_features)
        return nn.functional.linear(x, torch.empty_like(layer.weight), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ torch.empty_like(ctx.layer.weight), None


class QuantizedStandIn(nn.Linear):
    """A linear layer whose weight takes its full size for the length of a product, as quantized ones do."""

    is_int8 = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of `x` (..., in_features) with the weight, shape (..., out_features)."""
        return _Product.apply(x, self).clone()  # PEFT's layers do


class _Attention(autograd.Function):
    """Fused attention, which keeps its inputs, its output and a float32 number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Take the ways through torch that a GPU takes.

    On the meta device torch would choose the attention kernel that keeps all scores, and it has no autocast there,
    which PEFT turns off around the experts of a mixture.
    """
    # Not by a TorchFunctionMode: a checkpoint's recomputation in the backward pass runs outside of it.
    functions = mock.patch.object(
        nn.functional, "scaled_dot_product_attention", lambda q, k, v, **_: _Attention.apply(q, k, v)
    )
    with functions, mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        yield


def _with_adapters(model: PreTrainedModel, quantization: str, ranks: dict[str, int], dtype: torch.dtype) -> PeftModel:
    """Return `model` with stand-ins for quantized layers and with LoRA, as `ActorCritic` trains it."""
    for name, (module, inputs, outputs) in linear_layers(model).items() if quantization != "none" else ():
        layer = QuantizedStandIn(inputs, outputs, module.bias is not None, device="meta", dtype=dtype)
        layer.is_int8 = quantization == "int8"
        model.set_submodule(name, layer)
    model.requires_grad_(False)
    with torch.device("meta"):
        policy, _ = add_policy_adapter(model, LoraConfig(r=ranks["actor"]))
        for name, rank in ranks.items():
            if name != "actor":
                policy.add_adapter(name, with_rank(policy.peft_config["default"], rank))
    for name in ranks:
        set_requires_grad(policy, "default" if name == "actor" else name, True)
    # They are float32, and autocast takes them down to `dtype`.
    return policy.to(dtype)


def _period(config: Any) -> int:
    """Return the number of layers after which the kinds of layers repeat."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ["one"]
    return next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[: len(kinds) - n])


class DryRun:
    """The phases of PPO on a model without weights, in the code that training uses.

    Each method takes a number of sequences, and returns the most bytes alive in every moment of its phase, by part.

    Args:
        config: Configuration of the causal LM.
        quantization: "nf4", "int8" or "none".
        critic: "head", "adapter" or "copy".
        num_critics: Adapters of `critic="adapter"`, 1 or 2.
        prompt, completion: Tokens of every prompt and every completion.
        rank, critic_rank: Ranks of the LoRA on every linear layer but the head; rank 0 trains the model itself.
        logits_chunk_size: As in `PPOConfig`.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        every_n_layers: One of so many layers recomputes them, the first among them.
        cache_implementation: "static" for a KV cache of fixed size, which is whole from the first token on.
        dtype: Dtype of the computation.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        quantization: str,
        critic: str,
        num_critics: int,
        prompt: int,
        completion: int,
        rank: int,
        critic_rank: int,
        logits_chunk_size: int,
        gradient_checkpointing: bool,
        every_n_layers: int = 1,
        cache_implementation: str | None = None,
        exact_kl: bool,
        dtype: torch.dtype,
    ):
        text = config.get_text_config()
        self.num_layers, self.vocab_size = text.num_hidden_layers, text.vocab_size
        self.critic, self.prompt, self.completion, self.chunk_size = critic, prompt, completion, logits_chunk_size
        self.dtype, self.exact_kl, self.has_static_cache = dtype, exact_kl, cache_implementation == "static"
        self._critics = CRITIC_ADAPTERS[:num_critics] if critic == "adapter" else ("default",)
        self._models: dict[int, tuple[nn.Module, nn.Module]] = {}
        period = math.lcm(_period(text), every_n_layers)
        for layers in {min(period * depth, self.num_layers) for depth in _DEPTHS}:
            policy: nn.Module = meta_model(config, dtype, layers)
            trunk: Any = copy.deepcopy(text_trunk(policy))
            if rank:
                ranks = {"actor": rank} | dict.fromkeys(set(self._critics) - {"default"}, critic_rank)
                policy = _with_adapters(policy, quantization, ranks, dtype)
            if critic != "copy":
                trunk = text_trunk(causal_lm(policy))
            options = {"use_reentrant": False, "context_fn": AdapterSwitch(policy).checkpoint_contexts}
            for model in (policy, trunk):
                disable_randomness(model)
                if gradient_checkpointing:
                    lm: Any = causal_lm(model)
                    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
                    enable(options, **({} if every_n_layers == 1 else {"every_n_layers": every_n_layers}))
                for p in model.parameters():
                    p.grad = torch.empty_like(p) if p.requires_grad else None  # from the micro-batch before
            self._models[layers] = policy, trunk

    def learn(self, batch: int) -> dict[str, Parts]:
        """Run the forward and backward pass of a micro-batch."""
        peaks = {layers: self._run(layers, self._learn, batch, training=True) for layers in self._models}
        few, many = min(peaks), max(peaks)
        growth = (self.num_layers - many) / max(1, many - few)
        return {
            moment: {part: n + int(growth * (n - peaks[few][moment][part])) for part, n in parts.items()}
            for moment, parts in peaks[many].items()
        }

    def evaluate(self, batch: int) -> dict[str, Parts]:
        """Compute log-probabilities, KL and values of a micro-batch; a reward adapter has the same forward pass."""
        return self._run(max(self._models), self._evaluate, batch)

    def generate(self, batch: int) -> dict[str, Parts]:
        """Sample a batch: the prompts, then the last token. Of each layer only keys and values stay."""
        growth, moments = self.num_layers / max(self._models), self._run(max(self._models), self._generate, batch)
        return {name: parts | {"KV cache": int(growth * parts["KV cache"])} for name, parts in moments.items()}

    def _run(self, layers: int, phase: Callable[..., None], batch: int, training: bool = False) -> dict[str, Parts]:
        policy, trunk = self._models[layers]
        for model in (policy, trunk):
            model.train(training)
        with torch.set_grad_enabled(training), _as_on_a_gpu(), Meter(self.vocab_size) as meter:
            phase(policy, trunk, meter, batch)
        return meter.peaks

    def _learn(self, policy: nn.Module, trunk: nn.Module, meter: Meter, batch: int) -> None:
        value_head = nn.Linear(
            states_width(causal_lm(policy)), 1, device="meta"
        )  # `ValueHead` without autocast, unknown there
        with meter.moment("actor's forward pass"):
            states = self._states(text_trunk(causal_lm(policy)), batch)[:, -self.completion - 1 :]
            leaf = states.detach().requires_grad_()  # here the backward pass is cut into moments
        with meter.moment("log-probabilities"):
            scored = self._scores(policy, leaf, batch)
        with meter.moment("critic's forward pass"):
            values = torch.stack([self._values(policy, trunk, name, leaf, value_head) for name in self._critics])
        with meter.moment("critic's backward pass"):
            autograd.backward(values.sum())
        with meter.moment("backward pass of the log-probabilities"):
            autograd.backward(scored)
        with meter.moment("actor's backward pass"):
            autograd.backward(states, leaf.grad)

    def _values(self, policy: nn.Module, trunk: nn.Module, adapter: str, leaf: Tensor, head: nn.Module) -> Tensor:
        """Return the values of one critic; `leaf` are the policy's states, from which a head reads."""
        with AdapterSwitch(policy).use(adapter):
            states = leaf if self.critic == "head" else self._states(trunk, len(leaf))[:, -self.completion - 1 :]
            return head(states.float())

    def _evaluate(self, policy: nn.Module, trunk: nn.Module, meter: Meter, batch: int) -> None:
        with meter.moment("forward"):
            states = self._states(text_trunk(causal_lm(policy)), batch)[:, -self.completion - 1 :]
        with meter.moment("reference"):
            ref_states = self._states(text_trunk(causal_lm(policy)), batch)[:, -self.completion - 1 :]
        with meter.moment("log-probabilities and KL"):
            model, (hidden, ids) = causal_lm(policy), self._tokens(states, batch)
            others, head = self._tokens(ref_states, batch)[0], partial(logits, model)
            compare_tokens(model, hidden, others, ids, head, temperature=1.0, chunk_size=self.chunk_size)

    def _generate(self, policy: nn.Module, trunk: nn.Module, meter: Meter, batch: int) -> None:
        model = causal_lm(policy)
        static = static_cache(model.config, self.prompt, self.completion) if self.has_static_cache else None
        past, shapes = self.prompt + self.completion - 1, list[tuple[torch.Size, torch.Size]]()
        for moment, new in (("prompts", self.prompt), ("last token", 1)):
            cache: Any = static or DynamicCache(config=model.config)
            for i, sizes in enumerate(shapes):
                cache.update(*(torch.empty(*n[:2], past, n[3], dtype=self.dtype, device="meta") for n in sizes), i)
            with meter.moment(moment):
                states = self._states(text_trunk(model), batch, new, cache)
                self._sample(logits(model, states[:, -1:]))
            shapes = [] if static else [(layer.keys.shape, layer.values.shape) for layer in cache.layers]
            kept = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
            peak = meter.peaks[moment]
            peak |= {"KV cache": kept, "activations": peak["activations"] - kept}

    def _states(self, trunk: nn.Module, batch: int, new: int | None = None, cache: Any = None) -> Tensor:
        """Return hidden states of `trunk` for `new` tokens after those in `cache`."""
        new = new or self.prompt + self.completion
        # Masks are broadcast, but that of a whole prompt: layers with a sliding window hold fewer keys than there are
        # tokens, and static caches have room for more.
        is_static = isinstance(cache, StaticCache)
        columns = static_length(self.prompt, self.completion) if is_static else new
        mask = torch.empty(batch, 1, new, columns, dtype=self.dtype, device="meta")
        mask = mask[..., :1] if is_static or new == 1 else mask
        ids = torch.empty(batch, new, dtype=torch.long, device="meta")
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None, "past_key_values": cache}
        if "position_ids" in inspect.signature(trunk.forward).parameters:
            inputs["position_ids"] = ids
        return trunk(**inputs).last_hidden_state

    def _scores(self, policy: nn.Module, states: Tensor, batch: int) -> list[Tensor]:
        """Return what losses are made of: sums of the log-probabilities, and of the KL where it is a loss."""
        model, (hidden, targets) = causal_lm(policy), self._tokens(states, batch)
        # Any hidden states do for the reference's: a rollout holds them.
        reference = (hidden.detach(), partial(logits, model)) if self.exact_kl else None
        options: dict[str, Any] = {"chunk_size": self.chunk_size, "entropy": "value", "reference": reference}
        scores = token_scores(model, hidden, targets, **options)
        return [scores[0].sum(), *([scores[2].sum()] if self.exact_kl else [])]

    def _tokens(self, states: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Return the hidden states before all tokens to score, and the tokens."""
        ids = torch.empty(batch * self.completion, dtype=torch.long, device="meta")
        return states[:, :-1].flatten(0, 1).clone(), ids

    @staticmethod
    def _sample(scores: Tensor) -> None:
        scores = scores[:, -1].to(torch.float32, copy=True)
        probs = torch.softmax(scores, dim=-1)
        noise = torch.empty_like(probs)  # noqa: F841  `multinomial` draws from it
