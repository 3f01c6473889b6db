# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The picture of one step: from prompts to a logged optimizer step."""

from .svg import WIDTH, picture

# Title and detail of each box.
ROLLOUT = (
    ("1 Prompts to tokens", "chat template, or plain text"),
    ("2 Sample", "one completion for each prompt"),
    ("3 Decode", "completions as text or messages"),
    ("4 Score", "reward functions and weights"),
    ("5 Log-probabilities and values", "policy, reference, critic"),
    ("6 Token rewards and advantages", "score - coefficient * KL, then GAE"),
    ("7 Metrics", "and callbacks, such as the monitor"),
    ("8 KL controller", "coefficient of the next rollout"),
)
LEARNING = (
    ("Minibatch", "a part of the rollout, in micro-batches"),
    ("Losses", "clipped ratio, value, KL, entropy"),
    ("Gate", "finite? within max_ratio and max_loss?"),
    ("Optimizer step", "or gradients dropped, and counted"),
    ("Log", "then evaluation and checkpoint, when due"),
)
_LEFT, _BOX, _HIGH, _GAP = 34, 340, 48, 16
_STYLE = (
    ".name { font-size: 16px; font-weight: 600; } .detail { font-size: 14px; } .thick { stroke-width: 2; } "
    ".group { fill: none; stroke-dasharray: 5 4; }"
)


def draw() -> str:
    """Return the SVG: the rollout's eight boxes, the five of learning, and the two loops back."""
    first, second = 100, 100 + len(ROLLOUT) * (_HIGH + _GAP) + 66
    parts = [
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
        '<path class="grey" style="stroke-width: 1.5" d="M1 1L6 4L1 7"/></marker></defs>',
        f'<text class="name" x="{_LEFT}" y="28">Rows of train_dataset</text>',
        _arrow(f"M{_middle()} 36V{first - 4}"),
        *_group(first, "Rollout", "Collector.collect", ROLLOUT),
        *_group(second, "Learning", "num_ppo_epochs x num_mini_batches times", LEARNING),
        _arrow(f"M{_middle()} {first + len(ROLLOUT) * (_HIGH + _GAP) - _GAP + 2}V{second - 4}"),
    ]
    last = second + (len(LEARNING) - 1) * (_HIGH + _GAP) + _HIGH // 2
    right = _LEFT + _BOX
    inner, outer = right + 34, right + 66
    parts += [
        _arrow(f"M{right} {last - 8}H{inner}V{second + _HIGH // 2}H{right + 3}"),
        _arrow(f"M{right} {last + 8}H{outer}V{first + _HIGH // 2}H{right + 3}"),
        _upright(inner + 16, (second + last) // 2, "next minibatch"),
        _upright(outer + 16, first + 230, "rollout used up: a new one"),
    ]
    height = second + len(LEARNING) * (_HIGH + _GAP) + 8
    return picture("One step: a rollout of eight parts, then learning from it in minibatches", height, parts, _STYLE)


def _group(top: int, name: str, where: str, boxes: tuple[tuple[str, str], ...]) -> list[str]:
    parts = [
        f'<text class="name" x="{_LEFT}" y="{top - 30}">{name}</text>',
        f'<text class="detail" x="{_LEFT}" y="{top - 11}">{where}</text>',
    ]
    for number, (title, detail) in enumerate(boxes):
        y = top + number * (_HIGH + _GAP)
        parts += [
            f'<rect class="soft" x="{_LEFT}" y="{y}" width="{_BOX}" height="{_HIGH}" rx="5"/>',
            f'<text class="name" x="{_LEFT + 12}" y="{y + 21}">{title}</text>',
            f'<text class="detail faint" x="{_LEFT + 12}" y="{y + 40}">{detail}</text>',
        ]
        if number:
            parts.append(_arrow(f"M{_middle()} {y - _GAP}V{y - 3}"))
    return parts


def _middle() -> int:
    return _LEFT + _BOX - 16


def _arrow(path: str) -> str:
    return f'<path class="grey thick" marker-end="url(#tip)" d="{path}"/>'


def _upright(x: int, y: int, text: str) -> str:
    assert x < WIDTH
    return f'<text class="faint" text-anchor="middle" transform="translate({x} {y}) rotate(90)">{text}</text>'


def pictures() -> dict[str, str]:
    """Return the text of the SVG by the name of its file."""
    return {"step.svg": draw()}
