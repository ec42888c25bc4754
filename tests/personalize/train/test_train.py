"""The training loop: what must not change it, what must stop it, how its pieces add up."""

import pickle
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from small import config, history, same, trained

from personalize.config.rules import resolve
from personalize.train.guard import Guard, Stopped
from personalize.train.loop import TrainingLoop, fit, objective_of
from personalize.train.setup import make_state, with_steps
from personalize.train.streams import StoredAnswers, Streams
from toy2d.core.drift import squared_error
from toy2d.core.objectives import Anchor
from toy2d.core.schedule import Schedule
from toy2d.runs.files import RunFailure, UserError
from toy2d.runs.folder import RunFolder

torch.set_num_threads(1)


class Points:
    """A pool of 5 fixed latents."""

    def __init__(self, prompt: str = "instance"):
        self.x0 = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        self.prompt = prompt

    def __len__(self):
        return 5

    def draw(self, indices, rng):
        return self.x0[indices], [self.prompt] * len(indices)


class Line:
    """The smallest denoiser: eps = w * x_t + b, with an optional fault at one call."""

    def __init__(self, fault_at: int | None = None):
        self.theta = {
            "w": torch.nn.Parameter(torch.tensor(0.3)),
            "b": torch.nn.Parameter(torch.zeros(1, 2, 2)),
        }
        self.calls, self.fault_at = 0, fault_at

    def predict(self, x_t, t, prompts):
        self.calls += 1
        fault = float("nan") if self.calls == self.fault_at else 1.0
        return (self.theta["w"] * x_t + self.theta["b"]) * fault


def loop(line: Line, steps: int = 6, **more):
    c = with_steps(resolve(config("unused", kind="lora", max_train_steps=steps, **more)), 5)
    schedule = Schedule.linear(50)
    streams = Streams({"instance": Points()}, c, 50)
    run = TrainingLoop(c, schedule, line.predict, objective_of(c), {}, streams)
    return run, make_state(line.theta, c)


def go(run: TrainingLoop, state, save=lambda state: None):
    rows, accumulation = [], run.config.gradient_accumulation_steps
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    fit(run, state, accelerator, rows.append, save)
    return rows


def values(line: Line) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in line.theta.items()}


# ---- a non-finite loss stops before the update
@pytest.mark.parametrize("log_every", [1, 6])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(log_every):
    """The fault is in step 4; the host looks only every `log_every` steps, the device at once."""
    well = Line()
    go(*loop(well, steps=3))
    ill, saved = Line(fault_at=4), []
    run, state = loop(ill, log_every=log_every, probe_steps=6)
    with pytest.raises(RunFailure, match="no longer finite at step 4;"):
        go(run, state, save=saved.append)
    assert same(values(well), values(ill))
    assert not saved


def test_the_moments_stay_too():
    well, ill = Line(), Line(fault_at=4)
    (run, state), (bad_run, bad_state) = loop(well, steps=3), loop(ill, log_every=6, probe_steps=6)
    go(run, state)
    with pytest.raises(RunFailure):
        go(bad_run, bad_state)
    for name in well.theta:
        a, b = state.optimizer.state[well.theta[name]], bad_state.optimizer.state[ill.theta[name]]
        assert same(a, b)


def test_an_infinite_gradient_of_a_finite_loss_stops_too():
    line = Line()
    _, state = loop(line)
    guard = Guard(state.optimizer, torch.device("cpu"))
    guard.watch(3, torch.tensor(1.0), torch.tensor(float("inf")))
    guard.watch(4, torch.tensor(1.0), torch.tensor(1.0))  # once bad, always bad
    with pytest.raises(RunFailure, match="at step 3"):
        guard.check()


def test_decoupled_pull_stops_with_it():
    ill, well = Line(fault_at=4), Line()
    for line, steps in ((well, 3), (ill, 6)):
        run, state = loop(
            line, steps, objective="l2", reg_decoupled=True, log_every=6, probe_steps=6
        )
        run.anchors = {"l2": Anchor(line.theta, {k: v + 1.0 for k, v in values(Line()).items()})}
        try:
            go(run, state)
        except RunFailure:
            assert line is ill
    assert same(values(well), values(ill))


