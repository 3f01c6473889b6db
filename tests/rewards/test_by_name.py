# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions by name: what leads to a function, and what is refused in one sentence."""

import multiprocessing
import pickle
import sys
import textwrap
from pathlib import Path

import pytest

from tests.bad_inputs.case import Case, check, table
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext.rewards import HTTPReward, PreferenceReward, ToxicityReward, check_reward_name, reward_by_name, reward_name
from trl_ext.rewards.by_name import FORMS, same_reward
from trl_ext.running.names import check_classifier, check_reward_model

REWARDS = """
    import functools
    import neighbour

    def brevity(completions, **kwargs):
        return [neighbour.length(text) for text in completions]

    async def slow_brevity(completions, **kwargs):
        return brevity(completions)

    class Above:
        def __init__(self, limit=3):
            self.limit = limit

        def __call__(self, completions, **kwargs):
            return [float(len(text) > self.limit) for text in completions]

        @staticmethod
        def zero(completions):
            return [0.0 for _ in completions]

    def make(limit=2):
        return Above(limit)

    four = Above(4)
    halved = functools.partial(brevity, scale=0.5)
    number = 3.0

    def broken():
        raise RuntimeError("no model here")

    def returns_none():
        pass
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny(root / "toxicity", tiny_classifier())
    save_tiny(root / "preference", tiny_classifier(("reward",)))
    save_tiny(root / "unnamed", tiny_classifier(("LABEL_0", "LABEL_1")))
    return root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path) -> Path:
    """The current folder of a user, with rewards and models; what is imported from it is forgotten afterwards."""
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(REWARDS))
    (tmp_path / "neighbour.py").write_text("def length(text):\n    return -float(len(text))\n")
    (tmp_path / "slip.py").write_text("x = 1\ndef f(completions)\n    return []\n")
    (tmp_path / "lacks.py").write_text("x = 1\nimport a_package_that_is_not_here\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "lone").mkdir()
    (tmp_path / "lone" / "my_rewards.py").write_text(
        "def brevity(completions):\n    return [7.0 for _ in completions]\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "rules.py").write_text(
        "from .help import one\ndef rule(completions):\n    return [one()]\n"
    )
    (tmp_path / "package" / "help.py").write_text("def one():\n    return 1.0\n")
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)  # another test's
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("spec", "name", "rewards"),
    [
        ("my_rewards.py:brevity", "brevity", [-1.0, -4.0]),
        ("./my_rewards.py:brevity", "brevity", [-1.0, -4.0]),
        ("FOLDER/my_rewards.py:brevity", "brevity", [-1.0, -4.0]),
        ("my_rewards:brevity", "brevity", [-1.0, -4.0]),
        ("my_rewards.py:Above", "Above", [0.0, 1.0]),
        ("my_rewards.py:Above.zero", "zero", [0.0, 0.0]),
        ("my_rewards.py:make", "Above", [0.0, 1.0]),
        ("my_rewards.py:four", "Above", [0.0, 0.0]),
        ("package.rules:rule", "rule", [1.0]),
        ("lone/my_rewards.py:brevity", "brevity", [7.0, 7.0]),
    ],
)
def test_a_function_of_a_file_or_module(folder: Path, spec: str, name: str, rewards: list[float]) -> None:
    spec = spec.replace("FOLDER", str(folder))
    check_reward_name(spec)
    reward = reward_by_name(spec)
    assert reward_name(reward) == name and reward(completions=["a", "abcd"]) == rewards


def test_one_file_is_imported_once_and_files_of_one_name_apart(folder: Path) -> None:
    first = reward_by_name("my_rewards.py:brevity")
    assert reward_by_name("./my_rewards.py:brevity") is first and reward_by_name("my_rewards:brevity") is first
    other = reward_by_name("lone/my_rewards.py:brevity")
    assert other(completions=["a"]) == [7.0] and first(completions=["a"]) == [-1.0]
    assert reward_by_name("my_rewards.py:brevity") is first
    assert pickle.loads(pickle.dumps(first)) is first and pickle.loads(pickle.dumps(other)) is other


def test_neighbours_of_one_name_in_two_folders_stay_apart(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "mine.py").write_text(
        "import neighbour\ndef brevity(completions):\n    return [neighbour.length(c) for c in completions]\n"
    )
    (folder / "other" / "neighbour").mkdir()
    (folder / "other" / "neighbour" / "__init__.py").write_text("from .inside import length\n")
    (folder / "other" / "neighbour" / "inside.py").write_text("def length(text):\n    return 5.0\n")
    first, second = reward_by_name("my_rewards.py:brevity"), reward_by_name("other/mine.py:brevity")
    assert first(completions=["ab"]) == [-2.0] and second(completions=["ab"]) == [5.0]
    assert sys.modules["neighbour"].__file__ == str(folder / "neighbour.py")
    assert pickle.loads(pickle.dumps(sys.modules["neighbour"].length)) is sys.modules["neighbour"].length


def test_a_language_model_is_no_classifier_which_its_configuration_tells(folder: Path) -> None:
    save_tiny(folder / "lm", tiny_causal_lm())
    (folder / "lm" / "model.safetensors").unlink()
    message = "is a LlamaForCausalLM, which generates text and scores none: give a model that was trained for sequence"
    for spec in ("toxicity:lm", "lm"):
        with pytest.raises(ValueError, match=f"^`--reward {spec}`: 'lm' {message}"):
            check_reward_name(spec)
    with pytest.raises(ValueError, match=f"^`--judge_model lm` {message}"):
        check_classifier("judge_model", "lm", ("judge_toxic_label", "LABEL_1"))
    with pytest.raises(ValueError, match=f"^`--reward_model lm` {message}"):
        check_reward_model("reward_model", "lm")


def test_spellings_of_one_reward_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for spellings in (
        (
            "my_rewards.py:brevity",
            "./my_rewards.py:brevity",
            f"{folder}/lone/../my_rewards.py:brevity",
            "my_rewards:brevity",
        ),
        ("package.rules:rule", "package/rules.py:rule"),
        ("toxicity:toxicity", "toxicity:toxicity/", f"toxicity:{folder}/toxicity", "toxicity:~/toxicity"),
        ("preference", "preference:preference", "preference:./preference/"),
        ("http://host:1/score", "http://host:1/score/"),
        ("org/model", "preference:org/model"),
    ):
        assert len({same_reward(spec) for spec in spellings}) == 1, spellings
    apart = (
        *("my_rewards.py:brevity", "lone/my_rewards.py:brevity", "my_rewards.py:make", "toxicity:preference"),
        *("preference", "http://host:1/other", "toxicity:org/model", "org/model"),
    )
    assert len({same_reward(spec) for spec in apart}) == len(apart)


def test_a_worker_process_finds_the_function_of_a_file(folder: Path) -> None:
    """Reward functions start processes of their own, for instance to run code that the policy wrote."""
    length = reward_by_name("my_rewards.py:Above.zero").__globals__["neighbour"].length
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(length, ["ab"]) == [-2.0]
        assert pool.apply(reward_by_name("my_rewards.py:brevity"), kwds={"completions": ["ab"]}) == [-2.0]


def test_a_file_with_the_name_of_an_installed_module_does_not_replace_it(folder: Path) -> None:
    import json
    import statistics

    (folder / "json.py").write_text("def f(completions):\n    return [1.0 for _ in completions]\n")
    assert reward_by_name("json.py:f")(completions=["a"]) == [1.0]
    assert sys.modules["json"] is json and json.loads("1") == 1
    (folder / "statistics.py").write_text("")
    reward_by_name("my_rewards.py:brevity")
    assert sys.modules["statistics"] is statistics


def test_models_and_services(folder: Path) -> None:
    for spec, kind in {"toxicity:toxicity": ToxicityReward, "preference:preference": PreferenceReward,
                       "preference": PreferenceReward}.items():  # fmt: skip
        check_reward_name(spec)
        reward = reward_by_name(spec)
        assert type(reward) is kind and len(reward(["a b"], [" c"])) == 1
    assert type(reward_by_name("http://localhost:1/score")) is HTTPReward


def row(spec: str, message: str, call=check_reward_name) -> Case:
    return Case(f"{call.__name__} {spec}", lambda: call(spec), ValueError, message)


CASES = [
    row("", f"`--reward` is empty; give {FORMS}."),
    row(
        "my_rewards.py:brevty",
        "`--reward my_rewards.py:brevty`: there is no function `brevty` in 'my_rewards.py'; did you mean "
        "`brevity` or `slow_brevity`?",
    ),
    row(
        "lone/my_rewards.py:xyz",
        "`--reward lone/my_rewards.py:xyz`: there is no function `xyz` in 'lone/my_rewards.py'; it has brevity.",
    ),
    row(
        "lone/my_rewards.py",
        "`--reward lone/my_rewards.py` names no function; write lone/my_rewards.py:FUNCTION (it has brevity).",
    ),
    row(
        "lone/my_rewards.py:",
        "`--reward lone/my_rewards.py:` names no function; write lone/my_rewards.py:FUNCTION (it has brevity).",
    ),
    row(
        "my_reward.py:brevity",
        "`--reward my_reward.py:brevity`: there is no file 'my_reward.py'; did you mean `my_rewards.py`?",
    ),
    row(
        "gone/x.py:brevity",
        "`--reward gone/x.py:brevity`: there is no file 'gone/x.py'; give the path of a Python file.",
    ),
    row("slip.py:f", "`--reward slip.py:f`: line 2 of 'slip.py' is not Python (expected ':')."),
    row(
        "lacks.py:f",
        "`--reward lacks.py:f` cannot be imported: line 2 of 'lacks.py' raises ModuleNotFoundError: No module named "
        "'a_package_that_is_not_here'.",
    ),
    row("exits.py:f", "`--reward exits.py:f` cannot be imported: line 2 of 'exits.py' raises SystemExit: 3."),
    row(
        "my_rewards.py:number",
        "`--reward my_rewards.py:number` is a float; name a function, a class or an object.",
    ),
    row(
        "my_rewards.py:broken",
        "`--reward my_rewards.py:broken` is called without arguments: line 30 of 'my_rewards.py' raises RuntimeError: "
        "no model here.",
        reward_by_name,
    ),
    row(
        "my_rewards.py:returns_none",
        "`--reward my_rewards.py:returns_none` is called without arguments and returns a NoneType; return a reward "
        "function, or take `completions`.",
        reward_by_name,
    ),
    row(
        "gone.module:f",
        "`--reward gone.module:f`: there is no module 'gone.module'; give FILE.py:function for a function of a file.",
    ),
    row("toxic:gpt2", "`--reward toxic:gpt2`: there is no module 'toxic'; did you mean `toxicity`?"),
    row(
        "toxicity:", "`--reward toxicity:` names no model; write toxicity:MODEL with a folder or an id of the Hub."
    ),
    row(
        "toxicity:unnamed",
        "`--reward toxicity:unnamed`: the model's labels ['LABEL_0', 'LABEL_1'] do not tell which is toxic; write "
        "`reward = ToxicityReward('unnamed', toxic_label=...)` into a file and give `--reward FILE.py:reward`.",
    ),
    row(
        "preference:toxicity",
        "`--reward preference:toxicity`: 'toxicity' has several labels; write "
        "`--reward toxicity:toxicity` for a classifier of toxic texts.",
    ),
    row("brevity", f"`--reward brevity` is no model that can be loaded; give {FORMS}."),
    row(
        "localhost:8000/score",
        f"`--reward localhost:8000/score` is no name of a reward; an address begins with http://; give {FORMS}.",
    ),
    row("ftp://me:pw@host/x", f"`--reward ftp://(hidden)@host/x` is no name of a reward; give {FORMS}."),
    row(
        "http://",
        "`--reward http://`: the reward's URL is 'http://'; it must begin with http:// or https:// and a host.",
    ),
    row(
        "http://me:pw@127.0.0.1:1/x?token=t0k",
        "`--reward http://(hidden)@127.0.0.1:1/x`: nothing answers at http://127.0.0.1:1/x (ConnectionRefusedError: "
        "Connection refused); start the service first.",
    ),
    row("http://host:12x/", "`--reward http://host:12x/`: the reward's URL is no address; write http://HOST:PORT/PATH."),
]  # fmt: skip


@table(CASES)
def test_a_name_that_leads_to_no_reward(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    check(case)
