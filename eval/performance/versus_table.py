# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The table of a comparison with TRL's last PPOTrainer."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from trl_ext.planner.plan import GIB

from .stopwatch import PHASES

TRAINERS = ("trl", "ours")


def results_table(cells: list[dict[str, Any]], device: dict[str, Any], titles: Mapping[str, str]) -> Table:
    """Return two rows for every cell, TRL's and ours, with the ratios of ours to TRL's.

    Args:
        cells: What `versus_trl.compare` returned.
        device: Its `name` and `operations_per_second`.
        titles: Description of each setting.
    """
    legend = "; ".join(f"{s}: {titles[s]}" for s in sorted({cell["run"]["setting"] for cell in cells}))
    rate = f"floor: products with weights alone, at {device['operations_per_second'] / 1e9:.0f} GFLOPS"
    title = f"TRL's PPOTrainer and ours on {device['name']}: seconds per update\n{legend}\n{rate}"
    table = Table(title=title, box=SIMPLE, pad_edge=False)
    for column in ("", "vocab", "tokens", "", *PHASES, "floor", "samples/s", "by count", "peak GiB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for cell in cells:
        run = cell["run"]
        names = [run["setting"], str(run["vocab_size"]), f"{run['prompt']}+{run['completion']}"]
        for trainer in TRAINERS:
            figures = cell[trainer]
            totals = [f"{figures['samples_per_second']:.2f}", "", f"{figures['process'] / GIB:.2f}"]
            if trainer == "ours":
                ratios = [f" ({cell['speed']:.2f}x)", f"{cell['speed_by_count']:.2f}x", f" ({cell['memory']:.2f}x)"]
                totals = [total + ratio for total, ratio in zip(totals, ratios, strict=True)]
                names = ["", "", ""]
            seconds = [f"{figures['seconds'][phase]:.2f}" for phase in PHASES]
            floor = f"{sum(figures['floor'].values()):.2f}"
            table.add_row(*names, trainer, *seconds, floor, *totals, end_section=trainer == "ours")
    return table
