# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions by name: the values of `--reward` on the command line.

    FILE.py:function            a function of a file of the user's
    package.module:function     a function of a module that can be imported, also from the current folder
    toxicity:MODEL              the non-toxicity that a sequence classifier sees
    preference:MODEL            a reward model with one label; `MODEL` alone means the same
    http://..., https://...     a service, see [`HTTPReward`]

Where the function is a class, or takes neither prompts nor completions, it is called without arguments and returns the
reward function.
"""

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from trl_ext.messages.printable import error_text, line_of, one_line
from trl_ext.messages.suggestion import suggestion

from .base import is_async
from .http import HTTPReward
from .preference import PreferenceReward
from .toxicity import ToxicityReward

__all__ = ["FORMS", "check_reward_name", "reward_by_name", "same_reward"]

FORMS = "FILE.py:function, package.module:function, toxicity:MODEL, preference:MODEL, http://... or the name of a model"
_KINDS = ("toxicity", "preference")
_ARGUMENTS = ("prompts", "completions", "completion_ids")
_folders: set[Path] = set()  # of the files that rewards were loaded from


def check_reward_name(spec: str) -> None:
    """Refuse a name that leads to no reward function, before a model is loaded.

    A function's file or module is imported, a model's configuration and tokenizer are read, and a service must listen.

    Raises:
        ValueError: in one sentence, in the words of `--reward`.
    """
    with _in_words_of_the_option(spec):
        if _is_url(spec):
            HTTPReward(spec).check()
        elif (model := _model_reward(spec)) is not None:
            _check_model(spec, model)
        else:
            _find(spec)


def reward_by_name(spec: str) -> Callable:
    """Return the reward function of that name; its own name in logs is that of the function, or of the model.

    Models are loaded at the first use, or when a trainer is made.

    Raises:
        ValueError: as `check_reward_name` raises; or a class or factory fails, or returns no function.
    """
    with _in_words_of_the_option(spec):
        if _is_url(spec):
            return HTTPReward(spec)
        return _model_reward(spec) or _made(spec, _find(spec))


def same_reward(spec: str) -> str:
    """Return a name that two spellings of one reward share: files and folders by their whole path, models by kind."""
    if _is_url(spec):
        return spec.rstrip("/")
    kind, colon, model = spec.partition(":")
    if not colon or kind in _KINDS:
        return f"{kind}:{_whole(model)}" if colon else f"preference:{_whole(spec)}"
    place, _, name = spec.rpartition(":")
    return f"{_whole(place if place.endswith('.py') else place.replace('.', '/') + '.py')}:{name}"


def _whole(name: str) -> str:
    """Return the whole path of a file or folder that exists, and any other name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


@contextlib.contextmanager
def _in_words_of_the_option(spec: str) -> Iterator[None]:
    """Put the option in front of a message that does not name it."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        if not message.startswith("`--reward"):
            message = f"`--reward {_shown(spec)}`: {message[:1].lower()}{message[1:]}"
        raise ValueError(message) from error


def _shown(spec: str) -> str:
    """Return a spec without the secrets of a URL: user name, password, query string."""
    return one_line(re.sub(r"[?#].*", "", spec) if _is_url(spec) else spec, 200)


def _is_url(spec: str) -> bool:
    return spec.lower().startswith(("http:", "https:"))


# Models


def _model_reward(spec: str) -> Any:
    """Return the reward of a model's name, not loaded; None for the name of a function."""
    kind, colon, name = spec.partition(":")
    if not spec.strip():
        raise ValueError(f"`--reward` is empty; give {FORMS}.")
    if colon and kind in _KINDS:
        if not name:
            raise ValueError(f"`--reward {spec}` names no model; write {kind}:MODEL with a folder or an id of the Hub.")
        return ToxicityReward(name) if kind == "toxicity" else PreferenceReward(name)
    if colon or spec.endswith(".py"):
        return None
    return PreferenceReward(spec)


def _check_model(spec: str, reward: Any) -> None:
    try:
        reward.scorer.check()
    except ValueError as error:
        message, name = str(error), reward.scorer.given_model
        if isinstance(reward, PreferenceReward) and re.search(r"has [0-9]+: give a model trained", message):
            message = f"'{name}' has several labels; write `--reward toxicity:{name}` for a classifier of toxic texts."
        elif "pass toxic_label=" in message:
            code = f"reward = ToxicityReward({name!r}, toxic_label=...)"
            message = f"{message.split(': pass')[0]}; write `{code}` into a file and give `--reward FILE.py:reward`."
        elif ":" not in spec and "cannot be loaded" in message and not Path(name).exists():
            message = f"`--reward {spec}` is no model that can be loaded; give {FORMS}."
        raise ValueError(message) from error


# Functions


