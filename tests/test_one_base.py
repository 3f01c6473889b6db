# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A whole run with four roles on one quantized base, for every family of models."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from trl import RewardConfig, RewardTrainer

from tests.tiny_models import CHAT_TEMPLATE, tiny_causal_lm, tiny_tokenizer
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.commands import merge
from trl_ext.rewards import PreferenceReward

FAMILIES = ["llama", "qwen2", "mistral", "gemma2", "phi", "gpt_neox", "gpt2"]
PROMPTS = Dataset.from_dict({"prompt": [f"the cat sat {i}" for i in range(8)]})
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


def save_base(folder: Path, arch: str = "llama", **sizes: Any) -> str:
    tiny_causal_lm(arch, eos_token_id=[2, 7, 9, 11], **({"hidden_size": 64} | sizes)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def settings(folder: Path, **options: Any) -> PPOConfig:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 1,
        "max_completion_length": 6,
        "total_episodes": 8,
        "learning_rate": 0.01,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return PPOConfig(output_dir=str(folder), **(defaults | options))


def length(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def snapshot(trainer: PPOTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def reward_adapter(base, tmp_path_factory) -> str:
    """Trained by TRL's own RewardTrainer, with an adapter for its head as PEFT makes one."""
    folder = tmp_path_factory.mktemp("reward-model")
    pairs = {"prompt": ["the cat"] * 8, "chosen": [" sat on the mat"] * 8, "rejected": [" ran"] * 8}
    args = RewardConfig(
        output_dir=str(folder),
        max_steps=4,
        learning_rate=0.05,
        per_device_train_batch_size=4,
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
    )
    trainer = RewardTrainer(
        base,
        args=args,
        train_dataset=Dataset.from_dict(pairs),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"]),
    )
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder)


def test_a_reward_adapter_scores_as_the_reward_model_that_it_was(base, reward_adapter, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    trainer = PPOTrainer(
        base,
        args=settings(tmp_path, reward_adapters=[reward_adapter]),
        train_dataset=PROMPTS,
        peft_config=LoraConfig(r=4),
    )
    whole = AutoPeftModelForSequenceClassification.from_pretrained(reward_adapter, num_labels=1)
    theirs = PreferenceReward(whole.merge_and_unload(), tokenizer=tiny_tokenizer(), append_eos=True)
    prompts, completions = ["the cat", "a", "you are a kind person"], [" sat", " small dog ran", ""]
    [ours] = trainer.rewards.reward_funcs
    expected = theirs(prompts, completions)
    assert ours(prompts, completions) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == 3
    chat = [[{"role": "user", "content": text}] for text in prompts]
    answers = [[{"role": "assistant", "content": text}] for text in completions]
    assert CHAT_TEMPLATE and ours(chat, answers) == pytest.approx(theirs(chat, answers), abs=1e-4)


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_four_roles_on_one_4_bit_base(base, reward_adapter, critic, tmp_path):
    """The first rollout has KL 0 and ratio 1, everything trainable moves, nothing else does, and the run loads back."""
    trainer = PPOTrainer(
        base,
        reward_funcs=length,
        # What stands before a head or a LoRA matrix that starts at 0 moves from the second or third step on.
        args=settings(
            tmp_path, critic=critic, reward_adapters=[reward_adapter], reward_weights=[0.1, 1.0], total_episodes=16
        ),
        train_dataset=PROMPTS,
        peft_config=LoraConfig(r=8),
        quantization_config=NF4,
    )
    before = snapshot(trainer)
    first = trainer.train() and trainer.state.log_history[0]
    name = Path(reward_adapter).name
    assert first["kl"] == 0.0 and first["ratio/max"] == 1.0 and f"rewards/{name}/mean" in first
    trainable = {name for name, _ in trainer.model.actor_parameters() + trainer.model.critic_parameters()}
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    after = dict(trainer.model.named_parameters())
    assert held == {id(after[name]) for name in trainable}
    for name, p in after.items():
        assert torch.equal(p, before[name]) == (name not in trainable), name
    assert sum(p.dtype == torch.uint8 for p in after.values()) == 14, "seven layers in each of two blocks"

    trainer.save_model(str(tmp_path))
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path, quantization_config=NF4).eval()
    for module in plain.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes' kernel for CPUs rounds to bfloat16
    ids = torch.tensor([[5, 9, 11, 40, 20, 21]])
    with torch.no_grad():
        inside = trainer.model.eval().causal_lm(ids).logits
        torch.testing.assert_close(plain(ids).logits, inside, rtol=0, atol=1e-5)
    assert (tmp_path / "critic" / "value_head.safetensors").is_file()


@pytest.mark.parametrize("quantized", [False, True], ids=["full", "nf4"])
@pytest.mark.parametrize("critic", ["head", "adapter", "copy"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_learns_with_every_critic_and_loads_back(arch, critic, quantized, tmp_path):
    if critic == "copy" and quantized:
        pytest.skip("a copy of a quantized model could not be trained")
    folder = save_base(tmp_path / "base", arch)
    lora = critic != "copy"
    trainer = PPOTrainer(
        folder,
        length,
        settings(tmp_path / "run", critic=critic),
        train_dataset=PROMPTS,
        peft_config=LoraConfig(r=4) if lora else None,
        quantization_config=NF4 if quantized else None,
    )
    before = snapshot(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    logs = [log for log in trainer.state.log_history if "kl" in log]
    assert logs[0]["kl"] == 0.0 and logs[0]["ratio/max"] == 1.0
    assert logs[1]["kl"] != 0.0 and logs[1]["value_loss"] > 0
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name, _ in trainer.model.actor_parameters() + trainer.model.critic_parameters()}
    assert moved <= trainable and any(name in moved for name, _ in trainer.model.critic_parameters())
    trainer.save_model(str(tmp_path / "saved"))
    again = PPOTrainer(
        folder,
        length,
        settings(tmp_path / "again", critic=critic),
        train_dataset=PROMPTS,
        peft_config=LoraConfig(r=4) if lora else None,
        quantization_config=NF4 if quantized else None,
    )
    again.model.load_pretrained(tmp_path / "saved")
    ids, mask = torch.tensor([[5, 9, 11, 40, 20, 21]]), torch.ones(1, 6, dtype=torch.long)
    with torch.no_grad():
        ours = trainer.model.eval()(ids, mask, mask[:, 2:].bool())
        theirs = again.model.eval()(ids, mask, mask[:, 2:].bool())
        plain = (AutoPeftModelForCausalLM if lora else AutoModelForCausalLM).from_pretrained(tmp_path / "saved")
        assert plain.eval()(ids).logits.isfinite().all()
    torch.testing.assert_close(theirs.logps, ours.logps, rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs.values, ours.values, rtol=0, atol=1e-6)


def test_the_critic_may_have_a_smaller_rank_at_the_same_scale(base, tmp_path):
    trainer = PPOTrainer(
        base,
        length,
        settings(tmp_path, critic="adapter", critic_lora_rank=2),
        train_dataset=PROMPTS,
        peft_config=LoraConfig(r=8, lora_alpha=16),
    )
    layer = trainer.model.causal_lm.model.layers[0].mlp.down_proj
    assert layer.lora_A["default"].out_features == 8 and layer.lora_A["critic"].out_features == 2
    assert layer.scaling["default"] == layer.scaling["critic"] == 2.0
    rslora = PPOTrainer(
        base,
        length,
        settings(tmp_path, critic="adapter", critic_lora_rank=2),
        train_dataset=PROMPTS,
        peft_config=LoraConfig(r=8, lora_alpha=16, use_rslora=True),
    )
    layer = rslora.model.causal_lm.model.layers[0].mlp.down_proj
    assert layer.scaling["critic"] == pytest.approx(layer.scaling["default"])


def test_lora_is_on_every_linear_layer_unless_told_otherwise(base, tmp_path):
    def adapted(**options: Any) -> set[str]:
        args = settings(tmp_path)
        peft_config = LoraConfig(r=4, **options)
        trainer = PPOTrainer(base, length, args, train_dataset=PROMPTS, peft_config=peft_config)
        assert options or peft_config.target_modules is None, "the given configuration stays as it was"
        return {name.split(".")[-4] for name, _ in trainer.model.actor_parameters() if "lora_A" in name}

    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted() == everything
    assert adapted(target_modules=["q_proj"]) == {"q_proj"}


def test_an_adapter_for_layers_that_do_not_exist_lists_those_that_do(base, tmp_path):
    with pytest.raises(ValueError, match=r"`target_modules` .*c_attn.* no layers of this LlamaForCausalLM.*down_proj"):
        PPOTrainer(
            base, length, settings(tmp_path), train_dataset=PROMPTS, peft_config=LoraConfig(target_modules=["c_attn"])
        )


def test_a_reward_adapter_of_another_base_is_refused(reward_adapter, tmp_path):
    wider = save_base(tmp_path / "wide", hidden_size=96)
    deeper = save_base(tmp_path / "deep", layers=3)
    other = save_base(tmp_path / "other", "gpt2")
    for folder in (wider, deeper, other):
        with pytest.raises(ValueError, match="belongs to another base .* train one on the policy's base"):
            PPOTrainer(
                folder,
                args=settings(tmp_path / "run", reward_adapters=[reward_adapter]),
                train_dataset=PROMPTS,
                peft_config=LoraConfig(r=4),
            )


def test_a_reward_adapter_for_weights_of_another_name_is_doubtful(reward_adapter, tmp_path):
    same_shape = save_base(tmp_path / "renamed", seed=1)
    with pytest.warns(UserWarning, match="unless these are the same weights, train it on the policy's base"):
        PPOTrainer(
            same_shape,
            args=settings(tmp_path / "run", reward_adapters=[reward_adapter]),
            train_dataset=PROMPTS,
            peft_config=LoraConfig(r=4),
        )


def test_what_is_no_reward_adapter_is_named(base, tmp_path):
    def make(folder: Path | str, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PPOTrainer(
                base,
                args=settings(tmp_path / "run", reward_adapters=[str(folder)]),
                train_dataset=PROMPTS,
                **({"peft_config": LoraConfig(r=4)} | options),
            )

    from peft import get_peft_model

    with pytest.raises(FileNotFoundError, match="has no `adapter_config.json`; give the folder that `RewardTrainer`"):
        make(base)
    get_peft_model(tiny_causal_lm(hidden_size=64), LoraConfig(r=4)).save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match="holds no trained head; train it with"):
        make(tmp_path / "policy")
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    get_peft_model(classifier, LoraConfig(r=4, task_type="SEQ_CLS")).save_pretrained(tmp_path / "labels")
    with pytest.raises(ValueError, match="has 2 labels; a reward model has one"):
        make(tmp_path / "labels")
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=4, task_type="SEQ_CLS", modules_to_save=["score", "embed_tokens"])
    get_peft_model(classifier, config).save_pretrained(tmp_path / "embeddings")
    with pytest.raises(ValueError, match="also changes .*embed_tokens.* `modules_to_save=\\['score'\\]` only"):
        make(tmp_path / "embeddings")
    with pytest.raises(ValueError, match="`reward_adapters` read the frozen base .*: they need `peft_config`"):
        make(tmp_path / "policy", peft_config=None)


def test_a_rank_for_a_critic_without_an_adapter_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match="`critic_lora_rank` 2 needs `critic='adapter'`"):
        PPOTrainer(
            base,
            length,
            settings(tmp_path, critic_lora_rank=2),
            train_dataset=PROMPTS,
            peft_config=LoraConfig(r=4),
        )
    with pytest.raises(ValueError, match="`critic_lora_rank` must be at least 1, got 0"):
        settings(tmp_path, critic_lora_rank=0)


def test_without_any_reward_the_error_says_so(base, tmp_path):
    with pytest.raises(ValueError, match="`reward_funcs` is missing; give a function"):
        PPOTrainer(base, args=settings(tmp_path), train_dataset=PROMPTS)


def test_a_4_bit_run_resumes(base, reward_adapter, tmp_path):
    """Interrupted after the first of two rollouts, it ends with the weights of one that was not."""

    def make(folder: Path, **options: Any) -> PPOTrainer:
        return PPOTrainer(
            base,
            length,
            settings(folder, critic="adapter", reward_adapters=[reward_adapter], save_strategy="steps", **options),
            train_dataset=PROMPTS,
            peft_config=LoraConfig(r=4),
            quantization_config=NF4,
        )

    whole = make(tmp_path / "a", save_steps=1)
    whole.train()
    again = make(tmp_path / "b", save_steps=1)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    for (name, p), (_, q) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_merge_from_the_command_line(base, tmp_path, capsys):
    trainer = PPOTrainer(base, length, settings(tmp_path / "run"), train_dataset=PROMPTS, peft_config=LoraConfig(r=4))
    trainer.train()
    trainer.save_model()
    words = [str(tmp_path / "run"), str(tmp_path / "merged")]
    merge.main(words)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "merged")
    ids = torch.tensor([[5, 9, 11, 40, 20, 21]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        torch.testing.assert_close(merged, trainer.model.eval().causal_lm(ids).logits, rtol=0, atol=1e-4)
    with pytest.raises(SystemExit, match="2"):
        merge.main(words)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: The folder")
