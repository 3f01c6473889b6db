# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every family through the whole trainer: load by name, sample, score, learn, save, load with plain libraries, merge.

A covering design instead of the full product. Each family has two cells: its weights trained in full, and LoRA. One of
them comes from a bf16 checkpoint, the other from a float32 one; one gets conversations, the other texts (base models
without a chat template get texts twice). Over the families, both kinds of training meet both dtypes, both kinds of
prompts, critics of every kind, and rewards by classifier, by preference model and, with LoRA, by adapter.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests import families
from trl_ext import PPOConfig, PPOTrainer, ToxicityReward
from trl_ext.actor_critic.merge import merge

QUESTIONS = ["Is it far to the river?", "Hello", "Tell me what she read in the old book", "Why"]


class Cell(NamedTuple):
    family: str
    dtype: str
    lora: bool
    critic: str
    chat: bool
    reward: str

    def __str__(self) -> str:
        return "-".join([self.family, self.dtype, "lora" if self.lora else "full", self.critic, self.reward])


def cells() -> list[Cell]:
    chosen = []
    for i, family in enumerate(families.FAMILIES):
        has_template = family not in ("gpt_neox", "opt")
        dtypes = ("bfloat16", "float32") if i % 2 == 0 else ("float32", "bfloat16")
        critics = (("copy", "adapter"), ("head", "head"))[i // 2 % 2]
        by_adapter = family in ("llama", "phi3", "qwen2", "deepseek_v3")
        rewards = ("classifier", "preference model")[:: 1 if i % 2 else -1]
        chosen.append(Cell(family, dtypes[0], False, critics[0], has_template and i % 4 < 2, rewards[0]))
        with_lora = Cell(family, dtypes[1], True, critics[1], has_template and i % 4 >= 2, rewards[1])
        chosen.append(with_lora._replace(reward="adapter") if by_adapter else with_lora)
    return chosen


def test_the_design_covers_what_it_says():
    for field, values in {
        "dtype": ("bfloat16", "float32"),
        "critic": ("copy", "head"),
        "chat": (True, False),
        "reward": ("classifier", "preference model"),
    }.items():
        assert {getattr(cell, field) for cell in cells() if not cell.lora} == set(values)
        with_lora = {getattr(cell, field) for cell in cells() if cell.lora}
        assert with_lora >= set(values) - {"copy"}
    assert {cell.critic for cell in cells() if cell.lora} == {"adapter", "head"}
    for family in families.FAMILIES:
        assert {cell.dtype for cell in cells() if cell.family == family} == {"bfloat16", "float32"}


class Recorder:
    """An engine that remembers what it was asked and what came of it."""

    def __init__(self, engine: Any):
        self.engine, self.prompts, self.completions = engine, list[list[int]](), list[list[int]]()

    def __call__(self, model: Any, prompt_ids: list[list[int]], on_progress: Any = None) -> Any:
        out = self.engine(model, prompt_ids, on_progress)
        self.prompts += prompt_ids
        self.completions += out.ids
        return out


def build(cell: Cell, folder: Path, seen: list) -> PPOTrainer:
    def watch(prompts: list, completions: list, **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(str(c)) % 7) for c in completions]

    functions: list[Any] = [watch]
    if cell.reward == "classifier":
        functions.append(ToxicityReward(families.classifier("llama")))
    elif cell.reward == "preference model":
        functions.append(families.reward_model("llama"))
    adapters = [families.reward_adapter(cell.family, cell.dtype)] if cell.reward == "adapter" else None
    prompts = [[{"role": "user", "content": q}] for q in QUESTIONS] if cell.chat else QUESTIONS
    args = PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_ppo_epochs=1,
        num_mini_batches=1,
        total_episodes=8,
        max_completion_length=6,
        learning_rate=1e-3,
        critic=cell.critic,
        reward_adapters=adapters,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    # The trainer's own adapters and reward adapters are on the very same base.
    base = families.base(cell.family, cell.dtype, stop_every=None if adapters else 8)
    return PPOTrainer(
        base,
        functions,
        args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=LoraConfig(r=4) if cell.lora else None,
    )


