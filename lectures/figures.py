"""Draw the lectures' figures from the runs on disk: `make figures`.

The figures are committed, so that the lectures show them on a Git host too. They come from
runs/toy2d/course (`make demo`) and its verify/ (`toy2d verify`), from the tables in _data, and from
the recorded runs of the mini model. The package's own functions draw every figure of a run; only
published numbers are plotted here.
"""

import io
import json
import sys
from pathlib import Path

import layers
import torch
from PIL import Image, ImageDraw

from toy2d.config import course
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.experiment import run
from toy2d.figures.density import draw_densities, on_grid
from toy2d.figures.drift import (
    draw_chain,
    draw_kl_per_class,
    draw_tradeoff,
    draw_training,
    draw_weights,
)
from toy2d.figures.samples import draw_noising, draw_paths, draw_samples
from toy2d.figures.style import plt
from toy2d.figures.theorems import draw_half_plane
from toy2d.model import members
from toy2d.runs.files import read_csv, write_atomic
from toy2d.runs.folder import load_tensors
from toy2d.runs.statistics import old_kl
from toy2d.verify.course import Course
from toy2d.verify.lab import Lab

HERE = Path(__file__).parent
FIGURES, DATA = HERE / "_static" / "figures", HERE / "_data"
TITLE = 22  # pixels above each grid of the mini model
TILE, GAP, LABEL = 64, 4, 14  # pixels of a recorded grid: picture, gap, line of text
VERIFIED = ("bounds", "evolution", "local_law", "certificate", "paper_theorem_2")


def of_course(folder: Path) -> dict:
    """The figures of a course run, as its report draws them."""
    metrics = json.loads((folder / "metrics.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    rows = read_csv(folder / "history.csv")
    return {
        "samples": draw_samples(load_tensors(folder / "samples.safetensors"), metrics, config)[0],
        "kl_per_class": draw_kl_per_class(metrics, config)[0],
        "weights": draw_weights(metrics, config)[0],
        "tradeoff": draw_tradeoff(metrics, config)[0],
        "chain": draw_chain(metrics, config)[0],
        "training": draw_training(rows, metrics, config)[0],
    }


def densities(folder: Path, seed: int = 1) -> dict:
    """Standard fine-tuning and one L2, one picture each: contours before (grey) and after."""
    c = Course(folder, seeds=(seed,))
    prompts = (*c.world.old, c.world.new)
    before = on_grid(c.net.bind(c.base(seed)), c.probe.ode, prompts)[0]
    drawn = {}
    for i, name, _ in c.which("standard", "l2:0.1"):
        after = on_grid(c.net.bind(members(c.tuned, [i])), c.probe.ode, prompts)[0]
        title = f"{name}: KL(base || tuned) {old_kl(c.metrics['runs'][i], 'kl_base'):.2f} nats"
        drawn[f"density_{name.split(':')[0]}"] = draw_densities(after, title, c.shots(seed), before)
    pictures = [rasterized(figure) for figure in drawn.values()]
    return drawn | {"first_toy": side_by_side(pictures)}


def half_plane(folder: Path):
    lab = Lab(folder, (1,))
    return draw_half_plane(lab.models("standard").half_plane("standard", 1, 1))[0]


def of_the_world() -> dict:
    world = Pentagon(Schedule.log_snr(100, 5.0, -15.0))
    noised = draw_noising(world, (0, 25, 45, 99), generator(0, "figure/noising"))
    return {"noising": noised, "paths": draw_paths(world, 1, 5, generator(0, "figure/paths"))}


def published():
    """The authors' lambda sweep beside their prior-preservation row, as printed."""
    sweep = read_csv(DATA / "published_lambda_sweep.csv")
    prior = read_csv(DATA / "published_main_table.csv")[0]
    figure, ax = plt.subplots(figsize=(4.6, 3.3))
    dino, clip_t = ([row[key] for row in sweep] for key in ("dino", "clip_t"))
    ax.plot(dino, clip_t, "^-", label="L2 along lambda (their figure)")
    ax.plot(prior["dino"], prior["clip_t"], "s", label="prior preservation (their table)")
    beside = {"fontsize": 7, "xytext": (4, 3), "textcoords": "offset points"}
    for row in sweep:
        ax.annotate(f"{row['lambda']:g}", (row["dino"], row["clip_t"]), **beside)
    ax.set(xlabel="DINO (subject)", ylabel="CLIP-T (prompt)")
    ax.legend(fontsize=7)
    return figure


def differences():
    """The published table as differences, L2 minus the authors' baseline, one marker a metric."""
    table = read_csv(DATA / "published_main_table.csv")
    pairs = list(zip(table[::2], table[1::2], strict=True))
    figure, ax = plt.subplots(figsize=(6.4, 2.8))
    for marker, key in (("o", "dino"), ("s", "clip_t"), ("^", "clip_i")):
        ax.plot([b[key] - a[key] for a, b in pairs], range(len(pairs)), marker, label=key)
    ax.axvline(0, color="#999999", linewidth=1)
    ax.set_yticks(range(len(pairs)), [f"{a['backbone']} {a['method']}" for a, _ in pairs])
    ax.set(xlabel="L2 minus baseline (no errors published)")
    ax.legend(fontsize=7)
    return figure


# ---- the mini model's recorded grids
def recorded_runs() -> list[dict]:
    """The records of lectures/_data/mini; [] where nothing was recorded."""
    file = DATA / "mini" / "runs.json"
    return json.loads(file.read_text())["runs"] if file.exists() else []


def title_of(record: dict) -> str:
    return record["objective"] + (f" {record['weight']:g}" if record["weight"] else "")


def mini(objectives: tuple[str, ...]) -> Image.Image:
    """The recorded grids beside each other, each under its run's name."""
    shown = [r for r in recorded_runs() if r["objective"] in objectives and r["shown"]]
    if not shown:
        return not_recorded()
    pictures = [Image.open(DATA / "mini" / r["file"]).convert("RGB") for r in shown]
    return side_by_side(pictures, [title_of(r) for r in shown])


def first_mini() -> Image.Image:
    """README's picture: "a sks bear" above "a bear", of the base and after three objectives."""
    wanted = [("standard", None), ("prior", 1.0), ("output", 1.0)]
    found = {(r["objective"], r["weight"]): r for r in recorded_runs()}
    if not all(key in found for key in wanted):
        return not_recorded()
    files = ["base.png", *(found[key]["file"] for key in wanted)]
    sheets = []
    for file in files:
        page = Image.open(DATA / "mini" / file).convert("RGB")
        rows = [page.crop((0, y, 4 * TILE + 5 * GAP, y + LABEL + TILE + GAP)) for y in (4, 168)]
        sheet = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), "white")
        for i, row in enumerate(rows):
            sheet.paste(row, (0, i * row.height))
        sheets.append(sheet)
    return side_by_side(sheets, ["base", *(title_of(found[key]) for key in wanted)])


