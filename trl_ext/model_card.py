# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The model card (`README.md`) of a folder with a trained policy."""

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftModel
from torch import nn

from .actor_critic.loading_code import load_whole, loading_code, quantization_of, where_to_run
from .evaluation.quantities import interval_text, times_of, value_text
from .experience.prompts import has_conversations
from .folders import final_name
from .messages.places import short_name
from .monitoring.glossary import label_of
from .rewards.base import iter_parts
from .rewards.scoring import SequenceScorer

__all__ = [
    "CARD",
    "PAPER",
    "TAGS",
    "add_interpolated_card",
    "add_merged_card",
    "add_results",
    "hub_id",
    "write_model_card",
]

TAGS = ("ppo", "reinforcement-learning", "trl", "trl_ext")
PAPER = {
    "title": "Fine-Tuning Language Models from Human Preferences",
    "id": "1909.08593",
    "citation": textwrap.dedent("""\
        @article{ziegler2019fine,
            title  = {{Fine-Tuning Language Models from Human Preferences}},
            author = {Ziegler, Daniel M. and Stiennon, Nisan and Wu, Jeffrey and Brown, Tom B. and Radford, Alec and
                      Amodei, Dario and Christiano, Paul and Irving, Geoffrey},
            year   = 2019,
            eprint = {arXiv:1909.08593},
        }"""),
}

CARD = "README.md"
RESULTS = "Results"
_LIBRARIES = ("trl_ext", "trl", "transformers", "peft", "torch", "datasets", "tokenizers")
# Settings of every run, by the words for them; others appear where they differ from the default.
_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "num_ppo_epochs",
    "num_mini_batches",
    "gamma",
    "lam",
    "cliprange",
    "vf_coef",
    "max_completion_length",
    "temperature",
    "critic",
    "seed",
)
_MEASURED = (
    "reward",
    "rewards/*/mean",
    "judge/*/mean",
    "kl",
    "completions/mean_length",
    "completions/terminated_fraction",
)


def write_model_card(
    folder: str | os.PathLike,
    trainer: Any,
    *,
    results: Mapping[str, Any] | None = None,
    dataset_name: str | None = None,
) -> Path:
    """Write the model card of a policy that was saved in a folder.

    The trainer's own saves write it too; `results` and `dataset_name` are remembered for them. The card names no folder
    of this machine.

    Args:
        folder: Folder of the saved policy.
        trainer: The `PPOTrainer`.
        results: Measurements, such as the content of `summary.json`: `NAME_before` and `NAME_after`, with a 95%
            interval `NAME_ci95_before` and `NAME_ci95_after` where there is one; numbers without a counterpart are left
            out. By default the last measurements in the trainer's log.
        dataset_name: Name of the data set of the prompts: an id of the Hub, a file or a folder.

    Returns:
        The file.
    """
    given = {"results": results, "dataset_name": dataset_name}
    trainer.card_facts |= {name: value for name, value in given.items() if value is not None}
    folder = Path(folder)
    facts = trainer.card_facts
    base = trainer.model.config.name_or_path
    data_name = facts.get("dataset_name") or _source(trainer.train_dataset)
    data_id = hub_id(data_name)
    is_adapter = isinstance(trainer.model.policy, PeftModel)
    name = trainer.hub_model_id or final_name(folder)
    base_words = f"`{_shown(base)}`" if base else f"a `{type(trainer.model.causal_lm).__name__}` without a name"
    data = ModelCardData(
        base_model=hub_id(base),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        datasets=[data_id] if data_id else None,
        tags=[*TAGS, *(["lora"] if is_adapter else [])],
    )
    sections = {
        RESULTS: _results(facts.get("results"), trainer.state.log_history),
        "How to load": loading_code(
            name,
            trainer.model,
            base=_shown(base),
            conversational=has_conversations(trainer.train_dataset, trainer.args.prompt_column),
            sampling=_sampling(trainer.args),
        ),
        "Training": _training(trainer, base_words, data_name),
        "Limits": _limits(trainer),
        "Versions": ", ".join(_versions(quantized=quantization_of(trainer.model) is not None)) + ".",
        "Citation": f"```bibtex\n{PAPER['citation'].strip()}\n```",
    }
    title = name.split("/")[-1]
    lead = (
        f"{'A LoRA adapter of' if is_adapter else 'A version of'} {base_words}, trained with proximal policy "
        "optimization (PPO) against the reward under [Training](#training), with trl_ext on top of Hugging Face TRL."
    )
    text = "\n\n".join([f"# {title}", lead, *(f"## {heading}\n\n{body}" for heading, body in sections.items())])
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder / CARD)
    return folder / CARD


