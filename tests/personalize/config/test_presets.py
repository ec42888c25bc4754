"""Presets: every one is sound on a model of its family and trains two steps; flags win; nothing
idle is left in.
"""

from dataclasses import asdict, replace

import pytest
from small import trained, workshop

from personalize.__main__ import main
from personalize.config.command_line import refuse_unknown
from personalize.config.flags import preset, split_switches
from personalize.config.presets import PRESETS
from personalize.config.rules import resolve
from personalize.config.train_config import TrainConfig
from personalize.pipeline.random_pipeline import tiny
from personalize.train.experiment import run
from toy2d.runs.files import UserError, read_csv

PLACES = {
    "pretrained_model_name_or_path": "sd",
    "instance_data_dir": "photos",
    "class_data_dir": "class",
    "class_prompt": "a photo of a dog",
}


def family(name: str) -> str:
    return next((f for f in ("sdxl", "sd3") if f in name), "sd15")


def words(settings: dict) -> dict:
    """The prompt, and what a new word starts from, which only the user knows."""
    new = settings.get("placeholder_token")
    start = {"initializer_token": "dog"} if new and "initializer_token" not in settings else {}
    prompt = settings.get("instance_prompt", f"a photo of {new or 'sks'} dog")
    return {"instance_prompt": prompt} | start


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sound_as_it_stands(name):
    """Nothing in it is refused, idle or unknown: exactly its own settings come out, beside what the
    user names.
    """
    settings = PRESETS[name]()
    places = {k: v for k, v in PLACES.items() if k not in settings}
    if "prior" not in settings["objective"]:
        places.pop("class_data_dir", None)
    c = preset(name, **words(settings) | places)
    assert {k: getattr(c, k) for k in settings} == settings
    assert c.preset == name
    resolved = asdict(resolve(c))
    changed_by_resolve = {"learning_rate", "scale_lr"} if settings.get("scale_lr") else set()
    assert {k: resolved[k] for k in settings if k not in changed_by_resolve} == {
        k: v for k, v in settings.items() if k not in changed_by_resolve
    }


SMALL = {
    "resolution": 64,
    "max_train_steps": 2,
    "mixed_precision": "no",
    "use_8bit_adam": False,
    "checkpointing_steps": 0,
    "log_every": 1,
    "probe_steps": 2,
    "measure_nodes": 3,
    "measure_chains": 2,
    "unrelated_prompts": ("a red car",),
    "context_prompts": ("a dog in the snow",),
}
CLASS_SET = {"num_class_images": 2, "class_steps": 2}


def small(name: str, out) -> TrainConfig:
    """The preset on a tiny model of its family: only what costs time or needs a GPU is changed."""
    settings, more = PRESETS[name](), dict(SMALL)
    folder = workshop() / ("sd" if family(name) == "sd15" else family(name))
    if not folder.exists():
        tiny(family(name), folder=folder)
    more |= {
        "pretrained_model_name_or_path": str(folder),
        "instance_data_dir": str(workshop() / "photos"),
        "output_dir": str(out),
    }
    more |= words(settings) | {"class_prompt": "a photo of a dog"}
    if "lr_warmup_steps" in settings:
        more["lr_warmup_steps"] = 1
    if "prior" in settings["objective"]:
        more |= CLASS_SET | {"class_data_dir": str(workshop() / f"class-{settings.get('seed', 0)}")}
    return preset(name, **more)


def once_for_each_path():
    """All of them, those that run the same code as one before marked slow."""
    seen = set()
    for name, settings in PRESETS.items():
        s = settings()
        path = family(name), s["train"], s["objective"], s.get("train_text_encoder")
        yield pytest.param(name, marks=[pytest.mark.slow] if path in seen else [])
        seen.add(path)


@pytest.mark.parametrize("name", list(once_for_each_path()))
def test_every_preset_trains_two_steps(name, tmp_path):
    c = small(name, tmp_path / "run")
    run(c, say=lambda text: None)
    rows = read_csv(tmp_path / "run" / "history.csv")
    assert [r["step"] for r in rows] == [0, 1, 2]
    assert rows[-1]["delta_theta"] > 0


def test_a_flag_beside_a_preset_wins_and_what_it_makes_idle_goes():
    c = preset("paper_sd15_full", **PLACES, objective="standard", seed=1)
    assert (c.learning_rate, c.max_train_steps, c.seed) == (2e-6, 1000, 1)
    assert (c.l2_reg_weight, c.reg_reduction) == (TrainConfig.l2_reg_weight, "sum")


def test_the_command_line_of_a_preset_gives_the_same_configuration(monkeypatch, tmp_path):
    """`--preset NAME --flag ... --no-flag`; config.command() written into the model card does it
    again.
    """
    from personalize.train import experiment

    seen = []
    monkeypatch.setattr(experiment, "run", seen.append)
    folder = str(workshop() / "photos")
    words = ["--preset", "balanced", "--no-gradient_checkpointing", "--prior-loss-weight", "0.7"]
    words += ["--pretrained_model_name_or_path", "m", "--instance_data_dir", folder, "--seed=0"]
    words += ["--class_prompt", "dog", "--class_data_dir", "c"]
    assert main(["train", *words]) == 0
    places = {"instance_data_dir": folder, "class_prompt": "dog", "class_data_dir": "c"}
    more = {"seed": 0, "prior_loss_weight": 0.7, "gradient_checkpointing": False}
    expected = preset("balanced", pretrained_model_name_or_path="m", **places, **more)
    assert seen[0] == expected
    assert main(expected.command().split()[1:]) == 0
    assert seen[1] == expected


def test_names_and_aliases_of_flags():
    words = ["--l2_weight", "3", "--no-pad", "--lr-warmup-steps=5", "-x"]
    kept, said = split_switches(words)
    assert (kept, said) == ([w for w in words if w != "--no-pad"], {"pad": False})
    assert refuse_unknown("train", TrainConfig, kept) == {"l2_reg_weight", "lr_warmup_steps"}


def test_an_unknown_preset_is_named_with_those_there_are():
    with pytest.raises(UserError, match="--preset paper is none of mini, paper_sd15_full"):
        preset("paper", pretrained_model_name_or_path="m")


def test_a_face_goes_on_from_its_first_look(tmp_path):
    """300 steps, a look, 1200: here 2, a look, 4; the same weights as 4 steps at once."""
    once = replace(small("face", tmp_path / "once"), checkpointing_steps=2, max_train_steps=4)
    look = replace(
        once, preset="face_first_look", max_train_steps=2, output_dir=str(tmp_path / "look")
    )
    weights = trained(once)
    trained(look)
    on = replace(
        once,
        output_dir=str(tmp_path / "on"),
        resume_from_checkpoint=str(tmp_path / "look/checkpoints/step-00000002"),
    )
    again = trained(on)
    assert all((weights[k] == again[k]).all() for k in weights)
