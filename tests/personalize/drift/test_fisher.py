"""EWC at full scale: the samples are the base's own, at their own nodes, and the pull is twice
the weight.
"""

from collections import Counter

import pytest
import torch
from small import config, workshop

from personalize.adapters.deltas import LOHA, LORA, Change, changes
from personalize.adapters.trainable import choose
from personalize.data.latents import PromptCache
from personalize.drift.fisher import (
    FisherAdapterAnchor,
    base_fisher,
    effective_weights,
    fisher_anchor,
)
from personalize.pipeline.load import load
from toy2d.runs.folder import load_tensors

torch.set_num_threads(1)


def test_the_samples_are_states_of_the_bases_chains_at_their_own_nodes(tmp_path):
    """What the Fisher diagonal is asked at (x_t, t) is what the chain was at t, for the same
    prompt.
    """
    model = load(str(workshop() / "sd"))
    theta = choose(model, "lora")
    prompts, chain, alone = PromptCache(model), {}, []

    def predict(x_t, t, texts):
        if torch.is_grad_enabled():
            alone.append((x_t, t, texts))
        else:
            rows = zip(x_t, t.expand(len(x_t)).tolist(), texts, strict=True)
            chain.update({(time, text, float(x.sum())): x for x, time, text in rows})
        return model.predict(x_t, t, prompts(texts))

    c = config("unused", "fisher", fisher_samples=24, measure_nodes=5)
    file = tmp_path / "fisher.safetensors"
    found = base_fisher(file, predict, model, theta, c, (4, 8, 8))
    assert len(alone) == 24
    for x, t, texts in alone:
        assert torch.equal(chain[int(t), texts[0], float(x.sum())], x[0])
    assert all(torch.equal(found[name], F) for name, F in load_tensors(file).items())
    assert not any(p.requires_grad for p in model.vae.parameters())
    assert not any(c.weight.requires_grad for c in changes(model.parts))
    assert set(Counter(texts[0] for _, _, texts in alone).values()) == {24 // 3}  # four a chain
    asked = {int(t) for _, t, _ in alone}
    assert asked == set(model.schedule.strided(5).timesteps[1:].tolist())


@pytest.mark.parametrize("given", [False, True])
def test_adapters_and_plain_weights_are_held_together(given):
    """sum F (delta W)^2 over the adapted weights, and sum F (p - p_star)^2 over the others."""
    model = load(str(workshop() / "sd"))
    theta = choose(model, "lora")
    bias = model.denoiser.conv_out.bias.requires_grad_(True)
    theta["unet.conv_out.bias"] = bias
    star = {"unet.conv_out.bias": bias.detach().clone()} if given else None
    importance = {n: torch.full_like(w, 3.0) for n, w in effective_weights(model, theta).items()}
    anchor = fisher_anchor(model, theta, importance, star, torch.float32, None)
    assert anchor.squared_distance() == 0
    with torch.no_grad():
        for p in theta.values():
            p += 0.1
    moved = sum((c.delta_weight() ** 2).sum() for c in changes(model.parts))
    expected = 3 * (moved + 0.01 * len(bias))
    torch.testing.assert_close(anchor.squared_distance(), expected, rtol=1e-4, atol=0)
    del theta["unet.conv_out.bias"]
    alone = fisher_anchor(model, theta, importance, None, torch.float32, None)
    torch.testing.assert_close(alone.squared_distance(), 3 * moved, rtol=1e-4, atol=0)
    one = changes(model.parts)[0]
    own = alone.of({id(f) for f in one.factors.values()}).squared_distance()
    torch.testing.assert_close(own, 3 * (one.delta_weight() ** 2).sum(), rtol=1e-4, atol=0)


def test_the_pull_of_other_adapters_is_refused():
    loha = Change("layer", LOHA, {"hada_w1_a": torch.ones(2, 2)})
    with pytest.raises(NotImplementedError, match="no proximal step"):
        FisherAdapterAnchor([loha], {}).pull_(0.1)


@pytest.mark.parametrize("strength", [0.0, 0.1, 3.0])
def test_the_pull_is_the_proximal_step_of_the_weighted_square(strength):
    """argmin_D s F D^2 + (D - delta)^2 / 2 = delta / (1 + 2 s F): exact where A is square, so
    that B can follow.
    """
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(4, 4, generator=rng, dtype=torch.float64) + 3 * torch.eye(4)
    B = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    change = Change("layer", LORA, {"lora_A": A, "lora_B": B}, scale=0.5)
    F = {"layer": torch.rand(6, 4, generator=rng, dtype=torch.float64)}
    before = change.delta_weight().clone()
    FisherAdapterAnchor([change], F).pull_(strength)
    after = before.clone().requires_grad_(True)
    with torch.no_grad():
        after /= 1 + 2 * strength * F["layer"]
    torch.testing.assert_close(change.delta_weight(), after.detach())
    value = strength * (F["layer"] * after**2).sum() + ((after - before) ** 2).sum() / 2
    (slope,) = torch.autograd.grad(value, after)
    assert slope.abs().max() < 1e-12  # it is that minimum
