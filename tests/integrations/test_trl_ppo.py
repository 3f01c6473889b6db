# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions, KL controllers and actor-critics inside TRL's PPOTrainer, which needs trl <= 1.12."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, TrainerCallback

from tests.tiny_models import EOS_ID, prompt_dataset, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.kl_control import AdaptiveKL, FixedKL
from trl_ext.rewards import LengthReward, RewardRunner, ToxicityReward

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
try:
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from trl.experimental.utils import get_reward
except ImportError:
    PPOTrainer = None
else:
    from trl_ext.integrations.trl_ppo import KLCoefCallback, RewardFunctionModel, ppo_models


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL collects garbage in every batch, which in a long test session takes longer than everything else."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)


needs_ppo = pytest.mark.skipif(PPOTrainer is None, reason="trl >= 1.13 has no PPOTrainer")


@pytest.mark.skipif(PPOTrainer is not None, reason="trl <= 1.12 has a PPOTrainer")
def test_newer_trl_is_told_what_to_use() -> None:
    with pytest.raises(ImportError, match="has no PPOTrainer: it was removed in 1.13. Use `trl_ext.PPOTrainer`"):
        import trl_ext.integrations.trl_ppo  # noqa: F401


def policy_model(arch: str = "phi") -> Any:
    """A policy that ends many completions early."""
    model = tiny_causal_lm(arch)
    if arch == "phi":
        model.lm_head.bias.data[EOS_ID] = 4.0
    return model


def tokenized(tokenizer: Any, n: int = 16) -> Dataset:
    """Prompts of several lengths, as text and as token ids."""
    dataset = prompt_dataset(n)
    return dataset.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]})


def ppo_trainer(folder: Path, tokenizer: Any, reward_model: Any, models: dict[str, Any], **settings: Any) -> Any:
    """TRL's PPO on tiny models."""
    dataset = settings.pop("train_dataset", None)
    eval_dataset = settings.pop("eval_dataset", None)
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "local_rollout_forward_batch_size": 2,
        "num_ppo_epochs": 1,
        "total_episodes": 8,
        "response_length": 6,
        "stop_token": "eos",
        "temperature": 1.0,
        "learning_rate": 1e-3,
        "num_sample_generations": 0,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }
    dataset = tokenized(tokenizer) if dataset is None else dataset
    return PPOTrainer(
        PPOConfig(**{**defaults, **settings}),
        tokenizer,
        reward_model=reward_model,
        train_dataset=dataset.select_columns("input_ids"),
        eval_dataset=eval_dataset,
        **models,
    )


def separate_models(policy: Any) -> dict[str, Any]:
    """TRL's own way: a copy as the reference and a value model of its own."""
    return {"model": policy, "ref_model": None, "value_model": tiny_classifier(["value"], "phi", seed=1)}


# ---- reward functions ----


def rewards_of(reward_model: Any, policy: Any, tokenizer: Any, prompt: list[int], completion: list[int]) -> list[float]:
    """What TRL's `get_reward` makes of the reward model, for rows that start with `prompt`."""
    policy.generate(input_ids=torch.tensor([prompt]), max_new_tokens=1)
    rows = torch.tensor([prompt + completion])
    _, scores, _ = get_reward(reward_model, rows, tokenizer.pad_token_id, len(prompt))
    return scores.tolist()


@needs_ppo
@pytest.mark.parametrize(
    ("pad_is_eos", "tail", "expected_ids"),
    [
        (False, [EOS_ID, 0], [20, 30, EOS_ID]),  # ended, then padded
        (False, [EOS_ID], [20, 30, EOS_ID]),
        (False, [], [20, 30]),  # cut off
        (True, [EOS_ID, EOS_ID], [20, 30, EOS_ID]),  # the first is what was sampled, the second padding
        (True, [EOS_ID], [20, 30, EOS_ID]),
        (True, [], [20, 30]),
    ],
)
@pytest.mark.parametrize("left_padding", [0, 2])
def test_prompt_and_completion_are_told_apart(
    pad_is_eos: bool, tail: list[int], expected_ids: list[int], left_padding: int
) -> None:
    tokenizer, policy, seen = tiny_tokenizer(pad_is_eos=pad_is_eos), policy_model(), []

    def reward(**sample: Any) -> list[float]:
        seen.append(sample)
        return [7.25]

    reward_model = RewardFunctionModel(reward, policy, tokenizer)
    prompt = tokenizer("the cat")["input_ids"]
    padded = [tokenizer.pad_token_id] * left_padding + prompt
    assert rewards_of(reward_model, policy, tokenizer, padded, [20, 30, *tail]) == [7.25]
    (sample,) = seen
    assert sample["prompts"] == ["the cat"]
    assert sample["completions"] == [tokenizer.decode([20, 30])]
    assert sample["completion_ids"] == [expected_ids]


