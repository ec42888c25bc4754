"""Weights of the L2 term for each kind of layer, as written on a command line.

    cross_attn:1 conv:0.1 other:0      a kind of layer by its name; other: what no entry names
    up_blocks\\.3:2                     a regular expression, searched for in a parameter's name

The squared distance is then sum_b lambda_b ||delta theta_b||^2. What no entry names has weight 0.
Each scale brings its own table of kinds, name -> regular expression; the first that matches counts.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from toy2d.runs.files import UserError

OTHER = "other"
FLAG = "--l2_layers"


class Entry(NamedTuple):
    pattern: str
    weight: float

    def __str__(self) -> str:
        return f"{self.pattern}:{self.weight:g}"


def parse_layers(entries: Sequence[str]) -> list[Entry]:
    """Raises UserError for what is no PATTERN:WEIGHT, a pattern given twice, or only zeros."""
    parsed = [_parse(text) for text in entries]
    twice = [p for p, n in Counter(e.pattern for e in parsed).items() if n > 1]
    if twice:
        raise UserError(f"{FLAG} gives {twice[0]} two weights; write it once")
    if parsed and not any(e.weight for e in parsed):
        raise UserError(f"{FLAG}: every weight is 0, so nothing is held; give one layer a weight")
    return parsed


def _parse(text: str) -> Entry:
    pattern, _, number = text.rpartition(":")
    try:
        weight = float(number)
        re.compile(pattern)
    except ValueError:
        raise UserError(f"{FLAG} {text}: write PATTERN:WEIGHT, for example conv:0.1") from None
    except re.error as e:
        raise UserError(f"{FLAG} {text}: {pattern} is no regular expression ({e})") from None
    if not pattern or not (math.isfinite(weight) and weight >= 0):
        raise UserError(f"{FLAG} {text}: write PATTERN:WEIGHT, the weight a finite number >= 0")
    return Entry(pattern, weight)


def layer_of(name: str, kinds: Mapping[str, str]) -> str:
    """The kind of layer of a parameter: the first whose expression is found in its name."""
    return next((k for k, expression in kinds.items() if re.search(expression, name)), OTHER)


def layer_weights(
    entries: Sequence[str], names: Iterable[str], kinds: Mapping[str, str]
) -> dict[str, float]:
    """lambda_b of each parameter that trains.

    Raises UserError for an entry that matches none of them, for two entries that give one parameter
    different weights, and for entries that together do nothing.
    """
    parsed, names = parse_layers(entries), list(names)
    rest = next((e.weight for e in parsed if e.pattern == OTHER), 0.0)
    named = [e for e in parsed if e.pattern != OTHER]
    found = {n: [e for e in named if _matches(e.pattern, n, kinds)] for n in names}
    for name, matching in found.items():
        if len({e.weight for e in matching}) > 1:
            raise UserError(
                f"{FLAG}: {matching[0]} and {matching[1]} contradict each other at {name}; give "
                "them one weight, or make one of the expressions narrower"
            )
    used = {e for matching in found.values() for e in matching}
    left = [e for e in named if e not in used]
    if any(e.pattern == OTHER for e in parsed) and all(found.values()):
        left.append(Entry(OTHER, rest))
    if left:
        raise UserError(
            f"{FLAG} {left[0]} matches none of the weights that train; these do: "
            f"{_there(names, kinds)}; or a regular expression for names such as {names[0]}"
        )
    weights = {n: matching[0].weight if matching else rest for n, matching in found.items()}
    same = set(weights.values())
    if len(same) == 1:
        raise UserError(
            f"{FLAG} gives all weights that train the same weight {same.pop():g}, so it "
            "distinguishes nothing; leave it out and use the weight of l2"
        )
    return weights


def _matches(pattern: str, name: str, kinds: Mapping[str, str]) -> bool:
    if pattern in kinds:
        return layer_of(name, kinds) == pattern
    return bool(re.search(pattern, name))


def _there(names: list[str], kinds: Mapping[str, str]) -> str:
    counts = Counter(layer_of(n, kinds) for n in names)
    return ", ".join(f"{k} ({counts[k]})" for k in (*kinds, OTHER) if counts[k])
