# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What is sampled: from which distribution, until where, and what is left of the model afterwards."""

import bisect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    CompileConfig,
    GenerationConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests.tiny_models import EOS_ID, PAD_ID, VOCAB_SIZE, tiny_causal_lm, tiny_tokenizer
from trl_ext.actor_critic.caches import check_static_cache, selectable_cache
from trl_ext.experience.engines import (
    Completions,
    ContinuousBatchingEngine,
    TransformersEngine,
    eos_token_ids,
    generate,
)
from trl_ext.experience.engines.generate import _Batch, _Draw

PROMPTS = [[30, 31, 32, 33, 34, 35, 36], [40], [50, 51, 52], [60, 61], [70, 71, 72, 73, 74]]
MANY_EOS = list(range(2, VOCAB_SIZE, 4))


def transformers_engine(**options: Any) -> TransformersEngine:
    defaults: dict[str, Any] = {"eos_token_ids": [EOS_ID], "max_new_tokens": 6}
    return TransformersEngine(options.pop("tokenizer", None) or tiny_tokenizer(), **{**defaults, **options})


def continuous_engine(**options: Any) -> ContinuousBatchingEngine:
    small = {"num_blocks": 32, "max_batch_tokens": 64}
    defaults: dict[str, Any] = {"eos_token_ids": [EOS_ID], "max_new_tokens": 6, "config": small}
    return ContinuousBatchingEngine(options.pop("tokenizer", None) or tiny_tokenizer(), **{**defaults, **options})


def static_engine(**options: Any) -> TransformersEngine:
    return transformers_engine(cache_implementation="static", **options)


ENGINES: dict[str, Callable[..., Any]] = {
    "generate": transformers_engine,
    "static": static_engine,
    "continuous": continuous_engine,
}
every = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


def peaked_model() -> PreTrainedModel:
    """A model that is almost certain of every token, so that sampling can be compared with taking the likeliest."""
    model = tiny_causal_lm().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(200)
    return model


