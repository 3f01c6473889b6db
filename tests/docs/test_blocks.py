# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every code block of README and documentation runs. CONTRIBUTING, "Documentation", says how to write one."""

import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from .command_lines import check_command, commands, run_script
from .local_names import LocalNames
from .pages import PAGES, ROOT, Block, blocks, page_name

# On TRL 1.12 only the pages run that need it; on newer TRL, every page without the blocks that need 1.12.
WITH_BLOCKS = [page for page in PAGES if blocks(page)]
NEED_TRL_PPO = [page for page in WITH_BLOCKS if any(block.needs == "trl.experimental.ppo" for block in blocks(page))]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalNames:
    return LocalNames(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("page", NEED_TRL_PPO if _installed("trl.experimental.ppo") else WITH_BLOCKS, ids=page_name)
def test_blocks_run(page: Path, local: LocalNames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in ("recipes", "examples"):  # as in a clone
        (tmp_path / folder).symlink_to(ROOT / folder)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.needs and not _installed(block.needs):
            continue
        if block.part:
            assert block.code in (ROOT / block.part).read_text(encoding="utf-8"), f"{block.where}: not in {block.part}"
            continue
        code = local.in_place(block.shrunk)
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(code, encoding="utf-8")
        _run(block.setup, f"{block.where} (setup)", names, local)
        if block.language == "python":
            _run(code, block.where, names)
        elif block.language == "bash":
            _run_bash(block, code, names)
        elif block.language == "yaml":
            _read_yaml(block, code)
        _run(block.check, f"{block.where} (check)", names, local)


def _run(code: str, where: str, names: dict[str, Any], local: LocalNames | None = None) -> None:
    exec(compile(local.in_place(code) if local else code, where, "exec"), names)


def _run_bash(block: Block, code: str, names: dict[str, Any]) -> None:
    done = subprocess.run(["bash", "-n", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.where}: {done.stderr}"
    try:
        for words in commands(code):
            check_command(words)
    except AssertionError as error:
        raise AssertionError(f"{block.where}: {error}") from error
    if block.run:
        names["printed"] = run_script(code, Path.cwd())


def _read_yaml(block: Block, code: str) -> None:
    assert block.config, f"{block.where}: name the command that reads it: <!-- config: detox -->, or none"
    yaml.safe_load(code)
    if block.config != "none":
        Path("block.yaml").write_text(code, encoding="utf-8")
        check_command(["trl_ext", *block.config.split(), "--config", "block.yaml"])
