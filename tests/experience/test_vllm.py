# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The engines of vLLM without vLLM: what it is given, asked and what becomes of its answers.

The stand-in reads the same files and answers the same calls with transformers and PEFT; `tests/vllm` has the real one.
"""

import json
import random
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests import scripted
from tests.tiny_models import EOS_ID, tiny_causal_lm, tiny_tokenizer
from trl_ext import ActorCritic, PPOConfig
from trl_ext.experience.engines import VLLMEngine, check_vllm, vllm_weights
from trl_ext.experience.engines.vllm_colocated import Colocated

PROMPTS = [[30, 31, 32, 33, 34], [40], [50, 51, 52], [50, 51, 52]]
LENGTH = 5


class StandIn:
    """`vllm.LLM` with transformers inside. It samples greedily, so that its weights can be compared."""

    made: list["StandIn"] = []
    broken = False

    def __init__(self, folder: str, **options: Any):
        if self.broken:
            raise ValueError("no such architecture\nand many more words")
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        torch.set_num_threads = lambda n: None
        self.model = self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=options["dtype"])
        self.folder = folder
        self.options, self.calls, self.adapters, self.asleep = options, ["start"], {}, False
        self.model_config = types.SimpleNamespace(max_model_len=options["max_model_len"] or 10**6)
        core = types.SimpleNamespace(shutdown=lambda: self.calls.append("shutdown"))
        self.llm_engine = types.SimpleNamespace(
            add_lora=self.add_lora, is_sleeping=lambda: self.asleep, engine_core=core
        )
        self.made.append(self)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append(method)
        known = self.base.state_dict()
        for name, tensor in kwargs["weights_iterator"]:
            known.pop(name).copy_(tensor)
        assert set(known) <= {"lm_head.weight"}, "tied weights come once"

    def apply_model(self, function: Any) -> list[Any]:
        return [function(self.base)]

    def add_lora(self, request: Any) -> None:
        self.calls.append("add_lora")
        # As vLLM does, a known number keeps its weights.
        if request.number not in self.adapters:
            self.adapters[request.number] = PeftModel.from_pretrained(_copy(self.base), request.path).eval()

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def sleep(self, level: int) -> None:
        self.asleep = True
        self.calls.append("sleep")

    def wake_up(self) -> None:
        self.asleep = False
        self.calls.append("wake_up")

    def enqueue(self, prompts: list, params: list, *, lora_request: Any, use_tqdm: bool) -> None:
        assert not self.asleep and not torch.is_autocast_enabled("cpu") and not use_tqdm
        self.calls.append("sample")
        self.prompts, self.params = [p["prompt_token_ids"] for p in prompts], params
        self.model = self.adapters[lora_request.number] if lora_request else self.base

    def wait_for_completion(self, use_tqdm: Any) -> list[Any]:
        torch.rand(7)  # takes random numbers
        bar = use_tqdm(total=len(self.prompts))
        bar.update(len(self.prompts))
        bar.close()
        return [
            types.SimpleNamespace(outputs=[self.complete(*asked)])
            for asked in zip(self.prompts, self.params, strict=True)
        ]

    @torch.no_grad()
    def complete(self, prompt: list[int], params: Any) -> Any:
        ids, logps = list(prompt), []
        for _ in range(params.max_tokens):
            scores = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, -1].float(), -1)
            ids.append(int(scores.argmax()))
            logps.append({ids[-1]: types.SimpleNamespace(logprob=float(scores.max()))})
            if ids[-1] in params.stop_token_ids:
                break
        reason = "stop" if ids[-1] in params.stop_token_ids else getattr(self, "reason", "length")
        return types.SimpleNamespace(token_ids=tuple(ids[len(prompt) :]), logprobs=logps, finish_reason=reason)


def _copy(model: Any) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


class Request:
    """`vllm.lora.request.LoRARequest`."""

    def __init__(self, name: str, number: int, path: str):
        self.name, self.number, self.path = name, number, path


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    modules = {
        "vllm": {"LLM": StandIn, "SamplingParams": types.SimpleNamespace, "__spec__": object()},
        "vllm._custom_ops": {"_supports_onednn": True},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": Request},
        "vllm.distributed": {"cleanup_dist_env_and_memory": lambda: None, "destroy_model_parallel": lambda: None},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        monkeypatch.setitem(sys.modules, name, module)
    for variable in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(variable, "before")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn


def engine(model: Any, **options: Any) -> VLLMEngine:
    defaults: dict[str, Any] = {"eos_token_ids": [EOS_ID, 77], "max_new_tokens": LENGTH}
    return VLLMEngine(tiny_tokenizer(), model=model, **{**defaults, **options})


@torch.no_grad()
def move(model: Any, only: str = "") -> None:
    for name, parameter in model.named_parameters():
        if only in name:
            parameter.add_(torch.randn_like(parameter) * 0.3)


@torch.no_grad()
def greedy(model: Any, dtype: torch.dtype | None = None) -> list[list[int]]:
    """The likeliest continuations under the weights that the model has now."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        rows = []
        for prompt in PROMPTS:
            ids = list(prompt)
            for _ in range(LENGTH):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] in (EOS_ID, 77):
                    break
            rows.append(ids[len(prompt) :])
        return rows


