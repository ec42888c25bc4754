"""Prior preservation: pairing of pictures and prompts, gradient, min-SNR, and the weight 0."""

import pytest
import torch
from small import config, same, trained, workshop

from personalize.adapters.trainable import choose
from personalize.config.rules import resolve
from personalize.pipeline.load import load
from personalize.train.loop import objective_of
from personalize.train.streams import Streams
from toy2d.core.objectives import PRIOR, STANDARD, Example

torch.set_num_threads(1)


class Marked:
    """Picture i is filled with the number i and called "NAME i"."""

    def __init__(self, name: str, n: int):
        self.name, self.n = name, n

    def __len__(self):
        return self.n

    def draw(self, indices, rng):
        x0 = torch.stack([torch.full((4, 8, 8), float(i)) for i in indices])
        return x0, [f"{self.name} {i}" for i in indices]


def streams(batch_size: int, seed: int = 0, scheme: str = "none", offset=False, **roles: int):
    narrow = {"logit_mean": -2.0, "logit_std": 0.1}  # of logit_normal
    c = config("unused", train_batch_size=batch_size, seed=seed, offset_noise=offset, **narrow)
    return Streams({role: Marked(role, n) for role, n in roles.items()}, c, 1000, scheme)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_prompt_stays_with_its_picture(batch_size):
    """Checked at the predictor: it gets x_t and the prompts, and x_t at t = 0 is almost x0."""
    s, seen = streams(batch_size, instance=3, prior=5), []

    def predict(x_t, t, prompts):
        seen.extend(zip(x_t.mean((1, 2, 3)).tolist(), prompts, strict=True))
        return x_t

    schedule = load(str(workshop() / "sd")).schedule
    for tick in range(6):
        batch = {
            role: e._replace(t=torch.zeros_like(e.t), eps=torch.zeros_like(e.eps))
            for role, e in s.batch(tick).items()
        }
        PRIOR(1.0).terms(predict, schedule, batch)
    assert len(seen) == 6 * 2 * batch_size
    for mean, prompt in seen:
        assert round(mean / float(schedule.alpha_bar[0]) ** 0.5) == int(prompt.split()[1])
    assert {p.split()[0] for _, p in seen} == {"instance", "prior"}


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pictures_take_turns(batch_size):
    """After n ticks every picture of a pool of n has been seen exactly batch_size times."""
    s = streams(batch_size, instance=5)
    seen = [p for tick in range(5) for p in s.example("instance", tick).cond]
    assert sorted(seen) == sorted(f"instance {i}" for i in range(5) for _ in range(batch_size))


def test_how_samples_are_cut_into_batches_changes_none():
    one, three = streams(1, instance=4), streams(3, instance=4)
    whole = three.example("instance", 1)
    for b in range(3):
        part = one.example("instance", 3 + b)
        assert torch.equal(part.eps[0], whole.eps[b])
        assert part.t[0] == whole.t[b]
        assert part.cond[0] == whole.cond[b]


def test_timesteps_follow_the_scheme():
    """Uniform without one; where logit_normal is narrow, all near 1000 (1 - sigmoid(-2)) = 881."""
    uniform, near = (
        streams(200, scheme=s, instance=3).example("instance", 0).t.float()
        for s in ("none", "logit_normal")
    )
    assert abs(uniform.mean() - 499.5) < 4 * 1000 / (12 * 200) ** 0.5
    assert (near - 881).abs().max() < 60


def test_offset_noise_moves_a_channel_by_a_tenth():
    """The same noise, each channel of each sample moved by N(0, 0.01)."""
    plain, moved = (
        streams(200, offset=o, instance=3).example("instance", 0).eps for o in (False, True)
    )
    offset = moved - plain
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset), atol=1e-5, rtol=0)
    assert abs(float(offset[..., 0, 0].std()) / 0.1 - 1) < 4 / (2 * 800) ** 0.5


def test_a_picture_gets_new_noise_and_a_new_timestep_in_every_epoch():
    s, eps, t = streams(1, instance=3), {}, {}
    for tick in range(12):
        example = s.example("instance", tick)
        eps.setdefault(example.cond[0], []).append(example.eps)
        t.setdefault(example.cond[0], []).append(int(example.t))
    for picture in eps:
        assert len(eps[picture]) == 4
        assert len({float(e.sum()) for e in eps[picture]}) == 4
        assert len(set(t[picture])) == 4  # of 1,000: equal by chance in 6 of 1,000 seeds


