# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext plan`: tables, JSON, advice, and wrong input in one line."""

import json

import pytest
from transformers import AutoConfig

from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.commands.plan import main
from trl_ext.planner import plan as planner
from trl_ext.planner.plan import GIB
from trl_ext.planner.weights import base_bytes, meta_model

TINY = tiny_causal_lm(hidden_size=64, layers=3).config


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path, capsys):
    AutoConfig.for_model("t5", d_model=32).save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["--model", str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_command_reads_a_configuration_and_no_weights(tmp_path, capsys):
    folder = tmp_path / "model"
    save_tiny(folder, tiny_causal_lm(hidden_size=64, layers=3))
    (folder / "model.safetensors").write_bytes(b"no weights")
    arguments = ["--critic", "adapter", "--rank", "4", "--prompt", "12", "--completion", "20", "--rollout", "4"]
    for model in (folder, folder / "config.json"):
        main(["--model", str(model), *arguments, "--card", "8", "--json"])
        printed = json.loads(capsys.readouterr().out)
        assert printed["resident"]["base"] == base_bytes(meta_model(TINY), "nf4")
        assert printed["peak"] == max(printed["phase_peaks"].values())
        assert printed["largest_micro_batch"] == {"8.0": 4}


def test_command_says_what_to_change_where_a_model_does_not_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planner, "advise", lambda *_: [("critic='head' instead of 'adapter'", int(1.2 * GIB))])
    save_tiny(tmp_path, tiny_causal_lm(hidden_size=64, layers=3))
    for card, fits in (("0.5", False), ("8", True)):
        main(["--model", str(tmp_path), "--prompt", "64", "--completion", "64", "--rollout", "2", "--card", card])
        out = capsys.readouterr().out
        assert ("does not fit into 0.5 GB" in out) == (not fits)
        assert ("critic='head' instead of 'adapter' saves 1.20 GiB" in out) == (not fits)
    for part in ("base", "actor adapter", "optimizer", "gradients", "activations", "logits", "KV cache", "peak"):
        assert part in out


@pytest.mark.parametrize(
    "arguments",
    [["--model", "no/such-model"], ["--micro_batch", "many"], ["--quantization", "fp8"], ["--dtype", "int8"], ["--x"]],
)
def test_wrong_input_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2 and not captured.out
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_the_context_of_the_model_is_minded_as_by_the_trainer(tmp_path, capsys):
    save_tiny(tmp_path, tiny_causal_lm(hidden_size=64, layers=3))  # a context of 128 tokens
    given = ["--model", str(tmp_path), "--card", "8"]
    with pytest.raises(SystemExit):
        main([*given, "--completion", "128"])
    refusal = "`completion` 128 leaves no room for a prompt in the model's context of 128 tokens"
    assert refusal in capsys.readouterr().err
    main([*given, "--prompt", "100", "--completion", "64", "--rollout", "2"])
    out, err = capsys.readouterr()
    assert err.startswith("warning: `prompt` 100 and `completion` 64") and "at most 64 tokens" in err
    assert "MiB, as torch" in out and " 0.00 " not in out, "a small model"
    assert "8 GB: 2 (the whole rollout)" in out


def test_command_without_model_prints_the_largest(monkeypatch, capsys):
    monkeypatch.setattr(planner, "SHAPES", {"small": TINY.to_dict()})
    main(["--card", "8"])
    assert "8 GB: small" in capsys.readouterr().out
