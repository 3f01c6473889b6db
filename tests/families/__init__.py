# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models as users bring them: common architectures in bf16 and float32, real tokenizers, real chat templates, adapters.

Every builder writes a folder once per process and returns its path, so that a test pays for the ones it asks for:

    base("llama", "bfloat16")                 a causal LM and its tokenizer, for loading by name
    sft_adapter("llama", "bfloat16")          a LoRA policy on that base, as SFT leaves one
    classifier("qwen2")                       a toxicity classifier with three labels
    reward_model("deepseek_v3", "float32")    a scalar reward model, trained by TRL's RewardTrainer to rank EXAMPLES
    reward_adapter("deepseek_v3", "bfloat16")  the same as LoRA on that base, as RewardTrainer saves it
    real_tokenizer("phi3")                    the tokenizer alone

`FAMILIES` says which names there are. Nobody writes into these folders: the next test reads them too.
"""

from tests.families.bases import FAMILIES, Family, base, sft_adapter
from tests.families.rewards import EXAMPLES, classifier, reward_adapter, reward_model
from tests.real_tokenizers import real_tokenizer

__all__ = [
    "EXAMPLES",
    "FAMILIES",
    "Family",
    "base",
    "classifier",
    "real_tokenizer",
    "reward_adapter",
    "reward_model",
    "sft_adapter",
]
