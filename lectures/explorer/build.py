"""Write the explorer, one page without a network: `python lectures/explorer/build.py explore.html`.

The page is template, style and script of this folder with recorded data inside: the toy's samples
and KLs (lectures/_data/explorer/toy.json, written by record_toy.py), the mini model's pictures
(lectures/_data/mini, written by lectures/mini_figures.py) and the table of a whole comparison
(lectures/_data/mini_comparison.csv).
"""

import base64
import json
import sys
from pathlib import Path

from toy2d.figures.style import CLASS_COLOURS, style
from toy2d.runs.files import read_csv, write_atomic

HERE = Path(__file__).parent
DATA = HERE.parent / "_data"
OBJECTIVES = {
    "standard": "Standard fine-tuning: the denoising loss on the six points alone.",
    "prior": "Prior preservation: plus weight x the loss on the base's own samples of class 0.",
    "replay_all": "Replay: plus weight x the loss on the base's own samples of every old class.",
    "l2": "L2: plus weight x the squared distance from the base's parameters.",
    "l2_tensor_mean": "L2 averaged within each tensor, as in the paper's code.",
    "output": "Output preservation: plus weight x the squared change of the base's outputs.",
    "fisher": "Fisher-weighted L2 (EWC): each coordinate weighted by the base's Fisher "
    "information.",
}


def picture(file: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def mini_data(folder: Path) -> dict:
    """The recorded runs of the mini model, their pictures inside."""
    about = json.loads((folder / "runs.json").read_text())
    base = folder / about.get("base", "base.png")
    kept = ("objective", "weight", "path_kl", "delta_theta", "seconds")
    return {
        "provenance": about["provenance"],
        "prompts": about["prompts"],
        "steps": about["settings"]["max_train_steps"],
        "base": picture(base) if base.exists() else None,
        "runs": [
            {k: run[k] for k in kept} | {"picture": picture(folder / run["file"])}
            for run in about["runs"]
        ],
    }


def page() -> str:
    toy = json.loads((DATA / "explorer" / "toy.json").read_text())
    kinds = [k for k in OBJECTIVES if any(run["objective"] == k for run in toy["runs"])]
    data = {
        "toy": toy,
        "mini": mini_data(DATA / "mini"),
        "comparison": read_csv(DATA / "mini_comparison.csv"),
        "objectives": {k: OBJECTIVES[k] for k in kinds},
        "colours": {
            "classes": CLASS_COLOURS,
            "objectives": {k: style(k)["color"] for k in kinds},
        },
    }
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    made = (HERE / "page.html").read_text()
    made = made.replace("@STYLE@", (HERE / "style.css").read_text())
    made = made.replace("@SCRIPT@", (HERE / "explorer.js").read_text())
    return made.replace("@DATA@", text)


def main(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page().encode())
    print(f"explorer: {out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
