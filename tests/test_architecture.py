# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The rules of the house hold in the source, and each check notices when its rule is broken."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture as check

ROOT = Path(__file__).resolve().parent.parent

Check = Callable[[Path], list[str]]
CHECKS = [
    check.layer_violations,
    check.circle_violations,
    check.name_in_string_violations,
    check.dependency_violations,
    check.private_name_violations,
    check.unsafe_violations,
    check.size_violations,
    check.unfinished_violations,
]


@pytest.mark.parametrize("violations", CHECKS)
def test_the_source_keeps_the_rule(violations: Check) -> None:
    assert check.python_files(ROOT), "nothing was checked"
    assert violations(ROOT) == []


def test_long_modules_are_a_warning() -> None:
    for file, count in check.line_counts(ROOT).items():
        if count > check.LONG_MODULE:
            warnings.warn(f"{file} has {count} lines: split it, if it holds two concepts.", stacklevel=1)


def test_the_picture_of_the_layers_is_that_of_the_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = text.split("<!-- layers: begin -->\n")[1].split("\n<!-- layers: end -->")[0]
    assert shown == check.layers_picture(), "paste it from `python -m tests.architecture`"


def write_tree(root: Path, files: dict[str, str]) -> Path:
    modules = ["objectives/a", "kl_control/a", "rewards/base", "rewards/a", "actor_critic/a", "text/a", "experience/a"]
    modules += ["monitoring/a", "commands/a", "config", "trainer", "integrations/a", "_compat", "__init__"]
    tree = {f"trl_ext/{module}.py": "" for module in modules} | files
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if not text or text.startswith("#") else f"{check.HEADER}\n{text}", encoding="utf-8")
    return root


GOOD = {
    "trl_ext/__init__.py": "from trl_ext.trainer import PPOTrainer\nfrom .config import PPOConfig\n",
    "trl_ext/_compat.py": "from transformers.utils import _is_x\nimport trl\ny = trl._z\n",
    "trl_ext/objectives/a.py": "import math\nimport torch\nfrom trl_ext.objectives import b\n",
    "trl_ext/rewards/__init__.py": "from trl_ext.rewards.base import Reward\nfrom .a import Rule\n",
    "trl_ext/rewards/a.py": "from .base import Reward\nfrom trl_ext.objectives.a import x\n",
    "trl_ext/experience/a.py": "from trl_ext.text.a import x\nimport trl_ext._compat\n",
    "trl_ext/text/a.py": (
        '"""The package eval/a, run with python -m eval.a."""\n'
        "from pathlib import Path\nhere = Path(__file__).parent / 'data'\ncache = Path.home() / 'trl_ext' / 'cache'\n"
        "parser.print('run python -m eval.a')\nlogger = get_logger('trl_ext')\nstages = ('ppo', 'eval')\n"
        "find_spec('trl_ext')\nkey = 'trl_ext.state'\nprefix = f'eval_{key}'\n"
    ),
    "trl_ext/trainer.py": (
        "import torch\nfrom trl_ext import rewards\nfrom trl_ext.config import PPOConfig\n"
        "class T:\n    def _hook(self):\n        self._state = torch._dynamo\n        super()._hook()\n"
        "        return self._signature_columns, other._state, self.__class__.__name__\n"
    ),
    "trl_ext/integrations/a.py": "from ..kl_control import a\n",
    "trl_ext/actor_critic/a.py": "if __name__ == '__main__':\n    from trl_ext.commands.a import main\n\n    main()\n",
    "recipes/a.py": (
        "import pickle\nimport yaml\nimport trl_ext\npickle.dumps(1)\n"
        "from trl_ext import PPOTrainer\nyaml.safe_load('')\n"
    ),
    "eval/a.py": "def f(trust_remote_code: bool = False): g(trust_remote_code=False)\n",
}


@pytest.mark.parametrize("violations", CHECKS)
def test_a_good_tree_passes(violations: Check, tmp_path: Path) -> None:
    assert violations(write_tree(tmp_path, GOOD)) == []


