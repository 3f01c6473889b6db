# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`merge_adapters_while_sampling`: what is sampled from, and a run that learns from it."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from tests import scripted
from tests.actor_critic.makes import scramble
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext.actor_critic import add_policy_adapter
from trl_ext.experience.engines import (
    Completions,
    ContinuousBatchingEngine,
    GenerationEngine,
    MergedEngine,
    TransformersEngine,
)

PROMPTS = [[5, 9, 11, 40], [8], [50, 51, 6]]


def adapted(dtype: torch.dtype = torch.float32) -> PeftModel:
    policy, _ = add_policy_adapter(tiny_causal_lm().to(dtype), LoraConfig(r=4, lora_alpha=8))
    scramble(policy, scale=0.2)
    return policy.eval()


def engine(**options: Any) -> TransformersEngine:
    return TransformersEngine(tiny_tokenizer(), eos_token_ids=[2], max_new_tokens=6, **options)


def test_log_probabilities_are_those_of_the_merged_model_that_was_sampled_from():
    policy = adapted(torch.bfloat16)
    alone = copy.deepcopy(policy).merge_and_unload()
    made = MergedEngine(engine(return_logps=True))
    assert all(not name.startswith("base_model") for name, _ in policy.get_base_model().named_parameters())
    torch.manual_seed(1)
    out = made(policy.get_base_model(), PROMPTS)
    gaps = {"merged": 0.0, "unmerged": 0.0}
    for prompt, ids, logps in zip(PROMPTS, out.ids, out.logps or [], strict=True):
        for name, model in (("merged", alone), ("unmerged", policy)):
            with torch.no_grad():
                scores = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            expected = scores.gather(1, torch.tensor(ids)[:, None])[:, 0]
            gaps[name] = max(gaps[name], float((expected - torch.tensor(logps)).abs().max()))
    # Of bf16 the KV cache and padding alone leave a gap.
    assert gaps["merged"] < gaps["unmerged"] and gaps["unmerged"] > 0.02


@pytest.mark.parametrize("inner", [TransformersEngine, ContinuousBatchingEngine])
def test_the_likeliest_completions_are_the_same(inner):
    model = adapted().get_base_model()
    options: dict[str, Any] = {"eos_token_ids": [2], "max_new_tokens": 6}
    options |= {"top_k": 1} if inner is ContinuousBatchingEngine else {"temperature": 0}
    made = inner(tiny_tokenizer(), **options)
    assert MergedEngine(made)(model, PROMPTS).ids == made(model, PROMPTS).ids


class Inner(GenerationEngine):
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, model: Any, prompt_ids: list[list[int]], on_progress: Any = None) -> Completions:
        self.asked.append(f"sample {next(m.merged for m in model.modules() if hasattr(m, 'merged'))}")
        return Completions([[2]] * len(prompt_ids), [True] * len(prompt_ids), None)

    def weights_changed(self) -> None:
        self.asked.append("changed")

    def close(self) -> None:
        self.asked.append("close")


def test_the_engine_below_is_told_what_it_needs_to_know():
    inner = Inner()
    made = MergedEngine(inner)
    made.weights_changed()
    made(adapted().get_base_model(), PROMPTS)
    made.close()
    assert inner.asked == ["changed", "sample True", "close"]
    plain = MergedEngine(lambda model, prompt_ids, on_progress=None: Completions([], [], None))  # type: ignore[arg-type]
    plain.weights_changed()
    plain.close()


def train(folder: Any, dtype: torch.dtype, **settings: Any) -> tuple[Any, list[float]]:
    """A run, and the largest distance from 1 of the importance weights of each rollout."""
    made = scripted.trainer(
        folder,
        model=tiny_causal_lm().to(dtype),
        scripted=False,
        critic="adapter",
        peft_config=LoraConfig(r=4, lora_alpha=64),
        learning_rate=0.02,
        **settings,
    )
    collect, seen = made.collector.collect, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        out = collect(*args, **kwargs)
        seen.append(float((out.rollout.weights - 1).abs().max()))
        return out

    made.collector.collect = watched
    base = {n: p.clone() for n, p in made.model.named_parameters() if not p.requires_grad}
    made.train()
    assert all(torch.equal(p, base[n]) for n, p in made.model.named_parameters() if n in base)
    return made, seen


def test_a_run_corrects_for_merged_weights_and_leaves_the_base_alone(tmp_path):
    made, seen = train(tmp_path / "a", torch.bfloat16, merge_adapters_while_sampling=True)
    assert isinstance(made.generation_engine, MergedEngine)
    gaps = [line["engine/logp_gap"] for line in made.state.log_history if "engine/logp_gap" in line]
    assert len(seen) == 2 and seen[1] > 1e-3 and 1e-4 < gaps[-1] < 0.1
    made, seen = train(tmp_path / "b", torch.float32, merge_adapters_while_sampling=True)
    assert max(seen) < 1e-4
    other, _ = train(tmp_path / "c", torch.float32)
    assert not isinstance(other.generation_engine, MergedEngine)
    ours, theirs = scripted.weights(made), scripted.weights(other)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in theirs), "in float32 nothing is rounded"
    made, seen = train(
        tmp_path / "d", torch.bfloat16, merge_adapters_while_sampling=True, importance_sampling_correction=False
    )
    assert seen == [0.0, 0.0]
