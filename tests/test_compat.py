# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every private name that `_compat` uses exists in the libraries at hand; CI runs this with the oldest TRL too.

vLLM is at hand in an environment of its own, where `tests/vllm` sees that these names do what they are used for.
"""

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer import base_config, base_trainer

from tests.tiny_models import tiny_causal_lm
from trl_ext import _compat


def adapter_layers() -> list[BaseTunerLayer]:
    model = get_peft_model(tiny_causal_lm(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    return [module for module in model.modules() if hasattr(module, "_disable_adapters")]


def source_of_custom_ops() -> str:
    spec = find_spec("vllm") and find_spec("vllm._custom_ops")
    return Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else "_supports_onednn"


# Private name -> whether it is where `_compat` looks for it.
CHECKS = {
    "_BaseConfig": lambda: inspect.isclass(base_config._BaseConfig),
    "_BaseTrainer": lambda: inspect.isclass(base_trainer._BaseTrainer),
    "_VALID_DICT_FIELDS": lambda: "accelerator_config" in _compat.DICT_FIELDS,
    "_attn_implementation": lambda: tiny_causal_lm().config._attn_implementation == "sdpa",
    "_active_adapter": lambda: {str(layer._active_adapter) for layer in adapter_layers()} <= {"default", "['default']"},
    "_disable_adapters": lambda: len(adapter_layers()) == 3,
    "_custom_ops": lambda: find_spec("vllm") is None or find_spec("vllm._custom_ops") is not None,
    "_supports_onednn": lambda: "_supports_onednn" in source_of_custom_ops(),
    "_metrics": lambda: all('self._metrics = {"train"' in inspect.getsource(t) for t in (GRPOTrainer, RLOOTrainer)),
}


def private_names() -> set[str]:
    """Of other libraries, in `_compat`'s source."""
    tree = ast.parse(Path(_compat.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    own = {"_layers"}
    return {name for name in names - own if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_it_exists(name):
    assert CHECKS[name]()


def test_none_is_left_out():
    assert private_names() == set(CHECKS)