BAD = [
    # layers: upwards, sideways, in a function, relative, through the public API, a module outside the design
    (
        check.layer_violations,
        "trl_ext/objectives/a.py",
        "from trl_ext.experience.a import x",
        "must not import experience",
    ),
    (check.layer_violations, "trl_ext/objectives/a.py", "import trl_ext.kl_control.a", "must not import kl_control"),
    (check.layer_violations, "trl_ext/rewards/base.py", "from trl_ext.rewards import a", "must not import rewards"),
    (check.layer_violations, "trl_ext/rewards/base.py", "from . import a", "must not import rewards"),
    (check.layer_violations, "trl_ext/rewards/a.py", "from trl_ext import actor_critic", "import actor_critic"),
    (check.layer_violations, "trl_ext/experience/a.py", "from ..trainer import x", "must not import trainer"),
    (check.layer_violations, "trl_ext/experience/a.py", "from trl_ext.config import PPOConfig", "import config"),
    (check.layer_violations, "trl_ext/integrations/a.py", "from ..trainer import T", "must not import trainer"),
    (check.layer_violations, "trl_ext/integrations/a.py", "from ..config import C", "must not import config"),
    (check.layer_violations, "trl_ext/integrations/a.py", "from trl_ext import T", "must not import trl_ext"),
    (check.layer_violations, "trl_ext/trainer.py", "def f():\n    import trl_ext.integrations.a", "integrations"),
    (check.layer_violations, "trl_ext/trainer.py", "from recipes.a import x", "must not import recipes"),
    (check.layer_violations, "trl_ext/_compat.py", "from trl_ext.objectives.a import x", "must not import objectives"),
    (check.layer_violations, "recipes/a.py", "from eval.quality import x", "recipes must not import eval"),
    (check.layer_violations, "trl_ext/stray.py", "x = 1", "in no layer"),
    (
        check.circle_violations,
        "trl_ext/rewards/base.py",
        "def f():\n    import trl_ext.rewards.a",
        "a circle of imports",
    ),
    # strings that name a package or reach one by a path
    *[
        (check.name_in_string_violations, "trl_ext/text/a.py", source, "in a string: import it")
        for source in (
            "folder = 'eval/a'",
            "folder = '../eval/a.py'",
            "folder = ROOT / 'eval' / 'a.py'",
            "folder = ROOT / 'recipes'",
            "folder = Path('eval')",
            "folder = os.path.join(ROOT, 'recipes', 'a.py')",
            "folder = ROOT.joinpath('eval', name)",
            "name = 'recipes.a'",
            "name = f'trl_ext.{rest}'",
            "import_module('trl_ext.trainer')",
            "runpy.run_module('trl_ext.trainer')",
            "runpy.run_module('recipes')",
            "command = [sys.executable, '-m', 'trl_ext.commands.a']",
            "command = (sys.executable, '-m', 'eval')",
            "own = any(path.is_relative_to(name) for name in ('trl_ext', 'recipes'))",
            "from pathlib import Path\nROOT = Path(__file__).resolve().parents[2]",
            "from pathlib import Path\nROOT = Path(__file__).parent.parent.parent",
            "import os\nROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))",
        )
    ],
    # what the pure packages may depend on
    (check.dependency_violations, "trl_ext/objectives/a.py", "import numpy as np", "must not import numpy"),
    (check.dependency_violations, "trl_ext/kl_control/a.py", "from torch import nn", "must not import torch"),
    # private names of other libraries
    (check.private_name_violations, "trl_ext/trainer.py", "from trl.trainer.utils import _x", "trl.trainer.utils._x"),
    (check.private_name_violations, "trl_ext/trainer.py", "import peft._hidden", "peft._hidden"),
    (check.private_name_violations, "trl_ext/trainer.py", "from transformers._hidden import x", "_hidden"),
    (check.private_name_violations, "recipes/a.py", "import transformers as t\nt.utils._x()", "_x"),
    (check.private_name_violations, "eval/a.py", "def f(model):\n    return model._keep", "_keep"),
    (check.private_name_violations, "eval/a.py", "def f(self):\n    return self.model._keep", "_keep"),
    (check.private_name_violations, "eval/a.py", "getattr(model, '_keep', None)", "_keep"),
    (
        check.private_name_violations,
        "trl_ext/config.py",
        "from trl import Base\nclass C(Base):\n    _FIELDS = [*Base._FIELDS]\n",
        "_FIELDS",
    ),
    # code that runs what it loads
    (check.unsafe_violations, "trl_ext/text/a.py", "import pickle\npickle.loads(b'')", "pickle.loads"),
    (check.unsafe_violations, "trl_ext/text/a.py", "import dill", "dill"),
    (check.unsafe_violations, "trl_ext/text/a.py", "import torch\ntorch.load('x', weights_only=True)", "torch.load"),
    (check.unsafe_violations, "trl_ext/text/a.py", "from torch import save", "torch.save"),
    (check.unsafe_violations, "recipes/a.py", "import yaml\nyaml.load('', yaml.SafeLoader)", "yaml.load"),
    (check.unsafe_violations, "recipes/a.py", "f(trust_remote_code=True)", "trust_remote_code=True"),
    (check.unsafe_violations, "recipes/a.py", "def f(a, trust_remote_code=True): ...", "trust_remote_code=True"),
    (check.unsafe_violations, "recipes/a.py", "def f(*, trust_remote_code=True): ...", "trust_remote_code=True"),
    (
        check.unsafe_violations,
        "recipes/a.py",
        "class A:\n    trust_remote_code: bool = True",
        "trust_remote_code=True",
    ),
    (check.unsafe_violations, "recipes/a.py", "f(**{'trust_remote_code': True})", "trust_remote_code=True"),
    (check.unsafe_violations, "recipes/a.py", "args.trust_remote_code = True", "trust_remote_code=True"),
    (check.unsafe_violations, "eval/a.py", "np.load('x', allow_pickle=True)", "allow_pickle"),
    # size and loose ends
    (check.size_violations, "trl_ext/trainer.py", "x = 1\n" * 450, "451 lines, the limit is 450"),
    (check.unfinished_violations, "trl_ext/text/a.py", "x = 1  # TO" + "DO: later", "TO" + "DO"),
    (check.unfinished_violations, "eval/a.py", "raise NotImplementedErr" + "or", "NotImplementedErr" + "or"),
    (check.unfinished_violations, "eval/a.py", "# no licence\n", "does not start with the licence line"),
]


@pytest.mark.parametrize(("violations", "file", "source", "message"), BAD)
def test_each_violation_is_found(violations: Check, file: str, source: str, message: str, tmp_path: Path) -> None:
    found = violations(write_tree(tmp_path, GOOD | {file: source}))
    assert len(found) == 1 and file in found[0] and message in found[0], found