# ---- weights ----


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_all_weights_reach_vllm_after_every_change(vllm: type[StandIn], arch: str) -> None:
    torch.manual_seed(1)
    model = tiny_causal_lm(arch).eval()
    sampler, seen = engine(model), []
    for _ in range(3):
        out = sampler(model, PROMPTS)
        assert out.ids == greedy(model)
        seen.append(out.ids)
        move(model)
        assert sampler(model, PROMPTS).ids == out.ids, "a copy, until it is told"
        sampler.weights_changed()
    assert seen[0] != seen[1] != seen[2]
    assert vllm.made[0].calls[:4] == ["start", "reset_prefix_cache", "sample", "sample"]
    assert vllm.made[0].calls[4:7] == ["reload_weights", "reset_prefix_cache", "sample"]


def test_of_a_policy_with_lora_the_actors_adapter_alone_reaches_vllm(vllm: type[StandIn]) -> None:
    torch.manual_seed(1)
    policy = get_peft_model(tiny_causal_lm(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model = ActorCritic(policy, critic="adapter", reference_is_base=True).eval()
    sampler, seen = engine(model.causal_lm), []
    for _ in range(3):
        out = sampler(model.causal_lm, PROMPTS)
        assert out.ids == greedy(model.causal_lm)
        seen.append(out.ids)
        for _, parameter in model.actor_parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
        sampler.weights_changed()
    assert seen[0] != seen[1] != seen[2]
    assert vllm.made[0].calls == ["start", *["add_lora", "reset_prefix_cache", "sample"] * 3]
    names = {name for adapter in vllm.made[0].adapters.values() for name, _ in adapter.named_parameters()}
    assert not any("critic" in name for name in names)
    assert vllm.made[0].options["max_lora_rank"] == 8


def test_vllm_computes_in_the_dtype_of_autocast_and_outside_of_it(vllm: type[StandIn]) -> None:
    model = tiny_causal_lm().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine(model)(model, PROMPTS)
    engine(model.bfloat16())(model, PROMPTS)
    engine(model.float())(model, PROMPTS)
    assert [made.options["dtype"] for made in vllm.made] == ["bfloat16", "bfloat16", "float32"]


def test_vllm_starts_without_taking_random_numbers_or_threads(vllm: type[StandIn]) -> None:
    model, threads = tiny_causal_lm().eval(), torch.set_num_threads
    sampler = engine(model)

    def numbers() -> list[Any]:
        return [random.random(), numpy.random.rand(), torch.rand(1).item()]

    def seeded() -> list[Any]:
        random.seed(5)
        numpy.random.seed(5)
        torch.manual_seed(5)
        seeds = torch.randint(2**31, (len(PROMPTS),)).tolist()
        return [*seeds, *numbers()]

    expected = seeded()
    for _ in range(2):  # the first call starts vLLM
        random.seed(5)
        numpy.random.seed(5)
        torch.manual_seed(5)
        sampler(model, PROMPTS)
        seeds = [params.seed for params in vllm.made[0].params]
        assert [*seeds, *numbers()] == expected
        assert len(set(seeds)) == len(PROMPTS), "identical prompts have seeds of their own"
    assert torch.set_num_threads is threads


# ---- requests and answers ----


def test_what_is_asked_of_vllm(vllm: type[StandIn]) -> None:
    model = tiny_causal_lm().eval()
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}
    engine(model, **options, stop_strings=["###"], max_model_length=64)(model, PROMPTS)
    params = vllm.made[0].params[0]
    for name, value in options.items():
        assert getattr(params, name) == value
    assert (params.stop, params.stop_token_ids, params.max_tokens) == (["###"], [EOS_ID, 77], LENGTH)
    assert (params.logprobs, params.detokenize, params.skip_special_tokens) == (0, True, False)
    started = vllm.made[0].options
    assert (started["logprobs_mode"], started["generation_config"]) == ("processed_logprobs", "vllm")
    assert (started["max_model_len"], started["skip_tokenizer_init"], started["enforce_eager"]) == (64, False, True)
    engine(model, return_logps=False)(model, PROMPTS)
    assert vllm.made[1].params[0].logprobs is None and not vllm.made[1].params[0].detokenize
    assert vllm.made[1].options["skip_tokenizer_init"]


def test_completions_end_with_the_token_that_ended_them(vllm: type[StandIn]) -> None:
    model, told = tiny_causal_lm().eval(), []
    likeliest = greedy(model)
    ends = [EOS_ID, likeliest[0][1]]
    out = engine(model, eos_token_ids=ends)(model, PROMPTS, lambda *numbers: told.append(numbers))
    cut = next(i for i, token in enumerate(likeliest[0]) if token in ends) + 1
    assert out.ids[0] == likeliest[0][:cut] and out.terminated[0]
    assert out.terminated == [row[-1] in ends for row in out.ids] and not all(out.terminated)
    assert out.logps is not None and [len(row) for row in out.logps] == [len(row) for row in out.ids]
    with torch.no_grad():
        first = torch.log_softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1], -1)
    assert out.logps[0][0] == pytest.approx(float(first[out.ids[0][0]]), abs=1e-5)
    assert tuple(map(sum, zip(*told, strict=True))) == (len(PROMPTS), sum(map(len, out.ids)))


