"""k steps, killed, resumed, N - k steps equal N steps to the bit; and what must not resume.

For every objective and kind of training.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import (
    KINDS,
    OBJECTIVES,
    config,
    history,
    history_cells,
    killed_at_row,
    photos,
    same,
    trained,
    workshop,
)

from personalize.pipeline.random_pipeline import tiny
from personalize.train.state import State
from toy2d.runs.files import UserError
from toy2d.runs.folder import RunFolder

torch.set_num_threads(1)


LONGER = [(o, k) for o in ("prior", "output", "fisher") for k in ("lora+text", "full+text")]
LONGER += [("prior+l2", kind) for kind in KINDS] + [
    ("standard", "full+text"),
    ("l2", "full+text"),
    ("standard", "lora+text"),
]


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        pytest.param(o, k, marks=pytest.mark.slow if (o, k) in LONGER else ())
        for o in (*OBJECTIVES, "prior+l2")
        for k in KINDS
    ],
)
def test_killed_and_resumed_equals_never_stopped(tmp_path, objective, kind):
    whole = config(tmp_path / "whole", objective, kind, checkpointing_steps=2)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=3)
    assert same(trained(whole), trained(cut))
    assert history_cells(whole) == history_cells(cut)


FULL_FEATURED = {
    "use_ema": True,
    "ema_decay": 0.5,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.3,
    "random_flip": True,
    "log_every": 2,
}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_wherever_it_is_killed(tmp_path, every):
    """k = 1, in the middle of a log interval and of an epoch (3 pictures, 4 a step), and N - 1.

    With everything that has a state.
    """
    whole = config(tmp_path / "whole", **FULL_FEATURED, checkpointing_steps=every)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=4)
    assert same(trained(whole), trained(cut))
    assert history_cells(whole) == history_cells(cut)


@functools.cache
def never_stopped():
    whole = config(workshop() / "never_stopped", **FULL_FEATURED, checkpointing_steps=3)
    return whole, trained(whole)


def test_negative_control_the_text_encoder_s_moments_are_needed(tmp_path, monkeypatch):
    whole = config(tmp_path / "whole", kind="full+text", checkpointing_steps=2)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=3)
    restore, lost = State.restore, "adam/exp_avg/text_encoder"

    def forgetful(self, tensors, scalars):
        assert any(k.startswith(lost) for k in tensors)
        restore(
            self,
            {k: torch.zeros_like(v) if k.startswith(lost) else v for k, v in tensors.items()},
            scalars,
        )

    monkeypatch.setattr(State, "restore", forgetful)
    forgot, weights = trained(cut), trained(whole)
    text = [k for k in weights if k.startswith("text_encoder/")]
    assert not same({k: weights[k] for k in text}, {k: forgot[k] for k in text})


@pytest.mark.parametrize(
    "lost", ["adam/exp_avg/", "adam/exp_avg_sq/", "adam/step/", "ema/", "sums/"]
)
def test_negative_control_every_part_of_the_state_is_needed(tmp_path, monkeypatch, lost):
    whole, weights = never_stopped()
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=4)
    restore = State.restore

    def forgetful(self, tensors, scalars):
        tensors = {k: torch.zeros_like(v) if k.startswith(lost) else v for k, v in tensors.items()}
        restore(self, tensors, scalars)

    monkeypatch.setattr(State, "restore", forgetful)
    forgot = trained(cut)
    if lost == "sums/":  # not of the weights, but of the log
        assert history(whole) != history(cut)
    else:
        assert not same(weights, forgot)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    whole = config(tmp_path / "whole", checkpointing_steps=1, checkpoints_total_limit=2)
    for i, damage in enumerate((_flip_a_byte, _truncate, _lose)):
        cut = replace(whole, output_dir=str(tmp_path / f"cut{i}"))
        killed_at_row(cut, step=4)
        kept = RunFolder(cut.output_dir, {}).checkpoints()
        assert [p.name for p in kept] == ["step-00000002", "step-00000003"]
        damage(kept[-1] / "state.safetensors")
        assert same(trained(whole), trained(cut))
        assert history_cells(whole) == history_cells(cut)


def _flip_a_byte(file: Path):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def _truncate(file: Path):
    file.write_bytes(file.read_bytes()[:-100])


def _lose(file: Path):
    file.unlink()


def test_done_is_done_and_another_configuration_is_refused(tmp_path):
    c = config(tmp_path / "run", max_train_steps=1)
    weights, written = trained(c), (tmp_path / "run" / "history.csv").stat().st_mtime_ns
    assert same(weights, trained(c))
    assert (tmp_path / "run" / "history.csv").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"seed: 0 there, 1 now"):
        trained(replace(c, seed=1))


def test_a_run_does_not_go_on_with_another_base_or_picture(tmp_path):
    shutil.copytree(workshop() / "sd", tmp_path / "sd")
    photos(tmp_path / "photos", 2)
    mine = {
        "pretrained_model_name_or_path": str(tmp_path / "sd"),
        "instance_data_dir": str(tmp_path / "photos"),
    }
    c = config(tmp_path / "run", checkpointing_steps=1, **mine)
    killed_at_row(c, step=2)
    before = (tmp_path / "photos" / "0.jpg").read_bytes()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "0.jpg")
    with pytest.raises(UserError, match="a picture or caption changed"):
        trained(c)
    (tmp_path / "photos" / "0.jpg").write_bytes(before)
    shutil.rmtree(tmp_path / "sd")
    tiny(folder=tmp_path / "sd", seed=1)
    with pytest.raises(UserError, match="the base model changed"):
        trained(c)


def test_resume_from_checkpoint_by_name(tmp_path):
    """`latest` must exist; another run's checkpoint is taken, unless its training differs."""
    whole = config(tmp_path / "whole", checkpointing_steps=2)
    weights = trained(whole)
    other = replace(whole, output_dir=str(tmp_path / "other"))
    with pytest.raises(UserError, match="no whole checkpoint"):
        trained(replace(other, resume_from_checkpoint="latest"))
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step-00000002")
    grids = {
        "validation_prompt": ("a dog",),
        "validation_inference_steps": 2,
        "num_validation_images": 1,
    }
    assert same(weights, trained(replace(other, resume_from_checkpoint=checkpoint, **grids)))
    base = Image.open(tmp_path / "other" / "figures" / "base" / "00000.png")
    assert base.size == (64, 64)  # drawn before the weights were restored
    with pytest.raises(UserError, match="no whole checkpoint folder"):
        trained(replace(whole, output_dir=str(tmp_path / "a"), resume_from_checkpoint="nowhere"))
    with pytest.raises(UserError, match="leaves nothing to do"):
        trained(config(tmp_path / "short", max_train_steps=2, resume_from_checkpoint=checkpoint))
    full = config(tmp_path / "full", kind="full", resume_from_checkpoint=checkpoint)
    with pytest.raises(UserError, match="--train lora there, full here"):
        trained(full)
    fewer = {"lora_target_modules": ("to_q",), "resume_from_checkpoint": checkpoint}
    with pytest.raises(UserError, match="other weights"):
        trained(config(tmp_path / "fewer", **fewer))


