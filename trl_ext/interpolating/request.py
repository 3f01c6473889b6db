# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How a path is to be measured: by the settings that the run recorded, or by prompts and rewards of the user's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trl_ext.actor_critic import ActorCritic
from trl_ext.evaluation.detoxification import toxicity_quality
from trl_ext.evaluation.intervals import bootstrap_mean
from trl_ext.evaluation.path import Quality, Task
from trl_ext.evaluation.sampling import Policy, Samples
from trl_ext.rewards import RewardRunner
from trl_ext.rewards.by_name import check_reward_name
from trl_ext.running.data import load_prompts, wrap_in_conversation
from trl_ext.running.finished import run_sampling
from trl_ext.running.named_rewards import check_rewards, load_rewards
from trl_ext.running.policy import policy_of
from trl_ext.running.records import Reopened
from trl_ext.running.reward_state import restore_rewards
from trl_ext.running.trained import find_trained, load_trained
from trl_ext.text.decoding import as_completions
from trl_ext.text.rows import is_conversation

__all__ = ["SAMPLING", "Request", "prepare"]

SAMPLING = ("temperature", "top_p", "max_completion_length")
LOADING = ("reference", "base_model", "dtype", "device")


class Request(NamedTuple):
    """Prompts, rewards and judge of the command line; what is not given is the run's.

    Attributes:
        prompts, prompt_column, split, chat_instruction: As in `trl_ext compare`.
        num_prompts: The first so many prompts count; None for all of the run's, and 256 of a data set.
        rewards, reward_weights: As in `load_rewards`.
        toxicity_model, toxic_label: A classifier that judges the toxicity.
        judge: Name of a reward that judges, and was not trained on.
        frontier: As in `Task`.
        samples: As in `Task`.
        batch_size: Completions sampled at a time.
        seed: Of sampling.
        sampling: Fields that replace those of the run; None leaves one as it was.
        loading: Options of `find_trained`.
    """

    prompts: str | None
    prompt_column: str
    split: str
    chat_instruction: str | None
    num_prompts: int | None
    rewards: Sequence[str]
    reward_weights: Sequence[float] | None
    toxicity_model: str | None
    toxic_label: str | None
    judge: str | None
    frontier: tuple[int, int]
    samples: int
    batch_size: int
    seed: int
    sampling: dict[str, Any]
    loading: dict[str, Any]


def prepare(request: Request, folder: Path, reopen: Callable[..., Reopened] | None) -> tuple[ActorCritic, Task]:
    """Check a request, load the trained policy with its reference, and return them with what is to be measured.

    Args:
        request: The request.
        folder: Folder of the trained policy.
        reopen: Reopens the run with its own settings; None where it recorded none, and where the user gives prompts and
            rewards.

    Raises:
        ValueError, ImportError: in one sentence, for anything that cannot be used.
    """
    _check(request)
    quality = _quality(request, folder)
    columns = None if request.prompts is None else _load_columns(request)
    if reopen is None:
        return _loaded(request, folder, columns, quality)
    if given := [f"`--{name}`" for name in LOADING if request.loading.get(name) is not None]:
        raise ValueError(f"{given[0]} is for a policy without the record of its run; leave it out.")
    trainer, own_columns, own_quality = reopen(**request.sampling)
    trainer.model.load_policy(folder)
    rewards = load_rewards(request.rewards, request.reward_weights) or trainer.rewards
    restore_rewards(rewards, folder)
    args = trainer.args
    task = Task(
        policy_of(trainer),
        rewards,
        _first(columns or own_columns, request.num_prompts),
        quality or own_quality,
        request.frontier,
        request.samples,
        args.missing_eos_penalty,
        "prompt" if columns else args.prompt_column,
        request.seed,
    )
    return trainer.model, task


def _loaded(
    request: Request, folder: Path, columns: Mapping[str, list[Any]] | None, quality: Quality | None
) -> tuple[ActorCritic, Task]:
    """Load a policy by its folder alone."""
    if columns is None:
        raise ValueError(
            f"'{folder}' has no record of the run's own prompts and rewards; give `--prompts` and `--reward`."
        )
    sampling = run_sampling(str(folder)).changed(**request.sampling)
    if sampling.temperature == 0:
        raise ValueError("`--temperature 0` has no KL; give a temperature above 0.")
    found = find_trained(str(folder), **request.loading)
    if is_conversation(columns["prompt"][0]) and found.tokenizer.chat_template is None:
        raise ValueError(f"The prompts are conversations, and '{folder}' has no chat template; give texts.")
    model = load_trained(found)
    engine = sampling.engine(model.causal_lm, found.tokenizer, batch_size=request.batch_size)
    template = dict(sampling.chat_template_kwargs)
    policy = Policy(model, found.tokenizer, engine, sampling.temperature, request.batch_size, 512, template)
    device = request.loading.get("device")
    rewards = load_rewards(request.rewards, request.reward_weights, chat_template_kwargs=template, device=device)
    restore_rewards(rewards, folder)
    return model, Task(policy, rewards, columns, quality, request.frontier, request.samples, seed=request.seed)


def _check(request: Request) -> None:
    """Refuse numbers out of range, and rewards and judges that are not found, before a model is loaded."""
    least = {
        "num_prompts": (request.num_prompts, 1),
        "frontier_prompts": (request.frontier[0], 0),
        "frontier_samples": (request.frontier[1], 2),
        "samples": (request.samples, 1),
        "batch_size": (request.batch_size, 1),
    }
    for name, (value, bound) in least.items():
        if value is not None and value < bound:
            raise ValueError(f"`--{name}` is {value}; it must be at least {bound}.")
    check_rewards(request.rewards, request.reward_weights)
    if request.judge is not None:
        try:
            check_reward_name(request.judge)
        except ValueError as error:
            raise ValueError(str(error).replace("`--reward", "`--judge")) from error
    if request.toxicity_model is not None and request.judge is not None:
        raise ValueError("`--toxicity_model` and `--judge` both name a judge; give one.")


def _load_columns(request: Request) -> dict[str, list[Any]]:
    rows = load_prompts(str(request.prompts), split=request.split, column=request.prompt_column, keep_columns=True)
    rows = rows.select(range(min(request.num_prompts or 256, len(rows))))
    if request.chat_instruction is not None:
        rows = wrap_in_conversation(rows, request.chat_instruction)
    return {name: list(rows[name]) for name in rows.column_names}


def _first(columns: Mapping[str, list[Any]], count: int | None) -> dict[str, list[Any]]:
    return {name: list(values)[:count] for name, values in columns.items()}


def _quality(request: Request, folder: Path) -> Quality | None:
    """Return the judge of the command line; None where it names none."""
    if request.toxicity_model is not None:
        return toxicity_quality(request.toxicity_model, request.toxic_label, request.seed)
    if request.judge is None:
        return None
    runner = load_rewards([request.judge])
    assert isinstance(runner, RewardRunner)
    restore_rewards(runner, folder)

    def judged(samples: Samples, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        completions = as_completions(samples.prompts, samples.completions)
        scores = runner(samples.prompts, completions, samples.completion_ids, dict(columns), update_state=False)
        known = scores.total[scores.valid].tolist()
        ends = bootstrap_mean(known, seed=request.seed)
        return {"judge": ends.estimate, "judge_ci95": [ends.low, ends.high]}

    return judged
