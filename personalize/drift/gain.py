"""Learning at full scale: gain in nats on held-out pictures, under their own and their class's
prompt.

    gain      evidence gained under the subject's prompt, "a photo of sks bear"
    leak      the same under the class prompt, "a photo of a bear": language drift as a likelihood
    binding   gain - leak: growth of the log-odds of the subject's prompt against its class's

Per picture, of the base's ancestral sampler with `measure_nodes` nodes, as path KL
(toy2d.core.drift.gain; lecture 6b, Proposition 6.11). Every sample (picture, mirrored
or not; node; noise) is a function of the seed alone: the base, every step and every objective get
the same ones, and the base is asked once.

Samples are shared out among the nodes in proportion to w_t alpha_bar_t, what a node would
contribute if the coordinates were independent with variance 1. The mean of each node counts w_t,
so the sum is unbiased however they are shared out. Shapes: V pictures and their mirror images, S
samples, T nodes, D data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from personalize.config.train_config import TrainConfig
from personalize.data.latents import instance_set
from personalize.data.photos import Record
from personalize.data.subjects import as_their_class
from personalize.drift.chains import at_once
from personalize.pipeline.model import Model
from toy2d.core.drift import Predict, log_snr_bands, noise_error
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.runs.folder import load_tensors, save_tensors

LEAST_SAMPLES = 2  # samples of a node, for its standard error
SUBJECT, CLASS = "subject", "class"


@dataclass(frozen=True)
class EncodedPictures:
    """The held-out pictures as the model sees them, encoded: pictures first, then their mirror
    images.
    """

    mean: Float[Tensor, " V *D"]  # of the VAE's posterior
    std: Float[Tensor, " V *D"]
    prompts: dict[str, list[str]]  # SUBJECT, and CLASS where there is one: V prompts


def encode_held_out(
    model: Model, config: TrainConfig, records: Sequence[Record], resolution: int
) -> EncodedPictures:
    """Encode the pictures, cut as training cuts them (a random crop: in the middle). Needs the
    VAE.
    """
    crop = "pad" if config.pad else "center"
    records = list(records)
    pictures = instance_set(model, records, config.instance_prompt, resolution, crop, True)
    places = [(i, flip) for flip in (0, 1) for i in range(len(records))]
    latents = [pictures.latents(*place) for place in places]
    prompts = {SUBJECT: [pictures.prompt(*place) for place in places]}
    if config.class_prompts:
        plain = as_their_class(config, records)
        same = instance_set(model, plain, None, resolution, crop, True)
        prompts[CLASS] = [same.prompt(*place) for place in places]
    mean, std = (torch.stack(part) for part in zip(*latents, strict=True))
    return EncodedPictures(mean, std, prompts)


def share_out(schedule: Schedule, samples: int) -> Int[Tensor, " T"]:
    """How many samples each node gets: at least 2, the rest in proportion to w_t alpha_bar_t;
    none at node 0.
    """
    law = (schedule.path_weights() * schedule.alpha_bar).cpu()
    counts = torch.full((len(schedule),), LEAST_SAMPLES)
    counts[0] = 0
    wanted = law / law.sum() * max(samples, int(counts.sum()))
    while counts.sum() < samples:
        counts[int((wanted - counts).argmax())] += 1
    return counts


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples and the base's errors on them. `columns` measures the live model."""

    schedule: Schedule  # the sampler's
    pictures: EncodedPictures
    picture: Int[Tensor, " S"]  # row of `pictures`
    node: Int[Tensor, " S"]
    seed: int
    chunk: int  # samples asked at once
    base: dict[str, Tensor]  # for each group of prompts: S squared errors

    @classmethod
    def draw(cls, pictures: EncodedPictures, schedule: Schedule, config: TrainConfig) -> "HeldOut":
        """The samples, with no answer of the base yet."""
        short = schedule.strided(config.measure_nodes)
        node = torch.repeat_interleave(share_out(short, config.gain_samples))
        rng, turns, V = generator(config.seed, "held_out/order"), [], len(pictures.mean)
        while len(turns) < len(node):  # every picture in turn, in another order each time
            turns += torch.randperm(V, generator=rng).tolist()
        picture = torch.tensor(turns[: len(node)])
        return cls(short, pictures, picture, node, config.seed, at_once(config), {})

    def errors(self, predict: Predict, group: str) -> Float[Tensor, " S"]:
        """||eps - eps_theta||^2 of every sample under the prompts of `group`; float64."""
        found, device = [], self.schedule.alpha_bar.device
        for samples in torch.arange(len(self.node)).split(self.chunk):
            x0, eps = (v.to(device) for v in self._draw(samples.tolist()))
            prompts = [self.pictures.prompts[group][i] for i in self.picture[samples].tolist()]
            t = self.node[samples].to(device)
            found.append(noise_error(predict, self.schedule, x0, t, eps, prompts))
        return torch.cat(found)

    @torch.no_grad()
    def asking(self, predict: Predict) -> dict[str, Float[Tensor, " S"]]:
        """The errors of every group of prompts."""
        return {group: self.errors(predict, group) for group in self.pictures.prompts}

    def _draw(self, samples: list[int]) -> tuple[Tensor, Tensor]:
        """(x0, eps) of these samples, each from a generator of its own."""
        x0, eps = [], []
        for k in samples:
            rng, i = generator(self.seed, f"held_out/{k}"), int(self.picture[k])
            mean, std = self.pictures.mean[i], self.pictures.std[i]
            x0.append(mean + std * torch.randn(mean.shape, generator=rng).to(mean.device))
            eps.append(torch.randn(mean.shape, generator=rng))
        return torch.stack(x0), torch.stack(eps)

    @torch.no_grad()
    def columns(self, predict: Predict, step: int) -> dict[str, float]:
        """Columns of history.csv, in nats per picture: gain and gain_error, gain/BAND, and with
        a class prompt binding and leak.
        """
        if step == 0:  # nothing has been learnt: nothing is evaluated
            grown = {g: torch.zeros_like(e) for g, e in self.base.items()}
        else:
            grown = {g: self.base[g] - self.errors(predict, g) for g in self.base}
        row = self._named("gain", grown[SUBJECT])
        for band, nodes in log_snr_bands(self.schedule).items():
            row |= self._named(f"gain/{band}", grown[SUBJECT], nodes)
        if CLASS in grown:
            row |= self._named("binding", grown[SUBJECT] - grown[CLASS])
            row |= self._named("leak", grown[CLASS])
        return row

    def _named(self, name: str, grown: Tensor, nodes: Tensor | None = None) -> dict[str, float]:
        mean, error = self.total(grown, nodes)
        first, slash, band = name.partition("/")
        return {name: mean, f"{first}_error{slash}{band}": error}

    def total(self, grown: Float[Tensor, " S"], nodes: Tensor | None = None) -> tuple[float, float]:
        """(sum over nodes of w_t mean, its standard error): each node's samples are independent
        draws of picture and noise.

        `nodes`: which ones (default: all).
        """
        weights, mean, square = self.schedule.path_weights(), 0.0, 0.0
        for t in range(1, len(self.schedule)):
            if nodes is None or nodes[t]:
                mine = grown[(self.node == t).to(grown.device)]
                mean += float(weights[t] * mine.mean())
                square += float(weights[t] ** 2 * mine.var() / len(mine))
        return mean, square**0.5


