# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Parts that the command lines of `eval.quality` share: options, models and prompts by name, messages."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.actor_critic.loading import load_policy
from trl_ext.actor_critic.names import ADAPTER_CONFIG
from trl_ext.evaluation.sampling import Samples, check_lengths, sample
from trl_ext.experience.engines import TransformersEngine, eos_token_ids
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.files import read_json_lines
from trl_ext.messages.printable import one_line
from trl_ext.monitoring.console import CONSOLE
from trl_ext.rewards.toxicity import ToxicityReward
from trl_ext.running.data import load_prompts
from trl_ext.text.rows import Text, is_conversation, render
from trl_ext.text.tokens import set_padding


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options about prompts and sampling that `eval.quality` and `eval.quality.frontier` share."""
    parser.add_argument(
        "--prompts",
        required=True,
        help="JSONL, JSON, CSV, parquet or TXT file, a folder written by save_to_disk, or a hub id",
    )
    parser.add_argument("--prompt_column", default="prompt", help='texts, {"text": ...} or conversations (prompt)')
    parser.add_argument("--split", default="train", help="split of a hub data set or DatasetDict (train)")
    parser.add_argument("--judge_model", help="sequence classifier that judges the toxicity; never the training reward")
    parser.add_argument("--toxic_label", help="name of its toxic label, if its label names do not tell")
    parser.add_argument("--max_new_tokens", type=int, default=20, help="length limit of a completion in tokens (20)")
    parser.add_argument("--batch_size", type=int, default=64, help="completions sampled or scored at a time (64)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of sampling and bootstrap (0)")


def run_command(run: Callable[[], None]) -> int:
    """Run a command and return its exit status; a wrong option is one line on the standard error output."""
    try:
        run()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {one_line(error, 4000)}", file=sys.stderr)
        return 2
    return 0


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Check options that count something.

    Raises:
        ValueError: If one of the named options is below 1.
    """
    for name in names:
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; it must be at least 1.")


def make_folder(folder: Path) -> None:
    """Create `folder` before the work starts, not after.

    Raises:
        ValueError: If that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder} cannot be written ({error.strerror}); choose another folder.") from error


def make_judge(arguments: argparse.Namespace) -> ToxicityReward | None:
    """Return the classifier of `--judge_model`, if there is one, checked before anything is sampled.

    Raises:
        ValueError: There is no such model or tokenizer, or its labels do not tell which is toxic.
    """
    if arguments.judge_model is None:
        return None
    judge = ToxicityReward(arguments.judge_model, toxic_label=arguments.toxic_label, batch_size=arguments.batch_size)
    judge.scorer.check()
    return judge


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file.

    Raises:
        ValueError: no such file, a line that is no JSON object, a row without a value in one of the columns, or no row.
    """
    try:
        rows = read_json_lines(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON lines ({error}).") from error
    if not rows:
        raise ValueError(f"'{path}' is empty; give at least one row.")
    for number, row in enumerate(rows, start=1):
        missing = [name for name in columns if not isinstance(row, dict) or row.get(name) is None]
        if missing:
            raise ValueError(f"Row {number} of '{path}' has no '{missing[0]}'; every row needs {', '.join(columns)}.")
    return rows


def read_prompts(arguments: argparse.Namespace) -> list[Text]:
    """Return the first prompts of `--prompts`; raises what `load_prompts` raises."""
    prompts = load_prompts(arguments.prompts, split=arguments.split, column=arguments.prompt_column)["prompt"]
    return prompts[: arguments.num_prompts]


def load_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, or an adapter on one, and its tokenizer, which can always pad.

    Raises:
        ValueError: If nothing of that name is a causal language model with a tokenizer.
    """
    model = load_policy(name, device=torch.accelerator.current_accelerator(check_available=True)).eval()
    source = name
    if (Path(name) / ADAPTER_CONFIG).is_file() and not (Path(name) / "tokenizer_config.json").is_file():
        source = PeftConfig.from_pretrained(name).base_model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{source}' has no tokenizer that can be loaded: {one_line(error)}") from error
    set_padding(tokenizer)
    return model, tokenizer


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    description: str = "Sampling",
) -> Samples:
    """Sample at temperature 1 from the whole distribution; of the generation configuration only the EOS ids count.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        prompts: P texts, or P conversations, which become the texts that the chat template writes.
        num_samples: K completions per prompt.
        max_new_tokens: Length limit in tokens.
        batch_size: Completions sampled at a time.
        seed: Two calls with the same arguments return the same.
        description: Shown by the progress bar.

    Returns:
        P * K samples, prompt by prompt: number `p * K + k` is the k-th for prompt p.

    Raises:
        ValueError: If a prompt has no token, or leaves no room for `max_new_tokens` in the model's context, or the
            prompts are conversations and the tokenizer has no chat template.
    """
    rendered = is_conversation(prompts[0])
    if rendered and tokenizer.chat_template is None:
        raise ValueError("The prompts are conversations, but the tokenizer has no chat template; give text prompts.")
    check_lengths(tokenize_prompts(prompts, tokenizer), max_new_tokens, model, "--max_new_tokens")
    texts = [render(prompt, tokenizer, {}) if rendered else prompt for prompt in prompts]  # type: ignore[arg-type]
    repeated = [text for text in texts for _ in range(num_samples)]
    eos_ids = eos_token_ids(model, tokenizer)
    engine = TransformersEngine(tokenizer, eos_token_ids=eos_ids, max_new_tokens=max_new_tokens, batch_size=batch_size)
    with CONSOLE.activity(description, len(repeated), "completions", long=True) as activity:
        return sample(model, tokenizer, engine, repeated, seed=seed, rendered=rendered, on_progress=activity.advance)
