"""Record and draw the headline figure: learning against drift, the toy beside the mini model.

    python lectures/frontier.py                        draw lectures/_static/figures/frontier.png
                                                       from the recorded numbers; print the tables
    python lectures/frontier.py toy=DIR full=DIR lora=DIR
                                                       record them first from these run folders

toy: a folder of `toy2d run course` with early --snapshots; full, lora: folders of
`personalize compare`. Several folders of one scale (other weights or seeds) are joined by a comma.
Recorded in _data/mini/frontier.json: every run's curve, with its provenance.
"""

import io
import json
import sys
from pathlib import Path

from PIL import Image

from personalize.compare.frontier import cells, frontier_header, frontier_rows, trajectories
from toy2d.figures.frontier import draw_frontiers, toy_trajectories
from toy2d.figures.style import plt
from toy2d.runs.files import read_csv, write_atomic, write_json
from toy2d.runs.frontier import HEADLINE, Trajectory, agreement, contrasts

HERE = Path(__file__).parent
DATA, FIGURE = HERE / "_data" / "mini" / "frontier.json", HERE / "_static/figures/frontier.png"
NAMES = {"toy": "toy", "full": "mini model, full fine-tuning", "lora": "mini model, LoRA"}
UNIT = {"toy": "seed", "full": "subject", "lora": "subject"}


def record(scale: str, folders: list[Path]) -> dict:
    """The scale's curves and where they come from. Raises SystemExit for folders of two bases."""
    parts = [record_one(scale, folder) for folder in folders]
    if len({p["base_hash"] for p in parts}) > 1:
        raise SystemExit(f"{scale}: {', '.join(map(str, folders))} are of different base models")
    runs = {(r["run"], r["unit"], r["seed"]): r for p in parts for r in p["runs"]}
    return parts[0] | {"runs": list(runs.values())}


def record_one(scale: str, folder: Path) -> dict:
    metrics, config, env = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "config", "env")
    )
    if scale == "toy":
        runs = toy_trajectories(metrics, read_csv(folder / "history.csv"))
        settings = {k: config[k] for k in ("steps", "seeds", "snapshots", "shots")}
    else:
        runs = trajectories(metrics)
        each, kept = config["each"], ("train", "learning_rate", "max_train_steps", "rank")
        settings = {
            k: each[k] for k in (*kept, "train_batch_size", "measure_nodes", "gain_samples")
        }
        settings["seeds"] = config["seeds"]
    return {
        "base_hash": metrics["base_hash"],
        "commit": env["commit"],
        "settings": settings,
        "runs": [as_record(t) for t in runs],
    }


def as_record(t: Trajectory) -> dict:
    """Four digits are more than the errors of these numbers."""
    rounded = {k: [float(f"{v:.4g}") for v in getattr(t, k)] for k in ("learnt", "drift")}
    return t._asdict() | {"step": list(t.step)} | rounded


def recorded() -> dict[str, list[Trajectory]]:
    kept = json.loads(DATA.read_text())
    return {scale: [Trajectory(**r) for r in kept[scale]["runs"]] for scale in kept}


def table(runs: list[Trajectory], unit: str) -> str:
    """Drift over standard's at equal learning, as a table in Markdown."""
    lines = [frontier_header(), ["---"] * len(frontier_header())]
    lines += [cells(r) for r in frontier_rows(contrasts(runs), unit)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def order(found: dict) -> dict[str, dict[str, float]]:
    return {o: at[HEADLINE].by_unit for o, at in found.items()}


def main(folders: dict[str, str]) -> None:
    if folders:
        kept = json.loads(DATA.read_text()) if DATA.exists() else {}
        made = {s: record(s, [Path(f) for f in names.split(",")]) for s, names in folders.items()}
        write_json(DATA, kept | made)
    scales = recorded()
    figure = draw_frontiers(scales["toy"], scales["full"], (NAMES["toy"], NAMES["full"]))
    data, out = io.BytesIO(), io.BytesIO()
    figure.savefig(data, dpi=130)
    plt.close(figure)
    Image.open(data).convert("RGB").quantize(128).save(out, "PNG", optimize=True)
    write_atomic(FIGURE, out.getvalue())
    for scale, runs in scales.items():
        units, found = {t.unit for t in runs}, contrasts(runs)
        print(f"\n{NAMES[scale]}: {len(runs)} runs, {len(units)} {UNIT[scale]}s")
        print(table(runs, UNIT[scale]))
        for objective, at in found.items():
            print(f"{objective}: {at[HEADLINE].words(UNIT[scale])}")
        if scale != "toy":
            tau, low, high, names = agreement(order(contrasts(scales["toy"])), order(found))
            print(
                f"Kendall's tau with the toy ({', '.join(names)}): {tau:.2f} ({low:.2f}, "
                f"{high:.2f})"
            )


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
