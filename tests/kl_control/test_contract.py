# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What every controller must keep: the protocol, the bounds, its state, and its calm at bad measurements."""

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext import kl_control
from trl_ext.kl_control import PIDKL, AdaptiveKL, FixedKL, KLController, ScheduledKL

NAN, INF = float("nan"), float("inf")

MAKERS: dict[str, Callable[[], KLController]] = {
    "fixed": lambda: FixedKL(0.3),
    "adaptive": lambda: AdaptiveKL(init_coef=0.2, target=4.0, min_coef=0.01, max_coef=5.0),
    "adaptive-horizon": lambda: AdaptiveKL(init_coef=0.2, target=4.0, horizon=20.0, min_coef=0.01, max_coef=5.0),
    "pid": lambda: PIDKL(target=4.0, kp=0.4, ki=0.1, kd=0.2, smoothing=0.3, min_coef=0.01, max_coef=5.0),
    "linear": lambda: ScheduledKL(0.3, 0.05, 700),
    "cosine": lambda: ScheduledKL(0.05, 0.3, 700, "cosine"),
    "exponential": lambda: ScheduledKL(0.3, 0.05, 700, "exponential"),
}
BOUNDS = {"fixed": (0.3, 0.3), "adaptive": (0.01, 5.0), "adaptive-horizon": (0.01, 5.0), "pid": (0.01, 5.0)}

every_controller = pytest.mark.parametrize("name", MAKERS)
measurements = st.lists(
    st.tuples(st.one_of(st.floats(-1.0, 50.0), st.floats(-1e300, 1e300)), st.integers(0, 512)), max_size=40
)


@every_controller
def test_follows_the_protocol(name):
    assert isinstance(MAKERS[name](), KLController)
    assert not isinstance(object(), KLController)


@every_controller
@settings(max_examples=60, deadline=None)
@given(steps=measurements)
def test_the_coefficient_stays_in_its_bounds_and_above_zero(name, steps):
    controller = MAKERS[name]()
    low, high = BOUNDS.get(name, (0.05, 0.3))
    for kl, episodes in steps:
        controller.update(kl, episodes)
        assert low <= controller.coef <= high and controller.coef > 0


def run(controller, steps):
    coefs = []
    for kl, episodes in steps:
        controller.update(kl, episodes)
        coefs.append(controller.coef)
    return coefs


STEPS = [(3.0 + 4.0 * math.sin(1.7 * step), 16 + step % 3) for step in range(60)]


@every_controller
@pytest.mark.parametrize("saved_after", [0, 1, 23, 59])
def test_a_resumed_controller_continues_bit_by_bit(name, saved_after):
    expected = run(MAKERS[name](), STEPS)
    before = MAKERS[name]()
    run(before, STEPS[:saved_after])
    text = json.dumps(before.state_dict(), allow_nan=False)
    resumed = MAKERS[name]()
    resumed.load_state_dict(json.loads(text))
    assert resumed.coef == before.coef
    assert run(resumed, STEPS[saved_after:]) == expected[saved_after:]


def test_a_fixed_coefficient_is_a_setting_that_a_resumed_run_may_change():
    resumed = FixedKL(0.7)
    with pytest.warns(UserWarning, match="coefficient is 0.7, and was 0.3 when the checkpoint was written"):
        resumed.load_state_dict(FixedKL(0.3).state_dict())
    assert resumed.coef == 0.7
    with pytest.raises(ValueError, match="coef is -0.3"):
        resumed.load_state_dict({**resumed.state_dict(), "coef": -0.3})


@pytest.mark.parametrize("init_coef", [0.02, 2.0])
def test_another_first_coefficient_changes_nothing_for_a_resumed_pid(init_coef):
    one = PIDKL(target=6.0, init_coef=0.2)
    run(one, STEPS[:5])
    resumed = PIDKL(target=6.0, init_coef=init_coef)
    resumed.load_state_dict(one.state_dict())
    assert run(resumed, STEPS[5:]) == run(one, STEPS[5:])


@every_controller
def test_a_state_is_a_copy_and_a_controller_can_be_pickled(name):
    controller = MAKERS[name]()
    run(controller, STEPS[:5])
    state = controller.state_dict()
    saved = dict(state)
    copy = pickle.loads(pickle.dumps(controller))
    assert run(copy, STEPS[5:]) == run(controller, STEPS[5:])
    assert state == saved


@every_controller
def test_a_foreign_or_incomplete_state_is_refused_and_changes_nothing(name):
    controller = MAKERS[name]()
    run(controller, STEPS[:7])
    state = controller.state_dict()
    number = next(key for key in state if key != "controller")
    bad = [
        ({}, "keys missing .*'controller'"),
        ({**state, "surplus": 1.0}, r"keys not known \['surplus'\]"),
        ({key: value for key, value in state.items() if key != number}, rf"keys missing \['{number}'\]"),
        ({**state, "controller": "OtherKL"}, "state of OtherKL, not of " + type(controller).__name__),
        ({**state, number: "0.1"}, f"{number} = '0.1', not a finite number"),
        ({**state, number: NAN}, f"{number} = nan"),
        ({**state, number: None}, f"{number} = None"),
    ]
    for other, message in bad:
        with pytest.raises(ValueError, match=message):
            controller.load_state_dict(other)
        assert controller.state_dict() == state