def add_interpolated_card(run: str | os.PathLike, output: str | os.PathLike, eta: float) -> None:
    """Write the card of a run into the folder of its interpolated model, without the results of the trained one.

    Args:
        run: Folder of the run; without a card of `write_model_card` nothing is written.
        output: Folder of the interpolated model.
        eta: Place on the line from the reference to the trained policy.
    """
    path = Path(run) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, heading, rest = text.partition(f"## {RESULTS}\n")
    if not heading:
        return
    name = final_name(Path(output))
    lead = (
        f"The weights are interpolated: initial model + {eta:g} * (trained model - initial model), as in WARP "
        "(arXiv 2406.16768)."
    )
    title = re.sub(r"^# .*$", f"# {name}", before, count=1, flags=re.MULTILINE)
    following = re.sub(rf"([`\"]){re.escape(final_name(Path(run)))}\1", rf"\1{name}\1", rest[rest.index("\n## ") + 1 :])
    (Path(output) / CARD).write_text(f"{title}{lead}\n\n{following}", encoding="utf-8")


def add_results(folder: str | os.PathLike, results: Mapping[str, Any]) -> None:
    """Put measurements into the card of a folder, in the place of those that are there; nothing without a card.

    Args:
        folder: Folder of the saved policy.
        results: As for `write_model_card`.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        return
    before, heading, rest = path.read_text(encoding="utf-8").partition(f"## {RESULTS}\n")
    after = rest.partition("\n## ")
    if heading:
        path.write_text(f"{before}{heading}\n{_results(results, [])}\n\n## {after[2]}", encoding="utf-8")


def add_merged_card(run: str | os.PathLike, merged: str | os.PathLike) -> None:
    """Write the card of a LoRA run into the folder of its merged model, with other code to load it.

    Args:
        run: Folder of the run; without a card of `write_model_card` nothing is written.
        merged: Folder of the merged model.
    """
    path = Path(run) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, heading, rest = text.partition("## How to load\n")
    code, end, after = rest.partition("```\n\n")
    _, tokenizer, generating = code.partition("tokenizer = ")
    if not (heading and end and tokenizer):
        return
    name = final_name(Path(merged))
    loading = "\n".join([*where_to_run(name), "```python", *load_whole(name), f"{tokenizer}{generating}```"])
    before = before.replace("library_name: peft", "library_name: transformers")
    before = before.replace("A LoRA adapter of", "A merge of")
    title = re.sub(r"^# .*$", f"# {name}", before, count=1, flags=re.MULTILINE)
    following = after[after.index("## ") :]
    (Path(merged) / CARD).write_text(f"{title}{heading}\n{loading}\n\n{following}", encoding="utf-8")


def hub_id(name: str | None) -> str | None:
    """Return the id on the Hub that a name is, also that of a folder in the Hub's cache; None for another folder."""
    if not name:
        return None
    text = short_name(name)
    if text != name and "--" in str(name) and "/" in text:
        return text  # a snapshot in the cache
    if os.path.exists(os.path.expanduser(name)) or name.startswith((".", "/", "~")):
        return None
    try:
        validate_repo_id(text)
    except HFValidationError:
        return None
    return text