@torch.no_grad()
def likeliest(model: PreTrainedModel, prompt: list[int], n: int) -> list[int]:
    """The likeliest continuation, token by token without cache or padding."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def seeded(engine: Any, model: PreTrainedModel, prompts: list[list[int]]) -> Completions:
    torch.manual_seed(0)
    return engine(model, prompts)


# ---- which prompt is continued, and how ----


@every
def test_each_prompt_of_a_batch_is_continued_as_it_would_be_alone(engine):
    model = peaked_model()
    progress: list[tuple[int, int]] = []
    config = model.generation_config
    padded = {"input_ids": torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])}
    padded["attention_mask"] = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    before = model(**padded).logits
    out = engine()(model, PROMPTS, lambda *done: progress.append(done))
    # Continuous batching exchanges the model's attention for its own.
    assert torch.equal(model(**padded).logits, before) and model.generation_config is config
    assert out.ids == [likeliest(model, prompt, 6) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in out.ids}) == len(PROMPTS)
    assert out.terminated == [False] * len(PROMPTS) and out.logps is None
    assert [sum(done) for done in zip(*progress, strict=True)] == [len(PROMPTS), sum(map(len, out.ids))]


def test_prompts_are_sampled_some_at_a_time():
    model = peaked_model()
    generate = model.generate
    widths: list[tuple[int, ...]] = []
    progress: list[tuple[int, int]] = []

    def spy(ids, **kwargs):
        widths.append(tuple(ids.shape))
        return generate(ids, **kwargs)

    model.generate = spy
    out = transformers_engine(batch_size=2)(model, PROMPTS, lambda *done: progress.append(done))
    assert widths == [(2, 7), (2, 3), (1, 5)] and [done for done, _ in progress if done] == [2, 2, 1]
    del model.generate
    assert out.ids == transformers_engine()(model, PROMPTS).ids


def test_progress_is_told_token_by_token_and_taken_back_where_memory_runs_out(monkeypatch):
    """Five prompts of six tokens each, sampled at once; memory runs out after three tokens."""
    monkeypatch.setattr(generate, "_REPORT_SECONDS", 0.0)
    model, told = peaked_model(), []
    real, calls = model.forward, 0

    def forward(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args, **kwargs)

    model.forward = forward
    out = transformers_engine()(model, PROMPTS, lambda *done: told.append(done))
    assert told[:4] == [(0, 5), (0, 5), (0, 5), (0, -15)]
    assert [sum(done) for done in zip(*told, strict=True)] == [5, sum(map(len, out.ids))] == [5, 30]
    del model.forward
    assert out.ids == transformers_engine()(model, PROMPTS).ids


# ---- the distribution ----

LEAKS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"repetition_penalty": 8.0},
    {"min_p": 0.9},
    {"top_p": 0.1},
    {"temperature": 0.01},
    {"do_sample": False},
    {"suppress_tokens": list(range(30, 150))},
    {"no_repeat_ngram_size": 1},
    {"eos_token_id": list(range(3, VOCAB_SIZE))},
    {"max_new_tokens": 2},
    {"max_length": 3},
    {"num_return_sequences": 2},
    {"forced_eos_token_id": 9},
]


def test_nothing_of_the_models_generation_config_counts():
    engine = transformers_engine(return_logps=True)
    expected = seeded(engine, tiny_causal_lm().eval(), PROMPTS)
    for leak in LEAKS:
        model = tiny_causal_lm().eval()
        model.generation_config = GenerationConfig(do_sample=leak.get("do_sample", True))
        model.generation_config.update(**leak)
        assert seeded(engine, model, PROMPTS) == expected, leak
        assert list(leak.values()) == [getattr(model.generation_config, name) for name in leak]


def test_nothing_of_the_models_generation_config_counts_in_continuous_batching():
    model = tiny_causal_lm().eval()
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=1, temperature=0.01, eos_token_id=list(range(3, VOCAB_SIZE)), max_new_tokens=2
    )
    out = continuous_engine(eos_token_ids=[])(model, [PROMPTS[0]] * 8)
    assert [len(ids) for ids in out.ids] == [6] * 8, "neither their EOS nor their length"
    assert len({tuple(ids) for ids in out.ids}) == 8, "neither their temperature nor their top-k"
    assert out.terminated == [False] * 8


def sampling_log_probs(
    model: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float, top_k: int
) -> list[float]:
    """Log-probabilities of the tokens among the `top_k` likeliest, from one pass over the whole sequence."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    result = []
    for row, token in zip(logits.tolist(), completion, strict=True):
        kept = sorted(row, reverse=True)[: top_k or None]
        assert row[token] in kept
        result.append(row[token] - torch.tensor(kept).logsumexp(0).item())
    return result


@every
def test_logps_are_those_of_the_distribution_sampled_from_and_eos_ends(engine):
    model = tiny_causal_lm().eval()
    engine = engine(temperature=1.3, top_k=40, return_logps=True, eos_token_ids=MANY_EOS)
    out = engine(model, PROMPTS * 4)
    for prompt, ids, logps in zip(PROMPTS * 4, out.ids, out.logps, strict=True):
        assert logps == pytest.approx(sampling_log_probs(model, prompt, ids, 1.3, 40), abs=1e-4)
    assert_ends_at_the_first_eos(out, MANY_EOS, 6)
    last = {ids[-1] for ids, terminated in zip(out.ids, out.terminated, strict=True) if terminated}
    assert len(last) > 1, "several EOS tokens"


FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.5},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"repetition_penalty": 2.0},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3},
]


def inverse_transform(probs: torch.Tensor, num_samples: int) -> torch.Tensor:
    """`torch.multinomial`, but with one random number for each row."""
    cumulative = [list(itertools.accumulate(row)) for row in probs.double().tolist()]
    points = torch.rand(len(probs), 1, dtype=torch.float64).flatten().tolist()
    return torch.tensor([[bisect.bisect_right(c, p * c[-1])] for c, p in zip(cumulative, points, strict=True)])