def ask_the_base(
    file: Path, predict: Predict, pictures: EncodedPictures, schedule: Schedule, config: TrainConfig
) -> HeldOut:
    """The held-out samples with the base's errors on them; call it before anything trains.

    The errors are kept in `file`, so that a resumed run is measured against the very same numbers.
    """
    drawn = HeldOut.draw(pictures, schedule, config)
    if not file.exists():
        save_tensors(file, drawn.asking(predict))
    base = {g: e.to(schedule.alpha_bar.device) for g, e in load_tensors(file).items()}
    return replace(drawn, base=base)


def peak(rows: Sequence[dict]) -> dict[str, float]:
    """{"gain_peak", "gain_peak_step"} over the rows of history.csv; empty if gain was not
    measured.
    """
    measured = [(float(r["gain"]), int(r["step"])) for r in rows if r.get("gain") not in (None, "")]
    if not measured:
        return {}
    gain, step = max(measured, key=lambda m: (m[0], -m[1]))
    return {"gain_peak": gain, "gain_peak_step": step}


def in_words(rows: Sequence[dict]) -> str:
    """The end of a run's last message: when it had learnt most, and what is left of it. Empty if
    gain was not measured.
    """
    if not (best := peak(rows)):
        return ""
    last = next(float(r["gain"]) for r in reversed(rows) if r.get("gain") not in (None, ""))
    most, step = best["gain_peak"], best["gain_peak_step"]
    return f"; gain {last:.4g} nats, at its peak {most:.4g} after step {step}"