@needs_ppo
def test_an_empty_completion_is_one_too() -> None:
    tokenizer, policy, seen = tiny_tokenizer(pad_is_eos=True), policy_model(), []

    def reward(**sample: Any) -> list[float]:
        seen.append(sample)
        return [1.5]

    reward_model = RewardFunctionModel(reward, policy, tokenizer)
    assert rewards_of(reward_model, policy, tokenizer, [20, 30], [EOS_ID, EOS_ID]) == [1.5]
    assert seen[0]["completions"] == [""] and seen[0]["completion_ids"] == [[EOS_ID]]


@needs_ppo
def test_a_classifier_reads_with_its_own_tokenizer() -> None:
    """Token ids of the policy mean other words there; the score must be that of the text."""
    policy, tokenizer = policy_model(), tiny_tokenizer()
    other = tiny_tokenizer()
    other.add_tokens(["cat"])  # so the same text has other ids
    toxicity = ToxicityReward(tiny_classifier(vocab_size=161), tokenizer=other)
    runner = RewardRunner([toxicity, LengthReward(4)], weights=[1.0, 0.5])
    completion = tokenizer(" cat sat")["input_ids"]
    assert other(" cat sat")["input_ids"] != completion
    (score,) = rewards_of(RewardFunctionModel(runner, policy, tokenizer), policy, tokenizer, [20, 30], completion)
    parts = [fn([""], [" cat sat"], [completion])[0] for fn in (toxicity, LengthReward(4))]
    assert score == pytest.approx(parts[0] + 0.5 * parts[1], rel=1e-5)


@needs_ppo
@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_in_trls_loop_functions_get_the_datasets_own_texts(pad_is_eos: bool, lora: bool, tmp_path: Path) -> None:
    """Prompts are padded to a new length in every batch, and completions have every length."""
    tokenizer, policy = tiny_tokenizer(pad_is_eos=pad_is_eos), policy_model()
    dataset = tokenized(tokenizer).map(lambda row: {"answer": f"to {row['prompt']}"})
    samples: list[tuple[str, str, list[int]]] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, answer: list[str]) -> list[float]:
        assert answer == [f"to {prompt}" for prompt in prompts]
        samples.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    models = separate_models(policy)
    if lora:  # TRL wraps the policy after `generate` was wrapped
        models["peft_config"] = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    reward_model = RewardFunctionModel(reward, policy, tokenizer, dataset)
    # Were all completions of a micro-batch empty, TRL would divide by 0 where pad == eos.
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    made = ppo_trainer(tmp_path, tokenizer, reward_model, models, train_dataset=dataset, total_episodes=16, **sizes)
    made.train()
    assert sorted(prompt for prompt, _, _ in samples) == sorted(dataset["prompt"])
    lengths = {len(ids) for _, _, ids in samples}
    assert len(lengths) > 2
    for _, completion, ids in samples:
        assert tokenizer.decode(ids, skip_special_tokens=True) == completion
        assert (ids[-1] == EOS_ID) == (EOS_ID in ids) and (EOS_ID in ids or len(ids) == 6)
    logged = [line["objective/scores"] for line in made.state.log_history if "objective/scores" in line]
    means = [sum(len(ids) for _, _, ids in samples[i : i + 4]) / 4 for i in range(0, 16, 4)]
    assert logged == pytest.approx(means)


