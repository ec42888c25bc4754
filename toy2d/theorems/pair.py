"""A base and one model fine-tuned from it: what the rows of lecture 6 compare."""

from dataclasses import dataclass
from functools import cached_property

from toy2d.core.drift import Params, squared_distance
from toy2d.core.schedule import Schedule
from toy2d.data import World
from toy2d.model import Bound, EpsMLP


@dataclass(frozen=True)
class Pair:
    """theta_star and theta are stacks of one; `name` and `seed` say which run this is."""

    world: World
    net: EpsMLP
    theta_star: Params
    theta: Params
    name: str
    seed: int

    @property
    def schedule(self) -> Schedule:
        return self.world.schedule

    @property
    def star(self) -> Bound:
        return self.net.bind(self.theta_star)

    @property
    def tuned(self) -> Bound:
        return self.net.bind(self.theta)

    @property
    def squared_distance(self) -> float:
        """||theta - theta_star||^2, the sum over all coordinates."""
        return float(squared_distance(self.theta, self.theta_star))

    @cached_property
    def exact(self) -> "Pair":
        """The same networks in float64."""
        star, theta = ({k: p.double() for k, p in t.items()} for t in (self.theta_star, self.theta))
        return Pair(self.world, self.net, star, theta, self.name, self.seed)
