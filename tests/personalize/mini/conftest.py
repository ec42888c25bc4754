"""Stand-ins for the artwork and a small world made of them."""

import pytest
from discs import disc

from personalize.mini.pretrain import world
from personalize.mini.pretrain.data import Data


@pytest.fixture(scope="module")
def drawings():
    """Stand-ins for the artwork: a disc of its own colour for each (class, style)."""
    return {(c, s): disc((15 * c, 60 * s, 99, 255)) for c in range(16) for s in range(4)}


@pytest.fixture(scope="module")
def small_world(drawings):
    seen, unseen = world.contents(240, 0), world.contents(16, 1, held_out=True)
    instances = world.pictures(drawings, [c for c in seen[:80] for _ in range(2)], 3)
    return Data(
        world.pictures(drawings, seen, 0),
        seen,
        world.pictures(drawings, unseen, 1),
        unseen,
        instances,
        2,
        "discs",
        [c.scene for c in seen[:80] for _ in range(2)],
    )