@pytest.mark.parametrize("options", FILTERS, ids=lambda options: "+".join(options))
def test_filters_are_those_of_transformers(options, monkeypatch):
    """Against `generate` with the same settings and the same random numbers."""
    monkeypatch.setattr(torch, "multinomial", inverse_transform)
    model, prompts = tiny_causal_lm().eval(), [list(range(30, 60))] * 16
    out = seeded(transformers_engine(eos_token_ids=[], **options), model, prompts)
    torch.manual_seed(0)
    plain = {"do_sample": True, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": PAD_ID, "top_k": 0}
    expected = model.generate(torch.tensor(prompts), **{**plain, **options})
    assert out.ids == expected[:, 30:].tolist()
    assert out.ids != seeded(transformers_engine(eos_token_ids=[]), model, prompts).ids


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    drawn = _Draw(_Batch(torch.ones(20_000, 1, dtype=torch.long), 1))(
        torch.zeros(20_000, 1), probs.log().repeat(20_000, 1)
    )
    assert ((drawn == 0).sum(1) == 1).all() and ((drawn == -torch.inf).sum(1) == 6).all()
    often, spread = (drawn == 0).double().mean(0), (probs * (1 - probs) / 20_000).sqrt()
    assert ((often - probs).abs() <= 4 * spread).all()


def test_a_likely_token_does_not_hide_unlikely_ones_of_a_large_vocabulary():
    scores = torch.zeros(200, 150_000)
    scores[:, 0] = 12.0  # about half of the probability
    drawn = _Draw(_Batch(torch.ones(200, 1, dtype=torch.long), 1))(torch.zeros(200, 1), scores).argmax(-1)
    others = drawn[drawn > 0]
    assert 60 <= len(others) <= 160 and others.min() < 30_000 and others.max() > 120_000


def test_options_that_generate_applies_after_all_others_shape_what_is_drawn():
    model, prompts = tiny_causal_lm().eval(), [list(range(30, 60))] * 16
    options: dict[str, Any] = {"eos_token_ids": [], "max_new_tokens": 1}
    free = transformers_engine(**options)(model, prompts)
    narrow = transformers_engine(**options, generation_kwargs={"typical_p": 0.01})(model, prompts)
    assert len({ids[0] for ids in narrow.ids}) < 3 < len({ids[0] for ids in free.ids})


def test_an_option_that_generate_applies_last_leaves_every_token_of_a_large_vocabulary():
    model = tiny_causal_lm(vocab_size=300)
    torch.nn.init.zeros_(model.lm_head.weight)  # every token is as likely
    options: dict[str, Any] = {"eos_token_ids": [], "max_new_tokens": 1, "generation_kwargs": {"epsilon_cutoff": 1e-9}}
    drawn = transformers_engine(**options)(model, [[5]] * 4000)
    assert len({ids[0] for ids in drawn.ids}) == 300, "and not the 50 that transformers keeps by default"


@pytest.mark.parametrize("engine", [transformers_engine, static_engine])
def test_padding_is_no_repetition(engine):
    """The padding token may be one that a model says, often EOS; a penalty must not find it in a short prompt."""
    model, prompts = tiny_causal_lm().eval(), [[40], [30, 31, 32, 33]]
    options: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 5.0, "eos_token_ids": []}
    alone = [engine(**options)(model, [prompt]).ids[0] for prompt in prompts]
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(alone[0][0])
    assert engine(tokenizer=tokenizer, **options)(model, prompts).ids == alone


# ---- where a completion ends ----


def test_eos_tokens_are_the_tokenizers_and_all_of_the_model():
    tokenizer = tiny_tokenizer()
    assert eos_token_ids(tiny_causal_lm(eos_token_id=[7, 2, 9]), tokenizer) == [7, 2, 9]
    assert eos_token_ids(tiny_causal_lm(eos_token_id=[7, 9]), tokenizer) == [2, 7, 9]
    assert eos_token_ids(tiny_causal_lm(eos_token_id=7), tokenizer) == [2, 7]
    undeclared = tiny_causal_lm()
    undeclared.generation_config.eos_token_id = None
    assert eos_token_ids(undeclared, tokenizer) == [2]
    tokenizer.eos_token = None
    assert eos_token_ids(tiny_causal_lm(eos_token_id=7), tokenizer) == [7]


def assert_ends_at_the_first_eos(out: Completions, eos: list[int], limit: int) -> None:
    for ids, terminated in zip(out.ids, out.terminated, strict=True):
        ends = [i for i, token in enumerate(ids) if token in eos]
        assert ends == ([len(ids) - 1] if terminated else [])
        assert terminated or len(ids) == limit
    assert {True, False} == set(out.terminated)


