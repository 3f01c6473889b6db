# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the project says about itself agrees with what it is: versions, pins, README, public API."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trl_ext

ROOT = Path(__file__).resolve().parent.parent
PAGES = "".join(path.read_text("utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = [item for extra in PROJECT["optional-dependencies"].values() for item in extra]


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
    # vLLM's build for CPUs, in an environment of its own.
    pinned |= dict(re.findall(r"^(vllm)-cpu==(.+)$", (ROOT / "constraints-vllm.txt").read_text("utf-8"), re.MULTILINE))
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
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trl_ext").rglob("*.py")}
    files |= {"trl_ext/py.typed", "trl_ext/running/options.json"}
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


def test_what_needs_the_oldest_trl_is_not_left_out_there() -> None:
    """Tests that are skipped on the newest TRL would otherwise run nowhere."""
    command = ["make", "--no-print-directory", "--eval", "shown: ; @echo $(WITHOUT_TRL)", "shown"]
    options = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    left_out = [ROOT / option.removeprefix("--ignore=") for option in options]
    assert left_out and all(path.exists() for path in left_out)
    needing = re.compile(r"removed in 1\.13|trl >= 1\.13")
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if needing.search(path.read_text("utf-8"))]
    assert len(files) >= 4 and not [path for path in files for out in left_out if path.is_relative_to(out)]


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9.-]+):", makefile, flags=re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```$", contributing, flags=re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"^make ([a-z0-9.-]+)", blocks, flags=re.MULTILINE))
    assert {"docs", "test", "quality"} <= named <= targets


def test_files_that_the_documents_name_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md", "SECURITY.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        paths = re.findall(r"\b(?:recipes|eval|trl_ext|tests)/[\w./-]+\.(?:py|yaml|md)\b", text)
        assert [name for name in [*links, *paths] if not (ROOT / name).exists()] == []
        modules = re.findall(r"python -m ((?:trl_ext|eval|tests)\b[\w.]*\w)", text)
        assert [name for name in modules if find_spec(name) is None] == []


def test_public_names_are_importable_and_documented() -> None:
    assert sorted(set(trl_ext.__all__)) == sorted(trl_ext.__all__)
    assert set(trl_ext._HOMES) == set(trl_ext.__all__) <= set(dir(trl_ext))
    for name in trl_ext.__all__:
        public = getattr(trl_ext, name)
        # `__doc__` of a class without one of its own is None; a dataclass without one gets its signature.
        assert public.__doc__ and not public.__doc__.startswith(f"{name}("), f"{name} has no docstring"
        assert re.search(rf"\b{name}\b", PAGES), f"{name} is neither in the README nor in the documentation"


def test_processes_of_tests_see_the_trl_of_the_suite() -> None:
    """A PYTHONPATH of a test's own would run the newest TRL in the suite of the oldest."""
    own = re.compile(r"[\"']PYTHONPATH[\"']: (?!python_path\()")
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    assert own.search('{"PYTHONPATH": str(ROOT)}') and len(sources) > 100
    assert [name for name, text in sources.items() if name != "test_project.py" and own.search(text)] == []
