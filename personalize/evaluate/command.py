"""`personalize evaluate`: a run folder, a pipeline or the whole DreamBooth benchmark, from the
command line to evaluation.json.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from personalize.config.commands import Evaluate
from personalize.config.train_config import TrainConfig
from personalize.data.benchmark import benchmark_class, read_benchmark
from personalize.data.decode import open_rgb
from personalize.data.photos import Scan, scan
from personalize.data.prompts import PromptSet, prompt_set, subject_words
from personalize.data.subjects import training_pictures
from personalize.evaluate.image_prompt import Prompted, with_image_prompt
from personalize.evaluate.judges import Evaluators, evaluators_of
from personalize.evaluate.learning import held_out_config
from personalize.evaluate.metrics import interval
from personalize.evaluate.model import Evaluation, Plan, evaluate_model, has_its_base
from personalize.export.model_card import public_name
from personalize.export.write import load_run
from personalize.mini.shipped import is_mini, usual_guidance
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.sample.sampler import Sampling, image_seed
from personalize.train.from_base import DTYPES
from toy2d.runs.cli import to_stderr
from toy2d.runs.files import RunFailure, UserError, write_json

LIST = "prompts_and_classes.txt"  # what marks the root of the benchmark


def evaluate(command: Evaluate, say: Callable[[str], None] = print) -> Path:
    """Returns the path of evaluation.json, or of benchmark.json for the benchmark's root."""
    if problems := command.problems():
        raise UserError("; ".join(problems))
    say = to_stderr if command.json else say
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judges = cache(lambda mini: evaluators_of(mini, command.clip, command.dino, device))
    if (Path(command.reference) / LIST).is_file():
        file = benchmark(command, judges, say)
    else:
        folder = Path(command.out) if command.out else default_folder(command)
        found = one(command, command.model, Path(command.reference), folder, judges, say)
        file = folder / "evaluation.json"
        if not command.json:
            Console().print(table(found))
        for note in found.about["left_out"]:
            say(f"note: {note}")
        say(f"written: {file}")
    if command.json:
        print(file.read_text())
    return file


Judges = Callable[[bool], Evaluators]  # is it the mini? -> who judges it, loaded once


def one(
    command: Evaluate,
    name: str,
    reference: Path,
    folder: Path,
    judges: Judges,
    say,
    shared: Path | None = None,
) -> Evaluation:
    """One model on one subject. `shared`: where runs of one base keep its pictures together."""
    dtype = DTYPES[command.mixed_precision]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, base, config = open_model(name, command.base, device, dtype)
    mini = is_mini(config.get("pretrained_model_name_or_path") or name)
    prompts = prompts_of(command, config, reference, mini)
    training, unsure = training_pictures(
        command.training, config, Path(name).expanduser(), reference
    )
    if command.ip_adapter:
        if config:
            raise UserError(f"--ip_adapter is for a base, and {name} is a run; name its base")
        pictures = training or scan(reference, captions=False)
        model, base = image_prompt(command, model, pictures, prompts.identifier)
    named = command.base or config.get("pretrained_model_name_or_path") or name
    guidance = command.guidance or usual_guidance(named)
    size = command.resolution or config.get("resolution")
    how = (command.steps, guidance, command.sampler, size, command.sample_batch_size)
    seeds = [image_seed(command.seed, i) for i in range(command.images)]
    more = {"chains": command.chains, "held_out": held_out_of(command, config, prompts)}
    more |= {"ode_points": command.ode_points, "ode_nodes": command.ode_nodes}
    plan = Plan(reference, prompts, seeds, training, Sampling(*how), **more)
    base_folder = shared and shared / f"{(base or model).hash()}-{size or 'own'}"
    found = evaluate_model(model, plan, judges(mini), folder, base, base_folder, say)
    found.about["model"] = public_name(name)  # as it was asked for, not the folder inside the run
    found.about["base_model"] = public_name(
        command.base or config.get("pretrained_model_name_or_path")
    )
    found.about["left_out"] += unsure
    if command.ip_adapter:
        asked = {"ip_adapter": public_name(command.ip_adapter), "scale": command.ip_adapter_scale}
        found.about["image_prompt"] = asked | {"pictures": [r.path.name for r in pictures.records]}
        found.about["base_model"] = public_name(name)
    found.write(folder)
    return found


def image_prompt(command: Evaluate, model: Model, pictures: Scan, identifier: str) -> Prompted:
    shown = [open_rgb(r.path) for r in pictures.require()]
    scale = command.ip_adapter_scale
    return with_image_prompt(model, command.ip_adapter, shown, identifier, scale)


def held_out_of(command: Evaluate, config: dict, prompts: PromptSet) -> TrainConfig | None:
    """How the held-out pictures are asked about: under the run's own prompts where it has them."""
    if not command.held_out_data_dir:
        return None
    subject = f"a photo of {prompts.identifier} {prompts.class_word}"
    more = {"gain_samples": command.gain_samples, "seed": command.seed}
    size = {"resolution": command.resolution or config.get("resolution")}
    return held_out_config(
        command.held_out_data_dir,
        config.get("instance_prompt") or subject,
        prompts.groups["class"][0],
        sample_batch_size=command.sample_batch_size,
        **more,
        **size,
    )


