# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What actor, critic and reference say: against the model's own logits, before and after updates, in any precision."""

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from tests.actor_critic.makes import (
    MAKES,
    ROWS,
    batch,
    learn,
    lora,
    lora_config,
    not_the_identity,
    reference,
    scramble,
    trained_adapter,
    two_adapters,
)
from tests.tiny_models import VOCAB_SIZE, save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext.actor_critic import ActorCritic, ForwardOutput, build_actor_critic, trunk
from trl_ext.actor_critic.value_head import ValueHead

ARCHITECTURES = ["llama", "gpt2", "qwen2", "mistral", "gemma2", "phi", "gpt_neox"]


def own_log_probs(model: nn.Module, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    """Log-probabilities over the vocabulary at each completion token, from the model's own `forward` on the row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


# ---- log-probabilities ----


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("chunk_size", [2, 512])
def test_logps_and_entropy_are_those_of_the_models_own_logits(arch, chunk_size):
    """In a batch padded on both sides, against each row alone."""
    own = tiny_causal_lm(arch).eval()
    model = ActorCritic(tiny_causal_lm(arch)).eval()
    if arch == "gemma2":
        # The default of 30 hardly bends the logits of a random model.
        own.config.final_logit_softcapping = model.config.final_logit_softcapping = 1.5
    out = model(*batch(), temperature=0.7, chunk_size=chunk_size)
    for i, (prompt, completion) in enumerate(ROWS):
        log_probs, n = own_log_probs(own, prompt, completion, 0.7), len(completion)
        expected = torch.tensor([log_probs[t, token] for t, token in enumerate(completion)])
        assert torch.allclose(out.logps[i, :n], expected.float(), atol=1e-5)
        entropy = torch.distributions.Categorical(logits=log_probs).entropy()
        assert torch.allclose(out.entropy[i, :n], entropy.float(), atol=1e-5)
        assert (out.logps[i, n:] == 0).all() and (out.entropy[i, n:] == 0).all()


@pytest.mark.parametrize(
    ("trained", "hidden_size", "kept", "cpu", "rows"),
    [
        pytest.param(True, 8, 10**9, 10**9, [5, 4], id="few enough to be kept"),
        pytest.param(True, 8, 8, 10**9, [5, 4, 4, 5], id="too many: computed again in the backward pass"),
        pytest.param(False, 8, 10**9, 3, [3, 3, 3], id="a CPU takes fewer at a time"),
        pytest.param(False, 8, 10**9, 0, [1] * 9, id="but one at least"),
        pytest.param(True, 4, 10**9, 2, [2, 2, 2, 2, 1], id="also if a small head is trained"),
        pytest.param(True, 8, 10**9, 3, [5, 4], id="but not if a large one is"),
    ],
)
def test_how_many_logits_are_held_and_whether_they_are_kept(trained, hidden_size, kept, cpu, rows, monkeypatch):
    """Limits in tokens; 9 tokens, of which 5 at a time are allowed."""
    monkeypatch.setattr(trunk, "KEPT_LOGITS", kept * VOCAB_SIZE)
    monkeypatch.setattr(trunk, "CPU_LOGITS", cpu * VOCAB_SIZE)
    model, seen = tiny_causal_lm(hidden_size=hidden_size), []
    model.get_output_embeddings().requires_grad_(trained)
    model.get_output_embeddings().register_forward_hook(lambda head, inputs, out: seen.append(len(out)))
    hidden = torch.randn(9, hidden_size, requires_grad=True)
    logps, _ = trunk.token_scores(model, hidden, torch.arange(9), chunk_size=5)
    logps.sum().backward()
    assert seen == rows


def test_a_cpus_smaller_chunks_do_not_make_logits_too_many_to_be_kept(monkeypatch):
    monkeypatch.setattr(trunk, "KEPT_LOGITS", 0)
    monkeypatch.setattr(trunk, "CPU_LOGITS", 4 * VOCAB_SIZE)
    model, seen = tiny_causal_lm(hidden_size=4), []
    model.get_output_embeddings().register_forward_hook(lambda head, inputs, out: seen.append(len(out)))
    trunk.token_scores(model, torch.randn(9, 4, requires_grad=True), torch.arange(9), chunk_size=9)[0].sum().backward()
    assert seen == [4, 4, 1], "the caller allows 9 at a time, so that they may be kept"


@pytest.mark.parametrize(
    ("arch", "field", "value"), [("granite", "logits_scaling", 8.0), ("cohere", "logit_scale", 0.25)]
)
def test_scaled_logits_count(arch, field, value):
    # Cohere reads the scale when it is built.
    own, policy = tiny_causal_lm(arch).eval(), tiny_causal_lm(arch)
    for model in (own, policy):
        setattr(model.config, field, value)
        if hasattr(model, field):
            setattr(model, field, value)
        nn.init.normal_(model.get_output_embeddings().weight, generator=torch.Generator().manual_seed(0))
    logps = ActorCritic(policy).eval()(*batch()).logps
    for i, (prompt, completion) in enumerate(ROWS):
        expected = own_log_probs(own, prompt, completion).gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert torch.allclose(logps[i, : len(completion)], expected.float(), atol=1e-5)


def test_an_architecture_that_changes_its_logits_in_an_unknown_way_is_refused():
    policy = tiny_causal_lm()

    class Scaled(LlamaForCausalLM):
        def forward(self, **kwargs):
            out = super().forward(**kwargs)
            out.logits = out.logits * 1.5
            return out

    policy.__class__ = Scaled
    with pytest.raises(ValueError, match="Scaled changes its logits after the head"):
        ActorCritic(policy)


def test_a_sample_does_not_notice_the_batch_it_is_in():
    model = ActorCritic(tiny_causal_lm()).eval()
    scramble(model.value_head)
    nn.init.normal_(model.value_head.weight)
    together = model(*batch())
    for i, row in enumerate(ROWS):
        alone, n = model(*batch([row])), len(row[1])
        assert torch.allclose(alone.logps[0], together.logps[i, :n], atol=1e-5)
        assert torch.allclose(alone.entropy[0], together.entropy[i, :n], atol=1e-5)
        assert torch.allclose(alone.values[0], together.values[i, : n + 1], atol=1e-5)


def test_holes_in_the_mask_are_not_scored_but_read():
    model = ActorCritic(tiny_causal_lm()).eval()
    ids, attention_mask, mask = batch()
    full = model(ids, attention_mask, mask)
    mask[1, 1:3] = False
    holed = model(ids, attention_mask, mask)
    assert (holed.logps[1, 1:3] == 0).all()
    assert torch.allclose(holed.logps[mask], full.logps[mask], atol=1e-6)


def test_a_sample_without_tokens_still_takes_part_in_the_backward_pass():
    model = ActorCritic(tiny_causal_lm())
    ids, attention_mask, mask = batch()
    out = model(ids, attention_mask, torch.zeros_like(mask))
    (out.logps.sum() + out.values.sum() * 0).backward()
    assert model.policy.get_input_embeddings().weight.grad is not None


# ---- values ----


def test_values_start_at_zero_and_have_one_column_more_than_there_are_tokens():
    for critic in ("head", "copy"):
        out = ActorCritic(tiny_causal_lm(), critic)(*batch())
        assert out.values.shape == (3, 6) and out.logps.shape == (3, 5)
        assert out.values.dtype == torch.float32 and (out.values == 0).all()
    assert reference(ActorCritic(tiny_causal_lm()), batch()).shape == (3, 5)
    assert ActorCritic(tiny_causal_lm())(*batch(), role="reference").values is None


@pytest.mark.parametrize("critic", ["head", "copy", "adapter"])
def test_the_value_before_a_token_does_not_know_the_token(critic):
    model = build_actor_critic(
        tiny_causal_lm(), critic, peft_config=lora_config() if critic == "adapter" else None
    ).eval()
    scramble(model)
    ids, attention_mask, mask = batch()
    before = model(ids, attention_mask, mask).values
    for t in range(5):
        changed = ids.clone()
        changed[1, 4 + t] += 7
        difference = (model(changed, attention_mask, mask).values - before).abs()[1]
        assert (difference[: t + 1] < 1e-5).all() and (difference[t + 1 :] > 1e-4).all()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_a_critic_from_a_reward_model_starts_as_the_reward_model(arch, tmp_path):
    """The value of the last state is the score that the reward model itself gives to the sample alone."""
    reward_model = tiny_classifier(["reward"], arch=arch, seed=5)
    expected = []
    for prompt, completion in ROWS:
        with torch.no_grad():
            expected.append(reward_model(input_ids=torch.tensor([prompt + completion])).logits.item())
    folder = save_tiny(tmp_path / "reward", reward_model)
    for critic in (folder, reward_model):
        model = ActorCritic(tiny_causal_lm(), critic).eval()
        values = model(*batch()).values
        scores = [values[i, len(completion)].item() for i, (_, completion) in enumerate(ROWS)]
        assert scores == pytest.approx(expected, abs=1e-5)
        assert max(scores) - min(scores) > 0.01
        assert model.critic is not None and all(p.requires_grad for p in model.critic.parameters())


def test_a_critic_from_a_language_model_has_its_trunk_and_a_head_at_zero(tmp_path):
    other = tiny_causal_lm("gpt2", seed=3)
    model = ActorCritic(tiny_causal_lm(), save_tiny(tmp_path / "lm", other))
    assert type(model.critic).__name__ == "GPT2Model"
    assert model.critic is not None and torch.equal(model.critic.wte.weight, other.transformer.wte.weight)
    assert (model(*batch()).values == 0).all()


# ---- the reference ----


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_kl_is_zero_at_the_start_and_the_reference_never_moves(make):
    model, data = make(), batch()
    out, start = model.train()(*data), reference(model, data)
    assert torch.equal(out.logps, start)
    trained = {name for name, _ in model.actor_parameters() + model.critic_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(model, data)
    assert torch.equal(reference(model, data), start)
    assert not torch.equal(model(*data).logps, start)
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trained


@pytest.mark.parametrize("make", [trained_adapter, not_the_identity])
def test_the_reference_of_a_policy_that_is_not_the_base_is_not_the_base(make):
    prompt, completion = ROWS[1]
    base = own_log_probs(tiny_causal_lm().eval(), prompt, completion).gather(1, torch.tensor(completion)[:, None])[:, 0]
    assert (reference(make(), batch())[1] - base.float()).abs().max() > 0.01
    assert (reference(lora(), batch())[1] - base.float()).abs().max() < 1e-5


# ---- dropout, precision ----


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_dropout_in_training_mode(arch):
    policy, critic = tiny_causal_lm(arch, dropout=0.5), tiny_causal_lm(arch, dropout=0.5, seed=2)
    model = ActorCritic(policy, critic)
    scramble(model.value_head)
    nn.init.normal_(model.value_head.weight)
    assert_no_dropout(model)


def test_no_lora_dropout_in_training_mode():
    model = build_actor_critic(tiny_causal_lm(dropout=0.5), "adapter", peft_config=lora_config())
    scramble(model)
    assert_no_dropout(model)


def assert_no_dropout(model: ActorCritic) -> None:
    with torch.no_grad():
        training, evaluating = model.train()(*batch()), model.eval()(*batch())
        assert model.train().policy.training and model.eval() is model
    assert torch.equal(training.logps, evaluating.logps) and torch.equal(training.values, evaluating.values)
    assert evaluating.values.abs().max() > 0.01


def test_logps_and_values_are_float32_whatever_the_trunk():
    policy = tiny_causal_lm().bfloat16()
    model = ActorCritic(policy).eval()
    nn.init.normal_(model.value_head.weight)
    assert model.value_head.weight.dtype == torch.float32 and model.dtype == torch.bfloat16
    out = model(*batch([ROWS[0]]))
    assert {out.logps.dtype, out.entropy.dtype, out.values.dtype} == {torch.float32}
    prompt, completion = ROWS[0]
    states = policy.model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0, len(prompt) - 1 :]
    exact = (states[:-1].double() @ policy.lm_head.weight.double().T).log_softmax(-1)
    expected = exact.gather(1, torch.tensor(completion)[:, None])[:, 0]
    # Logits in bf16 would be off by up to 0.003, a log-softmax in bf16 by up to 0.03.
    assert torch.allclose(out.logps[0], expected.float(), atol=1e-5)
    assert torch.allclose(out.values[0], states.float() @ model.value_head.weight[0], atol=1e-5)


def test_the_value_head_stays_in_float32_under_autocast():
    head, hidden = ValueHead(32), torch.randn(2, 5, 32)
    nn.init.normal_(head.weight)
    expected = head(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden), expected)


# ---- parameters ----


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_every_trainable_parameter_has_one_owner_and_forward_changes_no_flag(make):
    model = make()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model(*batch())
    reference(model, batch())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    actor, critic = ({name for name, _ in group} for group in (model.actor_parameters(), model.critic_parameters()))
    assert actor and critic and not actor & critic
    assert actor | critic == {name for name, trainable in flags.items() if trainable}
    for name, trainable in flags.items():
        frozen = (
            name.startswith("reference.")
            or ".reference." in name
            or (isinstance(model.policy, PeftModel) and "lora_" not in name and "modules_to_save" not in name)
        )
        assert trainable == (not frozen or name.startswith("value_head.")), name


def test_the_critic_adapter_belongs_to_the_critic():
    model = two_adapters()
    critic = {name for name, _ in model.critic_parameters()}
    assert {name for name in critic if not name.startswith("value_head.")} == {
        name for name, _ in model.named_parameters() if ".critic." in name
    }
    assert len(critic) == 2 + 2 * 14, "value head, and A and B for each of 7 layers in 2 blocks"
    assert isinstance(model(*batch()), ForwardOutput)
    assert model.value_head.weight.shape == (1, 32) and model.config.vocab_size == VOCAB_SIZE
