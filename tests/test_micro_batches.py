# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Memory that runs out, on its own and in the middle of a run."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.actor_critic import ActorCritic
from trl_ext.micro_batches import MicroBatches, cheapest_pieces

PROMPTS = Dataset.from_dict({"prompt": [f"the cat sat {i}" for i in range(8)]})


def out_of_memory() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Capacity:
    """Work that fits `samples` at a time."""

    def __init__(self, samples: int):
        self.samples, self.done, self.calls = samples, [], 0

    def __call__(self, piece: list[int]) -> None:
        self.calls += 1
        if len(piece) > self.samples:
            raise out_of_memory()
        self.done.extend(piece)


def test_every_sample_is_done_once_and_the_smaller_size_stays(caplog):
    batches, work = MicroBatches(8, "per_device_train_batch_size"), Capacity(3)
    batches.run(list(range(21)), work, "learning from")
    assert work.done == list(range(21))
    assert batches.size == 2 and work.calls == 2 + 11
    assert "Out of memory learning from 8 samples at a time; going on with 4" in caplog.text
    assert "lower `per_device_train_batch_size`" in caplog.text
    batches.run(list(range(4)), work, "learning from")
    assert work.calls == 2 + 11 + 2, "nothing fails a second time"


def test_a_resumed_run_goes_on_with_the_smaller_size():
    sizes, again = MicroBatches(8, "size"), MicroBatches(8, "size")
    sizes.size = 2
    again.load_state_dict(sizes.state_dict())
    assert again.size == 2


def test_a_short_rest_is_halved_by_its_own_size():
    batches, work = MicroBatches(8, "batch_size"), Capacity(2)
    batches.run(list(range(3)), work, "scoring")
    assert work.done == [0, 1, 2] and batches.size == 1


@pytest.mark.parametrize("error", [out_of_memory(), RuntimeError("something else"), ValueError("neither")])
def test_other_errors_and_a_single_sample_that_does_not_fit_are_raised(error):
    def fail(piece: list[int]) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)[:12]):
        MicroBatches(1 if isinstance(error, torch.OutOfMemoryError) else 8, "batch_size").run([1, 2], fail, "scoring")


def compositions(n: int) -> list[list[int]]:
    """Return every way to cut n samples into consecutive pieces."""
    cuts = itertools.product((False, True), repeat=n - 1)
    places = [[0, *(i + 1 for i, cut in enumerate(cut_here) if cut), n] for cut_here in cuts]
    return [[b - a for a, b in itertools.pairwise(place)] for place in places]


@pytest.mark.parametrize("pass_cost", [0, 7, 40, 10_000])
def test_no_other_cut_costs_less(pass_cost):
    """Against every cut of six samples, by lengths that were not chosen for it."""
    generator = torch.Generator().manual_seed(pass_cost)
    for _ in range(20):
        lengths = torch.randint(1, 60, (6, 2), generator=generator).tolist()

        def cost(sizes, lengths=lengths):
            ends = list(itertools.accumulate(sizes))
            parts = [lengths[end - size : end] for size, end in zip(sizes, ends, strict=True)]
            return sum(len(part) * (max(p for p, _ in part) + max(c for _, c in part)) + pass_cost for part in parts)

        found = cheapest_pieces(lengths, pass_cost)
        assert sum(found) == 6 and cost(found) == min(map(cost, compositions(6)))
    assert cheapest_pieces([(5, 9), (5, 2)], pass_cost) == ([1, 1] if pass_cost < 7 else [2])
    assert cheapest_pieces([(3, 4)] * 6, 1) == [6], "nothing to save"


def test_a_pass_that_writes_the_gradients_of_large_tables_has_to_save_more_padding():
    """Two samples of 100 tokens beside six of 88: apart they save 72 tokens, worth a pass at 48 and not at 78."""
    rows, lengths = torch.arange(8), torch.tensor([[64, 36]] * 2 + [[64, 24]] * 6)
    sizes = [list(map(len, MicroBatches(8, "size", trained=share).split(rows, lengths))) for share in (0, 0.9, 1.25)]
    assert sizes == [[2, 6], [2, 6], [8]]


