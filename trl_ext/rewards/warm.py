# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Weight-averaged reward models.

"WARM: On the Benefits of Weight Averaged Reward Models" (Ramé et al. 2024, arXiv 2401.12187): the average costs no more
than one model, is nearly as hard to hack as an ensemble, and more robust to noisy labels. The models come from the same
pretrained weights and differ in data order, hyperparameters or labels.

PEFT's `add_weighted_adapter` cannot average reward adapters: it refuses adapters with a head in `modules_to_save`, and
needs the base in memory.
"""

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_ext.folders import whole_folder

Folder = str | os.PathLike

_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PREFIX = "base_model.model."
_HEADS = ("score.weight", "classifier.weight")
# Fields that may differ between two models of one architecture.
_INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
_TOKENIZER_FILES = ("token*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")
# These inits move a part of the base's weights into the adapter: its product is then no update of the base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def average_reward_models(folders: Sequence[Folder], output: Folder) -> Path:
    """Average reward models, weight by weight, into one of the same kind.

    Whole models are averaged file by file, in float32, and saved in the first model's precision. The updates B A of
    LoRA adapters are averaged exactly, by concatenating their ranks, since the product of the means of A and B is not
    the mean of the products: N adapters of rank r give one of rank N r. Score heads are averaged directly.

    Args:
        folders: two or more folders with reward models, or with LoRA adapters and their score heads, as TRL's
            `RewardTrainer` saves them; safetensors only.
        output: folder for the average, with the first model's tokenizer; must not exist or be empty. It appears when
            it is complete.

    Returns:
        `output`.

    Raises:
        FileNotFoundError: a folder without safetensors weights or without a configuration.
        ValueError: fewer than two folders, models of different architectures, bases or padding tokens, several
            labels, adapters whose average is no adapter, or an output folder with content.
    """
    paths, target = [Path(folder) for folder in folders], Path(output)
    if len(paths) < 2:
        raise ValueError(f"An average needs at least two reward models; got {len(paths)}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"The output folder '{output}' is in use; give one that does not exist, or empty it.")
    adapters = [(path / _ADAPTER).is_file() for path in paths]
    if any(adapters) and not all(adapters):
        raise ValueError(
            f"'{paths[adapters.index(True)]}' is an adapter and '{paths[adapters.index(False)]}' is none; average "
            "adapters or whole models."
        )
    _check_same_reading(paths)
    with whole_folder(target) as unfinished:
        (_average_adapters if adapters[0] else _average_models)(paths, unfinished)
        for file in (file for pattern in _TOKENIZER_FILES for file in paths[0].glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, unfinished / file.name)
    return target


def _check_same_reading(paths: list[Path]) -> None:
    """Refuse models padded with different tokens: their heads were trained on different positions."""
    settings = []
    for path in paths:
        file = path / "tokenizer_config.json"
        saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        settings.append({name: saved.get(name) for name in ("pad_token", "eos_token")} if saved else {})
        for name in settings[0].keys() & settings[-1].keys():
            one, other = (str(_content(setting[name])) for setting in (settings[0], settings[-1]))
            if one != other:
                raise ValueError(
                    f"'{paths[0]}' and '{path}' differ in `{name}` ({one} and {other}), so their heads were trained on "
                    "different tokens; train them with one tokenizer."
                )


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


# Whole models


def _average_models(paths: list[Path], output: Path) -> None:
    configs = [_read_config(path) for path in paths]
    for path, config in zip(paths, configs, strict=True):
        _check_same(_relevant(configs[0]), _relevant(config), paths[0], path)
        if config.get("quantization_config"):
            raise ValueError(f"'{path}' holds quantized weights, which have no average; give full-precision models.")
    labels = len(configs[0].get("id2label") or {0: "", 1: ""})
    if labels != 1:
        raise ValueError(f"'{paths[0]}' has {labels} labels; a reward model has one.")
    maps = [_weight_map(path) for path in paths]
    for path, tensors in zip(paths, maps, strict=True):
        _check_same(dict.fromkeys(maps[0], True), dict.fromkeys(tensors, True), paths[0], path)
    for file in sorted(set(maps[0].values())):
        keys = sorted(key for key, place in maps[0].items() if place == file)
        save_file(dict(_averages(keys, paths, maps)), output / file, metadata={"format": "pt"})
    for name in ("config.json", _INDEX):
        if (paths[0] / name).is_file():
            shutil.copyfile(paths[0] / name, output / name)


def _averages(keys: list[str], paths: list[Path], maps: list[dict[str, str]]) -> Iterator[tuple[str, Tensor]]:
    # One tensor of each model in memory at a time.
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for key in keys:
            tensors = []
            for path, places in zip(paths, maps, strict=True):
                file = path / places[key]
                if file not in opened:
                    opened[file] = stack.enter_context(safe_open(file, framework="pt"))
                tensors.append(opened[file].get_tensor(key))
            yield key, _mean(tensors, key, paths)


def _mean(tensors: list[Tensor], key: str, paths: list[Path]) -> Tensor:
    first = tensors[0]
    for tensor, path in zip(tensors, paths, strict=True):
        if tensor.shape != first.shape:
            raise ValueError(
                f"'{key}' has the shape {tuple(first.shape)} in '{paths[0]}' and {tuple(tensor.shape)} in '{path}'; "
                "only models of one architecture have an average."
            )
    if not first.is_floating_point():
        if any(not torch.equal(tensor, first) for tensor in tensors):
            raise ValueError(f"'{key}' holds integers that differ between the models, which have no average.")
        return first
    total = torch.zeros(first.shape, dtype=torch.float32)
    for tensor in tensors:
        total += tensor.float()
    return (total / len(tensors)).to(first.dtype)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"'{path}' has no `config.json`; give the folder of a saved reward model.") from None


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _INCIDENTAL}


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name to file name."""
    if (path / _INDEX).is_file():
        return json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    if not (path / _WEIGHTS).is_file():
        raise FileNotFoundError(f"'{path}' has no `{_WEIGHTS}`; save the model with safetensors.")
    with safe_open(path / _WEIGHTS, framework="pt") as file:
        return dict.fromkeys(file.keys(), _WEIGHTS)


