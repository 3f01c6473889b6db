# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What vLLM samples comes from the weights that the policy has at that moment, and a killed run repeats it."""

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from tests import scripted
from tests.tiny_models import VOCAB_SIZE, tiny_tokenizer
from trl_ext import ActorCritic
from trl_ext.experience.engines import vllm_colocated as colocated

from . import made
from .sampling import LENGTH, PROMPTS, check, engine, gap, move

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: run `make test-vllm`")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_all_weights_are_those_of_the_step(tied: bool) -> None:
    model = made.model(tied=tied)
    sampler = engine(model)
    check(sampler, model)
    for _ in range(3):
        move(list(model.parameters()), 0.05)
        assert gap(model, sampler(model, PROMPTS)) > 0.1, "before vLLM is told"
        sampler.weights_changed()
        check(sampler, model)
    sampler.close()


def test_the_adapter_is_that_of_the_step_and_the_critics_is_not_sent() -> None:
    policy = get_peft_model(made.model(), made.lora())
    model = ActorCritic(policy, critic="adapter", reference_is_base=True).eval()
    sampler = engine(model.causal_lm)
    check(sampler, model.causal_lm)
    for _ in range(3):
        move([parameter for _, parameter in model.actor_parameters()], 0.2)
        assert gap(model.causal_lm, sampler(model.causal_lm, PROMPTS)) > 0.1, "before vLLM is told"
        sampler.weights_changed()
        check(sampler, model.causal_lm)
    move([parameter for _, parameter in model.critic_parameters()], 0.2)
    check(sampler, model.causal_lm)
    sampler.close()


def test_weights_that_vllm_packs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import _custom_ops

    monkeypatch.setattr(_custom_ops, "_supports_onednn", True)
    monkeypatch.setattr(colocated, "keep_vllm_weights_plain", lambda: None)
    model = made.model()
    sampler = engine(model)
    with pytest.raises(
        RuntimeError, match=r"^vLLM has packed \d+ of its weights \(.*\), which updates would not reach"
    ):
        sampler(model, PROMPTS)
    sampler.close()


def test_completions_end_as_transformers_ends_them_and_have_seeds_of_their_own() -> None:
    model, tokenizer = made.model(), tiny_tokenizer()
    many = list(range(2, VOCAB_SIZE, 5))
    text = tokenizer.decode([41])
    sampler = engine(model, eos_token_ids=many, stop_strings=[text], top_k=40, top_p=0.8, min_p=0.01)
    torch.manual_seed(3)
    out, again = sampler(model, PROMPTS * 4), sampler(model, PROMPTS * 4)
    assert out.ids != again.ids and out.ids[: len(PROMPTS)] != out.ids[len(PROMPTS) : 2 * len(PROMPTS)]
    torch.manual_seed(3)
    assert sampler(model, PROMPTS * 4).ids == out.ids
    for ids, terminated in zip(out.ids + again.ids, out.terminated + again.terminated, strict=True):
        ends = [token in many or text in tokenizer.decode([token]) for token in ids]
        assert not any(ends[:-1]) and ends[-1] == terminated and (terminated or len(ids) == LENGTH)
    assert sum(out.terminated + again.terminated) > 0
    # The log-probabilities are of the distribution that is left after `top_k` and the others, renormalised.
    alone = engine(model, top_k=1)
    sampler.close()
    assert torch.tensor(sum(alone(model, PROMPTS).logps or [], [])).abs().max() < 1e-5
    alone.close()


def test_in_bf16_the_gap_is_that_of_rounding() -> None:
    model = made.model()
    sampler = engine(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sampler(model, PROMPTS)
        assert 1e-4 < gap(model, out) < 0.1
    sampler.close()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_killed_run_samples_the_same_again(kind: str, tmp_path: Path) -> None:
    peft = {"peft_config": made.lora()} if kind == "lora" else {}
    killed = subprocess.run([sys.executable, "-m", "tests.vllm.made", str(tmp_path / "killed"), kind], check=False)
    assert killed.returncode == -signal.SIGKILL
    lines, weights = {}, {}
    for name, resume in (("whole", None), ("killed", True)):
        run = made.trainer(tmp_path / name, **peft)
        run.train(resume_from_checkpoint=resume)
        lines[name] = {line["step"]: line for line in scripted.logs(run)}
        weights[name] = scripted.weights(run)
    assert set(lines["whole"]) == set(lines["killed"]) == {1, 2, 3, 4}
    for step, line in lines["whole"].items():
        assert line["engine/logp_gap"] < 1e-5
        for name in ("reward", "completions/mean_length", "kl", "loss"):
            assert lines["killed"][step][name] == line[name], (step, name)
    assert all(torch.equal(weights["whole"][name], weights["killed"][name]) for name in weights["whole"])
