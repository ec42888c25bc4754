"""EWC at full scale: the samples are the base's own, at their own nodes, and the pull is twice
the weight.
"""

import pytest
import torch
from small import config, workshop

from personalize.adapters.deltas import LORA, Change
from personalize.adapters.trainable import choose
from personalize.data.latents import PromptCache
from personalize.drift.fisher import FisherAdapterAnchor, base_fisher
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

    c = config("unused", "fisher", fisher_samples=8, measure_nodes=5)
    file = tmp_path / "fisher.safetensors"
    found = base_fisher(file, predict, model, theta, c, (4, 8, 8))
    assert len(alone) == 8
    for x, t, texts in alone:
        assert torch.equal(chain[int(t), texts[0], float(x.sum())], x[0])
    assert all(torch.equal(found[name], F) for name, F in load_tensors(file).items())
    assert not any(p.requires_grad for p in model.vae.parameters())


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
