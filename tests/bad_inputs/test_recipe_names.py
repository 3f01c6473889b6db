# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Names that lead nowhere, in the recipes: found before the first stage, with the option that gave them."""

import json
from pathlib import Path

import pytest

from recipes import detoxification, instruction_following
from tests.actor_critic.makes import two_adapters
from tests.bad_inputs.case import Case, check, table
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext.actor_critic import ActorCritic

OFFLINE = "is no folder here, and not among the downloaded models of the Hub, which cannot be reached"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names")
    save_tiny(root / "lm", tiny_causal_lm())
    save_tiny(root / "reward", tiny_classifier(("reward",)))
    save_tiny(root / "toxicity", tiny_classifier())
    save_tiny(root / "judge", tiny_classifier(seed=1))
    two_adapters().save_pretrained(root / "lora_run")
    ActorCritic(tiny_causal_lm(layers=3)).save_pretrained(root / "other_run")
    (root / "nothing").mkdir()
    pairs = [{"prompt": f"{i} is", "chosen": " cat", "rejected": " dog"} for i in range(8)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (root / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    return root


INSTRUCT = {"model_name_or_path": "lm", "preference_dataset": "pairs.jsonl", "output_dir": "out", "use_cpu": "true"}
DETOX = {
    "model_name_or_path": "lm", "dataset_name": "prompts.jsonl", "toxicity_model": "toxicity", "judge_model": "judge",
    "output_dir": "out", "use_cpu": "true", "disable_tqdm": "true",
}  # fmt: skip


def row(message: str, recipe=instruction_following, **changes: str) -> Case:
    base = INSTRUCT if recipe is instruction_following else DETOX
    argv = [part for name, value in (base | changes).items() for part in (f"--{name}", value)]
    name = f"{recipe.__name__.split('.')[1]} {' '.join(f'{k}={v}' for k, v in changes.items())}"
    return Case(name, lambda: recipe.main(argv), ValueError, message)


MODEL = "give a model's folder or its id on the Hub"
CASES = [
    row(f"`--model_name_or_path smal/model` {OFFLINE}; {MODEL}.", model_name_or_path="smal/model"),
    row(f"`--reward_model reward/modl` {OFFLINE}; {MODEL}.", reward_model="reward/modl"),
    row(f"`--judge_model judge/modl` {OFFLINE}; {MODEL}.", judge_model="judge/modl"),
    row(f"`--judge_model ./gone` does not exist; {MODEL}.", judge_model="./gone"),
    row("`--judge_model nothing` is a folder without a model: it has no config.json.", judge_model="nothing"),
    row(f"`--critic heads` {OFFLINE}; {MODEL}, or one of head, adapter, copy.", critic="heads"),
    row("`--critic adapter` is a LoRA adapter beside the policy's own; add `--use_peft`.", critic="adapter"),
    row(
        "`--critic` 'lora_run' is a LoRA adapter beside the policy's own: it needs `--use_peft`.", critic="lora_run"
    ),
    row(
        "`--critic` 'other_run' belongs to another base: `num_hidden_layers` is 3 there and 2 in the policy; give the "
        "critic of a run on the policy's own base.",
        detoxification, critic="other_run",
    ),
    row(
        "`--reward_model toxicity` has 2 labels, and a reward model has one; give one that was trained on preferences.",
        reward_model="toxicity",
    ),
    row(
        "`--judge_model reward` is also the reward, which PPO has learned to please; judge with another model.",
        reward_model="reward", judge_model="reward",
    ),
    row(
        "The dataset './gone.jsonl' does not exist; give a file, a folder or a dataset of the Hub.",
        dataset_name="./gone.jsonl",
    ),
    row(
        "The dataset './gone.jsonl' does not exist; give a file, a folder or a dataset of the Hub.",
        ptx_dataset="./gone.jsonl", ptx_coef="0.1",
    ),
    row(
        "The dataset 'prompts.jsonl' has no column 'question' (columns: prompt); name the one that holds the prompts "
        "with `--prompt_column`.",
        dataset_name="prompts.jsonl", prompt_column="question",
    ),
    row("`compare_with`: there is no finished PPO run in 'OUT/other'.", compare_with="other"),
    row(f"`--toxicity_model toxicty/x` {OFFLINE}; {MODEL}.", detoxification, toxicity_model="toxicty/x"),
    row(f"`--judge_model judg/x` {OFFLINE}; {MODEL}.", detoxification, judge_model="judg/x"),
    row(
        "`--judge_toxic_label hate` must be one of the labels of `--judge_model judge`, which are neutral, toxic.",
        detoxification, judge_toxic_label="hate",
    ),
    row(f"`--critic heads` {OFFLINE}; {MODEL}, or one of head, adapter, copy.", detoxification, critic="heads"),
    row(
        "`--output_dir` is also `--model_name_or_path lm`, which would be overwritten; choose another.",
        detoxification, output_dir="lm",
    ),
    row(
        "`reward_constraints` has 'toxicity <= 0.1', but there is no reward function 'toxicity': did you mean "
        "`non_toxicity`?",
        detoxification, model_name_or_path="not/looked/at", reward_constraints="toxicity <= 0.1",
    ),
    row(
        "`reward_constraints` has 'reward <= 3', but there is no reward function 'reward': the functions are 'proxy'.",
        reward_constraints="reward <= 3",
    ),
]  # fmt: skip


@table(CASES)
def test_a_name_that_leads_nowhere_is_found_before_anything_is_trained(
    case: Case, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    check(case._replace(message=case.message.replace("OUT", str(tmp_path / "out"))))
    assert not (tmp_path / "out").exists() or {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}
