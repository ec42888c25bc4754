"""Lecture 0's listing is about sixty lines, runs as printed, and draws the five clouds."""

import math
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "lectures" / "00_from_nothing.md"


@pytest.fixture(scope="module")
def listing():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    names = {}
    exec(code, names)
    return names


def test_it_draws_the_five_clouds(listing):
    x = listing["sample"](listing["train"](), 2000)
    angle = 2 * math.pi * torch.arange(5) / 5
    centres = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    distance, nearest = torch.cdist(x, centres).min(1)
    assert (distance < 1.5).float().mean() > 0.9  # three standard deviations
    shares = torch.bincount(nearest, minlength=5) / len(x)
    assert 0.1 < shares.min() <= shares.max() < 1 / 3


def test_exercise_0_2_without_a_network_samples_leave_the_plane(listing):
    x = listing["sample"](lambda x, t: torch.zeros_like(x), 500)
    variance = float(x.var())
    assert variance > 1e5  # about 1 / alpha_bar at the noisiest step, over alpha_bar at the least
