"""The objectives: limits, sums, and the gradient added in place."""

from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch

from toy2d.core.objectives import (
    BLOCK,
    FISHER,
    L2,
    OUTPUT,
    PRIOR,
    STANDARD,
    TERMS,
    Anchor,
    Example,
    Objective,
)
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule

SCHEDULE = Schedule.linear(100)


def example(seed, shape=(4, 3)):
    rng = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, *shape, generator=rng)
    return Example(x0, torch.randint(100, shape[:1], generator=rng), eps, torch.zeros(shape[0]))


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 3)


def losses(objective, net, star, batch):
    terms = objective.terms(lambda x, t, c: net(x), SCHEDULE, batch, lambda x, t, c: star(x))
    return terms, torch.stack(list(terms.values())).sum()


BATCH = {"instance": example(1), "prior": example(2), "output": example(3)}


def gradient(objective, batch=BATCH):
    net, star = network(0), network(1)
    losses(objective, net, star, batch)[1].backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("zero", [PRIOR(0.0), L2(0.0), OUTPUT(0.0), FISHER(0.0)])
def test_weight_zero_is_standard_bit_for_bit(zero):
    assert torch.equal(gradient(zero), gradient(STANDARD))


@pytest.mark.parametrize("zero", [PRIOR, OUTPUT])
def test_a_stack_with_weight_zero_is_standard_bit_for_bit(zero):
    """In a stack the term is computed for all, times 0 for this run: 0 * g + g0 = g0 exactly.

    Against a stack without the term, of the same shape: one run alone has other matrix products,
    which another processor may round differently.
    """
    batch = {k: Example(*(torch.stack([part, part]) for part in e)) for k, e in BATCH.items()}

    def of_the_first(objectives):
        net, star = network(0), network(1)
        stack = Objective.stack(objectives)
        terms = stack.terms(lambda x, t, c: net(x), SCHEDULE, batch, lambda x, t, c: star(x))
        sum(terms.values())[0].backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    standard = of_the_first([STANDARD, STANDARD])
    assert torch.equal(of_the_first([zero(0.0), zero(1.0)]), standard)
    torch.testing.assert_close(standard, gradient(STANDARD), rtol=1e-5, atol=1e-7)


def test_gradient_of_prior_is_instance_plus_weight_times_prior():
    prior_alone = gradient(STANDARD, {"instance": BATCH["prior"]})
    torch.testing.assert_close(gradient(PRIOR(3.0)), gradient(STANDARD) + 3 * prior_alone)


def test_terms_are_named_and_sum_to_the_loss_of_a_hand_loop():
    net, star = network(0), network(1)
    terms, _ = losses(PRIOR(2.0) + OUTPUT(0.5), net, star, BATCH)
    assert list(terms) == ["instance", "prior", "output"]
    x0, t, eps, _ = BATCH["prior"]
    by_hand = [
        (
            (net(SCHEDULE.add_noise(x0[i : i + 1], t[i : i + 1], eps[i : i + 1])) - eps[i]) ** 2
        ).mean()
        for i in range(4)
    ]
    torch.testing.assert_close(terms["prior"], 2 * torch.stack(by_hand).mean())


def test_output_loss_vanishes_at_the_base_and_has_no_gradient_into_it():
    star = network(1)
    terms, loss = losses(OUTPUT(1.0), star, star, BATCH)
    assert terms["output"] == 0
    loss.backward()
    torch.testing.assert_close(
        torch.cat([p.grad.flatten() for p in star.parameters()]),
        _grad_of_instance(star),
    )


def _grad_of_instance(net):
    twin = network(1)
    losses(STANDARD, twin, twin, BATCH)[1].backward()
    return torch.cat([p.grad.flatten() for p in twin.parameters()])


@pytest.mark.parametrize("reduction", ["sum", "tensor_mean"])
@pytest.mark.parametrize("importance", [False, True])
def test_in_place_gradient_equals_autograd(reduction, importance):
    rng = torch.Generator().manual_seed(0)

    def params(scale=1.0):
        return {
            k: scale * torch.randn(2, *s, generator=rng)
            for k, s in {"a": (5, 3), "b": (7,)}.items()
        }

    theta, star = {k: v.requires_grad_() for k, v in params().items()}, params()
    weights = {k: v.abs() for k, v in params().items()} if importance else None
    anchor = Anchor(theta, star, weights, reduction, runs=1)
    lam = torch.tensor([0.3, 2.0])
    (lam * anchor.squared_distance()).sum().backward()
    wanted = {k: v.grad.clone() for k, v in theta.items()}
    for v in theta.values():
        v.grad = torch.zeros_like(v)
    anchor.add_gradient_(lam)
    for k, v in theta.items():
        torch.testing.assert_close(v.grad, wanted[k], rtol=2e-6, atol=1e-7)  # rounding only


