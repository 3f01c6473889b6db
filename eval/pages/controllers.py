# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Pictures of the KL controllers.

The controllers are the real ones, the policy is a simple model. A reward that is normally distributed under the
reference, with standard deviation s, has the optimum KL = s^2 / (2 coef^2); the policy moves a tenth of the way there
in each update, and the measured KL is noisy. Two thirds of the way the rewards become 1.5 times as large, as if a
second reward function had been added.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trl_ext.kl_control import PIDKL, AdaptiveKL, FixedKL, KLController, ScheduledKL

from .svg import WIDTH, picture

UPDATES, CHANGE, EPISODES = 240, 160, 64
TARGET, COEF = 3.0, 0.2
SPREAD = 0.65  # standard deviation of the reward at first
NOISE, PACE = 0.25, 0.1  # standard deviation of the measured KL; share of the way in an update

CONTROLLERS: dict[str, Callable[[], KLController]] = {
    "fixed": lambda: FixedKL(COEF),
    "adaptive": lambda: AdaptiveKL(target=TARGET, init_coef=COEF),
    "pid": lambda: PIDKL(target=TARGET, init_coef=COEF),
    "scheduled": lambda: ScheduledKL(0.5, 0.25, EPISODES * UPDATES),
}


class Course(NamedTuple):
    """What a controller saw and did: measured KLs (nats per completion) and coefficients, one for each update."""

    kls: list[float]
    coefs: list[float]


def simulate(controller: KLController) -> Course:
    """Return the path of a controller that holds the simple model of a policy, with the same noise every time."""
    noise, kl, course = random.Random(0), 0.0, Course([], [])
    for update in range(UPDATES):
        spread = SPREAD * (1.5 if update >= CHANGE else 1.0)
        kl += PACE * (spread**2 / (2 * controller.coef**2) - kl)
        course.coefs.append(controller.coef)
        course.kls.append(kl + noise.gauss(0, NOISE))
        controller.update(course.kls[-1], EPISODES)
    return course


# ---- drawing ----

_LEFT, _RIGHT, _HEIGHT = 56, 12, 330
_PANELS = {"kl": (34, 150), "coef": (206, 86)}  # top and height
_COLORS = {"kl": "blue", "coef": "orange"}
_STYLE = ".thick { stroke-width: 2; } .target { stroke-dasharray: 6 4; } .change { stroke-dasharray: 2 4; }"


def draw(title: str, course: Course) -> str:
    """Return an SVG: the KL with the target above, the coefficient on a logarithmic scale below."""
    kl_ticks, coef_ticks, right = (0.0, 3.0, 6.0, 9.0, 12.0), (0.1, 0.2, 0.4, 0.8), WIDTH - _RIGHT
    parts = [
        f'<text x="{_LEFT}" y="22">{title}: KL, nats per completion (dashed: {TARGET:g})</text>',
        f'<text x="{_LEFT}" y="200">KL coefficient</text>',
        *_panel("kl", course.kls, kl_ticks, _kl_share),
        *_panel("coef", course.coefs, coef_ticks, lambda coef: math.log(coef / 0.08) / math.log(1.0 / 0.08)),
        _line("grey target", _y("kl", _kl_share(TARGET))),
        f'<path class="grey change" d="M{_x(CHANGE):.1f} 34V292"/>',
        f'<text class="faint" x="{_x(CHANGE) - 6:.1f}" y="48" text-anchor="end">rewards x 1.5</text>',
        *(
            f'<text class="faint" x="{_x(update):.1f}" y="310" text-anchor="middle">{update}</text>'
            for update in range(0, UPDATES - 40, 40)
        ),
        f'<text class="faint" x="{right}" y="310" text-anchor="end">updates</text>',
    ]
    return picture(f"{title} controller: KL and coefficient over {UPDATES} updates", _HEIGHT, parts, _STYLE)


def _kl_share(kl: float) -> float:
    return (kl + 0.6) / 13.4


def _panel(name: str, values: Sequence[float], ticks: Sequence[float], place: Callable[[float], float]) -> list[str]:
    points = " ".join(f"{_x(i):.1f},{_y(name, place(value)):.1f}" for i, value in enumerate(values))
    labels = [
        f'<text class="faint" x="{_LEFT - 8}" y="{_y(name, place(tick)) + 4.5:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    grid = [_line("axis", _y(name, place(tick))) for tick in ticks]
    return [*grid, *labels, f'<path class="{_COLORS[name]} thick" d="M{points}"/>']


def _x(update: float) -> float:
    return _LEFT + update / (UPDATES - 1) * (WIDTH - _RIGHT - _LEFT)


def _y(panel: str, share: float) -> float:
    top, height = _PANELS[panel]
    return top + height * (1 - min(max(share, 0.0), 1.0))


def _line(kind: str, y: float) -> str:
    return f'<path class="{kind}" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'


def pictures() -> dict[str, str]:
    """Return the text of each SVG by the name of its file."""
    return {f"kl-{name}.svg": draw(name, simulate(make())) for name, make in CONTROLLERS.items()}