def test_failures_of_vllm_are_one_sentence(vllm: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal_lm().eval()
    with pytest.raises(ValueError, match="may have 10 tokens and vLLM takes 9; raise `vllm_max_model_length`"):
        engine(model, max_model_length=9)(model, PROMPTS)
    monkeypatch.setattr(StandIn, "reason", "abort", raising=False)
    with pytest.raises(RuntimeError, match=r"vLLM dropped \d of 4 completions \(abort\)\."):
        engine(model)(model, PROMPTS)
    monkeypatch.setattr(StandIn, "reason", "length", raising=False)

    def interrupt(*numbers: int) -> None:
        raise KeyboardInterrupt

    sampler = engine(model)
    with pytest.raises(KeyboardInterrupt):
        sampler(model, PROMPTS, interrupt)
    assert vllm.made[-1].calls[-1] == "shutdown", "nothing of it is left for the next rollout"
    monkeypatch.setattr(StandIn, "broken", True)
    with pytest.raises(
        ValueError, match=r"^vLLM does not start with this \w+ \(no such architecture and many more words\); see"
    ):
        engine(model)(model, PROMPTS)


def test_vllm_sleeps_between_rollouts_and_starts_again_after_closing(vllm: type[StandIn]) -> None:
    model = tiny_causal_lm().eval()
    sampler = engine(model, enable_sleep_mode=True)
    sampler(model, PROMPTS)
    sampler(model, PROMPTS)
    sampler.weights_changed()
    sampler(model, PROMPTS)
    assert vllm.made[0].options["enable_sleep_mode"]
    asleep = ["sample", "sleep", "wake_up", "sample", "sleep", "wake_up", "reload_weights"]
    assert vllm.made[0].calls[2:9] == asleep
    sampler.close()
    sampler.close()
    assert vllm.made[0].calls[-1] == "shutdown"
    move(model)
    assert sampler(model, PROMPTS).ids == greedy(model) and len(vllm.made) == 2


# ---- refusals ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(r=2, use_dora=True, target_modules="all-linear"), "no LoRA adapter with `use_dora`"),
        (LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head"]), "with `modules_to_save`"),
        (LoraConfig(r=2, target_modules=["q_proj"], rank_pattern={"q_proj": 4}), "with `rank_pattern`"),
        (LoraConfig(r=600, target_modules=["q_proj"]), "rank of at most 512, got 600"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "LoRA adapters, and none of IA3Config"),
    ],
)
def test_adapters_that_vllm_would_apply_wrongly_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^`use_vllm` takes .*{message}"):
        engine(get_peft_model(tiny_causal_lm(), config).get_base_model())


