# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`policy_ema_decay`: the average beside the last policy, against a sum over the weights of every step."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tests import scripted
from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.actor_critic.averaging import evaluated_too

DECAY = 0.8


class Weights(TrainerCallback):
    """The policy's weights at the start and after each step of the Trainer, and whether the step was taken."""

    def __init__(self):
        self.trainer, self.seen, self.taken = None, [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append(self.now())

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.now())
        self.taken.append(self.trainer._gate.stepped)

    def now(self):
        return {name: p.detach().double().clone() for name, p in self.trainer.model.actor_parameters()}


def trained(folder, **settings):
    watcher = Weights()
    made = scripted.trainer(folder, policy_ema_decay=DECAY, callbacks=[watcher], **settings)
    watcher.trainer = made
    made.train()
    made.save_model(str(folder))
    return made, watcher


def expected(watcher: Weights) -> dict[str, torch.Tensor]:
    """decay^n w_0 + (1 - decay) sum_i decay^(n - i) w_i over the n steps that were taken."""
    kept = [w for w, taken in zip(watcher.seen[1:], watcher.taken, strict=True) if taken]
    n = len(kept)
    return {
        name: DECAY**n * start + (1 - DECAY) * sum(DECAY ** (n - 1 - i) * w[name] for i, w in enumerate(kept))
        for name, start in watcher.seen[0].items()
    }


@pytest.mark.parametrize("peft", [False, True], ids=["whole", "lora"])
def test_the_average_is_that_of_the_steps_taken(peft, tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm())
    config = LoraConfig(r=4, target_modules="all-linear") if peft else None
    out = tmp_path / "out"
    settings = {"target_approx_kl": 1e-6, "total_episodes": 32, "num_mini_batches": 2, "max_grad_norm": 0.1}
    made, watcher = trained(out, model=AutoModelForCausalLM.from_pretrained(base), peft_config=config, **settings)
    assert True in watcher.taken and False in watcher.taken, "some steps are skipped"
    average, last = expected(watcher), watcher.seen[-1]
    with made.policy_average.in_place():
        for name, parameter in made.model.actor_parameters():
            torch.testing.assert_close(parameter.double(), average[name], rtol=1e-5, atol=1e-7, msg=name)
    assert all(torch.equal(p.double(), last[name]) for name, p in made.model.actor_parameters())
    assert any(not torch.allclose(average[name], last[name], rtol=1e-4) for name in last)
    # What plain transformers and PEFT load.
    auto = AutoPeftModelForCausalLM if peft else AutoModelForCausalLM
    loaded = auto.from_pretrained(out / "ema").eval()
    ids = torch.tensor([[5, 9, 11, 40]])
    with made.policy_average.in_place(), torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, made.model.causal_lm.eval()(ids).logits, rtol=0, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(out / "ema")) == len(made.processing_class)


def test_it_is_evaluated_beside_the_last_policy(tmp_path):
    shown = []

    class Watching(TrainerCallback):
        def on_rollout(self, batch, scores, metrics, *, state, training):
            shown.append(training)
            return {}

    settings = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": scripted.prompts(6)}
    made = scripted.trainer(tmp_path, policy_ema_decay=0.99, callbacks=[Watching()], learning_rate=1e-2, **settings)
    made.train()
    line = next(line for line in reversed(made.state.log_history) if "eval_kl" in line)
    assert line["eval_ema_reward"] == line["eval_reward"], "the scripted completions are the same"
    assert 0 < abs(line["eval_ema_kl"]) < abs(line["eval_kl"])
    evaluations = sum("eval_kl" in line for line in made.state.log_history)
    assert shown.count(False) == evaluations, "callbacks watch the last policy alone"
    before = scripted.weights(made)
    made.evaluate()
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters())


def test_both_are_evaluated_with_the_same_random_numbers():
    def loop(trainer, metric_key_prefix="eval"):
        return SimpleNamespace(metrics={metric_key_prefix: torch.rand(1).item()})

    average = SimpleNamespace(is_on=True, in_place=nullcontext)
    trainer = SimpleNamespace(policy_average=average, model=SimpleNamespace(device=torch.device("cpu")))
    metrics = evaluated_too(loop)(trainer).metrics
    assert metrics["eval"] == metrics["eval_ema"]


def test_a_warm_up_of_the_critic_leaves_it_alone(tmp_path):
    made, watcher = trained(tmp_path, critic_warmup_rollouts=2, total_episodes=16, critic="copy")
    assert watcher.taken and all(watcher.taken)
    with made.policy_average.in_place():
        assert all(torch.equal(p.double(), watcher.seen[0][name]) for name, p in made.model.actor_parameters())


def test_without_it_nothing_is_saved_or_evaluated(tmp_path):
    made = scripted.trainer(tmp_path, eval_strategy="steps", eval_steps=2, eval_dataset=scripted.prompts(4))
    made.train()
    made.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "ema").exists()
    assert not any("ema" in name for line in made.state.log_history for name in line)


def test_a_checkpoint_without_an_average_begins_it_anew(tmp_path, caplog):
    first = scripted.trainer(tmp_path, save_strategy="steps", save_steps=2)
    first.train()
    again = scripted.trainer(tmp_path, save_strategy="steps", save_steps=2, total_episodes=24, policy_ema_decay=0.5)
    again.train(resume_from_checkpoint=True)
    assert "has no average of the policy" in caplog.text


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_out_of_range_is_refused(decay, tmp_path):
    with pytest.raises(ValueError, match="`policy_ema_decay`"):
        scripted.trainer(tmp_path, policy_ema_decay=decay)
