# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the project says about itself agrees with what it is: versions, pins, README, public API."""

import ast
import dataclasses
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trl_ext
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext import kl_control, rewards
from trl_ext.critic_modes import CRITIC_MODES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = [item for extra in PROJECT["optional-dependencies"].values() for item in extra]

# What `trl.experimental.ppo.PPOConfig` of TRL 1.12 adds to `TrainingArguments`; later TRL has no PPO to ask.
TRL_PPO_FIELDS = [
    "batch_size",
    "cliprange",
    "cliprange_value",
    "dataset_num_proc",
    "ds3_gather_for_generation",
    "gamma",
    "kl_coef",
    "kl_estimator",
    "lam",
    "local_batch_size",
    "local_mini_batch_size",
    "local_rollout_forward_batch_size",
    "micro_batch_size",
    "mini_batch_size",
    "missing_eos_penalty",
    "model_adapter_name",
    "num_mini_batches",
    "num_ppo_epochs",
    "num_sample_generations",
    "num_total_batches",
    "ref_adapter_name",
    "response_length",
    "reward_model_path",
    "sft_model_path",
    "stop_token",
    "stop_token_id",
    "temperature",
    "total_episodes",
    "vf_coef",
    "whiten_rewards",
    "world_size",
]


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def table(name: str) -> list[list[str]]:
    """The rows (lists of cells) of the table behind the comment `<!-- table: name -->`, without its heading."""
    body = README.split(f"<!-- table: {name} -->\n", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in body.splitlines()]
    assert len({len(row) for row in rows}) == 1, f"the rows of table '{name}' differ in their number of cells"
    return rows[2:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def own_fields(config: type) -> set[str]:
    base = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    return {field.name for field in dataclasses.fields(config)} - base


def test_one_version_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\] - (Unreleased|\d{4}-\d\d-\d\d)$", changelog, flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest is not None and newest.group(1) == PROJECT["version"] == trl_ext.__version__ == citation["version"]


def test_pre_commit_runs_the_pinned_ruff() -> None:
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert f"ruff=={hooks['rev'].removeprefix('v')}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()


def test_workflows_and_issue_forms_are_yaml() -> None:
    files = [path for folder in ("workflows", "ISSUE_TEMPLATE") for path in (ROOT / ".github" / folder).glob("*.yml")]
    assert len(files) >= 4
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "quality-and-tests.yml").read_text("utf-8"))["jobs"]
    for target in jobs["check"]["strategy"]["matrix"]["target"]:
        assert f"\n{target}:" in makefile
    assert all(yaml.safe_load(path.read_text(encoding="utf-8")) for path in files)


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *OPTIONAL])
def test_every_dependency_is_a_range_with_a_pin_inside(requirement: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = Requirement(requirement)
    assert "==" not in str(wanted.specifier) and "+" not in "".join(pinned.values())
    assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)])


def test_a_wheel_puts_one_package_on_the_path_and_brings_types_and_recipes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("trl_ext", "recipes", "eval", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    code = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("trl_ext-*.whl"))) as wheel:
        inside = set(wheel.namelist())
        metadata = {Path(name).name: wheel.read(name).decode() for name in inside if ".dist-info/" in name}
    assert metadata["top_level.txt"].split() == ["trl_ext"]
    assert "trl_ext = trl_ext.commands:main" in metadata["entry_points.txt"]
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trl_ext").rglob("*.py")} | {"trl_ext/py.typed"}
    recipes = [path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".py", ".yaml", ".md")]
    files |= {f"trl_ext/{path.relative_to(ROOT).as_posix()}" for path in recipes}
    assert len(recipes) > 15 and {name for name in inside if ".dist-info/" not in name} == files


