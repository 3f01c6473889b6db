# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts are divided by their tokens alone."""

import random

import torch

from trl_ext.experience.prompt_hash import prompt_hash, prompt_hashes
from trl_ext.experience.rollout import collate


def test_neither_padding_nor_completion_nor_company_changes_the_hash():
    prompts = [[5, 9, 11, 40], [8], [0, 8]]
    rollout = collate(prompts, [[1], [2, 3], [4]], [True] * 3, pad_token_id=0)
    expected = [prompt_hash(prompt) for prompt in prompts]
    assert prompt_hashes(rollout).tolist() == expected and len(set(expected)) == 3
    assert prompt_hashes(rollout.select(torch.tensor([1]))).tolist() == expected[1:2]


def test_the_hash_is_the_checksum_that_zip_files_have():
    """The catalogued check value of CRC-32 is that of the text "123456789"."""
    assert prompt_hash([123456789]) == 0xCBF43926


def test_two_divisions_by_different_bits_are_even_and_independent():
    rng = random.Random(0)
    hashes = [prompt_hash(rng.choices(range(4096), k=5)) for _ in range(4000)]
    tenth = [h // 2 % 10 == 0 for h in hashes]
    halves = [h % 2 for h in hashes]
    assert abs(sum(halves) - 2000) < 150 and abs(sum(tenth) - 400) < 80
    assert abs(sum(a and b for a, b in zip(tenth, halves, strict=True)) - 200) < 60