def test_an_eos_as_the_last_token_allowed_ends_a_completion_all_the_same():
    out = transformers_engine(eos_token_ids=MANY_EOS, max_new_tokens=2)(tiny_causal_lm().eval(), PROMPTS * 4)
    assert_ends_at_the_first_eos(out, MANY_EOS, 2)
    assert {terminated for ids, terminated in zip(out.ids, out.terminated, strict=True) if len(ids) == 2} == {
        True,
        False,
    }


def test_a_pad_token_that_is_eos_changes_nothing():
    results = []
    for pad_is_eos in (False, True):
        tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos)
        assert tokenizer.pad_token_id == (EOS_ID if pad_is_eos else PAD_ID)
        model = tiny_causal_lm().eval()
        with torch.no_grad():  # two thirds of the completions end with the very token that pads the others
            model.lm_head.weight[EOS_ID] = model.lm_head.weight.abs().max(0).values * 0.5
        engine = transformers_engine(tokenizer=tokenizer, return_logps=True)
        results.append(seeded(engine, model, PROMPTS * 4))
    assert results[0] == results[1]
    assert_ends_at_the_first_eos(results[1], [EOS_ID], 6)


def test_a_stop_string_ends_a_completion():
    tokenizer = tiny_tokenizer()
    stops = ["a", "e", "the"]
    out = seeded(transformers_engine(stop_strings=stops), tiny_causal_lm().eval(), PROMPTS * 4)
    for ids, terminated in zip(out.ids, out.terminated, strict=True):
        assert any(stop in tokenizer.decode(ids) for stop in stops) == terminated or EOS_ID in ids
        assert not any(stop in tokenizer.decode(ids[:-1]) for stop in stops)
        assert terminated or len(ids) == 6
    assert set(out.terminated) == {True, False}


def test_a_stop_string_does_not_begin_in_the_prompt():
    """A prompt may end in the first half of one, as the line break before an answer does for "\\n\\n"."""
    tokenizer, model, prompt = tiny_tokenizer(), tiny_causal_lm().eval(), PROMPTS[0]
    options = {"temperature": 0.0, "eos_token_ids": [], "max_new_tokens": 4}
    ids = transformers_engine(**options)(model, [prompt]).ids[0]
    across, inside = tokenizer.decode([prompt[-1], ids[0]]), tokenizer.decode(ids[:2])
    assert across not in tokenizer.decode(ids) and inside not in tokenizer.decode(ids[1:])
    for stop, length in ((across, 4), (inside, 2)):
        out = transformers_engine(stop_strings=[stop], **options)(model, [prompt])
        assert (out.ids, out.terminated) == ([ids[:length]], [length == 2])


def test_without_eos_every_completion_runs_to_the_limit():
    out = transformers_engine(eos_token_ids=[], max_new_tokens=4)(tiny_causal_lm(eos_token_id=MANY_EOS).eval(), PROMPTS)
    assert [len(ids) for ids in out.ids] == [4] * len(PROMPTS) and out.terminated == [False] * len(PROMPTS)


def test_further_generation_arguments_are_passed_on():
    model = tiny_causal_lm().eval()
    out = transformers_engine(generation_kwargs={"min_new_tokens": 4}, eos_token_ids=MANY_EOS)(model, PROMPTS * 4)
    assert {len(ids) for ids in out.ids} == {5, 6}


# ---- finished completions leave the batch ----


