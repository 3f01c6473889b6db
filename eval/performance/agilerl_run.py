# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A run of AgileRL's PPO, by an interpreter that has AgileRL; `versus_agilerl` starts it. `trl_ext` is not imported.

Actor and critic are two adapters on one base, and the reference is that base without them, as in our setting (b).
"""

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from agilerl.algorithms.core import base
from agilerl.algorithms.ppo_llm import PPO
from agilerl.utils.ppo_value_head import AutoModelForCausalLMWithValueHead
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from .peaks import ProcessMemory
from .stopwatch import Stopwatch


def ppo(run: dict[str, Any], folder: Path) -> PPO:
    """Build AgileRL's PPO on the policy in the folder, with its fastest settings on a CPU."""
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    policy.generation_config.eos_token_id = run["eos_token_id"]
    # Liger's kernels for norms and more are written in Triton, which needs a GPU.
    base.HAS_LIGER_KERNEL = False
    return PPO(
        pad_token_id=run["pad_token_id"],
        pad_token="<pad>",
        actor_network=AutoModelForCausalLMWithValueHead(policy),
        lora_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        use_separate_reference_adapter=False,  # the reference is the base, which takes no products with an adapter
        batch_size=run["batch"],
        mini_batch_size=run["batch"],
        micro_batch_size_per_gpu=run["micro_batch"],
        update_epochs=run["epochs"],
        lr_actor=run["learning_rate"],
        lr_critic=run["learning_rate"],
        temperature=1.0,
        top_k=0,
        max_output_tokens=run["completion"],
        max_model_len=run["prompt"] + run["completion"],
        gradient_checkpointing=False,
        use_liger_loss=False,
        fuse_actor_critic_pass=run["fuse_actor_critic_pass"],
        device="cpu",
        seed=run["seed"],
    )


def completion_mask(block: Tensor, run: dict[str, Any]) -> Tensor:
    """Return where the next token belongs to the completion, `[rows, tokens - 1]`, up to the EOS token.

    AgileRL's own mask is made for a padding token that is the EOS token. With another it counts one padding token of
    completions that end before others of their sampling batch, which its reference then gives a log-probability of 0.
    """
    completion = block[:, run["prompt"] :]
    ends = (
        (completion == run["eos_token_id"]).long() if run["eos_token_id"] is not None else torch.zeros_like(completion)
    )
    return torch.nn.functional.pad(ends.cumsum(1) - ends == 0, (run["prompt"] - 1, 0))


@torch.no_grad()
def scores(reward_model: PreTrainedModel, texts: list[Tensor], run: dict[str, Any]) -> Tensor:
    """Return rewards, `[batch]`, of texts in blocks `[rows, tokens]`; all are scored at once, as in our run."""
    rows = [row for block in texts for row in block]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=run["pad_token_id"])
    return reward_model(ids, attention_mask=(ids != run["pad_token_id"]).long()).logits.squeeze(1)


def train(run: dict[str, Any], folder: Path, stopwatch: Stopwatch) -> list[dict[str, float]]:
    """Train; return AgileRL's own figures of every update.

    Raises:
        RuntimeError: when it made other than one step a pass, or a gradient of an adapter was 0.
    """
    torch.manual_seed(run["seed"])
    agent = ppo(run, folder)
    reward_model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32).eval()
    figures = []
    stopwatch.start()
    with mock.patch("time.perf_counter", stopwatch.now):  # AgileRL's own clock of the phases of learning
        for update in range(run["updates"]):
            rows = run["prompts"][update * run["batch"] : (update + 1) * run["batch"]]
            blocks = torch.tensor(rows).split(run["sampling_batch"])
            with stopwatch.phase("generate"):
                ids, _, _ = agent.get_action([{"input_ids": block} for block in blocks])
            masks = [completion_mask(block, run) for block in ids]
            stopwatch.count(sum(int(mask.sum()) for mask in masks))
            with stopwatch.phase("score"):
                rewards = scores(reward_model, ids, run)
            figures.append(agent.learn((ids, masks, rewards)))
            stopwatch.add("evaluate", figures[-1]["learn_phase_no_grad_forward_s"])
            stopwatch.end_update()
    steps = {int(state["step"]) for state in agent.optimizer.optimizer.state.values()}
    if steps != {run["updates"] * run["epochs"]}:
        raise RuntimeError(f"AgileRL made {steps} optimizer steps in {run['updates']} updates.")
    if not all(figure["grad_norm_pre"] > 0 and figure["critic_grad_norm_pre"] > 0 for figure in figures):
        raise RuntimeError("A gradient of AgileRL's actor or critic was 0.")
    return figures


def main() -> None:
    """Do the run that the folder describes and write what `versus_trl.execute` returns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("measure", choices=("time", "memory"))
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    run = json.loads((arguments.folder / "run.json").read_text(encoding="utf-8"))
    memory = ProcessMemory() if arguments.measure == "memory" else None
    stopwatch = Stopwatch("cpu", clock=run["clock"], steps=1)
    figures = train(run, arguments.folder, stopwatch)
    warm_up = run["warm_up"]
    timed = {"updates": stopwatch.updates[warm_up:], "tokens": stopwatch.tokens[warm_up:], "figures": figures}
    arguments.output.write_text(json.dumps(timed if memory is None else memory.read()), encoding="utf-8")


if __name__ == "__main__":
    main()