def test_the_distance_is_part_of_the_gradient_that_is_clipped():
    """What reaches the optimizer is (g + 2 lambda (theta - theta*)), cut to max_grad_norm."""
    line, weight, limit = Line(), 3.0, 0.5
    run, state = loop(line, 1, objective="l2", l2_reg_weight=weight, max_grad_norm=limit)
    star = {k: v + 1.0 for k, v in values(line).items()}
    run.anchors = {"l2": Anchor(line.theta, star)}
    terms = run.objective.terms(line.predict, run.schedule, *run.batch(0))
    loss = sum(terms.values()) + sum(run.objective.anchor_terms(run.anchors).values())
    wanted = torch.autograd.grad(loss, list(line.theta.values()))
    norm = torch.cat([g.flatten() for g in wanted]).norm()
    assert norm > 2 * limit  # the limit acts
    received = []

    def note(optimizer, arguments, keywords):
        received.extend(p.grad.clone() for p in line.theta.values())

    state.optimizer.register_step_pre_hook(note)
    (row,) = go(run, state)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for got, g in zip(received, wanted, strict=True):
        torch.testing.assert_close(got, g * limit / norm, rtol=1e-4, atol=1e-6)


def test_the_first_step_of_adamw_in_closed_form():
    """theta (1 - lr decay) - lr g / (|g| + epsilon): the bias corrections cancel the betas."""
    lr, decay, epsilon = 0.1, 0.3, 0.5
    flags = {"learning_rate": lr, "adam_weight_decay": decay, "adam_epsilon": epsilon}
    line = Line()
    run, state = loop(line, 1, **flags, max_grad_norm=0.0)
    before = values(line)
    terms = run.objective.terms(line.predict, run.schedule, *run.batch(0))
    gradients = torch.autograd.grad(sum(terms.values()), list(line.theta.values()))
    go(run, state)
    for name, g in zip(line.theta, gradients, strict=True):
        expected = before[name] * (1 - lr * decay) - lr * g / (g.abs() + epsilon)
        torch.testing.assert_close(values(line)[name], expected, rtol=1e-5, atol=1e-7)


class TwoRates(Line):
    """The same line; its offset counts as the text encoder's."""

    def __init__(self):
        super().__init__()
        self.theta = {"w": self.theta["w"], "text_encoder.b": self.theta["b"]}

    def predict(self, x_t, t, prompts):
        return self.theta["w"] * x_t + self.theta["text_encoder.b"]


def test_each_group_is_pulled_at_its_own_rate():
    """theta* + (theta - theta*) / (1 + 2 lr weight), theta from Adam's step, lr the group's."""
    rates, lines = {"w": 1e-2, "text_encoder.b": 1e-1}, {}
    for objective in ("standard", "l2"):
        line = lines[objective] = TwoRates()
        pull = {"reg_decoupled": True, "l2_reg_weight": 3.0} if objective == "l2" else {}
        run, state = loop(
            line, 1, objective=objective, train_text_encoder=True, text_encoder_lr=1e-1, **pull
        )
        star = {k: v + 1.0 for k, v in values(line).items()}
        run.anchors = {"l2": Anchor(line.theta, star)}
        go(run, state)
    free, pulled = values(lines["standard"]), values(lines["l2"])
    for name, lr in rates.items():
        expected = star[name] + (free[name] - star[name]) / (1 + 2 * lr * 3.0)
        torch.testing.assert_close(pulled[name], expected, rtol=1e-6, atol=1e-7)


def test_a_group_without_parameters_is_none():
    """New words alone: the one rate that acts is the one that is logged."""
    line = TwoRates()
    c = resolve(config("unused", kind="token", learning_rate=0.3))
    only = make_state({"text_encoder.b": line.theta["text_encoder.b"]}, with_steps(c, 5))
    assert len(only.optimizer.param_groups) == 1
    assert only.learning_rate == 0.3


def test_a_run_that_diverges_keeps_its_checkpoint_and_says_why(tmp_path):
    c = config(tmp_path / "run", kind="full", learning_rate=1e20, checkpointing_steps=1)
    with pytest.raises(RunFailure, match=r"no longer finite at step [23]; .*Lower --learning_rate"):
        trained(c)
    folder = RunFolder(c.output_dir, {})
    assert folder.status == "failed"
    tensors, scalars = folder.newest_checkpoint()
    assert scalars["step"] in (1, 2)
    assert all(torch.isfinite(t).all() for k, t in tensors.items() if k.startswith("theta/"))


# ---- what must not change training
def test_validation_logging_and_measuring_never_change_training(tmp_path):
    plain = config(tmp_path / "plain", lora_dropout=0.2)
    watched = replace(
        plain,
        output_dir=str(tmp_path / "watched"),
        validation_prompt=("a photo of sks dog", "a cat"),
        validation_steps=1,
        num_validation_images=1,
        validation_inference_steps=2,
        probe_steps=1,
        path_kl_steps=1,
        log_every=1,
    )
    assert same(trained(plain), trained(watched))
    grids = sorted(p.name for p in (tmp_path / "watched" / "figures").glob("*.png"))
    assert grids == [f"validation-{s:06d}.png" for s in range(5)]


