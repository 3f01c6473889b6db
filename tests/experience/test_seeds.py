# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Orders that follow from numbers alone."""

import os
import subprocess
import sys

import torch

from tests.launching import python_path
from trl_ext.experience.seeds import generator_of


def order(*numbers: int) -> list[int]:
    return torch.randperm(20, generator=generator_of(*numbers)).tolist()


def test_other_numbers_give_other_orders():
    orders = [tuple(order(*numbers)) for numbers in [(0, 0), (0, 1), (1, 0), (0, 0, 0), (0,)]]
    assert len(set(orders)) == len(orders) and tuple(order(0, 1)) == orders[1]


def test_another_process_has_the_same_order():
    code = "import torch; from trl_ext.experience.seeds import generator_of as g; "
    code += "print(torch.randperm(20, generator=g(3, 5)).tolist())"
    environment = {**os.environ, "PYTHONPATH": python_path(), "PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1] == str(order(3, 5))
