"""Prior preservation on SDXL and SD-3: what each row of the denoiser's batch is told."""

from dataclasses import replace

import pytest
import torch
from backbones import (
    BOTH,
    FRAME,
    WHOLE,
    folder,
    latents,
    untouched,
)
from small import config, moved

from personalize.adapters.trainable import choose
from personalize.data.latents import Framed, PromptCache
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.train.streams import Streams
from personalize.train.timesteps import node_weights
from toy2d.core.objectives import PRIOR, STANDARD, Example

# ---- prior preservation: what each row of the denoiser's batch is told


def misled(kind, shown, cond):
    """The rows of `cond` that are not the text, or the frame, of the prompt `shown`."""
    model, wrong = untouched(kind), []
    for b, prompt in enumerate(shown):
        own = {k: v[0] for k, v in model.encode_prompts([str(prompt)]).items()}
        if model.family.framed:
            own["frame"] = torch.tensor(getattr(prompt, "frame", WHOLE))
        if not all(
            torch.allclose(cond[k][b].float(), v.float(), atol=1e-5) for k, v in own.items()
        ):
            wrong.append(b)
    return wrong


class Marked:
    """Picture i is filled with i + 1 and has a prompt of its own."""

    def __init__(self, shape, prompts):
        self.shape, self.prompts = shape, prompts

    def __len__(self):
        return len(self.prompts)

    def draw(self, indices, rng):
        x0 = torch.stack([torch.full(self.shape, i + 1.0) for i in indices])
        return x0, [self.prompts[i] for i in indices]


@BOTH
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_picture_is_told_its_own_text_and_frame(kind, batch_size):
    """Seen where it matters: the denoiser is handed x_t, which at t = 0 without noise is all but
    x0, and what it is told of it.
    """
    original, calls = untouched(kind), []
    model = Model(
        original.pipeline,
        replace(original.family, call=lambda d, x, t, c: calls.append((x, c)) or x),
    )
    shape, prompts = model.latent_shape(64), PromptCache(original)
    photographed = [
        Framed(f"a {w}", (100 + i, *FRAME[1:])) for i, w in enumerate(("dog", "cat", "fox"))
    ]
    made = [f"a {w}" for w in ("bird", "horse", "cow", "pig", "sheep")]
    pools = {"instance": Marked(shape, photographed), "prior": Marked(shape, made)}
    streams = Streams(pools, config("unused", train_batch_size=batch_size), 1000)
    for tick in range(3):
        batch = {r: e._replace(t=0 * e.t, eps=0 * e.eps) for r, e in streams.batch(tick).items()}
        PRIOR(1.0).terms(lambda x, t, c: model.predict(x, t, prompts(c)), model.schedule, batch)
    assert len(calls) == 6
    for (x, cond), pool in zip(calls, [photographed, made] * 3, strict=True):
        pictures = [round(float(v)) - 1 for v in x.mean((1, 2, 3))]  # a_0 is .997 or more
        assert misled(kind, [pool[i] for i in pictures], cond) == []


@BOTH
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_usual_pairing_is_found_out(kind, batch_size):
    """cat([instance, class]).repeat(B) beside latents [i1 .. iB, c1 .. cB]: right at B = 1 alone
    (peers.md 6.1).
    """
    shown = [Framed("a sks dog", FRAME)] * batch_size + ["a dog"] * batch_size
    two = untouched(kind).encode_prompts(["a sks dog", "a dog"])
    usual = {k: v.repeat(batch_size, *[1] * (v.ndim - 1)) for k, v in two.items()}
    usual["frame"] = torch.tensor([FRAME] * batch_size + [WHOLE] * batch_size)
    right = {k: v.repeat_interleave(batch_size, 0) for k, v in two.items()}
    assert misled(kind, shown, right | {"frame": usual["frame"]}) == []
    assert len(misled(kind, shown, usual)) == {1: 0, 2: 2, 3: 2}[batch_size]


def test_the_usual_frame_of_class_pictures_is_found_out():
    """Class pictures told the size and crop of the instance's photo (peers.md 6.5)."""
    shown = [Framed("a sks dog", FRAME), "a dog"]
    cond = untouched("sdxl").encode_prompts(shown)
    assert misled("sdxl", shown, cond | {"frame": torch.tensor([FRAME, WHOLE])}) == []
    assert misled("sdxl", shown, cond | {"frame": torch.tensor([FRAME, FRAME])}) == [1]


@pytest.mark.parametrize(
    ("kind", "settings", "scheme"),
    [("sdxl", {"snr_gamma": 5.0}, "none"), ("sd3", {}, "sigma_sqrt")],
)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_usual_weighting_is_found_out(kind, settings, scheme, batch_size):
    """Weights of 2B timesteps on losses of B samples (peers.md 6.2, 6.3): wrong without a word at B
    = 1, an error above. Ours: by hand.
    """
    schedule = untouched(kind).schedule
    weights = node_weights(config("unused", **settings), scheme, schedule)
    t = {"instance": torch.tensor([50, 700, 200]), "prior": torch.tensor([900, 100, 500])}
    batch, errors = {}, {}
    for seed, role in enumerate(t):
        x0, eps = (latents(untouched(kind), batch_size, n) for n in (seed, 7 + seed))
        batch[role] = Example(x0, t[role][:batch_size], eps, None)
        x_t, target = (f(*batch[role][:3]) for f in (schedule.add_noise, schedule.target))
        errors[role] = (0.5 * x_t - target) ** 2
    ours = PRIOR(1.0).terms(lambda x, t, c: 0.5 * x, schedule, batch, weights=weights)
    for role, e in batch.items():
        by_hand = sum(weights[n] * errors[role][b].mean() for b, n in enumerate(e.t)) / batch_size
        torch.testing.assert_close(ours[role], by_hand)
    both = torch.cat([weights[e.t] for e in batch.values()]).reshape(-1, 1, 1, 1)
    if batch_size == 1:
        usual = (both * errors["instance"]).reshape(2, -1).mean(1).mean()
        assert abs(usual - ours["instance"]) > 0.1 * ours["instance"]
    else:
        with pytest.raises(RuntimeError, match="must match"):
            both * errors["instance"]


@BOTH
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_gradient_is_instance_plus_weight_times_prior(kind, batch_size):
    model = load(folder(kind))
    theta = choose(model, "lora")
    moved(theta)
    prompts = PromptCache(model)

    def gradient(objective, batch):
        terms = objective.terms(
            lambda x, t, c: model.predict(x, t, prompts(c)), model.schedule, batch
        )
        grads = torch.autograd.grad(sum(terms.values()), list(theta.values()))
        return torch.cat([g.flatten() for g in grads])

    batch = {}
    for seed, (role, prompt) in enumerate(
        [("instance", Framed("a sks dog", FRAME)), ("prior", "a dog")]
    ):
        x0, eps = latents(model, batch_size, seed), latents(model, batch_size, 7 + seed)
        batch[role] = Example(
            x0, torch.tensor([900, 10, 500])[:batch_size], eps, [prompt] * batch_size
        )
    instance = gradient(STANDARD, batch)
    prior = gradient(STANDARD, {"instance": batch["prior"]})
    together = gradient(PRIOR(0.7), batch)
    rounding = 1e-5 * (instance.abs().max() + prior.abs().max())
    assert (together - (instance + 0.7 * prior)).abs().max() < rounding
    assert (together - instance).abs().max() > 100 * rounding
