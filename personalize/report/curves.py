"""The report's curves: the toy's panels, drawn for both scales side by side."""

from functools import partial

from personalize.compare.table import common
from personalize.report.figures import figure
from toy2d.figures.drift import CHAIN, chain_panel, conditions_panel, tradeoff_panel, weights_panel
from toy2d.figures.style import STYLES
from toy2d.runs.sentences import Scale
from toy2d.runs.statistics import by_objective

MARKS = {
    "o": "\u25cf",
    "s": "\u25a0",
    "^": "\u25b2",
    "D": "\u25c6",
    "v": "\u25bc",
    "P": "\u271a",
    "<": "\u25c0",
    ">": "\u25b6",
    "*": "\u2605",
}
EXPLAINED = {  # objectives of the toy that are no flag of `personalize train`
    "replay_all": "prior preservation on every old prompt",
    "l2_tensor_mean": "L2 as in the paper's code: mean per tensor",
    "l2_decoupled": "L2 as a step after Adam's",
}
LOST = {  # Scale.lost -> axis label
    "old_base": "KL(base || tuned), old classes (nats)",
    "moved": "drift: 1 \u2212 cosine with the base",
}
LEARNT_AXIS = {  # Scale.learnt -> axis label
    "kl_new": "not learnt: KL(world || tuned), new class (nats)",
    "unlearnt": "not learnt: 1 \u2212 DINO similarity",
}
SHARED = "on the subjects and seeds that every run has"
LINKS = (
    "output norm \u0394\u03b5 against parameter distance \u0394\u03b8",
    "path KL against \u0394\u03b5",
    "drift against path KL",
)


def legend(records: list[dict]) -> list[dict]:
    """Name, mark and colour of every objective that was run."""

    def item(objective):
        colour, marker, _ = STYLES[objective]
        shown = "inherit" if colour == "#000000" else colour
        name = f"{objective} ({EXPLAINED[objective]})" if objective in EXPLAINED else objective
        return {"name": name, "mark": MARKS[marker], "colour": shown}

    return [item(o) for o in STYLES if o in by_objective(records)]


def pair_of_panels(draw, small: Scale, large: Scale, what: str) -> dict:
    """One panel of each scale: `draw(ax, scale)`; an empty one where every run diverged."""

    def drawn(ax, scale):
        if scale.records:
            draw(ax, scale=scale)

    return {
        side: figure(partial(drawn, scale=scale), f"{scale.name}: {what}.")
        for side, scale in (("toy", small), ("full", large))
    }


def conditions(ax, scale: Scale) -> None:
    best = common([r for same in scale.best.values() for r in same])
    shown = {o: runs[0] for o, runs in by_objective(best).items()}
    conditions_panel(ax, shown, scale.conditions, scale.at)
    ax.set_ylabel(LOST[scale.lost])


def link(ax, scale: Scale, step: int) -> None:
    """One link of the chain delta theta -> delta eps -> path KL -> drift."""
    keys = [*CHAIN[:-1], (scale.lost, LOST[scale.lost])]
    exact = step == 2 and scale.lost == "old_base"
    chain_panel(ax, scale.records, keys[step], keys[step + 1], (1, 2, 1)[step], exact)


def weights(ax, scale: Scale, key: str, labels: dict[str, str]) -> None:
    weights_panel(ax, common(scale.records), key, labels[key])


def tradeoff(ax, scale: Scale) -> None:
    x, y = (scale.learnt, LEARNT_AXIS[scale.learnt]), (scale.lost, LOST[scale.lost])
    tradeoff_panel(ax, common(scale.records), x, y)


def curves(small: Scale, large: Scale) -> dict:
    """Every pair of panels under the name that the template uses."""
    panels = partial(pair_of_panels, small=small, large=large)
    band = f"{SHARED}, band one standard error"
    return {
        "conditions": panels(
            conditions,
            what="drift of each objective's best weight for every condition, "
            "on the subjects and seeds that all of them have, bars one standard error",
        ),
        "chain": [
            panels(partial(link, step=i), what=f"{words}, one point a run, log-log")
            for i, words in enumerate(LINKS)
        ],
        "sweep": [
            panels(
                lambda ax, scale: weights(ax, scale, scale.lost, LOST),
                what=f"drift of every objective over its weight, {band}",
            ),
            panels(
                lambda ax, scale: weights(ax, scale, scale.learnt, LEARNT_AXIS),
                what=f"what is not learnt of every objective over its weight, {band}",
            ),
        ],
        "tradeoff": panels(
            tradeoff,
            what=f"drift against what is not learnt, {SHARED}, weights of an objective joined, "
            "bars one standard error",
        ),
    }
