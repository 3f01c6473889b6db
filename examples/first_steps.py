# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Teach a language model enthusiasm by a reward function of one's own, and compare it with the model it was."""

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import PPOConfig, PPOTrainer

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
PROMPTS = ["What a match, everyone", "The cook behind this soup", "Happy birthday to my teacher,", "Most people I know"]


def enthusiasm(prompts, completions, completion_ids, **columns):
    """Return the share of each completion's sentences that end with an exclamation mark."""
    return [text.count("!") / max(1, sum(map(text.count, ".!?"))) for text in completions]


trainer = PPOTrainer(
    model=MODEL,
    reward_funcs=enthusiasm,
    args=PPOConfig(
        output_dir="out",
        total_episodes=2048,
        per_device_train_batch_size=64,  # completions of a rollout
        num_mini_batches=2,
        max_completion_length=32,
        learning_rate=2e-4,
        kl_controller="pid",
        kl_target=1.75,  # nats per completion; a higher target lets the policy move further from the initial model
    ),
    train_dataset=Dataset.from_dict({"prompt": PROMPTS * 64}),
    peft_config=LoraConfig(r=16, lora_alpha=32),
)
trainer.train()
trainer.save_model()

tokenizer = AutoTokenizer.from_pretrained("out", padding_side="left")
for name in (MODEL, "out"):
    model = AutoModelForCausalLM.from_pretrained(name, device_map="auto")
    prompts = tokenizer(PROMPTS * 16, padding=True, return_tensors="pt").to(model.device)
    tokens = model.generate(**prompts, do_sample=True, max_new_tokens=32)[:, prompts.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    print(f"{name}: reward {sum(enthusiasm(None, texts, None)) / len(texts):.2f}")
    print(*[f"  {prompt + text!r}" for prompt, text in zip(PROMPTS, texts, strict=False)], sep="\n")
