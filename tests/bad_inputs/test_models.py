# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models that cannot be: names, folders, adapters, critics, precision and placement."""

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, T5Config

from tests import scripted
from tests.bad_inputs.case import Case, check, table
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext import assembly
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic.names import load_tokenizer

ROOT = Path(tempfile.mkdtemp())
LM = "the name or folder of a causal language model or of a LoRA adapter"
CRITIC = "the name or folder of a model, or one of 'head', 'adapter', 'copy'"
NOT_FOUND = (
    "was not found: there is no folder of that name, and neither the Hub nor its cache on this machine gave such a "
    "model; give"
)
BFLOAT16 = (
    "trained in bfloat16, whose rounding drops most updates at usual learning rates; load in float32 (leave `dtype` "
    "out of `model_init_kwargs`, or call `.float()` on a model), and set `bf16=True` to compute in bfloat16."
)
FLOAT16 = (
    "would be trained in float16, in which small updates vanish and gradients overflow; load it in float32 (leave "
    "`dtype` out of `model_init_kwargs`, or call `.float()` on a model), and set `fp16=True` to compute in float16."
)
SEVERAL = (
    "`device_map` puts `model` on several devices ({}), and PPO trains on one; leave it out, quantize the model "
    "(`quantization_config`), or start one process per device with `accelerate launch`."
)
MAP = {"model": 0, "lm_head": 1}


def config_folder(name: str, text: str) -> str:
    (ROOT / name).mkdir(exist_ok=True)
    (ROOT / name / "config.json").write_text(text)
    return str(ROOT / name)


def adapter_folder(name: str, **fields: Any) -> str:
    (ROOT / name).mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | fields
    (ROOT / name / "adapter_config.json").write_text(json.dumps(config))
    return str(ROOT / name)


def damaged(name: str, key: str, value: torch.Tensor | None) -> str:
    folder = save_tiny(ROOT / name, tiny_causal_lm())
    file = ROOT / name / "model.safetensors"
    weights = load_file(file)
    del weights[key]
    save_file(weights | ({} if value is None else {key: value}), file, metadata={"format": "pt"})
    return folder


BASE = save_tiny(ROOT / "base", tiny_causal_lm())
UP = "model.layers.1.mlp.up_proj.weight"
MISSING, SHAPES = damaged("missing", UP, None), damaged("shapes", UP, torch.zeros(3, 3))
EMPTY, RUN = ROOT / "empty", ROOT / "run"
EMPTY.mkdir()
save_tiny(RUN / "checkpoint-8", tiny_causal_lm())
BERT, T5 = save_tiny(ROOT / "bert", tiny_classifier()), str(ROOT / "t5")
T5Config().save_pretrained(T5)
BROKEN, UNTYPED = config_folder("broken", "{bad"), config_folder("untyped", "{}")
UNKNOWN, CUSTOM = config_folder("unknown", '{"model_type": "xyz"}'), str(ROOT / "custom")
config_folder("custom", '{"model_type": "zzz", "auto_map": {"AutoConfig": "conf.C"}}')
NO_BASE, GONE = adapter_folder("no-base"), adapter_folder("gone", base_model_name_or_path="/gone/base")
REWARD = adapter_folder("reward", base_model_name_or_path=BASE, task_type="SEQ_CLS")
CHAINED, NO_WEIGHTS = (
    adapter_folder("chained", base_model_name_or_path=REWARD),
    adapter_folder("no-weights", base_model_name_or_path=BASE),
)
BARE = str(ROOT / "bare")
QUANTIZED = save_tiny(ROOT / "quantized", tiny_causal_lm())
_config = json.loads((ROOT / "quantized" / "config.json").read_text())
_config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
(ROOT / "quantized" / "config.json").write_text(json.dumps(_config))
tiny_causal_lm("gpt2").save_pretrained(BARE)
BASE_OF = "`base_model_name_or_path` of its `adapter_config.json`"


def build(model: Any = BASE, *args: Any, **options: Any):
    return lambda: build_actor_critic(model() if callable(model) else model, *args, **options)


def spread() -> torch.nn.Module:
    model = tiny_causal_lm()
    model.hf_device_map = MAP
    return model


def case(name: str, call: Any, message: str, error: type[Exception] = ValueError) -> Case:
    return Case(name, call, error, message)


