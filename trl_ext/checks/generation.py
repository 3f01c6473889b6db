# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What arguments of transformers' `generate` mean for PPO, which learns from the log-probabilities of its samples."""

from collections.abc import Mapping
from typing import Any

__all__ = ["APPLIED_LAST", "OWN", "SHAPING", "switched_on"]

OWN = frozenset(
    {
        *("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("num_beams", "num_return_sequences", "use_cache", "stop_strings"),
        *("pad_token_id", "bos_token_id", "eos_token_id"),
    }
)
"""Arguments that PPO sets itself: learning relies on the sampled log-probabilities and lengths."""

SHAPING = frozenset(
    {
        *("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
        *("min_length", "min_new_tokens", "exponential_decay_length_penalty", "guidance_scale"),
        *("encoder_repetition_penalty", "forced_bos_token_id", "forced_eos_token_id"),
    }
)
"""Arguments that make the sampled distribution another than the model's, which recorded log-probabilities show."""

APPLIED_LAST = frozenset({"typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "watermarking_config"})
"""Arguments that do so after the log-probabilities are recorded, where `generate` draws a token."""

# Values without effect; of the others None, 0 and nothing are.
_OFF = {"typical_p": 1.0, "guidance_scale": 1.0, "encoder_repetition_penalty": 1.0}


def switched_on(names: frozenset[str], given: Mapping[str, Any] | None) -> list[str]:
    """Return which of these arguments are given with a value that has an effect, by name."""
    found = {name: value for name, value in (given or {}).items() if name in names}
    return sorted(name for name, value in found.items() if value and value != _OFF.get(name))