def test_the_instance_loss_of_step_1_is_the_same_for_every_objective(tmp_path):
    """Equal weights, equal noise: the very first number agrees to the bit."""
    first = set()
    for objective in ("standard", "prior", "l2", "output", "fisher", "prior+l2"):
        c = config(tmp_path / objective, objective, "full", max_train_steps=1)
        trained(c)
        first.add(history(c)[1]["loss_instance"])
    assert len(first) == 1


def test_accumulating_equals_a_larger_batch():
    """2 minibatches of 3 equal one of 6, to rounding: the same samples, and losses are means."""
    small, large = Line(), Line()
    a = go(*loop(small, train_batch_size=3, gradient_accumulation_steps=2))
    b = go(*loop(large, train_batch_size=6))
    for name in small.theta:
        assert torch.allclose(small.theta[name], large.theta[name], atol=1e-6)
    assert [r["instance"] for r in a] == pytest.approx([r["instance"] for r in b], rel=1e-5)


def test_terms_are_means_since_the_row_before():
    every, third = Line(), Line()
    a = go(*loop(every))
    b = go(*loop(third, log_every=3, probe_steps=6))
    assert len(b) == 2
    assert b[1]["instance"] == pytest.approx(sum(r["instance"] for r in a[3:]) / 3, rel=1e-6)


# ---- the base's answers
def test_stored_answers_are_the_base_asked_at_every_step():
    """With an output stored for every sample, training equals that beside the live base."""
    star = Line()
    results = []
    for live in (True, False):
        line = Line()
        run, state = loop(line, objective="output", class_data_dir="x")
        run.streams.pools["output"] = Points("output")
        table = StoredAnswers.compute(star.predict, run.streams, run.schedule, 12)
        run.base = star.predict if live else table
        go(run, state)
        results.append(values(line))
    assert same(*results)


def test_fewer_draws_take_turns():
    run, _ = loop(Line(), objective="output", class_data_dir="x")
    run.streams.pools["output"] = Points("output")
    run.base = StoredAnswers.compute(Line().predict, run.streams, run.schedule, 4)
    (a, star_a), (b, star_b) = run.batch(1), run.batch(5)
    assert torch.equal(a["output"].eps, b["output"].eps)
    assert not torch.equal(a["instance"].eps, b["instance"].eps)
    x0, t, _, cond = a["output"]
    assert float(squared_error(star_a, star_b, run.schedule, x0, t, cond).sum()) == 0


def test_output_preservation_keeps_the_base_nearer(tmp_path):
    """Less drift on unrelated prompts than standard, with the same steps and noise."""
    ends = {}
    for objective in ("standard", "output"):
        c = config(
            tmp_path / objective,
            objective,
            "full",
            max_train_steps=30,
            log_every=30,
            probe_steps=30,
        )
        if objective == "output":
            c = replace(c, output_weight=10.0, output_draws=1000)
        trained(c)
        ends[objective] = history(c)[-1]["path_kl/unrelated"]
    assert ends["output"] < 0.7 * ends["standard"]


# ---- signals, in this process
def test_sigterm_finishes_the_step_and_saves(tmp_path):
    c = config(tmp_path / "run", max_train_steps=6, checkpointing_steps=100)

    def signal_at_step_2(row):
        if row["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped after step 2, which is saved"):
        trained(c, on_row=signal_at_step_2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    whole = replace(c, output_dir=str(tmp_path / "whole"))
    assert same(trained(c), trained(whole))
    assert history(c) == history(whole)


def test_a_second_signal_acts_at_once(tmp_path):
    c = config(tmp_path / "run", max_train_steps=6)

    def signals_at_step_2(row):
        if row["step"] == 2:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(c, on_row=signals_at_step_2)


# ---- lengths
def test_epochs_become_steps():
    c = config("unused", max_train_steps=None, repeats=4, num_train_epochs=3, train_batch_size=2)
    assert with_steps(c, 5).max_train_steps == 3 * 10
    c = replace(c, gradient_accumulation_steps=4)
    assert (
        with_steps(c, 5).max_train_steps == 3 * 3
    )  # the last step of an epoch starts the next one
    assert with_steps(replace(c, lr_scheduler="cosine"), 500).lr_warmup_steps == 75
    with pytest.raises(UserError, match="would never be reached"):
        with_steps(replace(c, lr_scheduler="cosine", lr_warmup_steps=9), 5)


def test_a_stop_comes_back_whole_from_a_worker_process():
    stop = pickle.loads(pickle.dumps(Stopped("SIGTERM: stopped after step 1", 15)))
    assert (str(stop), stop.number) == ("SIGTERM: stopped after step 1", 15)