NAMES = [
    case("misspelt", build("gpt-2x"), f"`model` 'gpt-2x' {NOT_FOUND} {LM}."),
    case("misspelt owner", build("qwenn/model"), f"`model` 'qwenn/model' {NOT_FOUND} {LM}."),
    case("empty", build(""), f"`model` '' is empty; give {LM}."),
    case("spaces", build("a b"), f"`model` 'a b' {NOT_FOUND} {LM}."),
    case("relative path", build("./nope"), f"`model` './nope' is a folder that does not exist; give {LM}."),
    case("absolute path", build("/nope/x"), f"`model` '/nope/x' is a folder that does not exist; give {LM}."),
    case("home", build("~/nope"), f"`model` '~/nope' is a folder that does not exist; give {LM}."),
    case("file", build(f"{BASE}/config.json"), f"`model` '{BASE}/config.json' is a file; give {LM}."),
    case("empty folder", build(str(EMPTY)), f"`model` '{EMPTY}' is a folder without `config.json`; give {LM}."),
    case(
        "folder above a checkpoint",
        build(str(RUN)),
        f"`model` '{RUN}' is a folder without `config.json`; did you mean '{RUN}/checkpoint-8'?",
    ),
    case(
        "broken JSON",
        build(BROKEN),
        f"`model` '{BROKEN}' has a `config.json` that is not valid JSON; save the model again.",
    ),
    case(
        "no model_type",
        build(UNTYPED),
        f"`model` '{UNTYPED}' has a `config.json` without a `model_type` that transformers knows; save the "
        "model again.",
    ),
    case(
        "code of its own",
        build(CUSTOM),
        f"`model` '{CUSTOM}' brings code of its own; read that code, and set `trust_remote_code=True` if you trust it.",
    ),
    case(
        "classifier",
        build(BERT),
        f"`model` '{BERT}' is a BertForSequenceClassification, not a causal language model; give one that generates "
        "text.",
    ),
    case(
        "encoder-decoder",
        build(T5),
        f"`model` '{T5}' is a model of type 't5', not a causal language model; give one that generates text.",
    ),
    case(
        "missing weights",
        build(MISSING),
        f"`model` '{MISSING}' lacks 1 of its weights, which would start at random ({UP}); save the whole model there.",
    ),
    case(
        "other shapes",
        build(SHAPES),
        f"`model` '{SHAPES}' has 1 weights of other shapes than its `config.json` says ({UP} is (3, 3) instead of "
        "(64, 32)); save the model and its configuration together.",
    ),
    case(
        "no object",
        build(5),
        "`model` must be a name, a transformers model or a PEFT model, got int.",
        TypeError,
    ),
    case(
        "no tokenizer",
        lambda: load_tokenizer(BARE, {}),
        f"`model` '{BARE}' has no tokenizer that can be loaded; give `processing_class`, or save one there "
        "(`tokenizer.save_pretrained`).",
    ),
]
CRITICS = [
    case("heads", build(BASE, "heads"), f"`critic` 'heads' {NOT_FOUND} {CRITIC}."),
    case("no critic folder", build(BASE, "./c"), f"`critic` './c' is a folder that does not exist; give {CRITIC}."),
    case(
        "adapter folder as critic",
        build(BASE, REWARD),
        f"`critic` '{REWARD}' is a LoRA adapter beside the policy's own: it needs `peft_config`.",
    ),
    case(
        "critic lacks weights",
        build(BASE, MISSING),
        f"`critic` '{MISSING}' lacks 1 of its weights, which would start at random (layers.1.mlp.up_proj.weight); save "
        "the whole model there.",
    ),
    case(
        "adapter without adapter",
        build(BASE, "adapter"),
        "`critic='adapter'` is a LoRA adapter beside the policy's own: it needs `peft_config`.",
    ),
    case(
        "copy with adapters",
        build(BASE, "copy", peft_config=LoraConfig()),
        "`critic='copy'` copies a whole model; with adapters use `critic='adapter'` or 'head'.",
    ),
    case(
        "reward adapters without adapter",
        build(BASE, reward_adapters=[REWARD]),
        "`reward_adapters` read the frozen base of a policy with LoRA: they need `peft_config`.",
    ),
    case(
        "encoder as critic",
        build(BASE, tiny_classifier(["reward"])),
        "`critic` is a BertModel, which reads later tokens too; PPO needs a decoder, an encoder belongs in "
        "`reward_funcs`.",
    ),
]
ADAPTERS = [
    case(
        "adapter without base",
        build(NO_BASE),
        f"`model` '{NO_BASE}' is an adapter that does not name its base; write the base's folder into {BASE_OF}.",
    ),
    case(
        "base is gone",
        build(GONE),
        f"The base '/gone/base' of the adapter '{GONE}' is a folder that does not exist; give the name or folder of a "
        f"causal language model in {BASE_OF}.",
    ),
    case(
        "reward adapter as policy",
        build(REWARD),
        f"`model` '{REWARD}' is an adapter for the task SEQ_CLS, not for a causal language model (CAUSAL_LM); a reward "
        "adapter belongs in `reward_adapters`.",
    ),
    case(
        "adapter on an adapter",
        build(CHAINED),
        f"The base '{REWARD}' of the adapter '{CHAINED}' is an adapter itself; merge it into its own base first "
        "(`trl_ext merge`).",
    ),
    case(
        "adapter without weights",
        build(NO_WEIGHTS),
        f"`model` '{NO_WEIGHTS}' is an adapter without `adapter_model.safetensors`; save it again as safetensors.",
    ),
    case(
        "prompt tuning",
        build(BASE, peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
        "PromptTuningConfig adds tokens and no adapter layers; use LoRA (`peft.LoraConfig`).",
    ),
    case(
        "peft_config is a mapping",
        build(BASE, peft_config={"r": 4}),
        "`peft_config` must be a PeftConfig (e.g. `peft.LoraConfig`), got dict.",
        TypeError,
    ),
    case(
        "peft_config for an adapter",
        build(NO_WEIGHTS, peft_config=LoraConfig()),
        "`model` has PEFT adapters already, so `peft_config` has no place: leave it out to train the present adapter, "
        "or merge it first (`model.merge_and_unload()`).",
    ),
]
PRECISION = [
    case("float16", build(BASE, init_kwargs={"dtype": "float16"}), f"`model` {FLOAT16}"),
    case("float16 object", build(lambda: tiny_causal_lm().half()), f"`model` {FLOAT16}"),
    case("float16 critic", lambda: ActorCritic(tiny_causal_lm(), tiny_causal_lm().half()), f"`critic` {FLOAT16}"),
    case("bfloat16", build(BASE, init_kwargs={"dtype": "bfloat16"}), f"`model` is {BFLOAT16}", UserWarning),
    case(
        "bfloat16 objects",
        build(lambda: tiny_causal_lm().bfloat16(), "copy"),
        f"`model` and `critic` are {BFLOAT16}",
        UserWarning,
    ),
    case(
        "no dtype",
        build(BASE, init_kwargs={"dtype": "bf17"}),
        "`dtype` 'bf17' in `model_init_kwargs` is no floating-point dtype; give 'float32', 'bfloat16' or 'float16', or "
        "leave it out.",
    ),
    case(
        "integers",
        build(BASE, init_kwargs={"dtype": torch.int8}),
        "`dtype` torch.int8 in `model_init_kwargs` is no floating-point dtype; give 'float32', 'bfloat16' or "
        "'float16', or leave it out.",
    ),
    case(
        "quantized without adapter",
        build(BASE, quantization_config=BitsAndBytesConfig(load_in_4bit=True)),
        "A quantized model cannot be trained itself, only LoRA adapters on it: give `peft_config`.",
    ),
    case("device map", build(BASE, init_kwargs={"device_map": MAP}), SEVERAL.format(MAP)),
    case("device map of an object", build(spread), SEVERAL.format("0, 1")),
    case(
        "device map of a PEFT model",
        build(lambda: get_peft_model(spread(), LoraConfig(target_modules=["q_proj"]))),
        SEVERAL.format("0, 1"),
    ),
]


def unmergeable(model: Any, **options: Any) -> Any:
    """Start a trainer that is to merge the policy's adapter, with models that cannot be loaded."""

    def start() -> None:
        with mock.patch.object(assembly, "build_actor_critic", side_effect=AssertionError("loaded")):
            policy = model() if callable(model) else model
            scripted.trainer(ROOT / "out", model=policy, merge_adapters_while_sampling=True, **options)

    return start


NO_ADAPTER = "`merge_adapters_while_sampling` needs a policy with adapters (`peft_config`); leave it out."
NOT_QUANTIZED = (
    "`merge_adapters_while_sampling` is not supported with a quantized `model`: the merged weights would be rounded to "
    "its few bits again; leave it out."
)
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True)
MERGING = [
    case("no adapter to merge", unmergeable(BASE), NO_ADAPTER),
    case("no adapter to merge in an object", unmergeable(tiny_causal_lm), NO_ADAPTER),
    case("no adapter to merge in an actor-critic", unmergeable(lambda: ActorCritic(tiny_causal_lm())), NO_ADAPTER),
    case(
        "merging into four bits",
        unmergeable(BASE, peft_config=LoraConfig(), quantization_config=FOUR_BITS),
        NOT_QUANTIZED,
    ),
    case("merging into a quantized checkpoint", unmergeable(QUANTIZED, peft_config=LoraConfig()), NOT_QUANTIZED),
]


@table(NAMES + CRITICS + ADAPTERS + PRECISION + MERGING)
def test_models_that_cannot_be(case):
    check(case)


def test_an_unknown_type_names_the_version_of_transformers():
    with pytest.raises(ValueError, match=r"is of type 'xyz', which transformers \d+\.\S+ does not know; update"):
        build_actor_critic(UNKNOWN)
