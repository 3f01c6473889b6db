# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Generators of random orders that follow from numbers alone, so that a resumed run goes on with the same orders."""

import torch


def generator_of(*numbers: int) -> torch.Generator:
    """Return a generator on the CPU whose seed follows from `numbers`, the same in every process and run."""
    return torch.Generator().manual_seed(hash(numbers) % 2**63)  # only texts are hashed at random
