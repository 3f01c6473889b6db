# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A critic that reads the reward of what is written so far: which reward, of which beginning, and from whom."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests import scripted
from tests.actor_critic.makes import batch, scramble
from tests.real_tokenizers import real_tokenizer
from tests.tiny_models import tiny_causal_lm
from trl_ext import PPOConfig
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.experience.engines import Completions
from trl_ext.experience.rollout import Rollout
from trl_ext.rewards import RewardRunner
from trl_ext.running.names import check_critic

LORA = LoraConfig(r=4, target_modules="all-linear")


def collected(made: Any, *, training: bool = False) -> Any:
    """A rollout of the trainer's first eight prompts."""
    rows = [made.train_dataset[i] for i in range(8)]
    options = {"callbacks": [], "state": made.state, "training": training}
    return made.collector.collect(made.model, rows, made.progress, **options)


# ---- which reward stands where ----


def texts(conversational: bool) -> Dataset:
    rows: list[Any] = [f"the cat {'sat ' * (i % 4)}{i}" for i in range(16)]
    return Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": row}] for row in rows] if conversational else rows}
    )


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled returns"])
@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "conversations"])
@pytest.mark.parametrize("every", [1, 3])
def test_a_critic_that_returns_what_it_reads_returns_the_reward_of_each_beginning(
    every, conversational, scaled, tmp_path
):
    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        found = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [3.0 + len(text) + text.count("a") for text in found]

    made = scripted.trainer(
        tmp_path,
        reward_funcs=reward,
        critic_reads_reward_every=every,
        scale_returns=scaled,
        train_dataset=texts(conversational),
    )
    if scaled:
        made.model.return_scale.mean.fill_(50.0)
        made.model.return_scale.std.fill_(7.0)
        made.model.return_scale.weight.fill_(1.0)
    with torch.no_grad():  # value = 0 * hidden + 1 * reward so far
        made.model.value_head.reward_bias.fill_(1.0)
    experience = collected(made)
    rollout, tokenizer = experience.rollout, made.processing_class
    lengths = set()
    for i, ids in enumerate(experience.batch.completion_ids):
        whole = tokenizer.decode([tokenizer.pad_token_id, *ids], skip_special_tokens=True)
        shown = experience.batch.completions[i]
        assert (shown if isinstance(shown, str) else shown[0]["content"]) == whole, "the oracle decodes as the trainer"
        for t in range(len(ids)):
            start = t // every * every
            text = tokenizer.decode(ids[:start], skip_special_tokens=True)
            expected = reward([text])[0] if start else 0.0
            assert float(rollout.old_values[i, t]) == pytest.approx(expected, abs=1e-4), (i, t)
        lengths.add(len(ids))
    assert len(lengths) > 2 and max(lengths) > 3


def test_bounds_and_states_of_reward_functions_count_as_in_training_and_stay(tmp_path):
    class Counting:
        __name__ = "counting"

        def __init__(self):
            self.calls = 0

        def __call__(self, completions, **kwargs):
            self.calls += 1
            return [float(len(c)) for c in completions]

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    counting = Counting()
    made = scripted.trainer(
        tmp_path,
        reward_funcs=[counting, scripted.reward],
        reward_constraints=["counting <= 5"],
        critic_reads_reward_every=1,
    )
    found = collected(made, training=True)
    assert counting.calls == 1, "scoring beginnings leaves states as they are"
    rollout = found.rollout
    for i, ids in enumerate(found.batch.completion_ids):
        # What the policy learns from, with the bound's multiplier, is what stands behind the last token.
        assert float(rollout.rewards_so_far[i, len(ids)]) == pytest.approx(float(rollout.scores[i]), abs=1e-5)
        assert rollout.rewards_so_far[i, 0] == 0


@pytest.mark.parametrize("at_once", [True, False], ids=["by every token", "by the last token"])
def test_what_the_tokens_have_earned_already_is_no_part_of_it(at_once, tmp_path):
    """The returns of a token's state contain what is still to be earned alone."""

    def by_token(completion_ids, **kwargs):
        rows = [[float(token % 5) for token in ids] for ids in completion_ids]
        return rows if at_once else [[0.0] * (len(row) - 1) + [sum(row)] for row in rows]

    found = collected(scripted.trainer(tmp_path, reward_funcs=by_token, critic_reads_reward_every=1))
    for i, ids in enumerate(found.batch.completion_ids):
        beginnings = [0.0 if at_once else float(sum(token % 5 for token in ids[:t])) for t in range(len(ids))]
        assert found.rollout.rewards_so_far[i, : len(ids) + 1].tolist() == [*beginnings, 0.0]


