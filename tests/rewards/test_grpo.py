# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Our reward functions inside TRL's own trainer: its calls, not our idea of them."""

import pytest
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import tiny_tokenizer
from trl_ext.rewards import PAR, Ensemble, LengthReward, RepetitionReward, RunningNormalization, ToxicityReward


async def judge(completions, **columns):
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("conversational", [False, True])
def test_ours_run_in_grpo(classifier, tokenizer, tiny_causal_lm, prompt_dataset, tmp_path, conversational):
    dataset = prompt_dataset(4, conversational=conversational)
    dataset = dataset.add_column("reference_completion", ["one", "two words", "", "three"])
    toxicity = ToxicityReward(classifier(["neutral", "toxic"]), tokenizer=tokenizer, include_prompt=True)
    trainer = GRPOTrainer(
        model=tiny_causal_lm(),
        reward_funcs=[
            toxicity,
            LengthReward(4),
            RunningNormalization(judge),
            PAR(toxicity),
            Ensemble([RepetitionReward(), judge], "min", name="both"),
        ],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=4,
            max_steps=1,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
        ),
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    log = trainer.state.log_history[0]
    for name in ("non_toxicity", "length", "normalized_judge", "par_non_toxicity", "both"):
        assert log[f"rewards/{name}/mean"] == log[f"rewards/{name}/mean"]  # there, and no NaN
    assert log["both/disagreement"] > 0
    assert 0 < log["rewards/par_non_toxicity/mean"] < 1
