"""What the report measures of one run, read from its evaluation, and what it does not measure."""

import json

from personalize.compare.jobs import ComparedSubject, Job
from personalize.data.decode import open_rgb
from personalize.data.photos import scan
from personalize.evaluate.judges import Evaluators
from personalize.evaluate.metrics import cosine

# column: (title, is more better?); the page says what each means
SCORES = {
    "clip_i": ("identity, CLIP-I", True),
    "subject_max": ("identity, max", True),
    "dino": ("identity, DINO", True),
    "subject_seen": ("subject seen", True),
    "clip_t": ("adherence, CLIP-T", True),
    "scene_right": ("scene right", True),
    "pairwise_clip": ("alike within a prompt", False),
    "div": ("perceptual distance", True),
    "spread_subject": ("spread of identity", False),
    "spread_text": ("spread of adherence", False),
    "kept": ("kept of the peak gain", True),
    "memorization": ("memorization", False),
    "gain": ("gain (nats)", True),
    "path_kl": ("path KL (nats)", False),
}
MEANINGS = (
    "Identity: cosine of CLIP (DINO) features with the subject's pictures, mean over them; "
    "max: the largest. Subject seen: probability that a classifier of the subjects gives to "
    "this one. Adherence: cosine of CLIP features of picture and prompt; scene right: share "
    "of pictures in which a classifier of the mini's world reads the prompt's scene. Alike "
    "within a prompt: mean cosine of CLIP features between pictures of one prompt (less is "
    "more diverse); perceptual distance: the same by a perceptual metric (more is more "
    "diverse). Spread: standard deviation over pictures (the report's Stability). Kept: gain "
    "at the end as a share of its peak along the training. Memorization: largest cosine of "
    "DINO features with a training picture. Gain: what is learnt of held-out pictures; path "
    "KL: upper bound of KL(base || tuned) over old prompts."
)


def scores_of(job: Job, record: dict, before: list[dict]) -> dict:
    """The columns of SCORES that `record` lacks, and those of the base; None where not measured.

    `before`: the curve of the run from whose checkpoint this one went on.
    """
    gains = [row["gain"] for row in [*before, *record["curve"]] if "gain" in row]
    found = {"gain": gains[-1] if gains else None, "kept": None}
    if gains and max(gains) > 0:
        found["kept"] = gains[-1] / max(gains)
    if record["stopped"]:
        return dict.fromkeys(set(SCORES) - {"path_kl"}) | {"of_base": {}}
    evaluation = json.loads((job.folder / "evaluation" / "evaluation.json").read_text())
    head, base = evaluation["headline"], evaluation["means"].get("base", {}).get("subject", {})
    for name in ("subject_max", "pairwise_clip", "memorization"):
        found[name] = head[name] and head[name]["mean"]
    for name in ("subject", "text"):
        found[f"spread_{name}"] = head["stability"][name]
    found["scene_right"] = record["right"]["tuned"].get("subject", {}).get("scene")
    of_base = {k: v["mean"] for k, v in base.items() if k in SCORES}
    if distance := head["div_distance"]:
        of_base["div"] = base.get(distance, {}).get("mean")
    right = base.get("scene_right")
    of_base |= {"scene_right": right and right["mean"], "path_kl": 0.0, "gain": 0.0}
    return found | {"of_base": of_base}


def as_near_as_new_pictures(subject: ComparedSubject, evaluators: Evaluators) -> dict:
    """`memorization` of the subject's held-out pictures: how near to a training picture a new
    picture of it is. None without held-out pictures or DINO.
    """
    near = None
    if subject.held_out and evaluators.dino:
        new, old = (
            evaluators.dino.features([open_rgb(r.path) for r in scan(f, captions=False).require()])
            for f in (subject.held_out, subject.folder)
        )
        near = float(cosine(new[0], old[0]).max(1).values.mean())
    return {"class_word": subject.class_word, "memorization_of_new": near}
