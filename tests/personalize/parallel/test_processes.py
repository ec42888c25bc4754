"""Several processes (gloo on a CPU) give the weights of one process with the same samples.

No noise and no class image is made twice, and runs resume under another number of processes.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from small import config, history, trained, workshop

import personalize
from personalize.config.train_config import TrainConfig
from personalize.parallel.processes import keep_step, processes_here
from personalize.parallel.sharding import refuse_what_is_not_sharded
from personalize.pipeline.random_pipeline import tiny
from personalize.train import setup as engine
from personalize.train.experiment import run
from personalize.train.streams import StoredAnswers, Streams
from toy2d.runs.files import UserError
from toy2d.runs.folder import load_tensors

CONFIGS = Path(personalize.__file__).parent / "parallel" / "configs"


class Pool:
    def __len__(self):
        return 3

    def draw(self, indices, rng):
        return torch.randn(len(indices), 2, generator=rng), [f"picture {i}" for i in indices]


def streams(batch: int, rank: int = 0, world: int = 1) -> Streams:
    c = TrainConfig("m", train_batch_size=batch)
    return Streams({"instance": Pool(), "output": Pool()}, c, 10, "none", rank, world)


def test_processes_share_out_what_one_would_draw():
    """Two processes of minibatch 2, or four of 1, draw together one process's minibatch of 4."""
    for world, size in ((2, 2), (4, 1)):
        shares = [streams(size, r, world) for r in range(world)]
        for tick in range(5):
            whole = streams(4).example("instance", tick)
            parts = [s.example("instance", tick) for s in shares]
            for k in range(3):
                assert torch.equal(whole[k], torch.cat([p[k] for p in parts]))
            assert whole.cond == [text for p in parts for text in p.cond]


def test_the_base_s_stored_answers_are_shared_out_alike():
    """Sample i is answered by sample i mod n, whoever takes it."""

    class Identity:
        timesteps = torch.arange(10)

        def add_noise(self, x0, t, eps):
            return x0 + eps

    ask = lambda x, t, prompts: x  # noqa: E731
    one = StoredAnswers.compute(ask, streams(4), Identity(), 10)  # no whole number of minibatches
    two = [StoredAnswers.compute(ask, streams(2, r, 2), Identity(), 10) for r in (0, 1)]
    assert len(one.answers) == 10
    assert all(torch.equal(one.answers, s.answers) for s in two)
    accumulated = StoredAnswers.compute(
        ask, streams(2), Identity(), 10
    )  # one process, two minibatches
    assert torch.equal(one.answers, accumulated.answers)
    for tick in (0, 2, 3, 7):
        both = torch.cat([s.at(tick)(torch.zeros(2, 2), None, None) for s in two])
        assert torch.equal(one.at(tick)(torch.zeros(4, 2), None, None), both)


@pytest.mark.parametrize(
    ("begun", "now", "batch", "accumulation", "expected"),
    [
        (2, 1, 2, 1, (2, 2)),
        (1, 2, 4, 1, (2, 1)),
        (1, 2, 3, 2, (3, 1)),
        (2, 4, 3, 2, (3, 1)),
        (4, 1, 1, 1, (1, 4)),
    ],
)
def test_another_number_of_processes_keeps_the_samples_of_a_step(
    begun, now, batch, accumulation, expected
):
    c = TrainConfig("m", train_batch_size=batch, gradient_accumulation_steps=accumulation)
    kept = keep_step(c, begun, now)
    assert (kept.train_batch_size, kept.gradient_accumulation_steps) == expected
    assert now * expected[0] * expected[1] == begun * batch * accumulation


def test_processes_that_cannot_share_a_step_equally_are_refused():
    with pytest.raises(UserError, match="3 processes cannot share equally"):
        keep_step(TrainConfig("m", train_batch_size=4), 1, 3)


