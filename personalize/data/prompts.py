"""What the pictures are asked for, in four groups, and the prompt without its identifier.

    subject     "a sks dog in the snow"      fidelity, adherence, diversity
    class       "a photo of a dog"           whose drift is language drift (and DreamBooth's PRES)
    contexts    "a dog in the snow"          does the class still go everywhere?
    unrelated   "a bowl of fruit"            does the rest stay as it was?

The lists of the DreamBooth benchmark are in benchmark.py.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Formatter

from personalize.config.rules import CONTEXTS
from personalize.config.topics import UNRELATED
from personalize.data.benchmark import LIVE_CLASSES, LIVE_PROMPTS, OBJECT_PROMPTS
from toy2d.runs.files import UserError, read_text

DETERMINERS = {"a", "an", "the", "my", "one", "this", "that"}


@dataclass(frozen=True)
class PromptSet:
    """`groups`: name -> prompts, "subject" first; the class prompt is what PRES is measured on."""

    identifier: str
    class_word: str
    groups: dict[str, tuple[str, ...]]

    def plain(self, prompt: str) -> str:
        """What CLIP-T compares with."""
        return without_identifier(prompt, self.identifier)

    def jobs(self) -> list[tuple[str, str]]:
        """(group, prompt), each prompt once, under its first group."""
        first = {}
        for group, prompts in self.groups.items():
            for p in prompts:
                first.setdefault(p, group)
        return [(group, p) for p, group in first.items()]


def without_identifier(prompt: str, identifier: str) -> str:
    """The prompt as CLIP can know it: the class word stays, the identifier goes, an article is put
    in its place where none is.

    "a photo of sks dog" -> "a photo of a dog";  "a sks owl at night" -> "an owl at night";  "SKS,
    a dog" -> "a dog".
    """
    named = rf"(?:\b(?P<article>an?)\s+)?(?:{alone(identifier)}[,;:]?\s*)+(?P<next>\w\S*)?"
    plain = re.sub(named, _unnamed, prompt, flags=re.IGNORECASE)
    plain = re.sub(r"[\s,;:]+(?=[.;!?])", "", plain)  # what stood before it
    return " ".join(plain.lstrip(" ,.;:!?").split())


def _unnamed(found: re.Match) -> str:
    """What stays of [article] identifier [word]: the word, with an article if there was one or
    none stands before it.
    """
    article, word = found["article"], found["next"] or ""
    before = found.string[: found.start()].split()
    bare = not before or before[-1].lower() in PREPOSITIONS
    if not word or not (article or (bare and word.lower() not in DETERMINERS | PREPOSITIONS)):
        return word
    right = with_article(word)
    return right.capitalize() if (article or "a")[0] == "A" else right


PREPOSITIONS = {"of", "on", "in", "with", "at", "and", "near", "by", "from", "like"}
# by sound: "a unicorn", "a ewe", "a one-eyed cat", "an hour"
VOWEL = r"(?!uni(?![mn])|us[eu]|ute|uti|uk|eu|ew|one\b|once)[aeiou]|hour|honest|honou?r|heir"


def with_article(word: str) -> str:
    return f"{'an' if re.match(VOWEL, word) else 'a'} {word}"


# ---- the four groups
def prompt_set(
    name: str,
    identifier: str,
    class_word: str,
    class_prompt: str | None = None,
    contexts: tuple[str, ...] = (),
    unrelated: tuple[str, ...] = UNRELATED,
) -> PromptSet:
    """`name`: dreambooth (live or object list by the class word), dreambooth-live,
    dreambooth-object, mini, or a text file.

    A file has one prompt a line, {0} for the identifier and {1} for the class as in the
    benchmark's; each line's group follows from what it holds: the identifier, the class word, or
    neither. Raises UserError for an unknown name or lines that cannot be used.
    """
    class_prompt = class_prompt or f"a photo of {with_article(class_word)}"
    contexts = contexts or tuple(f"{class_prompt} {where}" for where in CONTEXTS)
    rest = {"class": (class_prompt,), "contexts": contexts, "unrelated": unrelated}
    live = "live" if class_word.split()[-1] in LIVE_CLASSES else "object"
    lists = {"dreambooth-live": LIVE_PROMPTS, "dreambooth-object": OBJECT_PROMPTS}
    templates = lists.get(f"dreambooth-{live}" if name == "dreambooth" else name)
    if templates:
        groups = {"subject": tuple(t.format(identifier, class_word) for t in templates), **rest}
    elif name == "mini":
        groups = _mini_groups(identifier, class_word, class_prompt)
    else:
        groups = rest | _file_groups(Path(name).expanduser(), identifier, class_word, class_prompt)
    order = ("subject", "class", "contexts", "unrelated")
    return PromptSet(identifier, class_word, {g: groups[g] for g in order if groups.get(g)})


def _mini_groups(identifier: str, class_word: str, class_prompt: str) -> dict[str, tuple[str, ...]]:
    """The mini's world: the subject, its class and every other class in its scenes."""
    from personalize.mini.shipped import CLASSES, SCENES

    others = [c for c in CLASSES if c != class_word]
    return {
        "subject": tuple(f"a photo of {identifier} {class_word} {scene}" for scene in SCENES),
        "class": (class_prompt,),
        "contexts": tuple(f"{class_prompt} {scene}" for scene in SCENES),
        "unrelated": tuple(
            f"a photo of {with_article(c)} {SCENES[i % len(SCENES)]}" for i, c in enumerate(others)
        ),
    }