def test_the_instance_noise_does_not_depend_on_other_roles():
    alone, beside = streams(2, instance=3), streams(2, instance=3, prior=7, output=2)
    for a, b in zip(alone.batch(4)["instance"], beside.batch(4)["instance"], strict=True):
        assert a == b if isinstance(a, list) else torch.equal(a, b)


def test_roles_and_seeds_have_noise_of_their_own():
    s, other = streams(1, instance=3, prior=3), streams(1, seed=1, instance=3)
    instance = s.example("instance", 0).eps
    assert not torch.equal(instance, s.example("prior", 0).eps)
    assert not torch.equal(instance, other.example("instance", 0).eps)
    assert not torch.equal(instance, s.example("instance", 1).eps)


class Setting:
    """The tiny Stable Diffusion with LoRA, and batches of random latents under two prompts."""

    def __init__(self):
        self.model = load(str(workshop() / "sd"))
        self.theta = choose(self.model, "lora")
        with torch.no_grad():  # B = 0 would hide the gradient of A
            rng = torch.Generator().manual_seed(0)
            for p in self.theta.values():
                p.add_(0.1 * torch.randn(p.shape, generator=rng))

    def batch(self, batch_size: int, highest: int = 1000) -> dict[str, Example]:
        """Timesteps below `highest`."""
        rng = torch.Generator().manual_seed(batch_size)
        return {
            role: Example(
                torch.randn(batch_size, 4, 8, 8, generator=rng),
                torch.randint(highest, (batch_size,), generator=rng),
                torch.randn(batch_size, 4, 8, 8, generator=rng),
                [f"a photo of a {word}"] * batch_size,
            )
            for role, word in (("instance", "sks dog"), ("prior", "dog"))
        }

    def predict(self, x_t, t, prompts):
        return self.model.predict(x_t, t, self.model.encode_prompts(prompts))

    def gradient(self, objective, batch) -> torch.Tensor:
        terms = objective.terms(self.predict, self.model.schedule, batch)
        grads = torch.autograd.grad(sum(terms.values()), list(self.theta.values()))
        return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_gradient_is_instance_plus_weight_times_prior(batch_size):
    s = Setting()
    batch = s.batch(batch_size)
    instance = s.gradient(STANDARD, batch)
    prior = s.gradient(STANDARD, {"instance": batch["prior"]})
    together = s.gradient(PRIOR(0.7), batch)
    rounding = 1e-5 * (instance.abs().max() + prior.abs().max())
    assert (together - (instance + 0.7 * prior)).abs().max() < rounding
    assert (together - instance).abs().max() > 100 * rounding


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_min_snr_weighs_each_sample_of_both_terms(batch_size):
    """Against a loop over single samples, with the weight min(snr, 5) / snr written out.

    At timesteps below 100 every weight is below 0.9, so a term without weights would be seen.
    """
    s = Setting()
    batch, ab = s.batch(batch_size, highest=100), s.model.schedule.alpha_bar
    weights = s.model.schedule.min_snr_weights(5.0)
    assert all((weights[e.t] < 0.9).all() for e in batch.values())
    terms = PRIOR(1.0).terms(s.predict, s.model.schedule, batch, weights=weights)
    for role, e in batch.items():
        by_hand = []
        for b in range(batch_size):
            a = ab[e.t[b]]
            x_t = a.sqrt().float() * e.x0[b] + (1 - a).sqrt().float() * e.eps[b]
            answer = s.predict(x_t[None], e.t[b][None], [e.cond[b]])[0]
            snr = a / (1 - a)
            by_hand.append(min(snr, 5.0) / snr * ((answer - e.eps[b]) ** 2).mean())
        expected = sum(by_hand) / batch_size
        assert abs(terms[role] - expected) < 1e-5 * expected


@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.slow), "lora"])
@pytest.mark.parametrize(
    ("objective", "weight"),
    [
        ("prior", "prior_loss_weight"),
        ("l2", "l2_reg_weight"),
        ("output", "output_weight"),
        ("fisher", "fisher_weight"),
    ],
)
def test_weight_zero_is_standard_bit_for_bit(tmp_path, objective, weight, kind):
    plain = trained(config(tmp_path / "standard", kind=kind, max_train_steps=2))
    zero = config(tmp_path / "zero", objective, kind, max_train_steps=2, **{weight: 0.0})
    assert same(plain, trained(zero))
    some = config(tmp_path / "some", objective, kind, max_train_steps=2, **{weight: 100.0})
    assert not same(plain, trained(some))


def test_the_objective_of_a_resolved_configuration_is_stable():
    c = config("unused", "prior", prior_loss_weight=0.5)
    assert objective_of(resolve(c)) == PRIOR(0.5)