def test_a_quantized_base_needs_the_plugin_and_is_loaded_by_name(
    vllm: type[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_causal_lm().save_pretrained(tmp_path)
    model = (
        get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), LoraConfig(r=2, target_modules="all-linear"))
        .get_base_model()
        .eval()
    )
    model.quantization_method = "bitsandbytes"
    with pytest.raises(ValueError, match="^`use_vllm` takes a quantized `model` by name and in 4 bits"):
        engine(model)
    model.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="^`use_vllm` with a 4-bit `model` needs `pip install vllm-bnb-plugin`"):
        engine(model)
    monkeypatch.setattr(vllm_weights.importlib.metadata, "version", lambda name: "1")
    engine(model)(model, PROMPTS)
    assert vllm.made[0].folder == str(tmp_path) and vllm.made[0].options["quantization"] == "bitsandbytes"
    assert vllm.made[0].calls == ["start", "add_lora", "reset_prefix_cache", "sample"]


def test_a_missing_vllm_and_a_dead_server_are_told_before_anything_is_loaded() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        message = r"^`use_vllm` needs vLLM, which is not installed; run `pip install 'trl_ext\[vllm\]'`"
        with pytest.raises(ImportError, match=message):
            scripted.trainer("unused", model="no/such-model", use_vllm=True)
    with pytest.raises(ValueError, match=r"^Nothing answers at http://127.0.0.1:9 \(\w+: Connection refused\); start"):
        scripted.trainer(
            "unused",
            model="no/such-model",
            use_vllm=True,
            vllm_mode="server",
            vllm_server_base_url="http://127.0.0.1:9",
        )
    with pytest.raises(ValueError, match="^`vllm_server_base_url` is 'ftp://x'; it must begin with http"):
        check_vllm("server", "ftp://x")


def test_weights_of_the_engine_are_corrected_by_default() -> None:
    assert PPOConfig("unused", use_vllm=True).corrects_for_engine
    assert not PPOConfig("unused").corrects_for_engine
    assert not PPOConfig("unused", use_vllm=True, importance_sampling_correction=False).corrects_for_engine


def test_a_run_with_vllm_trains(vllm: type[StandIn], tmp_path: Any) -> None:
    made = scripted.trainer(tmp_path, scripted=False, use_vllm=True, max_prompt_length=12, vllm_server_timeout=240.0)
    made.train()
    assert isinstance(made.generation_engine, VLLMEngine) and isinstance(made.generation_engine.backend, Colocated)
    assert made.generation_engine.backend.llm is None, "closed"
    assert vllm.made[0].options["max_model_len"] == 12 + 8
    assert vllm.made[0].calls.count("reload_weights") == 1
    for line in scripted.logs(made):
        assert line["engine/logp_gap"] < 1e-5 and line["importance_weight"] == pytest.approx(1.0, abs=1e-5)


# ---- server ----