def test_trained_weights_are_counted_for_each_weight_of_the_layers():
    policy = tiny_causal_lm(vocab_size=1000, hidden_size=32, layers=1)
    tables = 2 * 1000 * 32
    layers = sum(p.numel() for p in policy.parameters()) - tables
    whole = ActorCritic(policy, "head").trained_share
    assert whole == pytest.approx((layers + tables + 33) / layers)
    assert ActorCritic(policy, "copy").trained_share == pytest.approx((2 * layers + 1.5 * tables + 33) / (2 * layers))


def test_a_piece_that_was_cut_by_length_is_halved_and_none_is_lost():
    lengths = torch.tensor([[10, 500]] * 3 + [[10, 100]] * 5 + [[10, 5]] * 8)
    batches, work = MicroBatches(16, "batch_size"), Capacity(4)
    sizes: list[int] = []

    def count(piece: torch.Tensor) -> None:
        sizes.append(len(piece))
        work(piece.tolist())

    batches.run(torch.arange(16), count, "learning from", lengths)
    assert work.done == list(range(16))
    assert sizes == [3, 5, 2, 2, 1, 1, 2, 2, 2, 1] and batches.size == 2, "3 fit, 5 do not"


def test_several_processes_do_not_halve():
    with pytest.raises(torch.OutOfMemoryError):
        MicroBatches(8, "batch_size", fixed=True).run(list(range(8)), Capacity(4), "learning from")


