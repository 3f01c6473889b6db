# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""KL controllers drive `beta` of TRL's GRPO and RLOO trainers."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerState

from tests.integrations.online import Recorder, trainer, training_logs
from tests.tiny_models import prompt_dataset
from trl_ext.integrations import KLControllerCallback
from trl_ext.kl_control import PIDKL, AdaptiveKL, FixedKL, ScheduledKL


def driven(kind: str, folder: Path, controller: Any = None, **settings: Any) -> tuple[Any, Any]:
    """A trainer with a callback on it, and the controller."""
    made = trainer(kind, folder, **settings)
    controller = controller or Recorder()
    made.add_callback(KLControllerCallback(controller, made))
    return made, controller


def watched_batches(made: Any) -> list[dict[str, torch.Tensor]]:
    """A list that fills with the batches of completions as the trainer makes them."""
    batches, original = [], made._generate_and_score_completions

    def generate(rows: Any) -> Any:
        batches.append(original(rows))
        return batches[-1]

    made._generate_and_score_completions = generate
    return batches


def logps(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of a batch's completions by the plainest way there is."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    width = batch["completion_ids"].shape[1]
    return logits[:, -width - 1 : -1].log_softmax(-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_controller_is_fed_nats_per_completion(kind: str, tmp_path: Path) -> None:
    made, controller = driven(
        kind,
        tmp_path,
        drift=0.1,
        learning_rate=0.0,  # policy and reference stay as they are, so the KL can be worked out afterwards
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    )
    batches = watched_batches(made)
    made.train()
    assert len(batches) == 2 == len(controller.fed)
    for batch, (kl, episodes) in zip(batches, controller.fed, strict=True):
        log_ratio = logps(made.model, batch) - logps(made.ref_model, batch)
        estimate = log_ratio if kind == "rloo" else torch.exp(-log_ratio) + log_ratio - 1
        lengths = batch["completion_mask"].sum(1)
        assert len(set(lengths.tolist())) > 1, "equal lengths would not tell a mean per token from one per sample"
        expected = (estimate * batch["completion_mask"]).sum() / 4
        assert kl == pytest.approx(expected.item(), rel=1e-4)
        assert abs(kl) > 1e-3 and episodes == 4


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_accumulation_and_slow_logging_do_not_change_what_is_fed(kind: str, tmp_path: Path) -> None:
    """Two micro-batches a step and one log line for all steps: TRL's averages are those of what was fed."""
    made, controller = driven(kind, tmp_path, drift=0.1, max_steps=3, logging_steps=3)
    made.train()
    (line,) = training_logs(made)
    assert [episodes for _, episodes in controller.fed] == [4, 4, 4]
    kls = [kl for kl, _ in controller.fed]
    assert len(set(kls)) == 3
    assert line["kl_per_completion"] == pytest.approx(sum(kls) / 3)
    assert line["kl_coef"] == pytest.approx((0.5 + 1.0 + 2.0) / 3)
    assert made.beta == 4.0


@pytest.mark.parametrize(
    ("kind", "steps_per_generation", "episodes"),
    [
        # 8 completions are learned from in two optimizer steps, then again in two more.
        ("grpo", 4, [4, 4, None, None, 4, 4]),
        ("rloo", 4, [8, None, None, None, 8, None]),
        # 2 completions a micro-batch, learned from twice before the next two: two batches of them in a step.
        ("grpo", 1, [2, 2, 2]),
        ("rloo", 1, [2, 2, 2]),
    ],
)
def test_completions_count_once_however_often_they_are_learned_from(
    kind: str, steps_per_generation: int, episodes: list[int | None], tmp_path: Path
) -> None:
    made, controller = driven(
        kind,
        tmp_path,
        drift=0.1,
        max_steps=len(episodes),
        steps_per_generation=steps_per_generation,
        num_iterations=2,
    )
    made.train()
    assert [count for _, count in controller.fed] == [count for count in episodes if count is not None]
    lines = training_logs(made)
    assert [("kl_coef" in line) for line in lines] == [count is not None for count in episodes]
    if kind == "rloo":  # its own log holds one measurement, so the conversion shows
        fed = iter(controller.fed)
        for line in lines:
            if "kl_coef" in line:
                assert line["kl"] * line["completions/mean_length"] == pytest.approx(next(fed)[0])


def test_later_iterations_of_a_short_batch_are_left_out(tmp_path: Path) -> None:
    """GRPO measures in every micro-batch; with one batch of completions a micro-batch every second one is a repeat."""
    made, controller = driven(
        "grpo",
        tmp_path,
        drift=0.1,
        max_steps=1,
        steps_per_generation=1,
        num_iterations=2,
        gradient_accumulation_steps=4,
    )
    seen: list[tuple[float, float]] = []
    original = made.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        metrics = made._metrics["train"]
        seen.append((metrics["kl"][-1], metrics["completions/mean_length"][-1]))
        return loss

    made.compute_loss = compute_loss
    made.train()
    fresh = [kl * length for kl, length in seen[::2]]
    assert len(seen) == 4 and fresh[0] != fresh[1]
    assert controller.fed == [(pytest.approx(sum(fresh) / 2), 4)]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_evaluation_feeds_nothing(kind: str, tmp_path: Path) -> None:
    made, controller = driven(
        kind,
        tmp_path,
        drift=0.1,
        eval_dataset=prompt_dataset(4),
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        per_device_eval_batch_size=2,
        logging_steps=2,
    )
    made.train()
    assert any("eval_kl" in line for line in made.state.log_history), "there was an evaluation that measured a KL"
    assert [episodes for _, episodes in controller.fed] == [4, 4]
    assert training_logs(made)[0]["kl_per_completion"] == pytest.approx(sum(kl for kl, _ in controller.fed) / 2)


def test_the_coefficient_is_the_beta_that_the_loss_uses(tmp_path: Path) -> None:
    """With all rewards equal GRPO's loss is beta times the KL per token."""
    made, _ = driven(
        "grpo",
        tmp_path,
        FixedKL(0.7),
        drift=0.1,
        learning_rate=0.0,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        beta=0.001,
        loss_type="bnpo",  # plain mean over tokens
    )
    made.train()
    for line in training_logs(made):
        assert line["loss"] == pytest.approx(0.7 * line["kl"], abs=1e-4) and line["kl"] > 0.001


def test_rloo_subtracts_the_coefficient_times_the_kl_from_the_rewards(tmp_path: Path) -> None:
    def advantages(coef: float) -> torch.Tensor:
        made, _ = driven(
            "rloo",
            tmp_path / str(coef),
            FixedKL(coef),
            drift=0.1,
            max_steps=1,
            reward_funcs=lambda completions, **columns: [0.0] * len(completions),
            normalize_advantages=False,
        )
        batches = watched_batches(made)
        made.train()
        return batches[0]["advantages"]

    one, three = advantages(1.0), advantages(3.0)
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(three, 3 * one)


def test_pid_holds_the_kl_nearer_its_target_than_a_fixed_beta(tmp_path: Path) -> None:
    """Both start at the same coefficient; a reward that grows without bound pulls the policy away."""
    target, errors = 4.0, {}
    for controller in (FixedKL(0.05), PIDKL(target=target, init_coef=0.05, ki=0.1)):
        made, _ = driven(
            "grpo",
            tmp_path / type(controller).__name__,
            controller,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=1,
            num_generations=4,
            max_completion_length=8,
            max_steps=40,
            learning_rate=5e-3,
            lr_scheduler_type="constant",
        )
        made.train()
        kls = [line["kl_per_completion"] for line in training_logs(made)[20:]]
        errors[type(controller).__name__] = sum(abs(kl - target) for kl in kls) / len(kls)
    assert errors["PIDKL"] < 0.5 * errors["FixedKL"], errors


def test_a_coefficient_of_zero_does_not_stop_the_measuring(tmp_path: Path) -> None:
    """TRL skips the KL at `beta == 0`: a schedule that starts there would never hear of an episode and stay."""
    made, schedule = driven("grpo", tmp_path, ScheduledKL(0.0, 0.3, episodes=12), max_steps=3)
    made.train()
    assert [line["kl_coef"] for line in training_logs(made)] == pytest.approx([0.0, 0.1, 0.2])
    assert schedule.coef == made.beta == 0.3


def test_lora_measures_against_the_base(tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    made, controller = driven("grpo", tmp_path, peft_config=lora, max_steps=3, learning_rate=1e-2)
    made.train()
    kls = [kl for kl, _ in controller.fed]
    assert kls[0] == pytest.approx(0, abs=1e-6) and kls[-1] > 1e-5


@pytest.mark.parametrize("restore", [False, True])
def test_the_controller_resumes(restore: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "drift": 0.1,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "restore_callback_states_from_checkpoint": restore,
    }
    whole, adaptive = driven("grpo", tmp_path, AdaptiveKL(init_coef=0.5, target=0.01), **settings)
    whole.train()
    assert len({line["kl_coef"] for line in training_logs(whole)}) == 4

    resumed, again = driven("grpo", tmp_path, AdaptiveKL(init_coef=0.5, target=0.01), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    # The first two lines are those of the first run, which the checkpoint holds; the third is the first after it.
    assert training_logs(resumed)[2]["kl_coef"] == training_logs(whole)[2]["kl_coef"] > 0.5
    assert resumed.beta == again.coef == adaptive.coef


def test_a_checkpoint_without_a_controller_warns(tmp_path: Path) -> None:
    first = trainer("grpo", tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    first.train()
    resumed, controller = driven("grpo", tmp_path, max_steps=2)
    with pytest.warns(UserWarning, match="no state of a KL controller.* 0.5"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert len(controller.fed) == 1


def test_another_controller_cannot_resume(tmp_path: Path) -> None:
    made, _ = driven("rloo", tmp_path, AdaptiveKL(target=6.0), save_strategy="steps", save_steps=1, max_steps=1)
    made.train()
    resumed, _ = driven("rloo", tmp_path, FixedKL(0.1), max_steps=2)
    with pytest.raises(ValueError, match="state of AdaptiveKL, not of FixedKL"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


@pytest.mark.parametrize(("kind", "name"), [("grpo", "GRPOTrainer"), ("rloo", "RLOOTrainer")])
def test_beta_zero_is_refused_with_the_reason(kind: str, name: str, tmp_path: Path) -> None:
    made = trainer(kind, tmp_path, beta=0.0)
    with pytest.raises(ValueError, match=f"`beta` was 0 when this {name} was made, so it has no reference.*0.001"):
        KLControllerCallback(FixedKL(0.1), made)


def test_other_trainers_are_refused() -> None:
    with pytest.raises(TypeError, match="SimpleNamespace; give a GRPOTrainer or an RLOOTrainer"):
        KLControllerCallback(FixedKL(0.1), SimpleNamespace(args=SimpleNamespace(beta=0.1)))


def test_ligers_fused_loss_gets_the_coefficient(tmp_path: Path) -> None:
    """TRL 1.12 gives Liger's loss its `beta` in the constructor."""
    made = trainer("grpo", tmp_path)
    made.liger_loss = SimpleNamespace(beta=0.1)
    callback = KLControllerCallback(FixedKL(0.7), made)
    callback.on_train_begin(made.args, TrainerState(), made.control)
    assert made.liger_loss.beta == made.beta == 0.7


def test_no_warning_on_a_fresh_start_and_the_state_is_json(tmp_path: Path) -> None:
    made, _ = driven(
        "grpo", tmp_path, AdaptiveKL(init_coef=0.5, target=6.0), save_strategy="steps", save_steps=1, max_steps=1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*KL controller.*")
        made.train()
    saved = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert {"controller": "AdaptiveKL", "coef": made.beta} in saved["stateful_callbacks"].values()