class Handler(BaseHTTPRequestHandler):
    """A vLLM server that notes what it is asked and has seen the files that it is told of."""

    asked: list[tuple[str, dict[str, Any]]] = []
    refused: str = ""
    slow: set[int] = set()  # prompts, by their first token, that are not answered before `go`
    go = threading.Event()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        files = body.get("lora_path") or body.get("kwargs", {}).get("weights_path")
        if files:
            body["files"] = sorted(p.name for p in Path(files).iterdir())
        self.asked.append((self.path, body))
        self.send_response(404 if self.path == self.refused else 200)
        self.end_headers()
        text = "Success: loaded"  # no JSON
        if self.path == "/v1/completions":
            if body["prompt"][0] in self.slow:
                self.go.wait()
            token = sum(body["prompt"]) % 50
            reason = "stop" if token % 2 else "length"
            logprobs = {"token_logprobs": [-0.5, -1.5]}
            answer = {"token_ids": [token, 3], "finish_reason": reason, "logprobs": logprobs}
            text = json.dumps({"choices": [answer]})
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Handler, "asked", [])
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_a_server_reads_all_weights_from_files_and_samples(server: str) -> None:
    model = tiny_causal_lm().eval()
    out = engine(model, mode="server", server_base_url=server, temperature=0.7)(model, PROMPTS)
    (load, weights), (reset, _), *requests = Handler.asked
    assert (load, reset) == ("/collective_rpc", "/reset_prefix_cache")
    assert weights["method"] == "reload_weights" and "model.safetensors" in weights["files"]
    assert {path for path, _ in requests} == {"/v1/completions"} and len(requests) == len(PROMPTS)
    assert len({body["seed"] for _, body in requests}) == len(PROMPTS)
    body = requests[0][1]
    assert (body["temperature"], body["max_tokens"], body["stop_token_ids"]) == (0.7, LENGTH, [EOS_ID, 77])
    assert "model" not in body and body["return_token_ids"]
    assert out.ids == [[sum(prompt) % 50, 3] for prompt in PROMPTS], "in the order of the prompts"
    assert out.terminated == [sum(prompt) % 2 == 1 for prompt in PROMPTS]
    assert out.logps == [[-0.5, -1.5]] * len(PROMPTS)


def test_a_server_is_sent_the_adapter_alone_under_a_new_name(server: str) -> None:
    policy = get_peft_model(tiny_causal_lm(), LoraConfig(r=4, target_modules="all-linear")).eval()
    model = policy.get_base_model()
    sampler, names = engine(model, mode="server", server_base_url=server), []
    for _ in range(2):
        Handler.asked.clear()
        sampler(model, PROMPTS)
        sampler.weights_changed()
        loaded = [body for path, body in Handler.asked if path == "/v1/load_lora_adapter"]
        assert [body["files"] for body in loaded] == [["adapter_config.json", "adapter_model.safetensors"]]
        names.append(loaded[0]["lora_name"])
        assert {body["model"] for path, body in Handler.asked if path == "/v1/completions"} == {names[-1]}
    assert ("/v1/unload_lora_adapter", {"lora_name": names[0]}) in Handler.asked
    engine(model, mode="server", server_base_url=server)(model, PROMPTS)  # of another run, at the same server
    names += [body["lora_name"] for path, body in Handler.asked[3:] if path == "/v1/load_lora_adapter"]
    assert len(set(names)) == len(names) == 3


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_nobody_waits_for_answers_that_are_not_wanted(server: str, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Of a rollout in another thread by `close`, of one in this thread by Ctrl-C."""
    monkeypatch.setattr(Handler, "slow", {prompt[0] for prompt in PROMPTS[1:]})
    monkeypatch.setattr(Handler, "go", threading.Event())
    model = tiny_causal_lm().eval()
    sampler, first = engine(model, mode="server", server_base_url=server), threading.Event()

    def told(completions: int, tokens: int) -> None:
        first.set()
        if end == "interrupt":
            raise KeyboardInterrupt

    sample = sampler.prepare(model, PROMPTS)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(sample, told)
        assert first.wait(10)
        start = time.monotonic()
        if end == "close":
            sampler.close()
        with pytest.raises(KeyboardInterrupt if end == "interrupt" else ConnectionError):
            ahead.result()
    assert time.monotonic() - start < 20
    Handler.go.set()
    out = sampler(model, PROMPTS)  # it can be asked again
    assert len(out.ids) == len(PROMPTS)


def test_a_server_that_refuses_or_dies_gives_one_sentence(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal_lm().eval()
    monkeypatch.setattr(Handler, "refused", "/collective_rpc")
    message = (
        r"^The vLLM server refuses http://127.0.0.1:\d+/collective_rpc with HTTP 404; it must have been started with "
    )
    with pytest.raises(ValueError, match=message + r"VLLM_SERVER_DEV_MODE=1\.$"):
        engine(model, mode="server", server_base_url=server)(model, PROMPTS)
    message = (
        r"^The vLLM server does not answer at http://127.0.0.1:9/collective_rpc \(\w+: Connection refused\); start it"
    )
    with pytest.raises(ConnectionError, match=message):
        engine(model, mode="server", server_base_url="http://127.0.0.1:9")(model, PROMPTS)