def side_by_side(pictures: list[Image.Image], titles: list[str] | None = None) -> Image.Image:
    top = TITLE if titles else 0
    width, height = sum(p.width + 12 for p in pictures), max(p.height for p in pictures)
    sheet = Image.new("RGB", (width, height + top), "white")
    pen, x = ImageDraw.Draw(sheet), 0
    for i, picture in enumerate(pictures):
        if titles:
            pen.text((x + 4, 2), titles[i], fill="#0969da", font_size=15)
        sheet.paste(picture, (x, top))
        x += picture.width + 12
    return sheet


def not_recorded():
    """A plain card in the place of pictures that nobody has recorded yet."""
    figure, ax = plt.subplots(figsize=(6, 0.6))
    ax.axis("off")
    ax.text(0, 0.5, "not recorded yet: python lectures/mini_figures.py records it")
    return figure


# ---- files
def rasterized(figure) -> Image.Image:
    data = io.BytesIO()
    figure.savefig(data, dpi=110)
    return Image.open(data).convert("RGB")


def save(figure, file: Path, colours: int = 128) -> None:
    """PNG with a palette: a third of the bytes in the repository."""
    picture = figure if isinstance(figure, Image.Image) else rasterized(figure)
    out = io.BytesIO()
    picture.quantize(colours).save(out, "PNG", optimize=True)
    write_atomic(file, out.getvalue())


def draw_all(folder: Path, out: Path) -> list[str]:
    """Draw every figure that the lectures show into `out`; returns their stems.

    The figures of `toy2d verify` are there only if it was run on `folder`.
    """
    torch.manual_seed(0)
    drawn = of_course(folder) | densities(folder)
    drawn |= of_the_world() | {"half_plane": half_plane(folder)}
    drawn |= {"published": published(), "differences": differences()}
    if layers.ROWS.exists():
        drawn["layers"] = layers.draw(json.loads(layers.ROWS.read_text()))
    drawn["mini_lambda"] = mini(("standard", "l2"))
    drawn["mini_gallery"] = mini(("standard", "prior", "l2", "output"))
    drawn["first_mini"] = first_mini()
    verified = {n: folder / "verify" / f"{n}.png" for n in VERIFIED}
    drawn |= {n: Image.open(f).convert("RGB") for n, f in verified.items() if f.exists()}
    for stem, figure in drawn.items():
        save(figure, out / f"{stem}.png")
    plt.close("all")
    return sorted(drawn)


if __name__ == "__main__":
    found = draw_all(run(course(), HERE.parent / "runs"), FIGURES)
    if missing := set(VERIFIED) - set(found):
        sys.exit(f"drawn without {', '.join(sorted(missing))}: run `toy2d verify` first")
    print(f"{len(found)} figures in {FIGURES}")