def _find(spec: str) -> Any:
    """Return what a name of a function stands for: an object of a file or a module."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        file = place or name
        known = _functions(_load_file(Path(file).expanduser(), spec)) if file.endswith(".py") else []
        has = f" (it has {', '.join(known[:8])})" if known else ""
        raise ValueError(f"`--reward {spec}` names no function; write {file or 'FILE.py'}:FUNCTION{has}.")
    if not all(part.isidentifier() for part in name.split(".")):
        scheme = "; an address begins with http://" if re.match(r"[\w.-]+:[0-9]+(/|$)", spec) else ""
        raise ValueError(f"`--reward {_shown(spec)}` is no name of a reward{scheme}; give {FORMS}.")
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    module = _load_file(Path(place).expanduser(), spec) if is_file else _load_module(place, spec)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            answer = suggestion(name, _functions(module)) or f"it has {', '.join(_functions(module)[:8]) or 'none'}."
            raise ValueError(f"`--reward {spec}`: there is no function `{name}` in '{place}'; {answer}")
        value = getattr(value, part)
    if not callable(value):
        raise ValueError(f"`--reward {spec}` is a {type(value).__name__}; name a function, a class or an object.")
    return value


def _functions(module: ModuleType) -> list[str]:
    """Return the public functions, classes and callable objects that a module defines."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and callable(value)}
    return [name for name, value in own.items() if getattr(value, "__module__", None) == module.__name__]


def _load_module(name: str, spec: str) -> ModuleType:
    _append_path(Path.cwd())
    with _loading(spec):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and what it imports is not
    answer = suggestion(name.lower(), _KINDS) or "give FILE.py:function for a function of a file."
    raise ValueError(f"`--reward {spec}`: there is no module '{name}'; {answer}")


def _load_file(path: Path, spec: str) -> ModuleType:
    """Import a file as a module of its own, once; its folder is searched for what it imports.

    The module has the file's name where nothing else has it, so that worker processes find it too.
    """
    if not path.is_file():
        near = suggestion(path.name, [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else [])
        raise ValueError(f"`--reward {spec}`: there is no file '{path}'; {near or 'give the path of a Python file.'}")
    path = path.resolve()
    _append_path(path.parent)
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    place = importlib.util.spec_from_file_location(name, path)
    if place is None or place.loader is None:
        raise ValueError(f"`--reward {spec}`: '{path.name}' is no Python file; give one that ends in .py.")
    module = importlib.util.module_from_spec(place)
    sys.modules[module.__name__] = module
    try:
        with _neighbours_first(path.parent), _loading(spec):
            place.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


@contextlib.contextmanager
def _neighbours_first(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours before installed packages, and another file's neighbours, of the same names.

    What is imported not with the file but by its functions, when they run, is the first of several with one name.
    """
    own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    taken = {name for name in own if _home(sys.modules.get(name)) in _folders - {folder}}
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in taken}
    for name in hidden:
        del sys.modules[name]
    _folders.add(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.update(hidden)


def _home(module: ModuleType | None) -> Path | None:
    """Return the folder in which `import` has found a module or package of files."""
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    return Path(file).parents[Path(file).name == "__init__.py"]


def _module_name(path: Path) -> str:
    """Return the file's own name where `import` finds this file by it, otherwise a name that nothing else has."""
    importlib.invalidate_caches()  # the file may be new
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        if found is not None and found.origin == str(path):
            return path.stem
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"


def _append_path(folder: Path) -> None:
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


@contextlib.contextmanager
def _loading(spec: str) -> Iterator[None]:
    """Report an error of the user's code in one sentence, with its line."""
    try:
        yield
    except SyntaxError as error:
        where = f"line {error.lineno} of '{Path(error.filename or '?').name}'"
        raise ValueError(f"`--reward {spec}`: {where} is not Python ({one_line(error.msg)}).") from error
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"`--reward {spec}` cannot be imported: {line_of(error)}{error_text(error).rstrip('.')}."
        ) from error


def _made(spec: str, value: Any) -> Any:
    """Return a function as it is, and what a class or a factory returns."""
    if not _is_factory(value):
        return value
    try:
        made = value()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"`--reward {spec}` is called without arguments: {line_of(error)}{error_text(error).rstrip('.')}."
        ) from error
    if not callable(made) or isinstance(made, type):
        raise ValueError(
            f"`--reward {spec}` is called without arguments and returns a {type(made).__name__}; return a reward "
            "function, or take `completions`."
        )
    return made


def _is_factory(value: Callable) -> bool:
    if isinstance(value, type):
        return True
    if is_async(value):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    keywords = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    required = any(
        parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        for parameter in parameters
    )
    return not keywords and not required and not any(parameter.name in _ARGUMENTS for parameter in parameters)
