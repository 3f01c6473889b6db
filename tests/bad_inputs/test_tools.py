# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Bad input to the planner and to merging: one line each, before any weights are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.bad_inputs.case import Case, check, table
from trl_ext.actor_critic.merge import merge
from trl_ext.commands import merge as merge_command
from trl_ext.commands.plan import main
from trl_ext.planner.plan import load_config
from trl_ext.planner.setup import Setup
from trl_ext.planner.shapes import SHAPES

NAMES = ", ".join(SHAPES)


def setup(**options: Any) -> Callable[[], object]:
    return lambda: Setup(**options)


PLANNER = [
    Case(
        "unknown quantization",
        setup(quantization="fp4"),
        ValueError,
        "`quantization` must be one of nf4, int8, none, got fp4.",
    ),
    Case(
        "unknown critic", setup(critic="heads"), ValueError, "`critic` must be one of head, adapter, copy, got heads."
    ),
    Case("unknown dtype", setup(dtype="bf16"), ValueError, "`dtype` must be one of bfloat16, float32, got bf16."),
    Case(
        "unknown optimizer",
        setup(optimizer="adam"),
        ValueError,
        "`optimizer` must be one of adamw_torch, adamw_torch_fused, adamw_8bit, adamw_bnb_8bit, paged_adamw_8bit, "
        "paged_adamw_32bit, sgd, got adam.",
    ),
    Case("no prompt", setup(prompt=0), ValueError, "`prompt` must be at least 1, got 0."),
    Case("negative completion", setup(completion=-5), ValueError, "`completion` must be at least 1, got -5."),
    Case("no micro-batch", setup(micro_batch=0), ValueError, "`micro_batch` must be at least 1, got 0."),
    Case("no rollout", setup(rollout=0), ValueError, "`rollout` must be at least 1, got 0."),
    Case("negative rank", setup(rank=-1), ValueError, "`rank` must be 0 or more, got -1."),
    Case("critic of rank 0", setup(critic_rank=0), ValueError, "`critic_rank` must be at least 1, got 0."),
    Case("fractional rank", setup(rank=2.5), TypeError, "`rank` must be an integer, got 2.5."),
    Case("prompt as text", setup(prompt="512"), TypeError, "`prompt` must be an integer, got '512'."),
    Case(
        "negative reward adapters",
        setup(reward_adapters=-1),
        ValueError,
        "`reward_adapters` must be 0 or more, got -1.",
    ),
    Case(
        "full fine-tuning of 4-bit weights",
        setup(rank=0),
        ValueError,
        "`rank` 0 trains the model itself, which nf4 weights do not allow.",
    ),
    Case(
        "adapter critic without adapters",
        setup(rank=0, quantization="none", critic="adapter"),
        ValueError,
        "`rank` 0 trains without adapters, so critic, reward and reference cannot be any.",
    ),
    Case(
        "copy beside adapters",
        setup(critic="copy"),
        ValueError,
        "`critic` 'copy' copies a whole model; with adapters use 'adapter' or 'head', or `rank` 0.",
    ),
    Case(
        "unknown model",
        lambda: load_config("llama-4-9b"),
        ValueError,
        "'llama-4-9b' is no config.json, no folder with one, no model that can be reached on the hub, and none of "
        f"{NAMES}.",
    ),
]


@table(PLANNER)
def test_planner(case):
    check(case)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "0"], "`card` must be more than 0, got 0.0."),
        (["--card", "-8"], "`card` must be more than 0, got -8.0."),
        (["--card", "nan"], "`card` must be more than 0, got nan."),
        (["--rank", "many"], "`--rank` must be of type int, got 'many'."),
        (["--rank"], "`--rank` needs a value."),
        (["--modell", "x"], "Unknown option `--modell`: did you mean `--model`?"),
        (["--zzzz"], "Unknown option `--zzzz`: `trl_ext plan --help` lists all of them."),
        (["x"], "`x` belongs to no option; `trl_ext plan --help` lists them."),
        (["--critic", "heads"], "`critic` must be one of head, adapter, copy, got heads."),
    ],
)
def test_planner_on_the_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


def adapter(folder: Path, **changes: Any) -> Path:
    """A folder with the files of a LoRA adapter; its base is nowhere."""
    folder.mkdir()
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "/nowhere/base", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(fields | changes))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(4, 4)}, folder / "adapter_model.safetensors")
    return folder