@needs_ppo
def test_samples_of_the_evaluation_prompts_are_scored_too(tmp_path: Path) -> None:
    """TRL shows them during training; they have another width than the training prompts."""
    tokenizer, policy, seen = tiny_tokenizer(), policy_model(), []

    def reward(prompts: list[str], **columns: Any) -> list[float]:
        seen.extend(prompts)
        return [0.0] * len(prompts)

    reward_model = RewardFunctionModel(reward, policy, tokenizer)
    longer = Dataset.from_dict(
        {"input_ids": [tokenizer(f"{i} is a longer prompt than any")["input_ids"] for i in "12"]}
    )
    settings = {"eval_dataset": longer, "num_sample_generations": 1, "per_device_eval_batch_size": 2}
    ppo_trainer(tmp_path, tokenizer, reward_model, separate_models(policy), total_episodes=4, **settings).train()
    assert seen[4:] == ["1 is a longer prompt than any", "2 is a longer prompt than any"]
    assert set(seen[:4]) < set(prompt_dataset(16)["prompt"])


@needs_ppo
def test_conversations(tmp_path: Path) -> None:
    tokenizer, policy = tiny_tokenizer(), policy_model()
    seen: list[tuple[Any, Any]] = []
    dataset = prompt_dataset(4, conversational=True)
    dataset = dataset.map(
        lambda row: {"input_ids": tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]}
    )

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    reward_model = RewardFunctionModel(reward, policy, tokenizer, dataset)
    models = separate_models(policy)
    ppo_trainer(tmp_path, tokenizer, reward_model, models, train_dataset=dataset, total_episodes=4).train()
    assert len(seen) == 4
    for prompt, completion in seen:
        assert prompt in dataset["prompt"]
        assert [message["role"] for message in completion] == ["assistant"]


@needs_ppo
def test_rewards_that_cannot_work_say_why() -> None:
    tokenizer, policy = tiny_tokenizer(), policy_model()
    reward_model = RewardFunctionModel(lambda completions, **columns: [None], policy, tokenizer)
    with pytest.raises(RuntimeError, match="`policy` has not generated: give this class the model that the trainer"):
        get_reward(reward_model, torch.tensor([[20, 30]]), 0, 1)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="cannot skip a sample; return a number for each"):
        rewards_of(reward_model, policy, tokenizer, [20, 30], [40])

    def broken(**columns: Any) -> list[float]:
        raise RuntimeError("no connection")

    with pytest.raises(RuntimeError, match="'broken' failed on at least 1 of 1 .* no connection"):
        rewards_of(RewardFunctionModel(broken, policy, tokenizer), policy, tokenizer, [20, 30], [40])
    with pytest.raises(ValueError, match="has no column 'input_ids'"):
        RewardFunctionModel(broken, policy, tokenizer, prompt_dataset(2))
    twice = Dataset.from_dict({"input_ids": [[20, 30], [0, 20, 30]], "answer": ["a", "b"]})
    with pytest.raises(ValueError, match="twice with different columns"):
        RewardFunctionModel(broken, policy, tokenizer, twice)
    other = RewardFunctionModel(broken, policy, tokenizer, twice.select([0]))
    with pytest.raises(ValueError, match="is not in `dataset`; give it every prompt"):
        rewards_of(other, policy, tokenizer, [20, 31], [40])


# ---- the KL coefficient ----


