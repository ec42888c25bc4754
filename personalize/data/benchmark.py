"""The DreamBooth benchmark: its prompts and subjects, and its own files.

Ruiz et al. 2023; https://github.com/google/dreambooth, CC BY 4.0. Its folders are named as in
BENCHMARK, and prompts_and_classes.txt holds two lists of 25 templates: {0} is the identifier,
{1} the
class.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from toy2d.runs.files import UserError

PLACES = (
    "a {0} {1} in the jungle",
    "a {0} {1} in the snow",
    "a {0} {1} on the beach",
    "a {0} {1} on a cobblestone street",
    "a {0} {1} on top of pink fabric",
    "a {0} {1} on top of a wooden floor",
    "a {0} {1} with a city in the background",
    "a {0} {1} with a mountain in the background",
    "a {0} {1} with a blue house in the background",
    "a {0} {1} on top of a purple rug in a forest",
)
LOOKS = (
    "a red {0} {1}",
    "a purple {0} {1}",
    "a shiny {0} {1}",
    "a wet {0} {1}",
    "a cube shaped {0} {1}",
)
OBJECT_PROMPTS = (
    *PLACES,
    "a {0} {1} with a wheat field in the background",
    "a {0} {1} with a tree and autumn leaves in the background",
    "a {0} {1} with the Eiffel Tower in the background",
    "a {0} {1} floating on top of water",
    "a {0} {1} floating in an ocean of milk",
    "a {0} {1} on top of green grass with sunflowers around it",
    "a {0} {1} on top of a mirror",
    "a {0} {1} on top of the sidewalk in a crowded street",
    "a {0} {1} on top of a dirt road",
    "a {0} {1} on top of a white rug",
    *LOOKS,
)
LIVE_PROMPTS = (
    *PLACES,
    "a {0} {1} wearing a red hat",
    "a {0} {1} wearing a santa hat",
    "a {0} {1} wearing a rainbow scarf",
    "a {0} {1} wearing a black top hat and a monocle",
    "a {0} {1} in a chef outfit",
    "a {0} {1} in a firefighter outfit",
    "a {0} {1} in a police outfit",
    "a {0} {1} wearing pink glasses",
    "a {0} {1} wearing a yellow shirt",
    "a {0} {1} in a purple wizard outfit",
    *LOOKS,
)
BENCHMARK = {
    "backpack": "backpack",
    "backpack_dog": "backpack",
    "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can",
    "candle": "candle",
    "cat": "cat",
    "cat2": "cat",
    "clock": "clock",
    "colorful_sneaker": "sneaker",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "dog5": "dog",
    "dog6": "dog",
    "dog7": "dog",
    "dog8": "dog",
    "duck_toy": "toy",
    "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy",
    "pink_sunglasses": "glasses",
    "poop_emoji": "toy",
    "rc_car": "toy",
    "red_cartoon": "cartoon",
    "robot_toy": "toy",
    "shiny_sneaker": "sneaker",
    "teapot": "teapot",
    "vase": "vase",
    "wolf_plushie": "stuffed animal",
}
# "dog" and "cat" are the benchmark's; the others are for one's own pictures
LIVE_CLASSES = {"dog", "cat"} | {
    "bear",
    "bird",
    "boy",
    "chicken",
    "cow",
    "dragon",
    "duck",
    "elephant",
    "fox",
    "frog",
    "girl",
    "hamster",
    "horse",
    "koala",
    "lion",
    "man",
    "monkey",
    "mouse",
    "owl",
    "panda",
    "penguin",
    "person",
    "pig",
    "rabbit",
    "sheep",
    "tiger",
    "wolf",
    "woman",
}


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
        raise UserError(
            f"{file} is not the benchmark's prompts_and_classes.txt: "
            "it lacks the class table or a prompt list"
        )
    return Benchmark(classes, *lists)


def benchmark_class(folder: Path) -> str | None:
    """The class word of a benchmark subject's folder: from the file beside it, else by its
    published name; None for other folders.
    """
    file = folder.resolve().parent / "prompts_and_classes.txt"
    classes = read_benchmark(file).classes if file.is_file() else BENCHMARK
    return classes.get(folder.resolve().name)