def _check_same(first: dict[str, Any], other: dict[str, Any], path: Path, other_path: Path) -> None:
    for key in sorted(first.keys() | other.keys()):
        if first.get(key) != other.get(key):
            raise ValueError(
                f"'{path}' and '{other_path}' differ in `{key}` ({first.get(key)!s:.60} and {other.get(key)!s:.60}); "
                "only models of one architecture, from the same pretrained weights, have an average."
            )


# LoRA adapters


def _average_adapters(paths: list[Path], output: Path) -> None:
    configs = [_read_adapter_config(path) for path in paths]
    states = []
    for path, config in zip(paths, configs, strict=True):
        _check_same(_base(configs[0]), _base(config), paths[0], path)
        if not (path / _ADAPTER_WEIGHTS).is_file():
            raise FileNotFoundError(f"'{path}' has no `{_ADAPTER_WEIGHTS}`; save the adapter with safetensors.")
        states.append(load_file(path / _ADAPTER_WEIGHTS))
        _check_same(dict.fromkeys(states[0], True), dict.fromkeys(states[-1], True), paths[0], path)
        _check_head(states[-1], path)
    # A is (rank, inputs). A module with the most common rank gets the scale `total / total = 1`.
    ranks = {key: sum(len(state[key]) for state in states) for key in states[0] if _side(key) == "A"}
    total = Counter(ranks.values()).most_common(1)[0][0]
    merged: dict[str, Tensor] = {}
    for key in states[0]:
        tensors = [state[key] for state in states]
        side = _side(key)
        if side == "A":
            merged[key] = torch.cat(tensors).contiguous()
        elif side == "B":
            # The factor 1 / N of the mean, each adapter's own scale, and the inverse of the result's scale.
            shares = [_scale(config, key, tensor.shape[1]) for config, tensor in zip(configs, tensors, strict=True)]
            undo = ranks[key.replace("lora_B", "lora_A").replace("embedding_B", "embedding_A")] / total / len(states)
            scaled = [(b.float() * share * undo).to(b.dtype) for b, share in zip(tensors, shares, strict=True)]
            merged[key] = torch.cat(scaled, dim=1).contiguous()
        else:
            merged[key] = _mean(tensors, key, paths)
    exceptions = {_module(key): rank for key, rank in ranks.items() if rank != total}
    result = dataclasses.replace(
        configs[0],
        r=total,
        lora_alpha=total,
        use_rslora=False,
        rank_pattern=exceptions,
        alpha_pattern={},
        init_lora_weights=True,
    )
    result.save_pretrained(str(output))
    save_file(merged, output / _ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _read_adapter_config(path: Path) -> LoraConfig:
    config = PeftConfig.from_pretrained(str(path))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"'{path}' is a {type(config).__name__}; only LoRA adapters and whole models are averaged.")
    if config.use_dora or config.lora_bias or str(config.init_lora_weights).startswith(_CHANGES_BASE):
        raise ValueError(
            f"'{path}' is no plain LoRA (DoRA, `lora_bias` or `init_lora_weights={config.init_lora_weights!r}`), so "
            "the average of its updates is no adapter; merge each adapter into its base and average the whole models."
        )
    return config


def _base(config: LoraConfig) -> dict[str, Any]:
    return {"base_model_name_or_path": config.base_model_name_or_path, "bias": config.bias}


def _check_head(state: dict[str, Tensor], path: Path) -> None:
    heads = [state[key] for key in state if key.endswith(_HEADS) and _side(key) is None]
    if len(heads) != 1 or len(heads[0]) != 1:
        raise ValueError(
            f"'{path}' has {f'{len(heads[0])} labels' if heads else 'no trained head'}; a reward model has one label."
        )


def _side(key: str) -> str | None:
    for side in ("A", "B"):
        if f".lora_{side}." in key or key.endswith(f"lora_embedding_{side}"):
            return side
    return None


def _module(key: str) -> str:
    return key.removeprefix(_PREFIX).split(".lora_")[0]


def _scale(config: LoraConfig, key: str, rank: int) -> float:
    pattern = config.alpha_pattern or {}
    alpha = pattern.get(get_pattern_key(list(pattern), _module(key)), config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)


if __name__ == "__main__":
    from trl_ext.commands.average import main

    main()