class _Fails(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise out_of_memory()


def limit_memory(model: ActorCritic, samples: int, where: str) -> list[str]:
    """Let forward or backward of the first block fail on more than `samples` samples, from now on."""
    failures: list[str] = []

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if len(hidden) <= samples or not torch.is_grad_enabled():
            return output
        failures.append(where)
        if where == "forward":
            raise out_of_memory()
        return (_Fails.apply(hidden), *output[1:]) if isinstance(output, tuple) else _Fails.apply(hidden)

    model.causal_lm.model.layers[0].register_forward_hook(hook)
    return failures


def train(folder: Path, limit: tuple[int, str] | None = None, **options: Any) -> tuple[PPOTrainer, list[str]]:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": 6,
        "total_episodes": 16,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
    }

    def length(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [float(sum(ids) % 7) for ids in completion_ids]

    config = LoraConfig(r=4, target_modules="all-linear") if options.pop("lora", False) else None
    trainer = PPOTrainer(
        tiny_causal_lm(eos_token_id=[2, 7, 9, 11]),
        length,
        PPOConfig(output_dir=str(folder), **(settings | options)),
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
        peft_config=config,
    )
    failures: list[str] = []
    calls = []
    engine = trainer.generation_engine
    trainer.generation_engine = lambda *args: calls.append(1) or engine(*args)  # type: ignore[func-returns-value]
    if limit is not None:
        failures = limit_memory(trainer.model, *limit)
    trainer.train()
    assert len(calls) == 2, "one rollout for 8 episodes, none lost or made twice"
    return trainer, failures


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("options", [{}, {"lora": True, "critic": "adapter", "learning_rate": 0.05}])
def test_a_run_that_runs_out_of_memory_learns_the_same(where, options, tmp_path, caplog):
    expected, _ = train(tmp_path / "a", **options)
    trainer, failures = train(tmp_path / "b", limit=(1, where), **options)
    assert failures and trainer.micro_batches.size == 1
    assert caplog.text.count("Out of memory learning from") == 2, "from 4 to 2 and from 2 to 1, once each"
    assert "Out of memory learning from 4 samples at a time; going on with 2" in caplog.text
    moved = 0
    start = tiny_causal_lm(eos_token_id=[2, 7, 9, 11]).state_dict()
    for (name, p), (_, q) in zip(trainer.model.named_parameters(), expected.model.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        own = name.removeprefix("policy.")
        moved += own in start and not torch.equal(p, start[own])
    assert moved or options
    for ours, theirs in zip(trainer.state.log_history, expected.state.log_history, strict=True):
        for key in ("loss", "policy_loss", "value_loss", "approx_kl", "grad_norm"):
            assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"preserve_rng_state": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}},
        {"gradient_checkpointing": False, "lora": True, "critic": "adapter", "learning_rate": 0.05},
        {"gradient_checkpointing": False, "critic": "copy", "critic_epochs": 1},
    ],
)
def test_where_one_sample_is_too_much_every_layer_is_checkpointed_and_the_run_learns_the_same(
    options, tmp_path, caplog
):
    expected, _ = train(tmp_path / "a", **options)

    def keep_few_activations(model: ActorCritic) -> None:
        """Let the last block fail as long as it keeps its activations."""

        def hook(module: Any, args: tuple, output: Any) -> None:
            if torch.is_grad_enabled() and not module.gradient_checkpointing:
                raise out_of_memory()

        for part in (model.causal_lm, model.critic):
            if part is not None:
                *_, last = (m for m in part.modules() if isinstance(m, GradientCheckpointingLayer))
                last.register_forward_hook(hook)

    real = PPOTrainer.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOTrainer, "train", lambda self: (keep_few_activations(self.model), real(self))[1])
        trainer, limited = train(tmp_path / "b", **options)
    assert trainer.micro_batches.size == 1 and not limited
    assert caplog.text.count("going on with checkpoints at every layer") == 1
    layers = [m for m in trainer.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert all(m.gradient_checkpointing for m in layers if any(p.requires_grad for p in m.parameters()))
    kept = options.get("gradient_checkpointing_kwargs", {}).get("preserve_rng_state")
    functions = [m._gradient_checkpointing_func for m in layers if m.gradient_checkpointing]
    assert {function.keywords.get("preserve_rng_state") for function in functions} == {kept}
    for (name, p), (_, q) in zip(trainer.model.named_parameters(), expected.model.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_memory_that_runs_out_with_every_layer_checkpointed_ends_the_run(tmp_path):
    def fail(model: ActorCritic) -> None:
        def hook(module: Any, args: tuple, output: Any) -> None:
            if torch.is_grad_enabled():
                raise out_of_memory()

        model.causal_lm.model.layers[0].register_forward_hook(hook)

    real = PPOTrainer.train
    with pytest.MonkeyPatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(PPOTrainer, "train", lambda self: (fail(self.model), real(self))[1])
        train(tmp_path, gradient_checkpointing=False)


def test_passes_without_gradients_do_not_checkpoint():
    asked: list[int] = []
    batches = MicroBatches(1, "batch_size", checkpoint=lambda: asked.append(1) or True)  # type: ignore[func-returns-value]
    with pytest.raises(torch.OutOfMemoryError):
        batches.run([1], Capacity(0), "sampling")
    assert not asked


def test_memory_that_runs_out_in_the_second_micro_batch_begins_the_step_again(tmp_path):
    """The gradients of the first one are in by then."""
    expected, _ = train(tmp_path / "a")
    trainer, _ = train(tmp_path / "b")
    torch.testing.assert_close(expected.model.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)

    calls = []

    def fail_once(model: Any) -> None:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if torch.is_grad_enabled():
                calls.append(len(output[0] if isinstance(output, tuple) else output))
                if len(calls) == 2:
                    raise out_of_memory()

        model.causal_lm.model.layers[0].register_forward_hook(hook)

    real = PPOTrainer.train
    try:
        PPOTrainer.train = lambda self: (fail_once(self.model), real(self))[1]  # type: ignore[method-assign]
        trainer, _ = train(tmp_path / "c")
    finally:
        PPOTrainer.train = real  # type: ignore[method-assign]
    assert calls[:6] == [4, 4, 2, 2, 2, 2]
    torch.testing.assert_close(expected.model.state_dict(), trainer.model.state_dict(), rtol=0, atol=1e-5)


def test_sampling_and_forward_passes_go_on_in_halves(tmp_path, caplog):
    trainer, _ = train(tmp_path, local_rollout_forward_batch_size=8)
    rows = [{"prompt": text} for text in PROMPTS["prompt"]]
    failures = []

    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        if len(output[0] if isinstance(output, tuple) else output) > 2:
            failures.append(1)
            raise out_of_memory()

    trainer.model.causal_lm.model.layers[0].register_forward_hook(hook)
    rollout = trainer._collect(rows, trainer.progress, training=False).rollout
    assert len(rollout) == 8 and rollout.completion_mask.any(1).all()
    assert (rollout.old_logps.sum(1) < 0).all() and (rollout.ref_logps.sum(1) < 0).all()
    assert len(failures) == 3, "8 and 4 at a time while sampling, 4 in the forward pass"
    assert "Out of memory sampling 8 samples at a time" in caplog.text
    assert "`local_rollout_forward_batch_size`" in caplog.text
    assert "Out of memory in a forward pass over 4 samples at a time" in caplog.text