def test_anchor_in_bf16_differs_by_its_rounding_only():
    theta = {"a": torch.randn(100, requires_grad=True)}
    star = {"a": torch.randn(100)}
    exact, rounded = (
        Anchor(theta, s).squared_distance() for s in (star, {"a": star["a"].bfloat16()})
    )
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=2**-7)


def test_pull_is_the_proximal_step():
    """argmin_x ||x - theta||^2 / 2 + strength ||x - star||^2 = star + (theta - star) / (1 + 2
    strength).
    """
    theta, star = {"a": torch.tensor([3.0])}, {"a": torch.tensor([1.0])}
    Anchor(theta, star).pull_(0.5)
    assert theta["a"] == 2.0


@pytest.mark.parametrize("decoupled", [None, True])
@pytest.mark.parametrize(("make", "role"), [(L2, "l2"), (FISHER, "fisher")])
def test_coupled_adds_gradients_and_decoupled_pulls(make, role, decoupled):
    """Coupled unless asked for."""
    objective = make(0.7) if decoupled is None else make(0.7, decoupled=True)
    theta = {"a": torch.tensor([3.0], requires_grad=True)}
    theta["a"].grad = torch.zeros(1)
    anchors = {role: Anchor(theta, {"a": torch.tensor([1.0])})}
    objective.add_anchor_gradients_(anchors)
    objective.pull_to_anchors_(anchors, learning_rate=0.1)
    if decoupled:
        assert theta["a"].grad == 0
        assert float(theta["a"].detach()) == pytest.approx(1 + 2 / (1 + 2 * 0.07))
    else:
        assert float(theta["a"].grad) == pytest.approx(2 * 0.7 * 2)
        assert theta["a"] == 3.0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [PRIOR, L2, OUTPUT, FISHER])
def test_impossible_weights_are_refused(make, bad):
    with pytest.raises(ValueError, match="finite number >= 0"):
        make(bad)


def test_what_is_missing_is_named():
    net = network()
    for objective, says in (
        (PRIOR(1.0), "no 'prior' examples"),
        (OUTPUT(1.0), "no 'output' examples"),
    ):
        with pytest.raises(ValueError, match=says):
            objective.terms(lambda x, t, c: net(x), SCHEDULE, {"instance": BATCH["instance"]})
    with pytest.raises(ValueError, match="pass predict_star"):
        OUTPUT(1.0).terms(lambda x, t, c: net(x), SCHEDULE, BATCH)
    with pytest.raises(ValueError, match="no 'l2' anchor"):
        L2(1.0).anchor_terms({})


def test_sums_keep_every_weight():
    both = PRIOR(1.0) + L2(0.1, "tensor_mean") + OUTPUT(2.0)
    assert (both.prior, both.l2, both.output, both.reduction) == (1.0, 0.1, 2.0, "tensor_mean")
    with pytest.raises(ValueError, match="one reduction"):
        L2(0.1) + L2(0.1, "tensor_mean")


def test_min_snr_weights_every_sample_also_under_prior():
    """Each sample has its own weight; the usual scripts weight after averaging. B = 1, 2, 3."""
    net = network()
    for batch_size in (1, 2, 3):
        batch = {"instance": example(5, (batch_size, 3)), "prior": example(6, (batch_size, 3))}
        terms = PRIOR(2.0).terms(
            lambda x, t, c: net(x), SCHEDULE, batch, weights=SCHEDULE.min_snr_weights(5.0)
        )
        for role, factor in (("instance", 1.0), ("prior", 2.0)):
            x0, t, eps, _ = batch[role]
            error = ((net(SCHEDULE.add_noise(x0, t, eps)) - eps) ** 2).mean(-1)
            snr = SCHEDULE.alpha_bar[t] / (1 - SCHEDULE.alpha_bar[t])
            by_hand = factor * (error * (snr.clamp(max=5) / snr).float()).mean()
            torch.testing.assert_close(terms[role], by_hand)


def test_the_same_code_takes_images():
    """Shape-generic: a batch of latents (B, 4, 8, 8) with an opaque condition."""
    batch = {
        "instance": Example(
            torch.randn(2, 4, 8, 8), torch.tensor([3, 50]), torch.randn(2, 4, 8, 8), {"text": 1}
        )
    }
    terms = STANDARD.terms(lambda x, t, c: x * c["text"], SCHEDULE, batch)
    assert terms["instance"].shape == ()


