# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Python code that loads a saved policy with plain transformers and PEFT, for its model card."""

from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from .model import ActorCritic

__all__ = ["load_whole", "loading_code", "quantization_of", "where_to_run"]

_PROMPTS = {
    True: 'messages = [{"role": "user", "content": "What can I cook with rice and beans?"}]\n'
    "inputs = tokenizer.apply_chat_template(\n"
    '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
    ").to(model.device)",
    False: 'inputs = tokenizer("This morning I went to the", return_tensors="pt").to(model.device)',
}


def loading_code(name: str, model: ActorCritic, *, base: str, conversational: bool, sampling: Mapping[str, Any]) -> str:
    """Return how to load a policy and generate with it, in Markdown.

    Args:
        name: Folder of the policy, or its id on the Hub.
        model: The policy.
        base: Name of the model that training began from, without its folder; empty where it has none.
        conversational: Whether the policy was trained on conversations; otherwise it continues texts.
        sampling: Arguments of `generate`.
    """
    options = "".join(f", {key}={value!r}" for key, value in sampling.items())
    notes: list[str] = []
    if isinstance(model.policy, PeftModel):
        load, imports, notes = _adapter(model, base)
        loading = [*imports, "", f'name = "{name}"', load]
    else:
        loading = load_whole(name)
    code = [
        *loading,
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        _PROMPTS[conversational],
        "output = model.generate(",
        '    input_ids=inputs["input_ids"],',
        '    attention_mask=inputs["attention_mask"],',
        f"    do_sample=True{options},",
        ")",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join([*where_to_run(name), "```python", *code, "```", *(f"\n{note}" for note in notes)])


def load_whole(name: str) -> list[str]:
    """Return the lines that load a model which is no adapter."""
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'name = "{name}"',
        "model = AutoModelForCausalLM.from_pretrained(name)",
    ]


def where_to_run(name: str) -> list[str]:
    """Return the lines before the code, for a folder."""
    return [] if "/" in name else [f"Run this in the folder that contains `{name}`.", ""]


def quantization_of(model: ActorCritic) -> dict[str, Any] | None:
    """Return how the base of a policy is quantized, as arguments of `BitsAndBytesConfig`; None where it is not."""
    if not getattr(model.causal_lm, "is_quantized", False):
        return None
    given = model.config.quantization_config.to_diff_dict()
    return {key: value for key, value in given.items() if key not in ("quant_method", "_load_in_4bit", "_load_in_8bit")}


def _adapter(model: ActorCritic, base: str) -> tuple[str, list[str], list[str]]:
    """Return the line that loads an adapter on its base, the imports, and what is to be known."""
    quantization = quantization_of(model)
    options, setup = "", ""
    imports = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
    if quantization is not None:
        given = ", ".join(f"{key}={value!r}" for key, value in quantization.items())
        setup, options = f"quantization = BitsAndBytesConfig({given})\n", ", quantization_config=quantization"
        imports[1] = "from transformers import AutoTokenizer, BitsAndBytesConfig"
    merging = "`trl_ext merge FOLDER MERGED` makes a model of it that needs no PEFT."
    if next(iter(model.policy.peft_config.values())).base_model_name_or_path:
        elsewhere = f"The adapter looks for its base `{base}` where it was in training; " if base else ""
        remedy = "elsewhere, give the base's folder as `base_model_name_or_path` in `adapter_config.json`. "
        notes = [(elsewhere + remedy if elsewhere else "") + merging]
        return f"{setup}model = AutoPeftModelForCausalLM.from_pretrained(name{options})", imports, notes
    imports = ["from peft import PeftModel", imports[1].replace("import ", "import AutoModelForCausalLM, ")]
    load = (
        f'{setup}base = AutoModelForCausalLM.from_pretrained("BASE"{options})  # the model that was trained\n'
        "model = PeftModel.from_pretrained(base, name)"
    )
    return load, imports, ["The base was an object without a name: put its folder or id in the place of `BASE`."]
