"""A second opinion on the KLs of trained networks, by a route that shares no code with toy2d's.

The network is written out again in float64, the ODE is the one in z = x / sqrt(ab) (Song et al.
2021), solved in continuous time by scipy's DOP853 with tolerance 1e-8, and expectations are taken
by a finer Gauss-Hermite rule.
"""

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp

TOLERANCE = 1e-8


class Referee:
    """The laws of a stack of two-layer SiLU networks on a log-SNR schedule (float64).

    theta: parameters (M, ...); the schedule's log-SNR falls from `first` to `last` over T steps.
    """

    def __init__(self, theta, T: int, first: float, last: float, points: int = 9):
        self.theta = {k: p.double() for k, p in theta.items()}
        self.T, self.u0, self.u1 = T, -first / 2, -last / 2
        x, w = np.polynomial.hermite_e.hermegauss(points)
        grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
        self.normal = torch.from_numpy(grid)
        self.weights = torch.from_numpy(np.outer(w, w).ravel() / (2 * math.pi))

    def eps(self, x, u, words):
        """(eps, its divergence) at noise ratio e^u: x (M, N, 2), words (N,) of one-word prompts."""
        p, r = self.theta, math.exp(u)
        a, b = 1 / math.sqrt(1 + r * r), r / math.sqrt(1 + r * r)
        t = (self.T - 1) * (u - self.u0) / (self.u1 - self.u0)
        k = torch.arange(1, 9, dtype=torch.float64)
        time = torch.cos(math.pi * k * t / self.T).expand(*x.shape[:2], 8)
        h = torch.cat([x, time, p["token"][:, words]], -1)
        J = p["weight0"][:, None, :2, :].expand(-1, x.shape[1], -1, -1)  # d h / d x: M N 2 W
        for i in (0, 1):
            z = torch.einsum("mni,mij->mnj", h, p[f"weight{i}"]) + p[f"bias{i}"]
            s = 1 / (1 + torch.exp(-z))
            h, slope = z * s, s * (1 + z * (1 - s))
            J = torch.einsum("mnkj,mnj,mjl->mnkl", J, slope, p[f"weight{i + 1}"])
        layers = torch.einsum("mni,mij->mnj", h, p["weight2"]) + p["bias2"]
        trace = J[..., 0, 0] + J[..., 1, 1]
        return b * (x + a * layers), b * (2 + a * trace)

    def solve(self, x, words, up: bool):
        """Along the flow from x, up (to noise) or down: (x at the other end, the trace
        integrated).
        """
        shape = x.shape[:2]

        def slope(u, state):
            z = torch.from_numpy(state[: 2 * shape[0] * shape[1]]).reshape(*shape, 2)
            r = math.exp(u)
            eps, div = self.eps(z / math.sqrt(1 + r * r), u, words)
            return torch.cat([(r * eps).ravel(), (r / math.sqrt(1 + r * r) * div).ravel()]).numpy()

        ends = (self.u0, self.u1) if up else (self.u1, self.u0)
        start = torch.cat([(x * self.scale(ends[0])).ravel(), torch.zeros(shape).double().ravel()])
        found = solve_ivp(
            slope, ends, start.numpy(), "DOP853", (ends[1],), rtol=TOLERANCE, atol=TOLERANCE
        )
        end = torch.from_numpy(found.y[:, -1])
        n = 2 * shape[0] * shape[1]
        return end[:n].reshape(*shape, 2) / self.scale(ends[1]), end[n:].reshape(shape)

    @staticmethod
    def scale(u):
        return math.sqrt(1 + math.exp(2 * u))

    def log_prob(self, x, words):
        """log p(x | word) in nats, (M, N)."""
        x_T, trace = self.solve(x, words, up=True)
        volume = 2 * (math.log(self.scale(self.u0)) - math.log(self.scale(self.u1)))
        return -0.5 * (x_T**2).sum(-1) - math.log(2 * math.pi) + volume + trace

    def points_of_gaussian(self, mean, variance):
        return mean + self.normal * math.sqrt(variance)

    def points(self, word: int):
        """The rule's points pushed through the flow down to the data: (M, N, 2)."""
        x = self.normal.expand(self.theta["bias0"].shape[0], -1, -1)
        return self.solve(x, torch.full((len(self.normal),), word), up=False)[0]

    def expect(self, values):
        return values @ self.weights


def gaussian_log_prob(x, mean, variance):
    return -0.5 * ((x - mean) ** 2).sum(-1) / variance - math.log(2 * math.pi * variance)


def kl_of_the_world(referee: Referee, means, variance: float, word: int):
    """KL(N(means[word], variance I) || p_theta(. | word)) of every network of the stack."""
    x = referee.points_of_gaussian(means[word], variance)
    words = torch.full((len(x),), word)
    log_q = referee.log_prob(x.expand(referee.theta["bias0"].shape[0], -1, -1), words)
    return referee.expect(gaussian_log_prob(x, means[word], variance) - log_q)


def kl_of_the_base(base: Referee, tuned: Referee, seed_index, word: int):
    """KL(p_base(. | word) || p_tuned(. | word)); `seed_index` says which base each network had."""
    x = base.points(word)
    words = torch.full((x.shape[1],), word)
    log_p = base.log_prob(x, words)[seed_index]
    return tuned.expect(log_p - tuned.log_prob(x[seed_index], words))
