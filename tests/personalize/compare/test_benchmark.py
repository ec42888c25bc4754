"""The benchmark: methods x objectives on one engine, IP-Adapter and the paper's numbers beside."""

import json

import pytest
import torch
from comparisons import shop
from evaluate.test_image_prompt import adapter

from personalize.__main__ import main
from personalize.compare import paper_table
from personalize.compare.benchmark import run
from personalize.compare.benchmark_plan import counted, planned
from personalize.compare.jobs import train_config
from personalize.config.recipes.benchmark import BACKBONES, TRAINED, Benchmark, published_recipe
from personalize.config.train_config import TrainConfig
from personalize.pipeline.random_pipeline import tiny
from toy2d.runs.files import UserError

torch.set_num_threads(1)


def asked(tmp_path, **more) -> Benchmark:
    base = {
        "pretrained_model_name_or_path": str(shop() / "sd"),
        "backbone": "sd15",
        "subjects": (f"{shop() / 'photos'}:dog",),
        "max_train_steps": 1,
        "resolution": 64,
        "images": 1,
        "prompts_each": 1,
        "clip": str(shop() / "clip"),
        "dino": str(shop() / "dino"),
        "workers": 1,
        "output_dir": str(tmp_path / "b"),
    }
    return Benchmark(**(base | more))


def test_methods_share_one_engine_and_ip_adapter_is_a_row(tmp_path, capsys):
    """Two methods that train and one that does not; again: done already; the table is printed."""
    place = adapter(tmp_path / "adapter", tiny().unet)
    b = asked(
        tmp_path,
        methods=("lora", "token", "ip_adapter"),
        objectives=("standard",),
        ip_adapter=str(place),
    )
    path = run(b, say=lambda text: None)
    metrics = json.loads((path / "metrics.json").read_text())
    found = {(r["method"], r["run"]): r for r in metrics["runs"]}
    assert list(found) == [
        ("lora", "standard"),
        ("token", "standard"),
        ("ip_adapter", "ip_adapter:1"),
    ]
    shown = found["ip_adapter", "ip_adapter:1"]
    assert shown["path_kl"][:2] == [0, 0]
    assert shown["seconds"]["training"] == 0
    assert shown["dino"] is not None
    assert found["lora", "standard"]["path_kl"][0] > 0
    # no old prompt holds the new word
    assert found["token", "standard"]["path_kl"][0] == pytest.approx(0, abs=1e-6)
    assert len(list((path / "shared").glob("*/base/manifest.json"))) == 1
    paper_table.show(path)
    out = capsys.readouterr().out
    assert "Textual Inversion" in out
    assert "0.6304" in out  # the paper's IP-Adapter
    assert paper_table.OTHERS in out
    said = []
    run(b, said.append)
    assert said == [f"{path} is done already"]


def test_each_method_is_trained_by_its_own_recipe(tmp_path):
    """The paper's rate and weight; objectives without effect on a method are left out and named."""
    todo = planned(asked(tmp_path, max_train_steps=None))
    assert list(todo.trained) == list(TRAINED)
    runs = {m: [job.run for job in jobs] for m, jobs in todo.trained.items()}
    assert runs["full"] == ["standard", "prior:1", "l2_tensor_mean:500"]
    assert runs["token"] == ["standard", "l2:1e-7"]
    assert "token: prior has no effect on it" in todo.notes
    assert any("ip_adapter is left out" in n for n in todo.notes)
    configs = {m: train_config(jobs[0]) for m, jobs in todo.trained.items()}
    assert configs["lora"].lora_target_modules == ("to_q", "to_v")
    assert configs["custom_diffusion"].initializer_token == "dog"
    assert "<new1>" in configs["token"].instance_prompt
    assert {m: c.max_train_steps for m, c in configs.items()}["token"] == 3000
    assert len({train_config(j).class_data_dir for j in todo.trained["full"]}) == 2  # one unused


def test_the_mini_is_planned_whole_and_quickly(tmp_path):
    """--quick: one subject, at most 40 steps; a method without class images is no fault."""
    todo = planned(Benchmark(quick=True, output_dir=str(tmp_path / "b")))
    assert todo.path == tmp_path / "b-quick"
    jobs = [job for jobs in todo.trained.values() for job in jobs]
    assert len(jobs) == 3 * 5 + 2  # prior has no effect on token
    assert {job.subject.name for job in jobs} == {"polar_bear"}
    assert {train_config(job).max_train_steps for job in jobs} == {40}


def test_counting_says_what_will_be_done(tmp_path):
    """By hand: one run of 2 steps of 4 pictures, trained: 3 passes each; pictures: 25 steps x 2."""
    more = {"methods": ("lora",), "objectives": ("standard",), "max_train_steps": 2}
    lines = counted(planned(asked(tmp_path, **more)))
    drawn = 4  # one prompt of each group
    assert lines[0] == f"lora: 1 runs, 2 steps, 8 samples trained, {drawn} pictures"
    assert lines[-1].startswith(f"in all {3 * 8 + 2 * 50 * drawn} passes")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", TRAINED)
def test_recipes_are_flags_of_train(backbone, method):
    settings = published_recipe(backbone, method).settings
    assert settings.keys() <= TrainConfig.__dataclass_fields__.keys()
    assert settings["train"] == method


def test_the_papers_numbers_stand_beside_the_same_method_and_objective():
    def beside(backbone, method, objective):
        return paper_table.beside(backbone, {"method": method, "objective": objective})

    assert beside("sd15", "full", "l2_tensor_mean")["DINO"] == 0.6394
    assert beside("mini", "full", "prior") == beside("sd15", "full", "prior")
    assert beside("sdxl", "lora", "l2")["seconds"] == 1356
    assert "seconds" not in beside("sd15", "ip_adapter", "ip_adapter")
    assert beside("sd15", "token", "standard") == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "dreambooth"], "--methods dreambooth: choose from full, lora"),
        (["--methods", "full", "--ip_adapter", "x"], "--ip_adapter has no effect"),
        (["--methods", "full", "--ip_adapter_scale", "0.5"], "--ip_adapter_scale has no effect"),
        (["--objectives", "prior"], "--objectives needs standard"),
        (["--backbone", "sd15"], "--backbone has no effect: the mini"),
        (["--pretrained_model_name_or_path", "x"], "--backbone: say sd15, sdxl or sd3"),
        (["--seeds", "1", "1"], "--seeds must be different"),
        (["--images", "0"], "--images 0: at least 1"),
    ],
)
def test_contradictory_flags_are_refused(flags, message, capsys):
    assert main(["benchmark", *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_objective_without_a_usual_weight_is_named(tmp_path):
    b = asked(tmp_path, methods=("lora",), objectives=("standard", "fisher"))
    with pytest.raises(UserError, match=r"fisher: lora has no usual weight; write fisher:W"):
        planned(b)