@needs_ppo
def test_trls_ppo_with_our_rewards_and_an_adaptive_coefficient(tmp_path: Path) -> None:
    """Ten updates; the logged penalty is the logged coefficient times the logged KL, so TRL used what was set."""
    tokenizer, policy = tiny_tokenizer(), policy_model()

    def brevity(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [-0.1 * len(ids) for ids in completion_ids]

    toxicity = ToxicityReward(tiny_classifier(), tokenizer=tiny_tokenizer())
    reward_model = RewardFunctionModel([toxicity, brevity], policy, tokenizer)
    made = ppo_trainer(tmp_path, tokenizer, reward_model, separate_models(policy), total_episodes=40)
    controller = AdaptiveKL(init_coef=0.5, target=1.0, horizon=20.0)
    made.ref_model.lm_head.weight.data.mul_(1.1)  # so that the first KL is not 0
    before = policy.model.layers[0].mlp.fc1.weight.detach().clone()
    made.add_callback(KLCoefCallback(controller, made))
    made.train()
    lines = [line for line in made.state.log_history if "objective/kl" in line]
    coefs, kls = [line["kl_coef"] for line in lines], [line["objective/kl"] for line in lines]
    assert len(lines) == 10 and len(set(coefs)) == 10
    for line in lines:
        assert abs(line["objective/kl"]) > 1e-3
        assert line["objective/non_score_reward"] == pytest.approx(-line["kl_coef"] * line["objective/kl"], abs=1e-5)
    # Ziegler et al.: a batch of 4 and a horizon of 20 give steps of at most 0.2 * 4 / 20.
    expected = 0.5
    for coef, kl in zip(coefs, kls, strict=True):
        assert coef == pytest.approx(expected)
        expected *= 1 + min(max(kl - 1.0, -0.2), 0.2) * 4 / 20
    assert made.args.kl_coef == controller.coef == pytest.approx(expected)
    assert not torch.equal(before, policy.model.layers[0].mlp.fc1.weight)


class Logger(TrainerCallback):
    """Stands for W&B and the like, which TRL puts before a user's callbacks."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.begun = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.lines.append(dict(logs))


@needs_ppo
def test_loggers_see_the_coefficient_and_every_callback_is_called_once(tmp_path: Path) -> None:
    tokenizer, policy = tiny_tokenizer(), policy_model()
    reward_model = RewardFunctionModel(LengthReward(3), policy, tokenizer)
    made = ppo_trainer(tmp_path, tokenizer, reward_model, separate_models(policy))
    loggers = [Logger(), Logger(), Logger()]
    made.add_callback(loggers[0])
    made.add_callback(loggers[1])
    made.add_callback(KLCoefCallback(FixedKL(0.3), made))
    made.add_callback(loggers[2])
    made.train()
    for logger in loggers:
        assert logger.begun == 1
        assert [line.get("kl_coef") for line in logger.lines if "objective/kl" in line] == [0.3, 0.3]


@needs_ppo
def test_other_trainers_are_refused() -> None:
    with pytest.raises(TypeError, match="SimpleNamespace; give a trl.experimental.ppo.PPOTrainer"):
        KLCoefCallback(FixedKL(0.1), SimpleNamespace())


# ---- models from one backbone ----


def lora_actor_critic(model: Any = None, **kwargs: Any) -> ActorCritic:
    """Two adapters on one base, the critic's head away from zero so that values are not all 0."""
    peft_config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    made = build_actor_critic(model or tiny_causal_lm(), "adapter", peft_config=peft_config, **kwargs)
    nn.init.normal_(made.value_head.weight, std=0.1)
    return made


def stir(module: nn.Module, name: str, std: float = 0.2) -> None:
    """Move the weights of an adapter away from the identity."""
    for key, parameter in module.named_parameters():
        if f"lora_B.{name}." in key:
            nn.init.normal_(parameter, std=std)


IDS = torch.tensor([[0, 0, 17, 80, 41, 99, 23], [5, 9, 60, 7, 33, 45, 12]])
MASK = IDS != 0


def trl_outputs(models: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy and reference log-probabilities and values of the last three tokens, computed as TRL's loop does."""
    positions = MASK.cumsum(1) - MASK.long()
    inputs = {"input_ids": IDS, "attention_mask": MASK, "position_ids": positions, "return_dict": True}
    found = []
    for model in (models.model, models.ref_model):
        logits = model(**inputs, output_hidden_states=True).logits[:, 3:-1].log_softmax(-1)
        found.append(logits.gather(2, IDS[:, 4:].unsqueeze(2)).squeeze(2))
    values, _, _ = get_reward(models.value_model, IDS, 0, 4)
    assert values.shape == (*IDS.shape, 1)
    return found[0], found[1], values[:, 3:-1].squeeze(-1)


@needs_ppo
@pytest.mark.parametrize("kind", ["adapter", "trained adapter as reference", "head", "full", "copy"])
def test_views_answer_as_the_actor_critic_does(kind: str) -> None:
    if kind == "adapter":
        made = lora_actor_critic()
        stir(made, "default")
        stir(made, "critic")
    elif kind in ("full", "copy"):
        made = ActorCritic(tiny_causal_lm(), "head" if kind == "full" else "copy")
        made.policy.lm_head.weight.data.mul_(1.1)
    else:
        policy = get_peft_model(tiny_causal_lm(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        stir(policy, "default")
        made = ActorCritic(policy, "head" if kind == "head" else "adapter")
        stir(made, "default", std=0.3)
        if kind != "head":
            stir(made, "critic")
    nn.init.normal_(made.value_head.weight, std=0.1)
    models, completion_mask = ppo_models(made), torch.ones(2, 3, dtype=torch.bool)
    # TRL's optimizer takes what can be trained in these two.
    given = {id(p) for model in (models.model, models.value_model) for p in model.parameters() if p.requires_grad}
    assert given == {id(p) for p in made.parameters() if p.requires_grad}
    with torch.no_grad():
        logps, ref_logps, values = trl_outputs(models)
        expected = made(IDS, MASK.long(), completion_mask)
        reference = made(IDS, MASK.long(), completion_mask, role="reference").logps
    torch.testing.assert_close(logps, expected.logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(ref_logps, reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(values, expected.values[:, :-1], rtol=0, atol=1e-5)
    assert (logps - ref_logps).abs().max() > 1e-3 and values.std() > 1e-3


def assert_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], trained: tuple[str, ...]) -> None:
    """Every weight whose name has one of `trained` in it changed, and no other did."""
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    # A LoRA's A has no gradient while its B is 0, but there is more than one update.
    assert moved == {name for name in after if any(part in name for part in trained)}


@needs_ppo
@pytest.mark.parametrize("quantized", [False, True])
def test_trls_ppo_trains_actor_and_critic_on_one_base(quantized: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    if quantized:
        name = save_tiny(tmp_path / "base", tiny_causal_lm(), tokenizer)
        actor_critic = lora_actor_critic(
            name,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
            ),
        )
        assert actor_critic.policy.is_loaded_in_4bit
    else:
        actor_critic = lora_actor_critic()
    models = ppo_models(actor_critic)
    assert not list(models.ref_model.parameters())
    reward_model = RewardFunctionModel(
        lambda completions, **columns: [float(text.count("a")) for text in completions], models.model, tokenizer
    )
    made = ppo_trainer(tmp_path / "out", tokenizer, reward_model, models._asdict(), total_episodes=12, num_ppo_epochs=2)
    assert len(list(made.model.parameters())) == len(list(actor_critic.parameters()))
    before = {name: p.detach().clone() for name, p in actor_critic.named_parameters()}
    made.train()
    after = {name: p.detach() for name, p in actor_critic.named_parameters()}
    assert_moved(before, after, (".default.", ".critic.", "value_head."))
    kls = [line["objective/kl"] for line in made.state.log_history if "objective/kl" in line]
    assert kls[0] == pytest.approx(0, abs=1e-4) and abs(kls[-1]) > 1e-4


@needs_ppo
def test_activation_checkpointing_recomputes_under_the_right_adapter(tmp_path: Path) -> None:
    """TRL switches checkpointing off for generation and on again; gradients are the same with and without it."""

    def trained(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        actor_critic, tokenizer = lora_actor_critic(), tiny_tokenizer()
        stir(actor_critic, "critic")
        if checkpointing:
            actor_critic.gradient_checkpointing_enable()
        models = ppo_models(actor_critic)
        reward_model = RewardFunctionModel(LengthReward(3), models.model, tokenizer)
        made = ppo_trainer(
            tmp_path, tokenizer, reward_model, models._asdict(), total_episodes=4, optim="sgd", learning_rate=1.0
        )
        assert made.model.is_gradient_checkpointing == checkpointing
        made.train()
        return {name: p.detach() for name, p in actor_critic.named_parameters() if p.requires_grad}

    with_it, without = trained(True), trained(False)
    for name, weight in without.items():
        torch.testing.assert_close(with_it[name], weight, rtol=0, atol=1e-5, msg=name)


@needs_ppo
def test_two_critics_are_refused():
    config = LoraConfig(r=2, target_modules="all-linear")
    model = build_actor_critic(tiny_causal_lm(), "adapter", peft_config=config, num_critics=2)
    with pytest.raises(ValueError, match="TRL's PPO trains one critic, and this ActorCritic has two"):
        ppo_models(model)


@needs_ppo
def test_a_critic_that_reads_rewards_is_refused():
    model = build_actor_critic(tiny_causal_lm())
    model.value_head.read_rewards()
    with pytest.raises(ValueError, match="this critic reads rewards of their beginnings"):
        ppo_models(model)
