# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Controllers by name: their settings, and controllers made of them."""

import pytest

from trl_ext import PPOConfig
from trl_ext.kl_control import CONTROLLERS, SHAPES, KLController, all_settings, make_controller, settings_of

SETTINGS = {"kl_coef": 0.2, "kl_target": 3.0, "kl_horizon": None, "kl_coef_end": 0.05, "kl_schedule": "linear"}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_is_made_of_settings_of_the_configuration(name):
    assert isinstance(made := make_controller(name, SETTINGS, 100), KLController) and made.coef == 0.2
    assert settings_of(name).keys() <= PPOConfig.__dataclass_fields__.keys() & set(all_settings())


def test_which_settings_must_be_set():
    assert settings_of("adaptive") == {"kl_coef": True, "kl_target": True, "kl_horizon": False}
    assert settings_of("scheduled") == {"kl_coef": True, "kl_coef_end": True, "kl_schedule": False}


def test_the_schedule_changes_the_way_and_not_the_end():
    quarter = {}
    for shape in SHAPES:
        controller = make_controller("scheduled", {**SETTINGS, "kl_schedule": shape}, 100)
        controller.update(1.0, 25)
        quarter[shape] = controller.coef
        controller.update(1.0, 75)
        assert controller.coef == 0.05
    assert len(set(quarter.values())) == len(SHAPES) and quarter["exponential"] < quarter["linear"] < quarter["cosine"]
