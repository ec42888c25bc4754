"""The mini model in notebooks: is it there, draw with it, show what was recorded of it.

Recorded pictures and numbers lie in lectures/_data/mini; lectures/mini_figures.py wrote them with
their provenance. No notebook trains for minutes. Where the weights are absent a cell says so and
goes on.
"""

import json
from pathlib import Path

from personalize.mini.shipped import GUIDANCE, model_folder
from personalize.pipeline.libraries import quiet_libraries
from toy2d.figures.display import Picture, Slider, show
from toy2d.figures.frontier import draw_frontiers
from toy2d.runs.files import UserError
from toy2d.runs.frontier import Trajectory

quiet_libraries()  # before anything else opens them
from personalize.sample.sampler import image_seed  # noqa: E402

RECORDED = Path(__file__).parent.parent / "lectures" / "_data" / "mini"
SEEDS = tuple(image_seed(0, i) for i in range(4))  # of the recorded pictures
ABSENT = "weights absent: run `personalize pretrain`"


def available() -> bool:
    """Are the mini model's weights here? Says so if not."""
    try:
        model_folder()
    except UserError as why:
        print(f"{ABSENT} ({why})")
        return False
    return True


def load_mini():
    """The mini model, opened as any other pipeline folder."""
    from personalize.pipeline.load import load

    return load("mini")


def draw(model, prompts: list[str], seeds: tuple[int, ...], steps: int = 12) -> Picture:
    """One row a prompt, one column a seed."""
    from personalize.sample.sampler import Sampling, generate, grid

    images = generate(model, prompts, list(seeds), Sampling(steps, GUIDANCE, batch_size=4))
    drawn = f"{steps} steps of DPM-Solver++, guidance {GUIDANCE:g}"
    caption = f"mini model, {drawn}, seeds {', '.join(map(str, seeds))}"
    return show(grid(images, len(seeds), prompts), caption)


def recorded() -> list[dict]:
    """One record a run: objective, weight, seed, path_kl, file, ...; [] if none was made."""
    file = RECORDED / "runs.json"
    return json.loads(file.read_text())["runs"] if file.exists() else []


def provenance() -> str:
    return json.loads((RECORDED / "runs.json").read_text())["provenance"]


def picture(record: dict) -> Picture:
    title = (
        f"{record['objective']} {record['weight']:g}" if record["weight"] else record["objective"]
    )
    kl = record["path_kl"]
    caption = f"{title}: path KL {kl[0]:.3g} +- {kl[1]:.2g} nats. {provenance()}"
    return Picture((RECORDED / record["file"]).read_bytes(), caption)


def frontier() -> Picture:
    """Learning against drift along training, the toy beside the mini, from frontier.json."""
    scales = json.loads((RECORDED / "frontier.json").read_text())
    curves = {k: [Trajectory(**r) for r in scales[k]["runs"]] for k in ("toy", "full")}
    names = ("toy", "mini model, full fine-tuning")
    subjects = len({t.unit for t in curves["full"]})
    return show(
        draw_frontiers(curves["toy"], curves["full"], names),
        f"{len(curves['full'])} runs of {subjects} subjects on the mini model, commit "
        f"{scales['full']['commit']}",
    )


def recorded_slider(objective: str) -> Slider | Picture:
    """The picture grids along an objective's weight; weight 0 is standard fine-tuning."""
    runs = [r for r in recorded() if r["objective"] in ("standard", objective)]
    if not runs:
        return Picture(
            b"", "no recorded runs of the mini model: python lectures/mini_figures.py makes them"
        )
    runs.sort(key=lambda r: r["weight"] or 0)
    return Slider(f"weight of {objective}", {f"{r['weight'] or 0:g}": picture(r) for r in runs})