def _shown(name: str | None) -> str:
    """Return a model or data set by its id on the Hub, or by the last part of its folder."""
    return hub_id(name) or Path(short_name(name or "")).name


# ---- results ----


def _results(results: Mapping[str, Any] | None, log: Sequence[Mapping[str, Any]]) -> str:
    if results is not None:
        times = times_of(results)
        rows = _compared(results, list(times))
        if rows:
            verdict = [str(results["verdict"]), ""] if results.get("verdict") else []
            heads = [_row("", *times.values()), "|---" * (1 + len(times)) + "|"]
            return "\n".join([*verdict, *heads, *rows, "", _measured_on(results)])
    evaluated = next((line for line in reversed(log) if any(key.startswith("eval_") for key in line)), None)
    if evaluated is not None:
        values = {key: value for key, value in evaluated.items() if key.startswith("eval_")}
        return _table(values) + "\n\nMeans of the last evaluation during training, without intervals."
    trained = next((line for line in reversed(log) if "reward" in line), None)
    if trained is not None:
        return _table(trained) + "\n\nMeans over rollouts of training at the last log, without intervals."
    return "Nothing has been measured yet."


def _compared(results: Mapping[str, Any], times: Sequence[str]) -> list[str]:
    """Return a row for each quantity that was measured before and after, with a cell for each time."""
    rows = []
    for key in results:
        name = key.removesuffix("_after")
        if name == key or "_ci95" in key or not _is_number(results[key]):
            continue
        rows.append(_row(_label(name), *(_with_interval(results, name, time) for time in times)))
    for name in (name for name in results if name.endswith("win_rate") and _is_number(results[name])):
        interval = interval_text(name, [results.get(f"{name}_{end}") for end in ("low", "high")])
        rate = value_text(name, results[name]) + (f" [{interval}]" if interval else "")
        rows.append(_row(_label(name), value_text(name, 0.5), rate, *[""] * (len(times) - 2)))
    if _is_number(results.get("kl")):
        kls = [_with_interval(results, "kl", time) or f"{results['kl']:.3g}" for time in times[1:]]
        rows.append(_row(f"{label_of('kl')}, nats per completion", "0", *kls))
    return rows


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _with_interval(results: Mapping[str, Any], name: str, time: str) -> str:
    value, interval = results.get(f"{name}_{time}"), interval_text(name, results.get(f"{name}_ci95_{time}"))
    if not _is_number(value):
        return ""
    return value_text(name, value) + (f" [{interval}]" if interval else "")


def _measured_on(results: Mapping[str, Any]) -> str:
    count = results.get("num_eval_prompts")
    prompts = f"{count:,} prompts" if _is_number(count) else "prompts"
    return f"Measured on {prompts} for evaluation, one completion each; in brackets 95% intervals, where there are any."


def _table(values: Mapping[str, Any]) -> str:
    chosen = [key for key in values if _is_number(values[key]) and _is_shown(key)]
    return "\n".join(["| | |", "|---|---|", *(f"| {_label(key)} | {values[key]:.3g} |" for key in chosen)])


def _is_shown(key: str) -> bool:
    return any(fnmatch(key, pattern) for name in _MEASURED for pattern in (name, f"eval_{name}", f"eval_*_{name}"))


def _label(name: str) -> str:
    mean = f"{name}/mean" if name.startswith(("rewards/", "judge/")) and not name.endswith("/mean") else name
    label = label_of(mean)
    return (label if label != mean else name.replace("_", " ")).replace("|", "/")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


# ---- training ----


