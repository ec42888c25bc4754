"""What the pictures are asked for, in four groups, and the prompt without its identifier.

    subject     "a sks dog in the snow"      fidelity, adherence, diversity
    class       "a photo of a dog"           whose drift is language drift (and DreamBooth's PRES)
    contexts    "a dog in the snow"          does the class still go everywhere?
    unrelated   "a bowl of fruit"            does the rest stand still?

The DreamBooth benchmark (Ruiz et al. 2023; https://github.com/google/dreambooth, CC BY 4.0): folders named as in BENCHMARK, and
prompts_and_classes.txt with two lists of 25 templates, {0} the identifier and {1} the class.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from personalize.config.rules import CONTEXTS
from personalize.config.topics import UNRELATED
from toy2d.runs.files import UserError

PLACES = (
    "a {0} {1} in the jungle", "a {0} {1} in the snow", "a {0} {1} on the beach", "a {0} {1} on a cobblestone street",
    "a {0} {1} on top of pink fabric", "a {0} {1} on top of a wooden floor", "a {0} {1} with a city in the background",
    "a {0} {1} with a mountain in the background", "a {0} {1} with a blue house in the background",
    "a {0} {1} on top of a purple rug in a forest",
)  # fmt: skip
LOOKS = ("a red {0} {1}", "a purple {0} {1}", "a shiny {0} {1}", "a wet {0} {1}", "a cube shaped {0} {1}")  # fmt: skip
OBJECT_PROMPTS = (
    *PLACES,
    "a {0} {1} with a wheat field in the background", "a {0} {1} with a tree and autumn leaves in the background",
    "a {0} {1} with the Eiffel Tower in the background", "a {0} {1} floating on top of water",
    "a {0} {1} floating in an ocean of milk", "a {0} {1} on top of green grass with sunflowers around it",
    "a {0} {1} on top of a mirror", "a {0} {1} on top of the sidewalk in a crowded street",
    "a {0} {1} on top of a dirt road", "a {0} {1} on top of a white rug",
    *LOOKS,
)  # fmt: skip
LIVE_PROMPTS = (
    *PLACES,
    "a {0} {1} wearing a red hat", "a {0} {1} wearing a santa hat", "a {0} {1} wearing a rainbow scarf",
    "a {0} {1} wearing a black top hat and a monocle", "a {0} {1} in a chef outfit", "a {0} {1} in a firefighter outfit",
    "a {0} {1} in a police outfit", "a {0} {1} wearing pink glasses", "a {0} {1} wearing a yellow shirt",
    "a {0} {1} in a purple wizard outfit",
    *LOOKS,
)  # fmt: skip
BENCHMARK = {
    "backpack": "backpack", "backpack_dog": "backpack", "bear_plushie": "stuffed animal", "berry_bowl": "bowl", "can": "can",
    "candle": "candle", "cat": "cat", "cat2": "cat", "clock": "clock", "colorful_sneaker": "sneaker", "dog": "dog", "dog2": "dog",
    "dog3": "dog", "dog5": "dog", "dog6": "dog", "dog7": "dog", "dog8": "dog", "duck_toy": "toy", "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal", "monster_toy": "toy", "pink_sunglasses": "glasses", "poop_emoji": "toy", "rc_car": "toy",
    "red_cartoon": "cartoon", "robot_toy": "toy", "shiny_sneaker": "sneaker", "teapot": "teapot", "vase": "vase",
    "wolf_plushie": "stuffed animal",
}  # fmt: skip
LIVE_CLASSES = {
    "dog", "cat",  # the benchmark's; the others are for one's own pictures
    "bear", "bird", "boy", "chicken", "cow", "dragon", "duck", "elephant", "fox", "frog", "girl", "hamster", "horse", "koala",
    "lion", "man", "monkey", "mouse", "owl", "panda", "penguin", "person", "pig", "rabbit", "sheep", "tiger", "wolf", "woman",
}  # fmt: skip
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
    """The prompt as CLIP can know it: the class word stays, the identifier goes, an article is put in its place where none is.

    "a photo of sks dog" -> "a photo of a dog";  "a sks owl at night" -> "an owl at night";  "SKS, a dog" -> "a dog".
    """
    named = rf"(?:\b(?P<article>an?)\s+)?(?:{alone(identifier)}[,;:]?\s*)+(?P<next>\w\S*)?"
    plain = re.sub(named, _unnamed, prompt, flags=re.IGNORECASE)
    plain = re.sub(r"[\s,;:]+(?=[.;!?])", "", plain)  # what stood before it
    return " ".join(plain.lstrip(" ,.;:!?").split())


def _unnamed(found: re.Match) -> str:
    """What stays of [article] identifier [word]: the word, with an article if there was one or none stands before it."""
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
    """`name`: dreambooth (live or object list by the class word), dreambooth-live, dreambooth-object, mini, or a text file.

    A file has one prompt a line, {0} for the identifier and {1} for the class as in the benchmark's; each line's group follows from
    what it holds: the identifier, the class word, or neither. Raises UserError for an unknown name or lines that cannot be used.
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
            prompt = line.format(identifier, class_word)
        except (IndexError, KeyError, ValueError) as e:
            raise UserError(f"{file}, line {number}: only {{0}} (identifier) and {{1}} (class) may stand in braces") from e  # fmt: skip
        named, classed = _holds(prompt, identifier), _holds(prompt, class_word)
        if named and not classed:
            raise UserError(
                f"{file}, line {number}: no class word in {prompt!r}, so without {identifier!r} nothing says what it shows; "
                f"write '{identifier} {class_word}'"
            )
        group = "subject" if named else "contexts" if classed else "unrelated"
        groups.setdefault("class" if prompt == class_prompt else group, []).append(prompt)
    if "subject" not in groups:
        raise UserError(f"{file} has no prompt with the identifier {identifier!r}; write {{0}} {{1}} where the subject stands")  # fmt: skip
    return {g: tuple(dict.fromkeys(p)) for g, p in groups.items()}