def test_a_launcher_that_started_one_process_is_noticed(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(UserError, match=r"configs/cpu\.yaml"):
        processes_here()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_here() == 2


@pytest.mark.parametrize(
    ("flag", "theirs"), [("mixed_precision", "bf16"), ("gradient_accumulation_steps", "4")]
)
def test_the_launcher_may_not_say_otherwise(monkeypatch, tmp_path, flag, theirs):
    """accelerate would take the flag's precision, and its own accumulation, without a word."""
    monkeypatch.setenv(f"ACCELERATE_{flag.upper()}", theirs)
    with pytest.raises(UserError, match=f"--{flag} {theirs}"):
        engine.make_accelerator(config(tmp_path / "run"))


def launch(folder: Path, configs: list[TrainConfig], kind: str = "cpu.yaml") -> str:
    """`accelerate launch` two processes; return what they print. AssertionError if they fail."""
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([asdict(c) for c in configs]))
    worker = Path(__file__).with_name("worker.py")
    words = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / kind)]
    words += ["--num_cpu_threads_per_process", "1", str(worker), str(jobs)]
    root = str(Path(personalize.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# adam_epsilon: the gradient of a weight that the loss does not depend on is rounding alone, and a
# smaller epsilon would scale it up to the learning rate
SMOOTH = 1e-3
LORA = "lora/pytorch_lora_weights.safetensors"
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


def deviation(a: dict, b: dict, start: dict) -> float:
    """||a - b|| / ||a - start||: the effect of a sum's order, relative to that of training."""
    assert a.keys() == b.keys() == start.keys()

    def norm(x, y):
        return sum(float(((x[k] - y[k]).double() ** 2).sum()) for k in x) ** 0.5

    return norm(a, b) / norm(a, start)


def untrained(c: TrainConfig) -> dict:
    """What `c` exports if it stands still."""
    return trained(replace(c, output_dir=f"{c.output_dir}-start", learning_rate=1e-12))


def interrupted(c: TrainConfig, folder: Path) -> TrainConfig:
    """A copy of the finished run, as if it had been killed after its checkpoint of step 3."""
    shutil.copytree(c.output_dir, folder)
    (folder / "status.json").write_text(json.dumps({"status": "running", "pid": 1, "host": "x"}))
    for name in ("lora", "peft", "pipeline", "checkpoints/step-00000004"):
        shutil.rmtree(folder / name, ignore_errors=True)
    recorded = json.loads((folder / "config.json").read_text()) | {"output_dir": str(folder)}
    (folder / "config.json").write_text(json.dumps(recorded))
    return replace(c, output_dir=str(folder))


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """LoRA and full training with the same samples in every step, by one process and by two.

    The class images do not exist yet when the two processes start.

    And one LoRA run that two processes begin, for one to end.
    """
    folder = tmp_path_factory.mktemp("processes")
    common = {"train_batch_size": 4, "adam_epsilon": SMOOTH}
    ones = [
        config(folder / "one-lora", "prior+l2", checkpointing_steps=3, **common),
        config(folder / "one-full", "output", "full", **common),
    ]
    fresh = {"class_data_dir": str(folder / "class"), "train_batch_size": 2}
    twos = [replace(c, output_dir=str(folder / f"two-{c.train}"), **fresh) for c in ones]
    said = launch(folder, twos)
    return folder, ones, twos, said


@pytest.mark.parametrize(("which", "file"), [(0, LORA), (1, UNET)])
def test_two_processes_give_the_weights_of_one(one_and_two, which, file):
    """To 1e-4 of what training moved: float32 sums in another order, no more."""
    _, ones, twos, _ = one_and_two
    one, two = ones[which], twos[which]
    weights = trained(one)
    assert deviation(weights, load_tensors(Path(two.output_dir) / file), untrained(one)) < 1e-4
    for a, b in zip(history(one), history(two), strict=True):
        numbers = {k: v for k, v in b.items() if isinstance(v, float)}
        assert {k: a[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-6)


def test_one_process_writes_and_makes_the_class_set_once(one_and_two):
    folder, _, _, said = one_and_two
    assert said.count("done: ") == 2
    assert (folder / "made.txt").read_text().split() == ["0"] * 3
    made, kept = (
        json.loads((f / "class" / "manifest.json").read_text())["files"]
        for f in (folder, workshop())
    )
    digests = [{n: e["sha256"] for n, e in files.items()} for files in (made, kept)]
    assert digests[0] == digests[1]  # the same three pictures that one process makes
    assert not list(folder.rglob("*.tmp"))


def test_one_process_ends_what_two_began(one_and_two, tmp_path):
    """From the checkpoint of step 3, with the same command: two minibatches are accumulated."""
    _, ones, twos, _ = one_and_two
    cut = interrupted(twos[0], tmp_path / "cut")
    said = []
    run(cut, said.append)
    assert "begun with processes 2, continued with 1" in " ".join(said)
    assert "resumed after step 3" in " ".join(said)
    weights = load_tensors(Path(cut.output_dir) / LORA)
    assert deviation(trained(ones[0]), weights, untrained(ones[0])) < 1e-4


# ---- FSDP: the weights themselves are shared out
def base_weights() -> dict:
    return load_tensors(workshop() / "sd" / Path(UNET).relative_to("pipeline"))


@pytest.fixture(scope="module")
def whole_and_sharded(tmp_path_factory):
    """One process; two that share its weights; two that share from step 3 on, where one stopped."""
    folder = tmp_path_factory.mktemp("sharded")
    more = {
        "train_batch_size": 4,
        "adam_epsilon": SMOOTH,
        "checkpointing_steps": 3,
        "use_ema": True,
        "ema_decay": 0.5,
    }
    one = config(folder / "one", "prior+l2", "full", **more)
    trained(one)
    two = replace(one, output_dir=str(folder / "two"), train_batch_size=2)
    ended = interrupted(one, folder / "ended-by-two")
    said = launch(folder, [two, ended], "fsdp.yaml")
    return one, two, ended, said


@pytest.mark.slow
@pytest.mark.parametrize("which", [1, 2])
def test_sharded_processes_give_the_weights_of_one(whole_and_sharded, which):
    """From step 0, and from one process's checkpoint: to 1e-4 of what training moved.

    EMA's weights, and every number of every row.
    """
    one, other, said = whole_and_sharded[0], whole_and_sharded[which], whole_and_sharded[3]
    weights = load_tensors(Path(other.output_dir) / UNET)
    assert deviation(trained(one), weights, base_weights()) < 1e-4
    for a, b in zip(history(one), history(other), strict=True):
        numbers = {k: v for k, v in b.items() if isinstance(v, float)}
        assert {k: a[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-6)
    assert "begun with sharded False, continued with True" in said


@pytest.mark.slow
def test_a_sharded_run_leaves_the_files_of_one(whole_and_sharded):
    """The same names, networks of the same class, checkpoints of the same tensors."""
    one, two = (Path(c.output_dir) for c in whole_and_sharded[:2])
    names = [sorted(str(f.relative_to(p)) for f in p.rglob("*") if f.is_file()) for p in (one, two)]
    assert names[0] == names[1]
    for file in ("pipeline/model_index.json", "pipeline/unet/config.json"):
        assert (one / file).read_text() == (two / file).read_text()
    headers = []
    for folder in (one, two):
        data = (folder / "checkpoints" / "step-00000003" / "state.safetensors").read_bytes()
        headers.append(data[: 8 + int.from_bytes(data[:8], "little")])
    assert headers[0] == headers[1]


@pytest.mark.slow
def test_one_process_ends_what_sharded_ones_began(whole_and_sharded, tmp_path):
    one, two, *_ = whole_and_sharded
    cut, said = interrupted(two, tmp_path / "cut"), []
    run(cut, said.append)
    assert "resumed after step 3" in " ".join(said)
    weights = load_tensors(Path(cut.output_dir) / UNET)
    assert deviation(trained(one), weights, base_weights()) < 1e-4


# what else the loop does: for two processes and, at twice their minibatch, for one
ALL_ELSE = {
    "output": ("output", {"train_batch_size": 2}),
    "fisher, accumulated": ("fisher", {"train_batch_size": 1, "gradient_accumulation_steps": 2}),
    "decoupled l2, checkpointing": ("l2", {"reg_decoupled": True, "gradient_checkpointing": True}),
    "validation": (
        "standard",
        {
            "validation_prompt": ("a photo of sks dog",),
            "validation_inference_steps": 2,
            "num_validation_images": 1,
            "validation_steps": 2,
        },
    ),
    "sdxl": ("prior+l2", {"pretrained_model_name_or_path": "sdxl"}),
    "sd3": ("prior+l2", {"pretrained_model_name_or_path": "sd3"}),
}


@pytest.fixture(scope="module", params=["true", "false"])
def all_else(request, tmp_path_factory):
    """Every run of ALL_ELSE by one process and by two that share weights, resharding or not."""
    folder = tmp_path_factory.mktemp(f"reshard-{request.param}")
    shipped = (CONFIGS / "fsdp.yaml").read_text()
    settings = folder / "fsdp.yaml"
    settings.write_text(shipped.replace("after_forward: true", f"after_forward: {request.param}"))
    ones, twos = {}, {}
    for name, (objective, flags) in ALL_ELSE.items():
        more = {"adam_epsilon": SMOOTH, "class_data_dir": str(folder / f"class-{name}"), **flags}
        if (kind := flags.get("pretrained_model_name_or_path")) is not None:
            more["pretrained_model_name_or_path"] = str(folder / kind)
            tiny(kind, folder=folder / kind)
        if objective in ("standard", "l2", "fisher"):
            del more["class_data_dir"]
        two = config(folder / "two" / name, objective, "full", **more)
        ones[name] = replace(
            two, output_dir=str(folder / "one" / name), train_batch_size=2 * two.train_batch_size
        )
        twos[name] = two
        run(ones[name], say=lambda text: None)
    launch(folder, list(twos.values()), str(settings))
    return ones, twos


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_ELSE)
def test_sharded_processes_do_all_else_that_one_does(all_else, name):
    one, two = (c[name] for c in all_else)
    pipelines = (
        f"{one.output_dir}/pipeline",
        f"{two.output_dir}/pipeline",
        one.pretrained_model_name_or_path,
    )
    assert deviation(*(denoiser_of(Path(p)) for p in pipelines)) < 1e-4
    for a, b in zip(history(one), history(two), strict=True):
        numbers = {k: v for k, v in b.items() if isinstance(v, float)}
        assert {k: a[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-6)
    grids = [{f.name for f in Path(c.output_dir, "figures").glob("*.png")} for c in (one, two)]
    assert grids[0] == grids[1]
    assert bool(grids[0]) == bool(one.validation_prompt)


def denoiser_of(pipeline: Path) -> dict:
    part = "transformer" if (pipeline / "transformer").exists() else "unet"
    return load_tensors(pipeline / part / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("flags", "settings", "reason"),
    [
        ({}, {"VERSION": "1", "RESHARD_AFTER_FORWARD": "FULL_SHARD"}, "version 2 only"),
        ({}, {"OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({}, {"CPU_RAM_EFFICIENT_LOADING": "true"}, "every process reads the base"),
        ({}, {"ACTIVATION_CHECKPOINTING": "true"}, "--gradient_checkpointing"),
        ({"use_ema": True}, {"RESHARD_AFTER_FORWARD": "false"}, "--use_ema"),
        ({"train": "lora"}, {}, "--train lora moves so little"),
        ({"train_text_encoder": True}, {}, "--train_text_encoder"),
        ({"use_8bit_adam": True}, {}, "--use_8bit_adam"),
        ({"anchor_device": "cpu"}, {}, "--anchor_device cpu"),
        ({"mixed_precision": "fp16"}, {}, "use bf16"),
    ],
)
def test_what_fsdp_would_not_do_is_refused(monkeypatch, tmp_path, flags, settings, reason):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in ({"VERSION": "2"} | settings).items():
        monkeypatch.setenv(f"FSDP_{name}", value)
    with pytest.raises(UserError, match=reason):
        refuse_what_is_not_sharded(config(tmp_path / "run", **({"train": "full"} | flags)))


def test_deepspeed_is_refused_with_the_reason(monkeypatch, tmp_path):
    launched = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    monkeypatch.setattr(engine, "Accelerator", lambda **settings: launched)
    with pytest.raises(UserError, match=r"DEEPSPEED makes.*one call.*configs/fsdp\.yaml"):
        engine.make_accelerator(config(tmp_path / "run"))