def rates(c) -> list[float]:
    return [row["lr"] for row in history(c) if row["step"]]


def test_another_run_s_checkpoint_brings_no_learning_rate(tmp_path):
    """Weights and moments continue at this run's learning rate and schedule."""
    first = config(tmp_path / "first", checkpointing_steps=2)
    weights = trained(first)
    taken = replace(first, resume_from_checkpoint=str(tmp_path / "first/checkpoints/step-00000002"))
    slow = replace(taken, output_dir=str(tmp_path / "slow"), learning_rate=1e-5)
    assert not same(weights, trained(slow))
    assert rates(slow) == [1e-5] * 2
    falling = replace(
        taken, output_dir=str(tmp_path / "falling"), lr_scheduler="linear", lr_warmup_steps=0
    )
    trained(falling)
    assert rates(falling) == pytest.approx([1e-2 * (4 - k) / 4 for k in (3, 4)])


OTHERWISE = {  # what the new run has -> what is said
    "ema": ({"use_ema": True}, "--use_ema False there, True here"),
    "alpha": ({"lora_alpha": 8.0}, "--lora_alpha 4.0 there, 8.0 here"),
    "precision": ({"mixed_precision": "bf16"}, "--mixed_precision no there, bf16 here"),
    "base": ({}, "base model .* there, .* here"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_checkpoint_of_another_kind_of_run_is_refused(tmp_path, what):
    chosen, said = OTHERWISE[what]
    if what == "base":
        tiny(folder=tmp_path / "other_sd", seed=1)
        chosen = {"pretrained_model_name_or_path": str(tmp_path / "other_sd")}
    first = config(workshop() / "checkpointed", checkpointing_steps=2)
    trained(first)
    named = f"{first.output_dir}/checkpoints/step-00000002"
    other = replace(first, output_dir=str(tmp_path / "new"), resume_from_checkpoint=named, **chosen)
    with pytest.raises(UserError, match=said):
        trained(other)
    assert not (tmp_path / "new" / "config.json").exists()  # free for the mended command


def test_rows_of_another_word_are_refused_and_a_checkpoint_that_says_nothing(tmp_path):
    first = config(tmp_path / "first", kind="token", checkpointing_steps=2)
    trained(first)
    named = f"{first.output_dir}/checkpoints/step-00000002"
    word = {"placeholder_token": "<other>", "instance_prompt": "a photo of <other> dog"}
    other = replace(first, output_dir=str(tmp_path / "new"), resume_from_checkpoint=named)
    with pytest.raises(UserError, match="--placeholder_token <new1> there, <other> here"):
        trained(replace(other, **word))
    shutil.copytree(named, tmp_path / "alone/checkpoints/step-00000002")
    with pytest.raises(UserError, match="does not say what it trained"):
        trained(
            replace(other, resume_from_checkpoint=str(tmp_path / "alone/checkpoints/step-00000002"))
        )


def test_weights_alone_keep_their_place_in_the_schedule(tmp_path, monkeypatch):
    """Linear over 6 steps, killed at 5: the same rates as never stopped, down to 0.

    The average starts at the restored weights.
    """
    linear = {"lr_scheduler": "linear", "lr_warmup_steps": 0, "max_train_steps": 6}
    c = config(
        tmp_path / "cut",
        checkpointing_steps=2,
        checkpoint_weights_only=True,
        use_ema=True,
        **linear,
    )
    killed_at_row(c, step=5)
    restore, averages = State.restore, []

    def watched(self, tensors, scalars):
        restore(self, tensors, scalars)
        pairs = zip(self.theta.values(), self.ema.shadow_params, strict=True)
        averages.append((all(torch.equal(p, s) for p, s in pairs), self.ema.optimization_step))

    monkeypatch.setattr(State, "restore", watched)
    trained(c)
    assert rates(c) == pytest.approx([1e-2 * (6 - k) / 6 for k in range(1, 7)])
    assert averages == [(True, 4)]


def test_weights_only_checkpoints_say_that_they_are_not_exact(tmp_path):
    c = config(tmp_path / "run", checkpointing_steps=2, checkpoint_weights_only=True)
    killed_at_row(c, step=3)
    size = (RunFolder(c.output_dir, {}).checkpoints()[-1] / "state.safetensors").stat().st_size
    from personalize.train.experiment import run

    said = []
    run(c, said.append)
    assert any("not bit-equal" in text for text in said)
    exact = replace(c, output_dir=str(tmp_path / "exact"), checkpoint_weights_only=False)
    trained(exact)
    kept = RunFolder(exact.output_dir, {}).checkpoints()[-1] / "state.safetensors"
    assert size < 0.4 * kept.stat().st_size


def start(c) -> subprocess.Popen:
    words = c.command().replace("personalize train", f"{sys.executable} -m personalize train")
    environment = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["/bin/sh", "-c", f"exec {words}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(c, step: int, process: subprocess.Popen, seconds: float = 120.0):
    file, end = Path(c.output_dir) / "history.csv", time.monotonic() + seconds
    while time.monotonic() < end:
        if file.exists() and len(file.read_text().splitlines()) > step + 1:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the run did not reach its step in time")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals(tmp_path, number):
    """SIGTERM and SIGINT finish the step and save it; the same command then ends bit-equal."""
    whole = config(tmp_path / "whole", max_train_steps=40, checkpointing_steps=7)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    process = start(cut)
    wait_for_step(cut, 10, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert "the same command goes on" in said
        assert "Traceback" not in said
        newest = RunFolder(cut.output_dir, {}).checkpoints()[-1]
        rows = history(cut)
        assert newest.name == f"step-{int(rows[-1]['step']):08d}"
    assert same(trained(whole), trained(cut))
    assert history_cells(whole) == history_cells(cut)


def test_moments_in_eight_bits_resume_too(tmp_path):
    """bitsandbytes quantizes tensors of 4,096 numbers and more: the UNet's larger ones."""
    pytest.importorskip("bitsandbytes")
    whole = config(tmp_path / "whole", kind="full", use_8bit_adam=True, checkpointing_steps=2)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=3)
    kept, _ = RunFolder(cut.output_dir, {}).newest_checkpoint()
    assert any(v.dtype == torch.uint8 for k, v in kept.items() if k.startswith("adam/state1/"))
    assert same(trained(whole), trained(cut))
    assert not same(
        trained(whole),
        trained(replace(whole, output_dir=str(tmp_path / "32"), use_8bit_adam=False)),
    )


def test_a_run_of_version_0_1_goes_on_under_the_new_column_name(tmp_path):
    """It called the column of the L2 term loss_anchor."""
    whole = config(tmp_path / "whole", "l2", checkpointing_steps=2)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=3)
    file = tmp_path / "cut" / "history.csv"
    file.write_text(file.read_text().replace("loss_l2", "loss_anchor"))
    assert same(trained(whole), trained(cut))
    assert history_cells(whole) == history_cells(cut)