def _lines(file: Path):
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, ValueError) as e:
        raise UserError(
            f"--prompts {file}: neither dreambooth, dreambooth-live, dreambooth-object, mini nor a text file that can be read ({e})"
        ) from e
    numbered = enumerate((line.strip() for line in text.splitlines()), 1)
    return [(n, line) for n, line in numbered if line and not line.startswith("#")]


def alone(words: str) -> str:
    """A pattern for `words` that are no part of longer ones; next to "<new1>" anything may stand."""
    return rf"(?:(?<!\w)|(?!\w)){re.escape(words)}(?:(?!\w)|(?<!\w))"


def _holds(prompt: str, words: str) -> bool:
    return re.search(alone(words), prompt, re.IGNORECASE) is not None


# ---- who the subject is
def words_of(
    instance_prompt: str | None, class_prompt: str | None, identifier: str | None, class_word: str | None
) -> tuple[str, str]:  # fmt: skip
    """(identifier, class word) of a run: what was said, or what its prompts have and have not in common.

    "a photo of sks dog" and "a photo of a dog" give "sks" and "dog"; without a class prompt the identifier is taken to be "sks" and the class
    what follows it. Raises UserError if that leaves a gap.
    """
    words = [w.strip(",.;:!?") for w in (instance_prompt or "").split()]
    known = {*(class_prompt or "").split(), *(class_word or "").split()}
    if identifier is None:
        strange = [w for w, after in pairwise(words) if w not in known | DETERMINERS and after in known - DETERMINERS]  # fmt: skip
        identifier = strange[0] if strange else next((w for w in words if w.lower() == "sks"), "sks")  # fmt: skip
    if words and not _holds(instance_prompt, identifier):
        raise UserError(f"the identifier {identifier!r} is not in the run's prompt {instance_prompt!r}; say it with --identifier")  # fmt: skip
    if class_word is None:
        after = words[words.index(identifier) + 1 :] if identifier in words else []
        if class_prompt:
            after = after[
                : next((i for i, w in enumerate(after) if not _holds(class_prompt, w)), None)
            ]
        class_word = " ".join(after)
        if not 1 <= len(after) <= 3:
            shown = f" in the run's prompt {instance_prompt!r}" if instance_prompt else ""
            raise UserError(f"no class word found{shown} after {identifier!r}; say it with --class_word, e.g. --class_word dog")  # fmt: skip
    return identifier, class_word


# ---- the benchmark's own files
@dataclass(frozen=True)
class Benchmark:
    """prompts_and_classes.txt: folder name -> class word, and the two lists of templates."""

    classes: dict[str, str]
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]


def read_benchmark(file: Path) -> Benchmark:
    """The published file as it is. Raises UserError if it is not that file."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read ({e})") from e
    head, _, rest = text.partition("Object Prompts")
    objects, _, live = rest.partition("Live Subject Prompts")
    table = re.findall(r"^([\w-]+),([\w -]+?)\s*$", head, re.MULTILINE)
    classes = {name: word for name, word in table if name != "subject_name"}
    lists = [
        tuple(re.findall(r"'([^'\n]*\{0\}[^'\n]*)'\.format", part)) for part in (objects, live)
    ]
    if not classes or not all(lists):
        raise UserError(f"{file} is not the benchmark's prompts_and_classes.txt: it lacks the class table or a prompt list")  # fmt: skip
    return Benchmark(classes, *lists)


def benchmark_class(folder: Path) -> str | None:
    """The class word of a benchmark subject's folder: from the file beside it, else by its published name; None for other folders."""
    file = folder.resolve().parent / "prompts_and_classes.txt"
    classes = read_benchmark(file).classes if file.is_file() else BENCHMARK
    return classes.get(folder.resolve().name)
