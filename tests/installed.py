# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of the built archives, and of the wheel in a fresh environment, outside of the clone.

    python -m tests.installed DIST PYTHON

DIST holds one wheel and one source archive, PYTHON is the interpreter of an environment with the wheel. Run by
`make package`.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path, PurePosixPath

from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
HELP_SECONDS = 2.0
REWARD = '''"""A reward of a user's own."""


def brevity(completions, **kwargs):
    return [-len(text) / 100 for text in completions]
'''


def tracked() -> set[str]:
    """The files of the clone, by their path."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


def check_archives(dist: Path) -> None:
    """The wheel holds the package and the recipes; the source archive holds the clone without what tools leave."""
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    files = tracked()
    package = {file for file in files if file.startswith("trl_ext/")}
    package |= {f"trl_ext/{file}" for file in files if re.fullmatch(r"recipes/.*\.(py|yaml|md)", file)}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == package, sorted(inside ^ package)
    with tarfile.open(source) as archive:
        names = {str(PurePosixPath(*PurePosixPath(item.name).parts[1:])) for item in archive if item.isfile()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("trl_ext.egg-info/"))}
    assert names - made <= files, f"not of the clone: {sorted(names - made - files)}"
    assert files - names <= {".gitignore"}, f"missing in the source archive: {sorted(files - names)}"
    print(f"{wheel.name}: {len(inside)} files; {source.name}: {len(names)} files", flush=True)


class Environment:
    """Runs commands of an environment in an empty folder, without the clone.

    Args:
        python: Its interpreter.
        folder: The folder.
    """

    def __init__(self, python: Path, folder: Path):
        self.python, self.folder = python, folder
        self.variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.variables["HF_HOME"] = str(folder / "hf")

    def run(self, *words: str) -> str:
        """What a command of the environment prints; its first word is a script of the environment."""
        start = time.perf_counter()
        command = [str(self.python.with_name(words[0])), *words[1:]]
        done = subprocess.run(command, cwd=self.folder, env=self.variables, capture_output=True, text=True)
        said = done.stdout[-2000:] + done.stderr[-3000:]
        assert done.returncode == 0, f"{' '.join(words)}: exit {done.returncode}\n{said}"
        print(f"{time.perf_counter() - start:6.1f} s  {' '.join(words)}", flush=True)
        return done.stdout

    def check_help(self, *words: str) -> None:
        """The help of a command comes in time; the second of two measurements counts, when files are in memory."""
        self.run("trl_ext", *words, "--help")
        start = time.perf_counter()
        assert "--help" in self.run("trl_ext", *words, "--help"), words
        seconds = time.perf_counter() - start
        assert seconds < HELP_SECONDS, f"trl_ext {' '.join(words)} --help took {seconds:.1f} seconds"


def main(dist: Path, python: Path) -> None:
    """Check the archives, then use the wheel as someone does who has no clone."""
    check_archives(dist)
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Environment(python, Path(temporary))
        place = fresh.run("python", "-c", "import trl_ext; print(trl_ext.__file__)")
        assert Path(place.strip()).is_relative_to(python.parents[1]), f"not the wheel: {place}"
        assert fresh.run("trl_ext", "--version").split()[0] == "trl_ext"
        commands = fresh.run("python", "-c", "from trl_ext.commands import COMMANDS; print(*COMMANDS)").split()
        assert {"ppo", "detox", "plan", "merge"} <= set(commands)
        for command in [[], *([name] for name in commands)]:
            fresh.check_help(*command)
        fresh.run("trl_ext", "plan", "--model", "llama-3-8b")
        (fresh.folder / "my_rewards.py").write_text(REWARD)
        prompts = [json.dumps({"question": f"the cat sat {i}", "id": i}) for i in range(80)]
        (fresh.folder / "prompts.jsonl").write_text("\n".join(prompts))
        save_tiny(fresh.folder / "lm", tiny_causal_lm(), tiny_tokenizer())
        given = ("--model_name_or_path", "lm", "--dataset_name", "prompts.jsonl", "--prompt_column", "question")
        small = ("--total_episodes", "64", "--max_completion_length", "8", "--output_dir", "out", "--use_cpu", "true")
        fresh.run("trl_ext", "ppo", *given, "--reward", "my_rewards.py:brevity", *small)
        made = {path.name for path in (fresh.folder / "out").iterdir()}
        assert {"README.md", "model.safetensors", "report.html", "summary.json"} <= made, made


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).absolute())
