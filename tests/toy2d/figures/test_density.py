"""A density on a grid is a density: it equals the likelihood at its points and sums to one."""

import torch

from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.figures.density import draw_densities, grid, on_grid, total_mass
from toy2d.figures.style import plt


class Exact:
    """The world's own predictor with the interface of a stack of one."""

    def __init__(self, world):
        self.world, self.theta = world, {"bias0": torch.zeros(1, 1)}

    def __call__(self, x, t, cond):
        return self.world.eps(x, t, cond)


def test_the_worlds_density_on_a_grid():
    """Against the closed form; x runs fastest, so that contour(side, side, p) has x to
    the right.
    """
    world = Pentagon(Schedule.log_snr(60, 5.0, -15.0))
    density = on_grid(Exact(world), world.schedule, (0, 2), n=24)
    wanted = torch.stack([world.log_prob(grid(n=24), c, 0).exp().reshape(24, 24) for c in (0, 2)])
    torch.testing.assert_close(density[0].double(), wanted, atol=2e-2, rtol=0)
    assert (total_mass(density) - 1).abs().max() < 0.02
    side = torch.linspace(-5, 5, 24)
    assert (
        float((density[0, 0].sum(0) * side).sum() / density[0, 0].sum()) > 2.5
    )  # class 0 lies right


def test_drawing_takes_any_number_of_prompts():
    figure = draw_densities(
        torch.rand(3, 8, 8), "a title with $ and \\frac", torch.zeros(2, 2), torch.rand(2, 8, 8)
    )
    assert figure.axes[0].get_title().startswith("a title")
    plt.close(figure)