def imported_libraries(*folders: str) -> set[str]:
    trees = [
        ast.parse(path.read_text(encoding="utf-8")) for folder in folders for path in (ROOT / folder).rglob("*.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("script", ["detoxification.py", "instruction_following.py"])
def test_a_recipe_imports_the_package_only_where_a_clone_can_be_found(script: str) -> None:
    """Without an installation the package is found by the lines that put the clone on the path."""
    body = ast.parse((ROOT / "recipes" / script).read_text(encoding="utf-8")).body
    found = [i for i, node in enumerate(body) if isinstance(node, ast.If) and "find_spec" in ast.unparse(node)]
    imports = [i for i, node in enumerate(body) if "trl_ext" in ast.unparse(node) and isinstance(node, ast.ImportFrom)]
    assert len(found) == 1 and imports and found[0] < imports[0]


def test_everything_imported_is_declared() -> None:
    declared = {canonicalize_name(Requirement(item).name) for item in [*PROJECT["dependencies"], *OPTIONAL]}
    distributions = importlib.metadata.packages_distributions()
    ours = {"trl_ext", "recipes", "eval"}
    foreign = {name for name in imported_libraries(*ours) - ours if name in distributions}
    assert "transformers" in foreign
    assert [n for n in sorted(foreign) if not {canonicalize_name(d) for d in distributions[n]} & declared] == []


def test_ci_runs_what_a_contributor_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert re.findall(r"^make (\S+)", script.read_text(encoding="utf-8"), flags=re.MULTILINE)[:2] == [
        "quality",
        "test",
    ]


@pytest.mark.parametrize("folder", ["trl_ext", "trl_ext/rewards", "recipes", "eval"])
@pytest.mark.parametrize(
    ("docstring", "rules"),
    [
        (None, {"D103"}),
        ("\n    Return 1.\n    ", {"D200", "D212"}),
        ("Return 1", {"D415"}),
        ("Returns 1.", {"D401"}),
        ("Return one number,\n    which is 1.\n    ", {"D205"}),
        ("Return 1.", set[str]()),
    ],
)
def test_quality_demands_a_docstring_of_public_functions(folder: str, docstring: str | None, rules: set[str]) -> None:
    body = "" if docstring is None else f'    """{docstring}"""\n'
    source = f'"""A module."""\n\n\ndef one() -> int:\n{body}    return 1\n'
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json"]
    done = subprocess.run(
        [*command, f"--stdin-filename={folder}/bad.py", "-"],
        cwd=ROOT,
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == bool(rules), done.stderr
    assert {violation["code"] for violation in json.loads(done.stdout)} == rules


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9.-]+):", makefile, flags=re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = "".join(code_blocks("bash") + code_blocks("bash", contributing))
    named = set(re.findall(r"^make ([a-z0-9.-]+)", blocks, flags=re.MULTILINE))
    assert {"demo", "test", "quality"} <= named <= targets


def test_code_in_the_readme_parses() -> None:
    for block in code_blocks("python"):
        ast.parse(block)
    for block in code_blocks("bash"):
        assert subprocess.run(["bash", "-n", "-c", block], check=False).returncode == 0
    for block in code_blocks("yaml"):
        yaml.safe_load(block)
    assert code_blocks("python") and code_blocks("bash")


def test_files_that_the_documents_name_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md", "SECURITY.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        paths = re.findall(r"\b(?:recipes|eval|trl_ext|tests)/[\w./-]+\.(?:py|yaml|md)\b", text)
        assert [name for name in [*links, *paths] if not (ROOT / name).exists()] == []
        modules = re.findall(r"python -m ((?:trl_ext|eval|tests)\b[\w.]*\w)", text)
        assert [name for name in modules if find_spec(name) is None] == []


def test_the_custom_reward_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = README.split("<!-- example: custom-reward -->\n", 1)[1]
    source = code_blocks("python", example)[0]
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
    small = {
        "Qwen/Qwen2.5-0.5B-Instruct": save_tiny(tmp_path / "lm", tiny_causal_lm("qwen2")),
        "unitary/toxic-bert": save_tiny(tmp_path / "classifier", tiny_classifier()),
        "total_episodes=2048": "total_episodes=16, logging_steps=1, report_to='none'",
        "max_completion_length=64": "max_completion_length=4",
    }
    for written, replacement in small.items():
        assert source.count(written) == 1, f"the example no longer has {written}"
        source = source.replace(written, replacement)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(source, "<the custom-reward example>", "exec"), names)
    trainer = names["trainer"]
    assert isinstance(trainer, trl_ext.PPOTrainer)
    logged = [entry for entry in trainer.state.log_history if "rewards/brevity/mean" in entry]
    assert trainer.state.global_step > 0 and (tmp_path / "out").is_dir()
    assert logged and -0.04 <= logged[-1]["rewards/brevity/mean"] <= 0


def run_example(name: str, small: dict[str, str], given: dict[str, object] | None = None) -> dict[str, Any]:
    """Run the README's example with small models in place of the ones it names; returns its variables."""
    source = code_blocks("python", README.split(f"<!-- example: {name} -->\n", 1)[1])[0]
    for written, replacement in small.items():
        assert source.count(written) == 1, f"the example no longer has {written}"
        source = source.replace(written, replacement)
    names: dict[str, Any] = dict(given or {})
    exec(compile(source, f"<the {name} example>", "exec"), names)
    return names


