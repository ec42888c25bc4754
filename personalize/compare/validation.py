"""Which measure of learning, in nats, agrees with what pictures show?

For every run of one or more comparisons: each candidate's value at the last step against scores of
that run's pictures of the subject. Agreement is Spearman's rank correlation, ranks taken within a
subject, so that an easy subject counts no more than a hard one. Its interval is a percentile
bootstrap over the runs of each subject.

Comparisons that differ in their number of steps are points of curves, too: then drift is compared
at equal learning as pictures show it (`frontier.picture_trajectories`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from personalize.compare.frontier import picture_trajectories, table_at_equal, verdicts
from personalize.config.commands import Validate
from toy2d.runs.files import UserError, write_json

CANDIDATES = ("gain", "gain/detail", "gain/shape", "gain/identity", "binding", "leak")
SEEN = "subject_seen of the pictures"
WITNESSES = ("dino", "clip_i", "subject_seen")
LEAST_RUNS, RESAMPLES = 5, 1000  # runs of a subject; resamples of the bootstrap


def validate(command: Validate) -> Path:
    """Print the table and write validation.json into the first comparison's folder.

    Raises UserError for a folder that is none, for several bases, or too few runs.
    """
    folder, metrics = Path(command.full[0]), [_metrics(Path(f)) for f in command.full]
    if len({m["base_hash"] for m in metrics}) > 1:
        raise UserError(f"{', '.join(command.full)} are comparisons of different base models")
    runs = [r for m in metrics for r in m["runs"]]
    found = agreement(runs)
    if not found:
        raise UserError(
            f"{', '.join(command.full)}: no subject has {LEAST_RUNS} runs with held-out pictures "
            "and picture scores; "
            "compare with --held_out, or with a folder of held-out pictures for each subject"
        )
    Console().print(table(found))
    record = {"agreement": found, "axis": axis(found)}
    if len({m.get("steps") for m in metrics}) > 1:
        seen = picture_trajectories(metrics)
        Console().print(table_at_equal(seen, SEEN))
        record["curves"] = [t._asdict() for t in seen]
        print("\n".join(verdicts(seen)))
    write_json(folder / "validation.json", record)
    print(f"written: {folder / 'validation.json'}")
    return folder / "validation.json"


def _metrics(folder: Path) -> dict:
    file = folder / "metrics.json"
    if not file.is_file():
        raise UserError(f"{file} is not there; pass the folder of `personalize compare`")
    return json.loads(file.read_text())


def agreement(runs: Sequence[dict]) -> list[dict]:
    """One row for each candidate and witness: {"candidate", "witness", "rho", "low", "high",
    "n"}.
    """
    rows = []
    for candidate in CANDIDATES:
        for witness in WITNESSES:
            pairs = _pairs(runs, candidate, witness)
            if pairs:
                rho, low, high = correlation(pairs)
                n = sum(len(p) for p in pairs)
                row = {"candidate": candidate, "witness": witness}
                rows.append(row | {"rho": rho, "low": low, "high": high, "n": n})
    return rows


def _pairs(runs: Sequence[dict], candidate: str, witness: str) -> list[np.ndarray]:
    """(n, 2) values of each subject with enough runs."""
    of_subject: dict[str, list[tuple[float, float]]] = {}
    for r in runs:
        last = (r.get("curve") or [{}])[-1].get(candidate)
        seen = r.get(witness)
        if last is not None and seen is not None and not r.get("stopped"):
            of_subject.setdefault(r["subject"], []).append((last, seen))
    return [np.array(p) for p in of_subject.values() if len(p) >= LEAST_RUNS]


def correlation(
    pairs: Sequence[np.ndarray], resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """(rho, low, high): Spearman's within subjects, and its 95 % interval."""
    rng, draws = np.random.default_rng(0), []
    for _ in range(resamples):
        draws.append(within_ranks([p[rng.integers(len(p), size=len(p))] for p in pairs]))
    known = [d for d in draws if np.isfinite(d)]
    low, high = np.percentile(known, (2.5, 97.5)) if known else (np.nan, np.nan)
    return within_ranks(pairs), float(low), float(high)


def within_ranks(pairs: Sequence[np.ndarray]) -> float:
    """Pearson's correlation of ranks that are centred within each subject; nan if one is
    constant.
    """
    ranks = [rankdata(p, axis=0) / len(p) for p in pairs]
    x, y = np.concatenate([r - r.mean(0) for r in ranks]).T
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / size if size else float("nan")


def axis(found: Sequence[dict]) -> str | None:
    """The candidate whose weakest agreement with a witness is surely positive and the largest.

    Where a supervised judge knows the subjects (`subject_seen`), it is the only witness that
    counts: DINO and CLIP-I were not trained on them. None if no candidate's intervals are all above
    0: then pictures must judge.
    """
    judges = {r["witness"] for r in found}
    counted = {"subject_seen"} & judges or judges
    rows = [r for r in found if r["witness"] in counted]
    lows = {c: [r["low"] for r in rows if r["candidate"] == c] for c in CANDIDATES}
    lows = {c: min(v) for c, v in lows.items() if v}
    sure = {c: v for c, v in lows.items() if v > 0}
    return max(sure, key=sure.get) if sure else None


def table(found: Sequence[dict]) -> Table:
    """Candidates down, witnesses across."""
    n = found[0]["n"]
    out = Table(title=f"rank correlation with pictures, within subjects; {n} runs, 95 % interval")
    out.add_column("measure at the last step")
    for witness in WITNESSES:
        out.add_column(witness)
    for candidate in dict.fromkeys(r["candidate"] for r in found):
        cells = {
            r["witness"]: f"{r['rho']:+.2f}  ({r['low']:+.2f} .. {r['high']:+.2f})"
            for r in found
            if r["candidate"] == candidate
        }
        out.add_row(candidate, *(cells.get(w, "-") for w in WITNESSES))
    chosen = axis(found)
    out.caption = f"agrees best: {chosen}" if chosen else "none agrees surely: let pictures judge"
    return out
