# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Secrets are in no file that is written; names that only look like secrets are left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import scripted
from trl_ext import PPOConfig
from trl_ext.instructions.stages import fingerprint, read_record, run_stage
from trl_ext.messages.redaction import HIDDEN, is_secret, redacted, redacted_text
from trl_ext.reports.report import write_report
from trl_ext.reports.summary import write_summary


def words(text: str) -> list[str]:
    return text.split()


SECRET_NAMES = words(
    "token hub_token HF_TOKEN hfToken push_to_hub_token use_auth_token access_token accessToken access_tokens "
    "refresh-token bot_token token2 password PASSWORD Passwd db_password PGPASSWORD passphrase api_key API_KEY apiKey "
    "APIKEY apikey api-keys X-Api-Key WANDB_API_KEY OPENAI_KEY openai-key aws_secret_access_key AWSSecretKey secret "
    "client_secret clientSecret private_key ssh_key encryptionKey Authorization Proxy-Authorization authorization auth "
    "basic_auth Cookie Set-Cookie credentials"
)
INNOCENT_NAMES = words(
    "eos_token pad_token pad_token_id bos_token decoder_start_token image_token special_tokens stop_tokens tokens "
    "num_tokens max_tokens max_token max_new_tokens tokenizer tokenized token_ids tokens_per_second "
    "include_tokens_per_second skip_special_tokens per_token answer_token key keys sort_key primary_key public_key "
    "cache_key prompt_key label_keys ignore_keys key_mapping num_key_value_heads keyword monkey api_key_env author "
    "authority authors forward_pass passes num_passes compass bypass secretary cookiecutter reward_name learning_rate"
)


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets(name):
    assert is_secret(name)
    assert redacted({name: "x"}) == {name: HIDDEN}


@pytest.mark.parametrize("name", INNOCENT_NAMES)
def test_names_that_look_like_secrets(name):
    assert not is_secret(name)
    assert redacted({name: "x"}) == {name: "x"}


def test_at_any_depth_and_nothing_but_secrets():
    value = {
        "a": [{"b": ({"Token": "t"}, 3)}],
        "credentials": {"user": "me", "parts": ["x", 7], "on": True, "none": None},
        "password": 1234,
        "token": 5,  # a number of tokens, or the id of one
        "use_auth_token": True,
        "hub_token": "<HUB_TOKEN>",
        "headers": [("Authorization", "Bearer x"), ["x-api-key", "y"], ("accept", "z")],
        3: "x",
    }
    before = json.dumps(value, default=str)
    assert redacted(value) == {
        "a": [{"b": ({"Token": HIDDEN}, 3)}],
        "credentials": {"user": HIDDEN, "parts": [HIDDEN, HIDDEN], "on": True, "none": None},
        "password": HIDDEN,
        "token": 5,
        "use_auth_token": True,
        "hub_token": "<HUB_TOKEN>",
        "headers": [["Authorization", HIDDEN], ["x-api-key", HIDDEN], ("accept", "z")],
        3: "x",
    }
    assert json.dumps(value, default=str) == before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host:80/a/b?x=1", "https://(hidden)@host:80/a/b?x=1"),
        ("postgres://me@host/db", "postgres://(hidden)@host/db"),
        (
            "https://host/?API_KEY=a&n=1&X-Amz-Signature=b",
            "https://host/?API_KEY=(hidden)&n=1&X-Amz-Signature=(hidden)",
        ),
        ("s3://b/c?key=a#access_token=b", "s3://b/c?key=(hidden)#access_token=(hidden)"),
        ("https://host/?max_tokens=9&api%5Fkey=a", "https://host/?max_tokens=9&api%5Fkey=(hidden)"),
        ("see https://u:p@h/x, then", "see https://(hidden)@h/x, then"),
        ("Server=h;Password=a;Timeout=3", "Server=h;Password=(hidden);Timeout=3"),
        ("hf_abcdefghijklmnopqrst and sk-abcdefghijklmnopqrst", "(hidden) and (hidden)"),
        ("Bearer abcdefgh12", "Bearer (hidden)"),
        ('{"token": "a", "n": 1}', '{"token": "(hidden)", "n": 1}'),
        ("user@host and a=b, key=c, top_k=5", "user@host and a=b, key=c, top_k=5"),
        ("the password is a word", "the password is a word"),
    ],
)
def test_secrets_in_texts(text, shown):
    assert redacted_text(text) == shown


SECRETS = ("s3cr3t-1", "s3cr3t-2", "s3cr3t-3", "s3cr3t-4")
NESTED = {
    "token": SECRETS[0],
    "dtype": torch.float32,
    "proxies": {"https": f"http://me:{SECRETS[1]}@proxy"},
    "headers": {"Authorization": f"Bearer {SECRETS[2]}"},
}


def config(folder: Path, **settings: Any) -> PPOConfig:
    return PPOConfig(output_dir=str(folder), model_init_kwargs=NESTED, hub_token=SECRETS[3], use_cpu=True, **settings)


def test_no_form_of_the_settings_shows_a_secret(tmp_path):
    args = config(tmp_path)
    forms = (args.to_dict(), args.to_sanitized_dict(), args.to_json_string(), repr(args), str(args))
    for form in map(str, forms):
        assert not [secret for secret in SECRETS if secret in form]
        assert "pad_token" not in form or "float32" in form
    assert args.to_dict()["model_init_kwargs"]["dtype"] == "float32"
    # which are still what the user gave
    assert args.model_init_kwargs == NESTED and args.model_init_kwargs["dtype"] is torch.float32
    assert args.hub_token == SECRETS[3]


def test_no_file_of_a_run_or_a_recipe_shows_a_secret(tmp_path):
    made = scripted.trainer(
        tmp_path / "run", model_init_kwargs=NESTED, hub_token=SECRETS[3], save_strategy="steps", save_steps=2
    )
    made.train()
    made.save_model(str(tmp_path / "run" / "final"))
    made.create_model_card(model_name="m")
    settings = made.args.to_dict() | {"model_init_kwargs": NESTED, "judge": f"https://me:{SECRETS[0]}@host"}
    run_stage("ppo", tmp_path / "ppo", settings, (), lambda folder: {"model": "m"})
    write_summary(tmp_path / "summary.json", {"reward_model": {"api_key": SECRETS[1], "accuracy": 0.5}, "kl": 1.0})
    write_report(tmp_path / "report.html", title="t", config=settings, notes=f"judged by https://h/?key={SECRETS[2]}")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"ppo_config.json", "stage.json", "summary.json", "report.html", "README.md"} <= {
        path.name for path in files
    }
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], path
    record = read_record(tmp_path / "ppo")
    assert record is not None and record.settings["model_init_kwargs"]["token"] == HIDDEN
    assert json.loads((tmp_path / "summary.json").read_text())["reward_model"]["accuracy"] == 0.5


def test_another_password_does_not_do_a_stage_again():
    assert fingerprint({"token": "a", "lr": 1}) == fingerprint({"token": "b", "lr": 1}) != fingerprint({"lr": 2})