def prompts_of(command: Evaluate, config: dict, reference: Path, mini: bool) -> PromptSet:
    """The run's own words and drift prompts where it has them, so that its path KL and these are
    about the same prompts.
    """
    class_prompt = config.get("class_prompt")
    word = command.class_word or benchmark_class(reference)
    identifier, word = subject_words(
        config.get("instance_prompt"), class_prompt, command.identifier, word
    )
    kept = {"contexts": config.get("context_prompts"), "unrelated": config.get("unrelated_prompts")}
    kept = {k: tuple(v) for k, v in kept.items() if v}
    name = command.prompts or ("mini" if mini else "dreambooth")
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


def default_folder(command: Evaluate) -> Path:
    """evaluation/ inside a run or pipeline folder is found again by the same command; hub ids
    get one under runs/. With an IP-Adapter: evaluation-ip_adapter/.
    """
    kind = "evaluation-ip_adapter" if command.ip_adapter else "evaluation"
    folder = Path(command.model).expanduser()
    if folder.is_dir():
        return folder / kind
    return Path("runs/personalize") / f"{kind}-{command.model.replace('/', '-')}"


# ---- what one sees
SHOWN = {
    "dino": "DINO",
    "clip_i": "CLIP-I (identity, mean)",
    "subject_max": "identity, max",
    "clip_t": "CLIP-T (adherence)",
    "clip_t_base": "CLIP-T of the base",
    "pairwise_clip": "alike within a prompt",
    "div": "DIV",
    "pres": "PRES",
    "pres_base": "PRES of the base",
    "memorization": "memorization",
}


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
        for key, title in (("path_kl", "path KL"), ("ode_kl", "KL of the ODE's law")):
            if kl := drift.get(key):
                numerical = f", ODE {kl['ode_error']:.2g}" if "ode_error" in kl else ""
                error = f"+- {kl['error']:.2g}{numerical}"
                out.add_row(f"{group}: {title} (nats)", f"{kl['mean']:.4g}", error)
    if learnt := found.summary.get("learning"):
        out.add_section()
        for name in ("gain", "binding", "leak"):
            if name in learnt:
                error = learnt[f"{name}_error"]
                out.add_row(f"{name} (nats)", f"{learnt[name]:.4g}", f"+- {error:.2g}")
    return out


def _cells(value: dict | None) -> tuple[str, str]:
    if value is None:
        return "-", ""
    low, high = value["low"], value["high"]
    return f"{value['mean']:.4f}", "" if low is None else f"{low:.4f} .. {high:.4f}"


# ---- the whole benchmark
def benchmark(command: Evaluate, judges: Judges, say) -> Path:
    """Each subject of the benchmark whose run lies in --model under the subject's name, or with
    --ip_adapter every subject; benchmark.json holds the means over subjects.

    Runs of one base share its pictures. A subject that fails stops no other: RunFailure names all
    of them at the end.
    """
    root, runs = Path(command.reference), Path(command.model).expanduser()
    subjects = read_benchmark(root / LIST).classes
    there = [s for s in subjects if (root / s).is_dir()]
    ready = [s for s in there if command.ip_adapter or (runs / s / "config.json").is_file()]
    if not ready:
        raise UserError(
            f"{runs} holds no run named as a subject of {root} (e.g. {next(iter(subjects))}); "
            f"train into {runs}/SUBJECT, or pass one subject's folder as --reference"
        )
    out = Path(command.out) if command.out else default_folder(command)
    headlines, failed, notes = {}, {}, {}
    for i, subject in enumerate(ready):
        say(f"{subject} ({i + 1} of {len(ready)})")
        try:
            found = one(
                command,
                command.model if command.ip_adapter else str(runs / subject),
                root / subject,
                out / subject,
                judges,
                say,
                out / "base",
            )
        except (UserError, RunFailure) as e:
            say(f"{subject} failed: {e}")
            failed[subject] = str(e)
            continue
        headlines[subject] = found.headline
        for note in found.about["left_out"]:
            notes.setdefault(note, []).append(subject)
    for note, of in notes.items():
        say(f"note ({', '.join(of)}): {note}")
    means = {k: interval([h[k]["mean"] for h in headlines.values() if h.get(k)]) for k in SHOWN}
    missing = [s for s in subjects if s not in ready]
    report = {
        "means": means,
        "subjects": headlines,
        "without_run": missing,
        "failed": failed,
        "left_out": notes,
        "intervals": "95 %, percentile bootstrap over subjects",
    }
    write_json(out / "benchmark.json", report)
    say(f"{len(headlines)} of {len(subjects)} subjects, written: {out / 'benchmark.json'}")
    if failed:
        raise RunFailure(
            f"{len(failed)} of {len(ready)} subjects failed ({', '.join(failed)}; "
            f"why: {out / 'benchmark.json'}); "
            "the same command does them again"
        )
    return out / "benchmark.json"