def test_a_process_with_shorter_completions_takes_part_in_the_calls_of_the_others(tmp_path, monkeypatch):
    """Calls of rewards are collectives: one for each beginning of the longest completion of all processes."""
    made = scripted.trainer(tmp_path, critic_reads_reward_every=1)
    alone, call, counted = collected(made), RewardRunner.__call__, []

    def recorded(self, prompts, *given, **options):
        counted.append(len(prompts))
        return call(self, prompts, *given, **options)

    monkeypatch.setattr(RewardRunner, "__call__", recorded)
    made.collector.so_far.reduce = lambda tensor, operation: tensor + 4  # the other has four tokens more
    rollout = collected(made).rollout
    lengths = [len(ids) for ids in alone.batch.completion_ids]
    longer = [sum(length > tokens for length in lengths) for tokens in range(1, max(lengths))]
    assert counted == [8, *longer, 0, 0, 0, 0]
    assert torch.equal(rollout.rewards_so_far, alone.rollout.rewards_so_far)


def test_a_character_that_is_not_finished_is_left_out(tmp_path):
    seen: list[str] = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [float(len(c)) for c in completions]

    tokenizer = real_tokenizer("qwen")
    ids = tokenizer("das ist 🪿 für 𓀀", add_special_tokens=False)["input_ids"]
    model = tiny_causal_lm(vocab_size=len(tokenizer))
    made = scripted.trainer(
        tmp_path, model=model, processing_class=tokenizer, reward_funcs=reward, critic_reads_reward_every=1,
        max_completion_length=64,
    )  # fmt: skip
    made.generation_engine = lambda model, prompts, on_progress=None: Completions(
        [ids] * len(prompts), [False] * len(prompts), None
    )
    collected(made)
    cut = [tokenizer.decode(ids[:n]) for n in range(1, len(ids))]
    assert "das ist" in cut and any("\ufffd" in text for text in cut)
    assert set(seen) == {text.rstrip("\ufffd") for text in cut} | {"das ist 🪿 für 𓀀"}


# ---- the value head ----


@pytest.mark.parametrize("critics", [1, 2])
def test_the_factor_of_the_reward_is_linear_in_the_hidden_state(critics):
    options = {"peft_config": LORA, "num_critics": 2} if critics == 2 else {}
    model = build_actor_critic(tiny_causal_lm(), "adapter" if critics == 2 else "head", **options)
    model.value_head.read_rewards()
    tokens, mask, completion = batch()
    so_far = torch.randn(len(tokens), completion.shape[1] + 1)
    scramble(model)
    model.return_scale.std.fill_(3.0)
    model.return_scale.mean.fill_(-2.0)
    out = model(tokens, mask, completion, rewards_so_far=so_far)
    states, head = model.critic_states(tokens, mask, completion), model.value_head
    expected = []
    for k in range(critics):
        state = states if critics == 1 else states[..., k, :]
        plain = state @ head.weight[k] + head.bias[k]
        # In standard deviations around the mean return, -2 and 3: the offset of the reward does not matter.
        expected.append(plain * 3 - 2 + (state @ head.reward_weight[k] + head.reward_bias[k]) * (so_far + 2))
    torch.testing.assert_close(out.values, sum(expected) / critics, rtol=1e-4, atol=1e-4)
    assert model(tokens, mask, completion).values is None, "nothing to read, no values"


def test_reading_changes_no_value_before_the_first_step_and_the_scale_leaves_the_factor(tmp_path):
    plain, reading = (scripted.trainer(tmp_path, critic_reads_reward_every=every) for every in (None, 1))
    with torch.no_grad():
        for made in (plain, reading):
            torch.manual_seed(1)
            made.model.value_head.weight.normal_()
    values = [collected(made) for made in (plain, reading)]
    assert torch.equal(values[0].rollout.old_values, values[1].rollout.old_values)
    head, scale = reading.model.value_head, reading.model.return_scale
    with torch.no_grad():
        head.reward_weight.normal_()
    rollout = values[1].rollout

    def computed() -> torch.Tensor:
        return reading.collector.forward(reading.model, rollout).values

    before = computed()
    scale.update(head, torch.tensor([100.0, 300.0]), torch.ones(2), lambda tensor, operation="sum": tensor)
    torch.testing.assert_close(computed(), before, rtol=1e-4, atol=1e-3)


# ---- saving ----