def test_a_stacks_losses_are_those_of_its_runs():
    """Whatever the number of the data's dimensions, with weights of the nodes and without."""
    for shape in ((4, 3), (4, 2, 3)):
        alone = [{k: example(10 * r + i, shape) for i, k in enumerate(BATCH)} for r in (1, 2)]
        stacked = {
            k: Example(*(torch.stack(both) for both in zip(*(b[k] for b in alone), strict=True)))
            for k in BATCH
        }
        net, star = network(0), network(1)
        both = PRIOR(2.0) + OUTPUT(0.5)
        for weights in (None, SCHEDULE.min_snr_weights(5.0)):

            def terms(objective, batch, net=net, star=star, weights=weights):
                predict, base = lambda x, t, c: net(x), lambda x, t, c: star(x)
                return objective.terms(predict, SCHEDULE, batch, base, weights)

            together = terms(Objective.stack([both, both]), stacked)
            for name, values in together.items():
                wanted = torch.stack([terms(both, batch)[name] for batch in alone])
                torch.testing.assert_close(values, wanted)


def test_the_anchor_of_some_parameters_is_that_of_those_alone():
    rng = torch.Generator().manual_seed(0)
    theta, star, F = ({n: torch.rand(2, 3, generator=rng) for n in "ab"} for _ in range(3))
    for v in theta.values():
        v.grad = torch.zeros_like(v)
    whole = Anchor(theta, star, F, "tensor_mean", runs=1)
    part = whole.of({id(theta["b"])})
    wanted = (F["b"] * (theta["b"] - star["b"]) ** 2).mean(1)
    torch.testing.assert_close(part.squared_distance(), wanted)
    part.add_gradient_(1.0)
    part.pull_(1.0)
    assert not theta["a"].grad.any()
    torch.testing.assert_close(whole.of({id(v) for v in theta.values()}).theta, theta)


def test_a_stack_of_one_run_is_that_run():
    theta, star = torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 1.0]])
    theta.grad = torch.zeros_like(theta)
    Anchor({"a": theta}, {"a": star}, None, "tensor_mean", 1).add_gradient_(torch.tensor([0.5]))
    torch.testing.assert_close(theta.grad, torch.tensor([[1.0, 2.0]]))  # 2 * 0.5 * d / 2


def test_runs_of_a_stack_share_how_their_distances_count():
    for other in (L2(0.1, "tensor_mean"), L2(0.1, decoupled=True)):
        with pytest.raises(ValueError, match="must share"):
            Objective.stack([L2(0.1), other])
    mean = SimpleNamespace(**dict.fromkeys(TERMS, 0.0), reduction="mean")  # past the type checker
    with pytest.raises(ValueError, match="sum or tensor_mean"):
        Objective.__post_init__(mean)


def test_an_objective_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        STANDARD.l2 = 1.0


def test_a_sum_keeps_the_distances_reduction_and_coupling_on_either_side():
    distance = L2(0.1, "tensor_mean", decoupled=True)
    for total in (distance + PRIOR(2.0), PRIOR(2.0) + distance):
        assert (total.l2, total.prior) == (0.1, 2.0)
        assert (total.reduction, total.decoupled) == ("tensor_mean", True)
    assert (L2(0.1) + FISHER(0.2)).fisher == 0.2
    with pytest.raises(ValueError, match="one coupling"):
        L2(0.1) + FISHER(0.2, decoupled=True)


def test_prior_preservation_weighs_both_terms_alike_unless_told():
    """DreamBooth's lambda = 1."""
    assert PRIOR() == PRIOR(1.0) == Objective(prior=1.0)


def test_a_large_gradient_is_added_in_pieces_that_change_no_bit():
    """Weights of more than one block, and in another layout, beside the formula in one pass."""
    rng = generator(0, "pieces")
    theta = {
        "large": torch.randn(1100, 2100, generator=rng),
        "turned": torch.randn(7, 3, 4, generator=rng).permute(2, 0, 1),
        "one": torch.randn((), generator=rng),
    }
    assert theta["large"].numel() > 2 * BLOCK
    star = {n: torch.randn(p.shape, generator=rng) for n, p in theta.items()}
    for p in theta.values():
        p.grad = torch.randn(p.shape, generator=rng)
    expected = {n: torch.add(p.grad, p - star[n], alpha=0.26) for n, p in theta.items()}
    Anchor(theta, star).add_gradient_(0.13)
    assert all(torch.equal(p.grad, expected[n]) for n, p in theta.items())
