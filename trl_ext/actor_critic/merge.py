# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""
Merge a trained LoRA policy into its base: `python -m trl_ext.actor_critic.merge RUN OUTPUT`.

Writes a plain model that needs neither PEFT nor bitsandbytes.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from .model import QUANTIZATION_FILE


def merge(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    original_base: bool = False,
    base_model: str | None = None,
) -> None:
    """
    Write the merged, full-precision model of a LoRA run, with its tokenizer.

    An adapter is trained against the rounding of its quantized base, so by default the base is quantized the same way
    once more, dequantized, and the adapter added: the merged model says what the policy said.

    Args:
        folder: What `ActorCritic.save_pretrained` or the trainer saved.
        output: Folder for the merged model; made if need be.
        dtype: Of the merged weights; default: the checkpoint's own.
        original_base: Add the adapter to the base's original weights instead. They are more exact than quantized ones,
            but not what the adapter was trained on.
        base_model: Name or folder of the base, where it has moved.

    Raises:
        FileNotFoundError: when there is no adapter in `folder`.
        ValueError: when `output` holds something already.
    """
    folder, output = Path(folder), Path(output)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"'{folder}' has no `adapter_config.json`; give the folder of a run with LoRA.")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"The folder '{output}' is not empty; choose another.")
    options: dict[str, object] = {"dtype": dtype or "auto"}
    record = folder / QUANTIZATION_FILE
    quantized = record.is_file() and not original_base
    if quantized:
        options["quantization_config"] = BitsAndBytesConfig.from_dict(json.loads(record.read_text()))
    base = base_model or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    if quantized:
        kept = model.dtype
        model = model.dequantize().to(kept)
    merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    merged.save_pretrained(output)
    source = folder if (folder / "tokenizer_config.json").is_file() else base
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trl_ext.actor_critic.merge", description=__doc__)
    parser.add_argument("run", help="folder of a run with LoRA")
    parser.add_argument("output", help="folder for the merged model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the checkpoint's own")
    parser.add_argument("--base_model", help="name or folder of the base, where it has moved")
    parser.add_argument(
        "--original_base", action="store_true", help="merge into the original weights, not the dequantized ones"
    )
    arguments = parser.parse_args()
    try:
        merge(
            arguments.run,
            arguments.output,
            dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
            original_base=arguments.original_base,
            base_model=arguments.base_model,
        )
    except (OSError, ValueError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    print(arguments.output)


if __name__ == "__main__":
    main()
