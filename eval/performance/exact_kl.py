# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The cost of the exact KL as a share of an update: this version against an earlier one, taking turns.

The earlier version, a checkout in another folder, computes log-probabilities of the policy and the reference in two
passes and estimates the KL from them. Every run is a process of its own. Seconds are those of the processor, so that
other work on the machine counts little, and the reward costs nothing, so that the share of an update is not
understated:

    python eval/performance/exact_kl.py --earlier ../trl_ext-before --models embedded vocabulary path/to/a/model
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
WARM_UP, UPDATES = 1, 5
# As in the detoxification recipe: one pass over a rollout, which makes the share of its forward passes largest.
SETTINGS: dict[str, Any] = {
    "max_completion_length": 20,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 1,
    "num_mini_batches": 2,
    "learning_rate": 1e-4,
    "logits_chunk_size": 2048,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def model_of(name: str) -> tuple[Any, Any]:
    """Return a model and its tokenizer.

    Args:
        name: "embedded"; "vocabulary" for a Llama of 152k tokens, 2 layers and 128 dimensions; or a folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from eval.performance.random_models import random_model, word_tokenizer
    from trl_ext.worlds import prepare

    if name == "vocabulary":
        sizes = {"vocab_size": 151936, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
        config = LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True)
        return random_model(config, dtype=torch.float32), word_tokenizer(config.vocab_size)
    folder = str(prepare(None).model) if name == "embedded" else name
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)


def measure(name: str) -> list[dict[str, float]]:
    """Train for some updates in this process; return the processor's seconds by phase of each after the first."""
    import torch
    from datasets import Dataset

    from eval.performance.progress import TimedProgress
    from eval.performance.stopwatch import Stopwatch
    from trl_ext import PPOConfig, PPOTrainer

    class ProcessorTime(Stopwatch):
        def now(self) -> float:
            return time.process_time()

    torch.manual_seed(0)
    model, tokenizer = model_of(name)
    size = 8 if name == "vocabulary" else 64
    prompts = [" ".join(f"w{(i * j) % 97}" for j in range(1, 5)) for i in range(2 * size * UPDATES)]
    stopwatch = ProcessorTime("cpu", steps=SETTINGS["num_mini_batches"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            model,
            lambda completion_ids, **columns: [float(len(ids)) for ids in completion_ids],
            PPOConfig(
                output_dir=folder,
                per_device_train_batch_size=size,
                local_rollout_forward_batch_size=2 * size,
                total_episodes=2 * size * UPDATES,
                **SETTINGS,
            ),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[stopwatch],
        )
        trainer.progress = TimedProgress(stopwatch)
        trainer.train()
    return stopwatch.updates[WARM_UP:]


def in_own_process(name: str, code: Path) -> list[dict[str, float]]:
    """Call `measure` in a new process that imports the code in the folder `code`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--measure", name, str(path)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(code)}, capture_output=True)
        return json.loads(path.read_text(encoding="utf-8"))


def compare(name: str, earlier: Path, rounds: int) -> dict[str, Any]:
    """Return medians of the seconds by phase in both versions, and the cost as a share of the earlier update."""
    updates: dict[str, list[dict[str, float]]] = {"earlier": [], "now": []}
    for _ in range(rounds):
        updates["earlier"] += in_own_process(name, earlier)
        updates["now"] += in_own_process(name, HERE)
    phases = {
        version: {phase: statistics.median(update[phase] for update in every) for phase in every[0]}
        for version, every in updates.items()
    }
    whole = {version: statistics.median(sum(u.values()) for u in every) for version, every in updates.items()}
    added = phases["now"]["evaluate"] - phases["earlier"]["evaluate"]
    return {"model": name, "seconds": phases, "update": whole, "share": added / whole["earlier"]}


def main() -> None:
    """Measure, print and write the comparison, or do one run of it."""
    parser = argparse.ArgumentParser(description="The cost of the exact KL as a share of an update.")
    parser.add_argument("--earlier", type=Path, help="checkout of the version without it")
    parser.add_argument("--models", nargs="+", default=["embedded", "vocabulary"], help="embedded, vocabulary, folders")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each version and model (3)")
    parser.add_argument("--output", type=Path, help="file for the results, JSON")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        Path(args.measure[1]).write_text(json.dumps(measure(args.measure[0])), encoding="utf-8")
        return
    if args.earlier is None:
        parser.error("--earlier is needed: the folder of a checkout of the version to compare with")
    results = [compare(name, args.earlier.resolve(), args.rounds) for name in args.models]
    for result in results:
        print(f"{Path(result['model']).name}: {result['share']:+.1%} of an update")
    if args.output is not None:
        named = [result | {"model": Path(result["model"]).name} for result in results]
        args.output.write_text(json.dumps({"settings": SETTINGS, "models": named}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
