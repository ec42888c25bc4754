"""The noise schedule: one table, and everything that follows from it.

    x_t = a_t x0 + b_t eps,    eps ~ N(0, I)                                                  (1)

    prediction   a_t          b_t              target of the network    source
    "eps"        sqrt(ab_t)   sqrt(1 - ab_t)   eps                      Ho et al. 2020
    "v"          sqrt(ab_t)   sqrt(1 - ab_t)   a_t eps - b_t x0         Salimans & Ho 2022
    "flow"       1 - s_t      s_t              eps - x0                 Esser et al. 2024

ab = alpha_bar is the only table kept. Flow matching has one too: equal signal-to-noise ratio,
a^2/b^2 = ab/(1 - ab), so s = sqrt(1 - ab) / (sqrt(ab) + sqrt(1 - ab)), and its x_t is the
variance-preserving one divided by k_t = sqrt(ab) + sqrt(1 - ab). So
`reverse_chain` and `path_weights` hold for k_t x_t, and a scale does not change a KL.

Shapes: T timesteps, B batch of any rank (a stack of runs has B = "runs batch"), D data. t = 0 is
the least noise.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int, Real
from torch import Tensor

Prediction = Literal["eps", "v", "flow"]
Variance = Literal["beta", "posterior"]


def interpolate_alpha_bar(
    alpha_bar: Float64[Tensor, " T"], t: Real[Tensor, " *B"]
) -> Float64[Tensor, " *B"]:
    """alpha_bar[t]; at a fractional t, log-SNR is linear between the two nodes."""
    if not t.is_floating_point():
        return alpha_bar[t]
    left = t.floor().long().clamp(0, len(alpha_bar) - 2)
    share, log_snr = t - left, torch.logit(alpha_bar)
    return torch.sigmoid((1 - share) * log_snr[left] + share * log_snr[left + 1])


@dataclass(frozen=True, eq=False)
class Schedule:
    """`alpha_bar` (float64, strictly decreasing, inside (0, 1)) and what the network predicts.

    `timesteps` are the numbers the network is called with; they differ from 0..T-1 after `strided`
    and where a model has its own. Raises ValueError for a table that would put a 0/0 into a
    sampler, naming the entry.
    """

    alpha_bar: Float[Tensor, " T"]  # kept as float64
    prediction: Prediction = "eps"
    timesteps: Real[Tensor, " T"] | None = None

    def __post_init__(self):
        ab = torch.as_tensor(self.alpha_bar, dtype=torch.float64)
        if ab.ndim != 1 or len(ab) < 2:
            raise ValueError(
                f"alpha_bar must be a table of at least 2 numbers, not {tuple(ab.shape)}"
            )
        bad = ~((ab > 0) & (ab < 1))
        if bad.any():
            t = int(bad.nonzero()[0])
            raise ValueError(
                f"alpha_bar[{t}] = {ab[t]:.3g} is outside (0, 1): the first reverse step would "
                "be 0/0; clip beta (Nichol & Dhariwal 2021 use 0.999)"
            )
        if (ab.diff() >= 0).any():
            t = int((ab.diff() >= 0).nonzero()[0]) + 1
            raise ValueError(
                f"alpha_bar must fall with t, but alpha_bar[{t}] >= alpha_bar[{t - 1}]"
            )
        if self.prediction not in ("eps", "v", "flow"):
            raise ValueError(f"prediction must be eps, v or flow, not {self.prediction!r}")
        steps = torch.arange(len(ab)) if self.timesteps is None else torch.as_tensor(self.timesteps)
        object.__setattr__(self, "alpha_bar", ab)
        object.__setattr__(self, "timesteps", steps.to(ab.device))

    # ---- the tables people ask for by name
    @classmethod
    def from_betas(cls, betas, prediction: Prediction = "eps") -> "Schedule":
        """alpha_bar_t = prod_{s <= t} (1 - beta_s)."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        return cls(torch.cumprod(1 - betas, 0), prediction)

    @classmethod
    def linear(cls, T: int = 1000, prediction: Prediction = "eps") -> "Schedule":
        """beta rises evenly from 1e-4 to 0.02 at T = 1000 (Ho et al. 2020).

        For another T both are scaled by 1000/T, so that the end stays as noisy.
        """
        if T < 21:
            raise ValueError(f"linear(T={T}): beta_T = {20 / T:.2f} would reach 1; use T >= 21")
        return cls.from_betas(torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64), prediction)

    @classmethod
    def cosine(
        cls, T: int = 1000, max_beta: float = 0.999, prediction: Prediction = "eps"
    ) -> "Schedule":
        """Nichol & Dhariwal 2021, eq. 17, beta clipped at `max_beta`.

        With the usual 0.999 the last step has path weight w_T = 0.999 / (2 * 0.001) = 500 (see
        `path_weights`).
        """
        f = (
            torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2)
            ** 2
        )
        return cls.from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta), prediction)

    @classmethod
    def log_snr(
        cls, T: int = 100, first: float = 8.0, last: float = -16.0, prediction: Prediction = "eps"
    ) -> "Schedule":
        """log(ab / (1 - ab)) falls evenly from `first` to `last`.

        Its path weights have no peaks, and a_T = 3e-4 at the default end.
        """
        return cls(torch.sigmoid(torch.linspace(first, last, T, dtype=torch.float64)), prediction)

    @classmethod
    def from_flow(cls, s, timesteps=None) -> "Schedule":
        """The rectified-flow path x_t = (1 - s_t) x0 + s_t eps, s rising inside (0, 1).

        ab = (1 - s)^2 / ((1 - s)^2 + s^2).
        """
        s = torch.as_tensor(s, dtype=torch.float64)
        return cls((1 - s) ** 2 / ((1 - s) ** 2 + s**2), "flow", timesteps)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    @property
    def num_timesteps(self) -> int:
        return len(self.alpha_bar)

    @property
    def noise_ratio(self) -> Float64[Tensor, " T"]:
        """sqrt((1 - ab) / ab), the time of the probability-flow ODE (EDM calls it sigma)."""
        return ((1 - self.alpha_bar) / self.alpha_bar).sqrt()

    @property
    def vp_scale(self) -> Float64[Tensor, " T"]:
        """k_t, for which k_t x_t is the variance-preserving x_t.

        It is 1 for eps and v, and sqrt(ab) + sqrt(1 - ab) for flow.
        """
        ab = self.alpha_bar
        return ab.sqrt() + (1 - ab).sqrt() if self.prediction == "flow" else torch.ones_like(ab)

    def to(self, device) -> "Schedule":
        return replace(
            self, alpha_bar=self.alpha_bar.to(device), timesteps=self.timesteps.to(device)
        )

    def strided(self, n: int) -> "Schedule":
        """n of the T nodes, ends included, as a schedule of its own (the few-step sampler's)."""
        if not 2 <= n <= len(self):
            raise ValueError(f"strided({n}): need 2 <= n <= {len(self)}")
        keep = torch.linspace(0, len(self) - 1, n, dtype=torch.float64).round().long()
        keep = keep.to(self.alpha_bar.device)
        return replace(self, alpha_bar=self.alpha_bar[keep], timesteps=self.timesteps[keep])

    def at_log_snr(self, log_snr: Float64[Tensor, " n"]) -> "Schedule":
        """Nodes with these falling log-SNRs, within the schedule's own, at fractional timesteps.

        Between its nodes a schedule's log-SNR is linear in the timestep. For networks that are
        smooth in time only.
        """
        table, steps = self.log_snr_table, self.timesteps.double()
        right = torch.searchsorted(-table, -log_snr).clamp(1, len(self) - 1)
        share = (table[right - 1] - log_snr) / (table[right - 1] - table[right])
        at = steps[right - 1] + share * (steps[right] - steps[right - 1])
        return replace(self, alpha_bar=torch.sigmoid(log_snr), timesteps=at.clamp(0, steps[-1]))

    @property
    def log_snr_table(self) -> Float64[Tensor, " T"]:
        """log(ab / (1 - ab)) of every node."""
        return torch.logit(self.alpha_bar)

    def alpha_bar_at(self, t: Real[Tensor, " *B"]) -> Float64[Tensor, " *B"]:
        """alpha_bar at node t; at a fractional t, log-SNR is linear between the two nodes."""
        return interpolate_alpha_bar(self.alpha_bar, t)

    # ---- equation (1) and the three targets
    def coefficients(
        self, t: Int[Tensor, " *B"], like: Float[Tensor, " *B_D"]
    ) -> tuple[Tensor, Tensor]:
        """(a_t, b_t), shaped to multiply `like`, in its dtype; computed in float64."""
        ab = self.alpha_bar[t].reshape(*t.shape, *[1] * (like.ndim - t.ndim))
        a, b = ab.sqrt(), (1 - ab).sqrt()
        scale = a + b if self.prediction == "flow" else 1.0
        return (a / scale).to(like.dtype), (b / scale).to(like.dtype)

    def add_noise(
        self, x0: Float[Tensor, " *B_D"], t: Int[Tensor, " *B"], eps: Float[Tensor, " *B_D"]
    ) -> Float[Tensor, " *B_D"]:
        """x_t = a_t x0 + b_t eps   (1)."""
        a, b = self.coefficients(t, x0)
        return a * x0 + b * eps

    def target(
        self, x0: Float[Tensor, " *B_D"], t: Int[Tensor, " *B"], eps: Float[Tensor, " *B_D"]
    ) -> Float[Tensor, " *B_D"]:
        """What the network should answer at x_t = add_noise(x0, t, eps)."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "flow":
            return eps - x0
        a, b = self.coefficients(t, x0)
        return a * eps - b * x0

    def eps_from(
        self, output: Float[Tensor, " *B_D"], x_t: Float[Tensor, " *B_D"], t: Int[Tensor, " *B"]
    ) -> Float[Tensor, " *B_D"]:
        """The noise that a network output stands for: inverse of `target` given x_t."""
        if self.prediction == "eps":
            return output
        a, b = self.coefficients(t, x_t)
        return a * output + (x_t if self.prediction == "flow" else b * x_t)

    def eps_per_output(self, t: Int[Tensor, " *B"], like: Float[Tensor, " *B_D"]) -> Tensor | float:
        """d eps / d output at fixed x_t: 1 for eps, a_t for v and flow.

        So eps_1 - eps_2 is this times a difference of outputs.
        """
        return 1.0 if self.prediction == "eps" else self.coefficients(t, like)[0]

    def score_from_eps(
        self, eps_hat: Float[Tensor, " *B_D"], t: Int[Tensor, " *B"]
    ) -> Float[Tensor, " *B_D"]:
        """grad log p_t(x_t) = -eps_hat / b_t   (Tweedie)."""
        return -eps_hat / self.coefficients(t, eps_hat)[1]

    def min_snr_weights(self, gamma: float) -> Float[Tensor, " T"]:
        """min(SNR, gamma) / SNR for eps, / (SNR + 1) for v, of every node, float32.

        Hang et al. 2023.

        Raises ValueError for "flow", whose loss has weights of its own (Esser et al. 2024).
        """
        if self.prediction == "flow":
            raise ValueError("min-SNR weights are for eps and v prediction, not for flow matching")
        snr = self.alpha_bar / (1 - self.alpha_bar)
        return (snr.clamp(max=gamma) / (snr + (self.prediction == "v"))).float()

    # ---- the reverse chain, t = T-1 .. 1:
    #      x_{t-1} = (x_t - beta_t / b_t eps_hat) / sqrt(alpha_t) + s_t z
    def reverse_chain(
        self, variance: Variance = "beta"
    ) -> tuple[Float64[Tensor, " T"], Float64[Tensor, " T"], Float64[Tensor, " T"]]:
        """(beta_t, alpha_t, s_t^2) of the ancestral sampler; entry 0 is unused.

        It is the chain of k_t x_t (`vp_scale`): for flow matching, of the variance-preserving
        process with the same signal-to-noise ratio.
        s_t^2 = beta_t ("beta") or beta_t (1 - ab_{t-1}) / (1 - ab_t) ("posterior"), as in Ho et al.
        2020, section 3.2.
        """
        ab = self.alpha_bar
        alpha = torch.cat([ab[:1] / ab[:1], ab[1:] / ab[:-1]])
        beta = 1 - alpha
        shrink = torch.cat([ab[:1] * 0, (1 - ab[:-1]) / (1 - ab[1:])])
        return beta, alpha, beta * shrink if variance == "posterior" else beta

    def path_weights(self, variance: Variance = "beta") -> Float64[Tensor, " T"]:
        """w_t = beta_t^2 / (2 s_t^2 alpha_t (1 - ab_t)), w_0 = 0: no noise is added after t = 1.

        KL(paths of theta1 || paths of theta2) = sum_t w_t E ||eps_1 - eps_2||^2 (nats), the chain
        rule of KL for Gaussian steps of equal variance. "flow" has the same weights: its chain is
        the variance-preserving one divided by k_t, KL is invariant under that, and eps is the same
        unit of noise in both (lecture 6b, Proposition 6.10).
        """
        beta, alpha, s2 = self.reverse_chain(variance)
        w = beta[1:] ** 2 / (2 * s2[1:] * alpha[1:] * (1 - self.alpha_bar[1:]))
        return torch.cat([w[:1] * 0, w])