@pytest.fixture
def tiny_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    return {
        "Qwen/Qwen2.5-0.5B-Instruct": save_tiny(tmp_path / "lm", tiny_causal_lm("qwen2")),
        "unitary/toxic-bert": save_tiny(tmp_path / "classifier", tiny_classifier()),
    }


def test_the_grpo_example_runs(tiny_names: dict[str, str]) -> None:
    small = (
        "output_dir='out', max_steps=2, per_device_train_batch_size=4, num_generations=2, use_cpu=True, bf16=False, "
    )
    small += "max_completion_length=4, report_to='none', logging_steps=1, beta=0.05)"
    names = run_example("grpo", tiny_names | {'output_dir="out", beta=0.05)': small})
    logged = [entry["kl_coef"] for entry in names["trainer"].state.log_history if "kl_coef" in entry]
    assert len(logged) == 2 and logged[0] == 0.05 != logged[1]


@pytest.mark.skipif(
    find_spec("trl.experimental.ppo") is None,
    reason="TRL's PPOTrainer was removed in 1.13: `make test-trl-1.12` has it",
)
def test_the_trl_ppo_example_runs(tiny_names: dict[str, str]) -> None:
    small = {
        "total_episodes=2048, response_length=64": "total_episodes=16, response_length=4, use_cpu=True, bf16=False, "
        "per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to='none', num_sample_generations=0"
    }
    names = run_example("trl-ppo", tiny_names | small)
    logged = [entry for entry in names["trainer"].state.log_history if "objective/kl" in entry]
    assert len(logged) == 2 and names["trainer"].args.kl_coef != 0.05


def test_the_value_head_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "lm", tiny_causal_lm())
    ids = torch.tensor([[5, 9, 11]])
    names = run_example("value-head", {"path/to/trl-checkpoint": folder}, {"input_ids": ids})
    assert names["values"].shape == (1, 3) and (tmp_path / "out" / "model.safetensors").is_file()


def test_tables_cover_the_fields_of_trl() -> None:
    ppo = {name for row in table("trl-ppo") for name in quoted(row[0])}
    assert ppo == set(TRL_PPO_FIELDS)
    grpo = [name for row in table("trl-grpo") for name in quoted(row[0])]
    fields = own_fields(trl.GRPOConfig)
    assert sorted(f for f in fields if not any(fnmatch(f, name) for name in grpo)) == []


def test_tables_name_options_that_exist() -> None:
    config = trl_ext.PPOConfig
    known = {field.name for field in dataclasses.fields(config)} | set(dir(config))
    known |= set(inspect.signature(trl_ext.PPOTrainer).parameters) | set(trl_ext.__all__) | set(rewards.__all__)
    words = {"k2", "PPOTrainer", "PeftModel", "None", "center", "scale"}
    for row in table("trl-ppo") + table("trl-grpo"):
        for name in [n for cell in row[1:] for n in quoted(cell)]:
            assert name.split("=")[0] in known | words, f"{row[0]}: {name}"
        if row[1].startswith(("the same", "properties of the same name")):
            assert [n for n in quoted(row[0]) if n not in known] == []
    for row in table("details"):
        assert [n for n in quoted(row[3]) if n not in known] == []
    assert [row[0] for row in table("details")] == [str(i) for i in range(1, 21)] + ["+"]


def test_plug_ins_that_the_readme_names_can_be_imported() -> None:
    classes = [name for row in table("plug-ins") for name in re.findall(r"`([A-Z]\w+)`", row[1] + row[2])]
    assert "AdaptiveKL" in classes and "PAR" in classes
    assert [name for name in classes if not hasattr(trl_ext, name) and not hasattr(rewards, name)] == []
    controllers = {name for name in kl_control.__all__ if name.endswith("KL")}
    of_a_kind = {name for name in rewards.__all__ if name.endswith("Reward")}
    assert controllers <= set(classes) and of_a_kind <= set(classes)
    critics = next(row[1] for row in table("plug-ins") if row[0].startswith("critics"))
    assert re.findall(r'`"(\w+)"`', critics) == list(CRITIC_MODES)


def test_public_names_are_importable_and_documented() -> None:
    assert sorted(set(trl_ext.__all__)) == sorted(trl_ext.__all__)
    assert set(trl_ext._HOMES) == set(trl_ext.__all__) <= set(dir(trl_ext))
    for name in trl_ext.__all__:
        public = getattr(trl_ext, name)
        # `__doc__` of a class without one of its own is None; a dataclass without one gets its signature.
        assert public.__doc__ and not public.__doc__.startswith(f"{name}("), f"{name} has no docstring"
        assert re.search(rf"\b{name}\b", README), f"{name} is not in the README"
