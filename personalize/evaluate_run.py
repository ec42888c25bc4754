"""`personalize evaluate`: a run folder, a pipeline or the whole DreamBooth benchmark, from the command line to evaluation.json."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from personalize.card import public_name
from personalize.evaluate import Evaluation, evaluate_model, has_its_base
from personalize.evaluators import evaluators_of
from personalize.export import load_run
from personalize.gallery import Sampling
from personalize.metrics import interval
from personalize.model import Model, load
from personalize.prepare import DTYPES
from personalize.prompts import PromptSet, benchmark_class, prompt_set, read_benchmark, words_of
from personalize.sample import image_seed
from toy2d.runfolder import UserError, write_json

LIST = "prompts_and_classes.txt"  # what marks the root of the benchmark


def evaluate(asked, say: Callable[[str], None] = print) -> Path:
    """`asked`: __main__.Evaluate. Returns the path of evaluation.json, or of benchmark.json for the benchmark's root."""
    if asked.images < 1:
        raise UserError(f"--images {asked.images}: at least 1")
    if (Path(asked.reference) / LIST).is_file():
        return benchmark(asked, say)
    folder = Path(asked.out) if asked.out else default_folder(asked.model)
    found = one(asked, asked.model, Path(asked.reference), folder, say)
    Console().print(table(found))
    for note in found.about["left_out"]:
        say(f"note: {note}")
    say(f"written: {folder / 'evaluation.json'}")
    return folder / "evaluation.json"


def one(asked, name: str, reference: Path, folder: Path, say) -> Evaluation:
    """One model on one subject."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = DTYPES[asked.mixed_precision]
    model, base, config = open_model(name, asked.base, device, dtype)
    mini = is_mini(config.get("pretrained_model_name_or_path") or name)
    prompts = prompts_of(asked, config, reference, mini)
    found = evaluate_model(
        model,
        reference,
        prompts,
        evaluators_of(mini, asked.clip, asked.dino, device),
        [image_seed(asked.seed, i) for i in range(asked.images)],
        folder,
        base,
        training=asked.training or there(config.get("instance_data_dir")),
        sampling=Sampling(
            asked.steps,
            asked.guidance,
            asked.sampler,
            asked.resolution or config.get("resolution"),
            asked.sample_batch_size,
        ),
        chains=asked.chains,
        say=say,
    )
    found.about["model"] = public_name(name)  # as it was asked for, not the folder inside the run
    found.about["base_model"] = public_name(asked.base or config.get("pretrained_model_name_or_path"))  # fmt: skip
    found.write(folder)
    return found


def prompts_of(asked, config: dict, reference: Path, mini: bool) -> PromptSet:
    """The run's own words and drift prompts where it has them, so that its path KL and these are about the same prompts."""
    class_prompt = config.get("class_prompt")
    word = asked.class_word or benchmark_class(reference)
    identifier, word = words_of(config.get("instance_prompt"), class_prompt, asked.identifier, word)
    kept = {"contexts": config.get("context_prompts"), "unrelated": config.get("unrelated_prompts")}
    kept = {k: tuple(v) for k, v in kept.items() if v}
    name = asked.prompts or ("mini" if mini else "dreambooth")
    return prompt_set(name, identifier, word, class_prompt, **kept)


def open_model(
    name: str, base: str | None, device: str, dtype: torch.dtype
) -> tuple[Model, Model | None, dict]:
    """(model, base where it must be a model of its own, the run's configuration or {})."""
    folder = Path(name).expanduser()
    is_run = (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()
    model = (load_run(folder, dtype=dtype) if is_run else load(name, dtype=dtype)).to(device)
    config = json.loads((folder / "config.json").read_text()) if is_run else {}
    if base:
        return model, load(base, dtype=dtype).to(device), config
    if is_run and not has_its_base(model):  # full training left no base behind: load it
        return model, load_run(folder, base=True, dtype=dtype).to(device), config
    return model, None, config


def is_mini(name: str) -> bool:
    """Is it the mini base model, by its name or its folder? Nothing is opened: `mini.model_folder` would hash every weight."""
    from personalize.mini import WEIGHTS

    return name == "mini" or Path(name).expanduser().resolve() == (WEIGHTS / "model").resolve()


def there(folder: str | None) -> str | None:
    return folder if folder and Path(folder).expanduser().is_dir() else None


def default_folder(name: str) -> Path:
    """evaluation/ inside a run or pipeline folder is found again by the same command; hub ids get one under runs/."""
    folder = Path(name).expanduser()
    return folder / "evaluation" if folder.is_dir() else Path("runs/personalize") / f"evaluation-{name.replace('/', '-')}"  # fmt: skip


# ---- what one sees
SHOWN = {
    "dino": "DINO", "clip_i": "CLIP-I (identity, mean)", "subject_max": "identity, max", "clip_t": "CLIP-T (adherence)",
    "clip_t_base": "CLIP-T of the base", "pairwise_clip": "alike within a prompt", "div": "DIV", "pres": "PRES",
    "pres_base": "PRES of the base", "memorization": "memorization",
}  # fmt: skip


def table(found: Evaluation) -> Table:
    """The headline and the drift, each with its interval."""
    out = Table(title="subject, class and drift (95 % intervals over seeds)", title_justify="left")
    for column in ("metric", "value", "interval"):
        out.add_column(column)
    for name, title in SHOWN.items():
        out.add_row(title, *_cells(found.headline.get(name)))
    for group, drift in found.drift.items():
        out.add_section()
        for name in ("moved_dino", "moved_clip", "clip_t_change"):
            out.add_row(f"{group}: {name}", *_cells(drift.get(name)))
        if path := drift["path_kl"]:
            out.add_row(f"{group}: path KL (nats)", f"{path['mean']:.4g}", f"+- {path['error']:.2g}")  # fmt: skip
    return out


def _cells(value: dict | None) -> tuple[str, str]:
    if value is None:
        return "-", ""
    low, high = value["low"], value["high"]
    return f"{value['mean']:.4f}", "" if low is None else f"{low:.4f} .. {high:.4f}"


# ---- the whole benchmark
def benchmark(asked, say) -> Path:
    """Each subject of the benchmark whose run lies in --model under the subject's name; benchmark.json holds the means over subjects."""
    root, runs = Path(asked.reference), Path(asked.model).expanduser()
    subjects = read_benchmark(root / LIST).classes
    ready = [s for s in subjects if (root / s).is_dir() and (runs / s / "config.json").is_file()]
    if not ready:
        raise UserError(
            f"{runs} holds no run named as a subject of {root} (e.g. {next(iter(subjects))}); "
            f"train into {runs}/SUBJECT, or pass one subject's folder as --reference"
        )
    out = Path(asked.out) if asked.out else runs / "evaluation"
    headlines = {}
    for subject in ready:
        say(f"{subject} ({len(headlines) + 1} of {len(ready)})")
        headlines[subject] = one(asked, str(runs / subject), root / subject, out / subject, say).headline  # fmt: skip
    means = {k: interval([h[k]["mean"] for h in headlines.values() if h.get(k)]) for k in SHOWN}
    missing = [s for s in subjects if s not in ready]
    report = {"means": means, "subjects": headlines, "without_run": missing, "intervals": "95 %, percentile bootstrap over subjects"}  # fmt: skip
    write_json(out / "benchmark.json", report)
    say(f"{len(ready)} of {len(subjects)} subjects, written: {out / 'benchmark.json'}")
    return out / "benchmark.json"