def _training(trainer: Any, base: str, data_name: str | None) -> str:
    args, state = trainer.args, trainer.state
    rollouts = -(-state.global_step // args.steps_per_rollout)
    data = f"`{_shown(data_name)}`" if data_name else "data without a name"
    rewards = [
        f"  - `{name}`{_models_of(function)}, weight {weight:g}"
        for name, function, weight in zip(
            trainer.rewards.names, trainer.rewards.reward_funcs, trainer.rewards.weights.tolist(), strict=True
        )
    ]
    settings = {name: getattr(args, name) for name in _SETTINGS} | {"completions in a rollout": args.batch_size}
    config: Any = next(iter(getattr(trainer.model.policy, "peft_config", {}).values()), None)
    if hasattr(config, "r"):
        settings |= {"LoRA rank": config.r, "LoRA alpha": config.lora_alpha}
    lines = [
        f"- Base model: {base}",
        f"- Prompts: {data}, {len(trainer.train_dataset):,} rows",
        "- Reward functions:",
        *rewards,
        f"- KL to the reference: {_kl(trainer)}",
        f"- Length: {rollouts * args.batch_size:,} episodes (completions), {state.global_step:,} optimizer steps",
        "- Settings: " + ", ".join(f"{name} {_setting(value)}" for name, value in settings.items()),
        "",
        "Every setting is in `ppo_config.json`.",
    ]
    return "\n".join(lines)


def _sampling(args: Any) -> dict[str, Any]:
    """Return the arguments of `generate` that training sampled with."""
    given = {"max_new_tokens": args.max_completion_length, "temperature": args.temperature, "top_k": args.top_k}
    optional = {"top_p": args.top_p, "min_p": args.min_p, "repetition_penalty": args.repetition_penalty}
    return given | {name: value for name, value in optional.items() if value not in (None, 1.0)}


def _setting(value: Any) -> str:
    value = getattr(value, "value", value)  # of an enumeration
    return _shown(value) if isinstance(value, str) else str(value)


def _models_of(function: Any) -> str:
    """Return the names of the models that a reward function runs, in words."""
    names = []
    for part in iter_parts(function):
        for value in getattr(part, "__dict__", {}).values():
            model = value.given_model if isinstance(value, SequenceScorer) else value
            if isinstance(model, nn.Module):
                model = getattr(getattr(model, "config", None), "name_or_path", None)
            elif not isinstance(value, SequenceScorer):
                continue
            if model and _shown(model) not in names:
                names.append(_shown(model))
    return f" (model {', '.join(f'`{name}`' for name in names)})" if names else ""


def _kl(trainer: Any) -> str:
    """Return what the controller aimed at, and the KL that the run had."""
    target, controller = trainer.args.kl_target, trainer.kl_controller
    target = getattr(controller, "target", target)
    aimed = f"target {target:g} nats per completion" if _is_number(target) else "no target"
    measured = [line["kl"] for line in trainer.state.log_history if _is_number(line.get("kl"))]
    last = measured[-max(1, len(measured) // 3) :]
    used = f", mean of the last third of the run {sum(last) / len(last):.3g}" if last else ""
    return f"{aimed}{used}; coefficient {controller.coef:.3g} at the end, moved by {type(controller).__name__}"


def _limits(trainer: Any) -> str:
    known = "results" in trainer.card_facts
    measured = "one set of prompts" if known else "the reward that the policy was trained on"
    return (
        "- The policy maximizes its reward, which stands for a goal and is not the goal: read completions before use.\n"
        f"- The results above come from {measured}; other prompts, lengths and sampling settings give others.\n"
        "- Errors, biases and licence of the base model remain. Nothing was tested for safety."
    )


def _versions(*, quantized: bool) -> list[str]:
    found = []
    for name in (*_LIBRARIES, *(["bitsandbytes"] if quantized else [])):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # a clone that is not installed
            found.append(name)
    return found


def _source(dataset: Any) -> str | None:
    """Return the data set of the Hub or the file that rows were loaded from, as far as they tell."""
    info = getattr(getattr(dataset, "stream", dataset), "info", None)
    for source in getattr(info, "download_checksums", None) or {}:
        found = re.match(r"hf://datasets/([^/@]+/[^/@]+)@", source)
        return found[1] if found else Path(source).name
    return None
