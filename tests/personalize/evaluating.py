"""Evaluation of the tiny model, for the tests: few prompts, few seeds, few steps."""

from pathlib import Path

from PIL import Image
from small import workshop

from personalize.data.prompts import PromptSet
from personalize.evaluate.judges import Evaluators
from personalize.evaluate.model import Evaluation, Plan, evaluate_model
from personalize.pipeline.model import Model
from personalize.sample.sampler import Sampling

QUICK = Sampling(steps=2, batch_size=4)
SEEDS = [11, 22, 33]
PROMPTS = PromptSet(
    "sks",
    "dog",
    {
        "subject": ("a sks dog in the snow", "a sks dog on the beach"),
        "class": ("a photo of a dog",),
        "unrelated": ("a red car",),
    },
)


def silent(text: str) -> None:
    pass


def run(
    model: Model,
    folder: Path,
    evaluators: Evaluators,
    prompts: PromptSet = PROMPTS,
    base: Model | None = None,
    base_folder: Path | None = None,
    say=silent,
    **more,
) -> Evaluation:
    """Without path KL, unless asked for; `more`: fields of `Plan`."""
    chosen = {
        "reference": workshop() / "photos",
        "prompts": prompts,
        "seeds": SEEDS,
        "sampling": QUICK,
        "chains": 0,
    } | more
    return evaluate_model(model, Plan(**chosen), evaluators, folder, base, base_folder, say)


def said(capsys) -> str:
    out = capsys.readouterr()
    assert "Traceback" not in out.err + out.out
    return out.err + out.out


def pictures_in(folder: Path, *colours: str) -> Path:
    folder.mkdir(parents=True)
    for c in colours:
        Image.new("RGB", (64, 64), c).save(folder / f"{c}.png")
    return folder
