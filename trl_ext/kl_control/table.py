# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The controllers that can be named in a configuration, and the settings that each is made of.

To add one, give it a class method `from_options` and one line in `CONTROLLERS`. The parameters of `from_options` are
names of settings, and `episodes`, the completions of the whole run; one without a default must be set.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .adaptive import AdaptiveKL
from .fixed import FixedKL
from .pid import PIDKL
from .protocol import KLController
from .scheduled import ScheduledKL

CONTROLLERS: dict[str, Callable[..., KLController]] = {
    "fixed": FixedKL.from_options,
    "adaptive": AdaptiveKL.from_options,
    "pid": PIDKL.from_options,
    "scheduled": ScheduledKL.from_options,
}


def settings_of(name: str) -> dict[str, bool]:
    """Return the settings that the controller `name` is made of, and whether each must be set."""
    parameters = inspect.signature(CONTROLLERS[name]).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.name != "episodes"}


def all_settings() -> list[str]:
    """Return the settings of all controllers."""
    return list(dict.fromkeys(setting for name in CONTROLLERS for setting in settings_of(name)))


def make_controller(name: str, settings: Mapping[str, Any], episodes: int) -> KLController:
    """Return the controller `name`.

    Args:
        name: A key of `CONTROLLERS`.
        settings: Values of at least the settings that it is made of.
        episodes: Completions of the whole run, over all processes.

    Raises:
        ValueError: when a setting is out of the controller's bounds.
    """
    values = {"episodes": episodes, **settings}
    make = CONTROLLERS[name]
    return make(**{parameter: values[parameter] for parameter in inspect.signature(make).parameters})