def logps(trainer: PPOTrainer, rows: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """Log-probabilities of the tokens of each completion, from one padded batch in the training path."""
    pad = trainer.processing_class.pad_token_id
    left, right = max(len(p) for p, _ in rows), max(len(c) for _, c in rows)
    ids = [[pad] * (left - len(p)) + p + c + [pad] * (right - len(c)) for p, c in rows]
    mask = [[0] * (left - len(p)) + [1] * len(p + c) + [0] * (right - len(c)) for p, c in rows]
    attention = torch.tensor(mask)
    with torch.no_grad():
        out = trainer.model.eval()(torch.tensor(ids), attention, attention[:, left:].bool()).logps
    return [row[: len(c)] for row, (_, c) in zip(out, rows, strict=True)]


def plain_logps(model: nn.Module, prompt: list[int], completion: list[int]) -> Tensor:
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        scores = model.eval()(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return scores.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("cell", cells(), ids=str)
def test_the_whole_trainer(cell, tmp_path):
    seen: list[tuple[Any, Any]] = []
    trainer = build(cell, tmp_path / "run", seen)
    trainer.generation_engine = recorder = Recorder(trainer.generation_engine)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in trained.items()}
    trainer.train()

    first, second = (line for line in trainer.state.log_history if "loss" in line)
    assert first["kl"] == 0 and first["ratio/max"] == 1 and second["ratio/max"] == 1
    assert second["kl"] != 0 and all(torch.isfinite(p).all() for p in trained.values())
    moved = [name for name, p in trained.items() if not torch.equal(p, before[name])]
    assert len(moved) > len(trained) / 3 and any("value_head" in name for name in moved)

    check_texts(cell, trainer, recorder, seen)
    check_scores(trainer, seen)
    # bf16 bases compute in bf16 where adapters are trained on them; what is trained in full is float32.
    coarse = cell.lora and cell.dtype == "bfloat16"
    near = {"rtol": 0, "atol": 0.15 if coarse else 2e-4}
    rows = list(zip(recorder.prompts, recorder.completions, strict=True))
    rows = [min(rows, key=lambda row: len(row[0])), max(rows, key=lambda row: len(row[0]))]
    assert len(rows[0][0]) < len(rows[1][0]), "one row is padded"
    together, alone = logps(trainer, rows), [logps(trainer, [row])[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, **near)

    trainer.save_model(str(tmp_path / "saved"))
    auto = AutoPeftModelForCausalLM if cell.lora else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "saved")
    for row, expected in zip(rows, alone, strict=True):
        torch.testing.assert_close(plain_logps(plain, *row), expected, **near)
    if cell.lora:
        merge(tmp_path / "saved", tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        for row, expected in zip(rows, alone, strict=True):
            torch.testing.assert_close(plain_logps(merged, *row), expected, **near)


def check_texts(cell: Cell, trainer: PPOTrainer, recorder: Recorder, seen: list[tuple[Any, Any]]) -> None:
    """One BOS at most, and rewards read what was written, with the space before its first word."""
    tokenizer = trainer.processing_class
    assert len(seen) == len(recorder.prompts) == 8
    with_space = 0
    for ids, answer, (_, completion) in zip(recorder.prompts, recorder.completions, seen, strict=True):
        if tokenizer.bos_token_id is not None:
            assert ids.count(tokenizer.bos_token_id) <= 1
        text = completion[0]["content"] if cell.chat else completion
        prompt = tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids + answer, skip_special_tokens=True) == prompt + text
        with_space += text.startswith(" ")
    assert cell.chat or with_space, "where the prompt is a text, some completion begins with a space"


def check_scores(trainer: PPOTrainer, seen: list[tuple[Any, Any]]) -> None:
    """A score does not depend on what else is in the batch."""
    prompts, completions = ([row[i] for row in seen] for i in (0, 1))
    for function in trainer.rewards.reward_funcs[1:]:
        together = function(prompts=prompts, completions=completions)
        alone = [function(prompts=[p], completions=[c])[0] for p, c in seen]
        scale = max(abs(score) for score in alone) + 1e-3
        # In bf16 even the length of a batch changes the order of sums.
        tolerance = 0.05 * scale if trainer.model.dtype == torch.bfloat16 else 1e-4 * scale
        assert together == pytest.approx(alone, abs=tolerance)
        assert max(alone) - min(alone) > 0