def test_a_saved_critic_reads_on_and_an_earlier_one_begins_to(tmp_path: Path):
    made = scripted.trainer(tmp_path / "a", critic_reads_reward_every=2)
    with torch.no_grad():
        made.model.value_head.reward_weight.normal_()
    made.save_model(str(tmp_path / "run"))
    again = ActorCritic(tiny_causal_lm(), str(tmp_path / "run"))
    assert again.value_head.reads_rewards
    assert torch.equal(again.value_head.reward_weight, made.model.value_head.reward_weight)

    with pytest.raises(ValueError, match="reads the reward of what is written so far; set `critic_reads_reward_every`"):
        scripted.trainer(tmp_path / "b", critic=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="`--critic` '.*run' reads the reward"):
        check_critic(PPOConfig(critic=str(tmp_path / "run")), again.config, has_lora=False)
    with pytest.raises(ValueError, match="`model` has a critic that reads rewards: set `critic_reads_reward_every`"):
        scripted.trainer(tmp_path / "b", model=again)
    with pytest.raises(ValueError, match="holds a critic that reads rewards, and this run's does not"):
        ActorCritic(tiny_causal_lm()).load_pretrained(tmp_path / "run")
    head = tmp_path / "run" / "critic" / "value_head.safetensors"
    save_file({name: w for name, w in load_file(head).items() if not name.startswith("reward_")}, head)
    later = scripted.trainer(tmp_path / "c", critic=str(tmp_path / "run"), critic_reads_reward_every=2)
    assert not later.model.value_head.reward_weight.any() and not later.model.value_head.reward_bias.any()
    later.train()
    assert later.model.value_head.reward_weight.any()


def test_the_rollout_keeps_what_the_critic_reads(tmp_path: Path):
    made = scripted.trainer(tmp_path, critic_reads_reward_every=1)
    rollout = collected(made, training=True).rollout
    rollout.save(tmp_path / "rollout.safetensors")
    again = Rollout.load(tmp_path / "rollout.safetensors")
    assert torch.equal(again.rewards_so_far, rollout.rewards_so_far)
    for i in range(len(rollout)):
        row = rollout.select(torch.tensor([i]))
        assert row.rewards_so_far.shape == (1, row.completion_length + 1)
        assert torch.equal(row.rewards_so_far[0], rollout.rewards_so_far[i, : row.completion_length + 1])


# ---- what cannot be scored ----


def of_whole_texts(otherwise: Any) -> Any:
    """A reward of whole completions, those of each first call of two; something else of their beginnings."""
    calls: list[set[tuple[int, ...]]] = []

    def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[Any]:
        wholes = set(map(tuple, completion_ids)) if len(calls) % 2 == 0 else calls[-1]
        calls.append(wholes)
        return [float(len(ids)) if tuple(ids) in wholes else otherwise for ids in completion_ids]

    return reward


def test_a_beginning_without_a_reward_is_no_matter_of_a_warning(tmp_path, recwarn):
    made = scripted.trainer(tmp_path, reward_funcs=of_whole_texts(None), critic_reads_reward_every=1)
    made.train()
    assert not [w for w in recwarn if "returned None for sample" in str(w.message)]


@pytest.mark.parametrize(
    ("otherwise", "error", "words"),
    [
        (ValueError("unfinished"), RuntimeError, "failed on at least .* beginnings of completions after 0 retries"),
        (float("nan"), ValueError, "returned nan"),
        ("no number", TypeError, "returned 'no number'"),
    ],
)
def test_a_function_that_fails_on_beginnings_is_told_so(otherwise, error, words, tmp_path):
    reward = of_whole_texts(otherwise)
    made = scripted.trainer(tmp_path, reward_funcs=reward, critic_reads_reward_every=1, reward_retries=0)
    hint = r"It was given the beginnings of completions \(`critic_reads_reward_every`\)"
    with pytest.raises(error, match=f"(?i)Reward function 'reward' {words}.*{hint}"):
        made.train()


def test_a_few_beginnings_that_fail_are_warned_of_as_such(tmp_path):
    reward = of_whole_texts(ValueError("unfinished"))
    options = {"reward_retries": 0, "max_reward_failures": 1.0}
    made = scripted.trainer(tmp_path, reward_funcs=reward, critic_reads_reward_every=1, **options)
    with pytest.warns(UserWarning, match=r"which are skipped; .* It was given the beginnings of completions"):
        made.train()


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_failures_are_a_share_of_all_beginnings_of_a_rollout(share, tmp_path):
    """One failure is a third of the call with the longest beginnings, and few of all beginnings."""
    calls: list[int] = []

    def reward(completions, **kwargs):
        calls.append(len(completions))
        rewards: list[Any] = [float(len(text)) for text in completions]
        return [ValueError("unfinished"), *rewards[1:]] if len(calls) == 6 else rewards

    options = {"reward_retries": 0, "max_reward_failures": share}
    made = scripted.trainer(tmp_path, reward_funcs=reward, critic_reads_reward_every=1, **options)
    if share:
        with pytest.warns(UserWarning, match="failed on 1 of 21 beginnings of completions, which are skipped"):
            rollout = collected(made).rollout
        i = int((rollout.completion_mask.sum(1) > 5).float().argmax())
        assert rollout.rewards_so_far[i, 5] == rollout.rewards_so_far[i, 4] != 0, "the reward before it stands"
    else:
        with pytest.raises(RuntimeError, match="failed on at least 1 of 21 beginnings of completions"):
            collected(made)
    assert calls == [8, 5, 5, 5, 3, 3]
