# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Settings and fixtures of the whole test suite. The builders behind the fixtures are in `tests/tiny_models.py`."""

import os

# Hugging Face libraries read these when they are imported, so they come before every other import.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "2")

import random  # noqa: E402
from collections.abc import Callable  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from hypothesis import settings  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402

from tests import tiny_models  # noqa: E402

# The same examples in every run, no deadline: a slow machine is no failure.
settings.register_profile("trl_ext", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("trl_ext")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer shared by the session; build your own with `tiny_models.tiny_tokenizer` before changing one."""
    return tiny_models.tiny_tokenizer()


@pytest.fixture
def tiny_causal_lm() -> Callable[..., PreTrainedModel]:
    """`tiny_models.tiny_causal_lm`, a factory: each call gives a fresh model."""
    return tiny_models.tiny_causal_lm


@pytest.fixture
def tiny_classifier() -> Callable[..., PreTrainedModel]:
    """`tiny_models.tiny_classifier`, a factory: each call gives a fresh model."""
    return tiny_models.tiny_classifier


@pytest.fixture
def prompt_dataset() -> Callable[..., Dataset]:
    """`tiny_models.prompt_dataset`, a factory."""
    return tiny_models.prompt_dataset