def small_mistral() -> PreTrainedModel:
    """A model whose cache forgets what lies more than seven tokens back."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=VOCAB_SIZE, num_key_value_heads=2, sliding_window=7, **sizes)
    return MistralForCausalLM(config).eval()


def rows_by_token(model: PreTrainedModel) -> list[int]:
    """The number of sequences in each call of the model, filled in from now on."""
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(len(out)))
    return seen


COMPACTED: dict[str, dict[str, Any]] = {
    "eos": {"temperature": 1.3, "top_k": 40},
    "stop strings": {"stop_strings": ["a", "e"], "repetition_penalty": 1.5},
    "greedy": {"temperature": 0.0, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("make", [lambda: tiny_causal_lm().eval(), small_mistral], ids=["llama", "mistral"])
@pytest.mark.parametrize("options", COMPACTED.values(), ids=COMPACTED)
def test_completions_are_the_same_whether_finished_ones_leave_the_batch_or_not(options, make):
    model, results, calls = make(), [], []
    for compacts in (False, True):
        engine = transformers_engine(return_logps=True, eos_token_ids=MANY_EOS, max_new_tokens=20, **options)
        assert engine.compacts
        engine.compacts = compacts
        seen = rows_by_token(model)
        results.append(seeded(engine, model, PROMPTS * 4))
        calls.append(list(seen))
    whole, compacted = results
    assert compacted.ids == whole.ids and compacted.terminated == whole.terminated
    assert sum(compacted.logps, []) == pytest.approx(sum(whole.logps, []), abs=1e-5)
    assert set(calls[0]) == {20} and len(calls[1]) == len(calls[0]), "as many calls, none of them for nothing"
    # More than half of the sequences in the batch are still sampled, at every token.
    going = [sum(len(ids) > i for ids in whole.ids) for i in range(len(calls[1]))]
    assert all(needed <= rows < 2 * needed for needed, rows in zip(going, calls[1], strict=True))
    assert calls[1][-1] < 10


# ---- a cache of fixed size ----


@pytest.mark.parametrize("make", [lambda: tiny_causal_lm().eval(), small_mistral], ids=["llama", "mistral"])
@pytest.mark.parametrize("options", COMPACTED.values(), ids=COMPACTED)
def test_a_static_cache_samples_what_a_growing_one_does(options, make):
    model = make()
    options = {"return_logps": True, "eos_token_ids": MANY_EOS, "max_new_tokens": 20, **options}
    growing, static = (seeded(make(**options), model, PROMPTS * 4) for make in (transformers_engine, static_engine))
    assert static.ids == growing.ids and static.terminated == growing.terminated
    assert sum(static.logps, []) == pytest.approx(sum(growing.logps, []), abs=1e-5)


def test_a_static_cache_is_compiled_once_for_prompts_of_any_length():
    """dynamo captures the pass of a token as it would on a GPU; here what it captured is run as it is."""
    model, captured = tiny_causal_lm().eval(), []

    def backend(graph, inputs):
        captured.append(graph)
        return graph.forward

    everywhere = CompileConfig(backend=backend, mode=None, fullgraph=True)
    everywhere._compile_all_devices = True  # `generate` compiles for accelerators alone
    engine = static_engine(return_logps=True, generation_kwargs={"compile_config": everywhere})
    growing = transformers_engine(return_logps=True)
    for longest in (3, 40, 200):
        prompts = [[30 + i] * n for i, n in enumerate((longest, 1, 2))]
        expected, out = seeded(growing, model, prompts), seeded(engine, model, prompts)
        assert out.ids == expected.ids and len(captured) == 1
        assert sum(out.logps, []) == pytest.approx(sum(expected.logps, []), abs=1e-5)


def test_a_static_cache_does_not_depend_on_what_was_sampled_before():
    """A resumed run has not seen the longest prompt of the run before it."""
    fresh, used = tiny_causal_lm().eval(), tiny_causal_lm().eval()
    engine = static_engine(return_logps=True)
    engine(used, [[30] * 300])
    assert seeded(engine, used, PROMPTS).logps == seeded(engine, fresh, PROMPTS).logps


def test_a_static_cache_needs_a_model_with_keys_and_values():
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    check_static_cache(tiny_causal_lm())
    with pytest.raises(ValueError, match="'static'` needs a model with a cache .*, which MambaForCausalLM has not"):
        check_static_cache(MambaForCausalLM(MambaConfig(**sizes)))


def test_a_static_cache_is_refused_where_the_model_would_sample_from_another_distribution():
    """The local attention of GPT-Neo counts from the end of the cache."""
    sizes = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8}
    model = GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCAB_SIZE, hidden_size=16, **sizes)).eval()
    with pytest.raises(ValueError, match="that transformers can compile, which GPTNeoForCausalLM is not; leave"):
        check_static_cache(model)
    with pytest.raises(ValueError, match="that transformers can compile"):
        static_engine()(model, PROMPTS)


@pytest.mark.parametrize("arch", ["gpt2", "gemma2"])
def test_a_static_cache_may_be_longer_than_the_context(arch):
    """128 positions are learned, and a cache for 256 is made."""
    model = tiny_causal_lm(arch, vocab_size=VOCAB_SIZE).eval()
    prompts = [[30 + i % 90 for i in range(120)], [40], [50, 51, 52]]
    growing, static = (
        seeded(make(return_logps=True, max_new_tokens=8), model, prompts)
        for make in (transformers_engine, static_engine)
    )
    assert static.ids == growing.ids
    assert sum(static.logps, []) == pytest.approx(sum(growing.logps, []), abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"generation_kwargs": {"min_new_tokens": 3}}, {"stopping_criteria": (lambda *a, **k: False,)}]
)
def test_options_that_count_from_where_generate_began_keep_all_in_the_batch(options):
    assert not transformers_engine(**options).compacts


def test_a_cache_with_other_states_than_keys_and_values_keeps_all_in_the_batch():
    assert selectable_cache(small_mistral()) is not None
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    assert selectable_cache(MambaForCausalLM(MambaConfig(**sizes))) is None
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"linear_num_value_heads": 2, "linear_num_key_heads": 1, "head_dim": 8, "num_experts": 2}
    config = Qwen3NextConfig(**sizes, layer_types=["linear_attention", "full_attention"])
    with torch.device("meta"):
        assert selectable_cache(Qwen3NextForCausalLM(config)) is None


def test_under_autocast_finished_completions_leave_the_batch_too():
    model = tiny_causal_lm().eval()
    seen = rows_by_token(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = seeded(transformers_engine(eos_token_ids=MANY_EOS, max_new_tokens=20), model, PROMPTS * 4)
    assert seen[0] == 20 and seen[-1] < 10 and len(seen) == max(map(len, out.ids))


# ---- what is left of the model ----


def broken(model: PreTrainedModel) -> PreTrainedModel:
    def forward(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    model.model.layers[1].forward = forward
    return model


def test_the_generation_config_comes_back_after_an_exception():
    model = broken(tiny_causal_lm().eval())
    config = model.generation_config
    with pytest.raises(RuntimeError, match="out of memory"):
        transformers_engine()(model, PROMPTS)
    assert model.generation_config is config


def test_a_failure_in_continuous_batching_is_an_error():
    model = broken(tiny_causal_lm().eval())
    config = model.generation_config
    with pytest.raises(RuntimeError, match="finished 0 of 5 prompts .* `use_transformers_continuous_batching=False`"):
        continuous_engine()(model, PROMPTS)
    assert model.generation_config is config


def test_generation_kwargs_have_the_last_word_on_compilation():
    assert transformers_engine().generation_config.disable_compile
    assert not transformers_engine(generation_kwargs={"disable_compile": False}).generation_config.disable_compile


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_an_error(value):
    """Sampling from NaN would return the last token of the vocabulary, again and again, without a word."""
    model = tiny_causal_lm().eval()
    model.model.norm.register_forward_hook(lambda module, args, out: out.index_fill(0, torch.tensor([1]), value))
    with pytest.raises(RuntimeError, match="logits were not finite for 1 of 5 completions"):
        transformers_engine()(model, PROMPTS)


def test_both_engines_compute_in_the_dtype_of_autocast():
    """Continuous batching calls the model from a thread of its own, where this thread's autocast does not hold."""
    model = tiny_causal_lm().eval()
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    seen: set[torch.dtype] = set()
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    for engine in (transformers_engine(), continuous_engine()):
        engine(model, PROMPTS)
        assert seen == {torch.float32}
        seen.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(engine(model, PROMPTS).ids)
        assert seen == {torch.bfloat16}
        seen.clear()
    for name, p in model.named_parameters():
        assert p.data_ptr() == before[name][0] and torch.equal(p, before[name][1])


def test_a_cache_that_does_not_fit_names_the_settings():
    engine = continuous_engine(config={"max_memory_percent": 1e-6})
    with pytest.raises(RuntimeError, match="cannot start .* set `max_memory_percent`, `max_batch_tokens` or `num_bl"):
        engine(tiny_causal_lm().eval(), PROMPTS)