def bad_merges(root: Path) -> list[Case]:
    """Every case has folders of its own below `root`."""
    plain, halved, prompts = root / "plain", adapter(root / "halved"), root / "prompts"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    (halved / "adapter_model.safetensors").unlink()
    adapter(prompts, peft_type="PROMPT_TUNING", num_virtual_tokens=4, r=None)
    (prompts / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4})
    )
    cut = adapter(root / "cut")
    (cut / "adapter_model.safetensors").write_bytes(b"")
    scores = adapter(root / "scores", task_type="SEQ_CLS")
    baseless = adapter(root / "baseless", base_model_name_or_path=None)
    stopped = root / "stopped"
    stopped.mkdir()
    for name in ("checkpoint-9", "checkpoint-10", "reference"):
        adapter(stopped / name)
    good, recorded = adapter(root / "good"), adapter(root / "recorded")
    (recorded / "quantization_config.json").write_text("{")
    (root / "file").write_text("")
    (root / "full").mkdir()
    (root / "full" / "model.safetensors").write_text("")
    out = root / "out"
    return [
        Case(
            "no run",
            lambda: merge(root / "missing", out),
            FileNotFoundError,
            f"'{root}/missing' has no `adapter_config.json`; give the folder of a run with LoRA.",
        ),
        Case(
            "an interrupted run",
            lambda: merge(stopped, out),
            FileNotFoundError,
            f"'{stopped}' has no `adapter_config.json`; did you mean '{stopped}/checkpoint-10'?",
        ),
        Case(
            "a run without LoRA",
            lambda: merge(plain, out),
            FileNotFoundError,
            f"'{plain}' is a whole model already, with nothing to merge; use the folder as it is.",
        ),
        Case(
            "no weights",
            lambda: merge(halved, out),
            FileNotFoundError,
            f"'{halved}' has no `adapter_model.safetensors`; give the folder of a run with LoRA.",
        ),
        Case(
            "cut weights",
            lambda: merge(cut, out),
            ValueError,
            f"The adapter in '{cut}' cannot be read (Error while deserializing header: header too small); it may have "
            "been saved only in part.",
        ),
        Case(
            "prompt tuning",
            lambda: merge(prompts, out),
            ValueError,
            f"The adapter in '{prompts}' is a PromptTuningConfig, which adds tokens and changes no weights; only "
            "adapters such as LoRA can be merged.",
        ),
        Case(
            "a reward adapter",
            lambda: merge(scores, out),
            ValueError,
            f"The adapter in '{scores}' is for the task SEQ_CLS, not for a language model; give the folder of a "
            "policy.",
        ),
        Case(
            "no base",
            lambda: merge(baseless, out),
            ValueError,
            f"The adapter in '{baseless}' names no base model; give it as `base_model` (`--base_model`).",
        ),
        Case(
            "a file",
            lambda: merge(good, root / "file"),
            ValueError,
            f"'{root}/file' is a file; give a folder for the merged model.",
        ),
        Case(
            "a full folder",
            lambda: merge(good, root / "full"),
            ValueError,
            f"The folder '{root}/full' is not empty; choose another.",
        ),
        Case(
            "the run itself",
            lambda: merge(good, good),
            ValueError,
            f"The folder '{good}' is not empty; choose another.",
        ),
        Case(
            "a broken record of quantization",
            lambda: merge(recorded, out),
            ValueError,
            f"'{recorded}/quantization_config.json' cannot be read (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)); remove it to use the base's original weights instead.",
        ),
    ]


@pytest.mark.parametrize("index", range(12))
def test_merging(index, tmp_path):
    check(bad_merges(tmp_path)[index])
    assert not (tmp_path / "out").exists()


def test_merging_on_the_command_line_says_where_a_base_is_missing(tmp_path, capsys):
    folder = adapter(tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        merge_command.main([str(folder), str(tmp_path / "out")])
    warning, error = capsys.readouterr().err.splitlines(keepends=True)
    assert end.value.code == 2 and warning.startswith("warning: Neither") and "has a tokenizer" in warning
    assert error.startswith(f"error: The base model '/nowhere/base' of '{folder}' cannot be loaded (")
    assert error.endswith("if it has moved, give its folder as `base_model` (`--base_model`).\n")


def test_the_original_base_of_an_unquantized_run_has_no_effect(tmp_path):
    folder = adapter(tmp_path / "run")
    with (
        pytest.warns(UserWarning, match=f"`original_base` has no effect: the base of '{folder}' was not quantized"),
        pytest.raises(ValueError, match="cannot be loaded"),
    ):
        merge(folder, tmp_path / "out", original_base=True)