def _file_groups(file: Path, identifier, class_word, class_prompt) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for number, line in _lines(file):
        try:
            prompt = _filled(line, identifier, class_word)
        except (IndexError, ValueError) as e:
            raise UserError(
                f"{file}, line {number}: only {{0}} (identifier) and {{1}} (class) may be in braces"
            ) from e
        named, classed = _holds(prompt, identifier), _holds(prompt, class_word)
        if named and not classed:
            raise UserError(
                f"{file}, line {number}: no class word in {prompt!r}, so without "
                f"{identifier!r} nothing says what it shows; "
                f"write '{identifier} {class_word}'"
            )
        group = "subject" if named else "contexts" if classed else "unrelated"
        groups.setdefault("class" if prompt == class_prompt else group, []).append(prompt)
    if "subject" not in groups:
        raise UserError(
            f"{file} has no prompt with the identifier {identifier!r}; write {{0}} {{1}} "
            f"where the subject stands"
        )
    return {g: tuple(dict.fromkeys(p)) for g, p in groups.items()}


def _filled(line: str, identifier: str, class_word: str) -> str:
    """{0} and {1} replaced. ValueError for all else that `format` knows: attributes, widths."""
    for _, name, spec, conversion in Formatter().parse(line):
        if name not in (None, "", "0", "1") or spec or conversion:
            raise ValueError(name)
    return line.format(identifier, class_word)


def _lines(file: Path):
    try:
        text = read_text(file, "utf-8-sig")
    except (OSError, ValueError) as e:
        raise UserError(
            f"--prompts {file}: neither dreambooth, dreambooth-live, dreambooth-object, mini "
            f"nor a text file that can be read ({e})"
        ) from e
    numbered = enumerate((line.strip() for line in text.splitlines()), 1)
    return [(n, line) for n, line in numbered if line and not line.startswith("#")]


def alone(words: str) -> str:
    """A pattern for `words` that are no part of longer ones; next to "<new1>" anything may
    stand.
    """
    return rf"(?:(?<!\w)|(?!\w)){re.escape(words)}(?:(?!\w)|(?<!\w))"


def _holds(prompt: str, words: str) -> bool:
    return re.search(alone(words), prompt, re.IGNORECASE) is not None


# ---- who the subject is
def subject_words(
    instance_prompt: str | None,
    class_prompt: str | None,
    identifier: str | None,
    class_word: str | None,
) -> tuple[str, str]:
    """(identifier, class word) of a run: what was said, or what its prompts have and have not in
    common.

    "a photo of sks dog" and "a photo of a dog" give "sks" and "dog"; without a class prompt the
    identifier is taken to be "sks" and the class what follows it. Raises UserError if that leaves
    a gap.
    """
    words = [w.strip(",.;:!?") for w in (instance_prompt or "").split()]
    known = {*(class_prompt or "").split(), *(class_word or "").split()}
    if identifier is None:
        strange = [
            w
            for w, after in pairwise(words)
            if w not in known | DETERMINERS and after in known - DETERMINERS
        ]
        identifier = (
            strange[0] if strange else next((w for w in words if w.lower() == "sks"), "sks")
        )
    if words and not _holds(instance_prompt, identifier):
        raise UserError(
            f"the identifier {identifier!r} is not in the run's prompt {instance_prompt!r}; "
            f"say it with --identifier"
        )
    if class_word is None:
        after = words[words.index(identifier) + 1 :] if identifier in words else []
        if class_prompt:
            after = after[
                : next((i for i, w in enumerate(after) if not _holds(class_prompt, w)), None)
            ]
        class_word = " ".join(after)
        if not 1 <= len(after) <= 3:
            shown = f" in the run's prompt {instance_prompt!r}" if instance_prompt else ""
            raise UserError(
                f"no class word found{shown} after {identifier!r}; say it with --class_word, "
                f"e.g. --class_word dog"
            )
    return identifier, class_word