def test_pid_state_with_half_of_its_memory_is_refused():
    controller = MAKERS["pid"]()
    run(controller, STEPS[:3])
    with pytest.raises(ValueError, match="smoothed_kl = None"):
        controller.load_state_dict({**controller.state_dict(), "smoothed_kl": None})
    with pytest.raises(ValueError, match="keys missing .*'previous_error', 'smoothed_kl'"):
        controller.load_state_dict({"controller": "PIDKL", "coef": 0.2, "integral": 0.0})


@pytest.mark.parametrize("coef", [1e-9, 1e9])
@pytest.mark.parametrize("name", ["adaptive", "pid"])
def test_a_state_outside_narrower_bounds_is_brought_inside(name, coef):
    controller = MAKERS[name]()
    controller.load_state_dict({**controller.state_dict(), "coef": coef})
    assert 0.01 <= controller.coef <= 5.0


@every_controller
@pytest.mark.parametrize("kl", [NAN, INF, -INF])
def test_a_broken_measurement_is_ignored_with_a_warning(name, kl):
    controller = MAKERS[name]()
    run(controller, STEPS[:3])
    state, coef = controller.state_dict(), controller.coef
    with pytest.warns(UserWarning, match=f"measured KL is {kl}"):
        controller.update(kl, 16)
    assert controller.state_dict() == state and controller.coef == coef


@every_controller
def test_a_batch_without_episodes_changes_nothing_and_a_negative_one_is_refused(name):
    controller = MAKERS[name]()
    run(controller, STEPS[:3])
    state, coef = controller.state_dict(), controller.coef
    controller.update(0.0, 0)
    assert controller.state_dict() == state and controller.coef == coef
    with pytest.raises(ValueError, match="episodes is -1"):
        controller.update(1.0, -1)


@pytest.mark.parametrize("name", ["adaptive", "pid"])
def test_a_slightly_negative_kl_lowers_the_coefficient(name, recwarn):
    controller = MAKERS[name]()
    controller.update(-0.05, 16)
    assert controller.coef < 0.2 and not recwarn.list


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedKL(-0.1), "coef is -0.1"),
        (lambda: FixedKL(NAN), "coef is nan"),
        (lambda: AdaptiveKL(target=0.0), "target is 0.0"),
        (lambda: AdaptiveKL(target=-6.0), "target is -6.0"),
        (lambda: AdaptiveKL(target=6.0, horizon=0), "horizon is 0"),
        (lambda: AdaptiveKL(target=6.0, horizon=-10), "horizon is -10"),
        (lambda: AdaptiveKL(target=6.0, clip=0.0), "clip is 0.0"),
        (lambda: AdaptiveKL(target=6.0, init_coef=-0.2), "init_coef is -0.2"),
        (lambda: AdaptiveKL(target=6.0, init_coef=0.0), "init_coef is 0.0"),
        (lambda: AdaptiveKL(target=6.0, init_coef=0.2, min_coef=0.3), "init_coef is 0.2, outside"),
        (lambda: AdaptiveKL(target=6.0, min_coef=0.0), "min_coef is 0.0"),
        (lambda: AdaptiveKL(target=6.0, max_coef=INF), "max_coef is inf"),
        (lambda: AdaptiveKL(target=6.0, min_coef=2.0, max_coef=1.0), "min_coef is 2.0 and max_coef 1.0"),
        (lambda: PIDKL(target=0.0), "target is 0.0"),
        (lambda: PIDKL(target=6.0, init_coef=-1.0), "init_coef is -1.0"),
        (lambda: PIDKL(target=6.0, kp=-0.1), "kp is -0.1"),
        (lambda: PIDKL(target=6.0, ki=-0.1), "ki is -0.1"),
        (lambda: PIDKL(target=6.0, kd=-0.1), "kd is -0.1"),
        (lambda: PIDKL(target=6.0, smoothing=1.0), "smoothing is 1.0"),
        (lambda: PIDKL(target=6.0, smoothing=NAN), "smoothing is nan"),
        (lambda: PIDKL(target=6.0, max_error=0.0), "max_error is 0.0"),
        (lambda: PIDKL(target=6.0, min_coef=2.0, max_coef=1.0), "min_coef is 2.0 and max_coef 1.0"),
        (lambda: ScheduledKL(-0.1, 0.1, 100), "start is -0.1"),
        (lambda: ScheduledKL(0.1, -0.1, 100), "end is -0.1"),
        (lambda: ScheduledKL(0.1, 0.0, 100, "exponential"), "end is 0.0"),
        (lambda: ScheduledKL(0.1, 0.2, 0), "episodes is 0"),
        (lambda: ScheduledKL(0.1, 0.2, 10, "step"), "shape is 'step'; use one of linear, cosine, exponential"),
    ],
)
def test_arguments_that_cannot_work_are_refused_with_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_needs_the_standard_library_only():
    code = (
        "import sys; import trl_ext.kl_control.protocol as p; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'transformers', 'trl'}))"
    )
    # The package above it is kept out: its own imports are not the controllers' doing.
    package = str(Path(kl_control.__file__).parents[1])
    stub = (
        f"import sys, types; m = types.ModuleType('trl_ext'); m.__path__ = [{package!r}]; sys.modules['trl_ext'] = m; "
    )
    result = subprocess.run([sys.executable, "-c", stub + code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
