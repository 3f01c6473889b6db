# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`help(PPOConfig)` shows the helps of its fields."""

import pydoc
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from trl_ext import PPOConfig
from trl_ext.checks.fields import Limits
from trl_ext.checks.options import documented, option


def spaced(text: str) -> str:
    return " ".join(pydoc.plain(text).replace("|", " ").split())


def test_help_has_every_field_with_its_help() -> None:
    shown = spaced(pydoc.render_doc(PPOConfig))
    own = [field for field in fields(PPOConfig) if field.name in PPOConfig.__annotations__]
    assert len(own) > 50
    for field in own:
        assert f"{field.name} (" in shown and spaced(field.metadata["help"]) in shown, field.name
    assert "kl_coef (float): Initial coefficient of the KL penalty in the reward. Default: 0.05." in shown
    assert "max_ratio (float None): Skip a minibatch" in shown


def test_documented_writes_types_and_defaults() -> None:
    @documented
    @dataclass
    class Options:
        """Options of a test.

        Raises:
            ValueError: never.
        """

        size: Annotated[int, Limits(above=0)] | None = option(None, "A size.")
        mode: Literal["a", "b"] = option("a", "A mode. Default: the first.")
        hidden: int = 3

    assert Options.__doc__ == (
        "Options of a test.\n\nRaises:\n    ValueError: never.\n\nAttributes:\n"
        "    size (int | None): A size. Default: None.\n"
        "    mode (Literal['a', 'b']): A mode. Default: the first."
    )
    assert Options(size=2).size == 2
