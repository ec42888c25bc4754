"""The drawings that the mini base is trained on. Only `personalize pretrain` needs them.

They are fetched once from the npm registry and read at 64 x 64 RGBA.

| style | package | artwork | licence |
|---|---|---|---|
| cartoon | emoji-datasource-google 16.0.0 | Noto Emoji, Google | Apache-2.0 |
| bold | emoji-datasource-twitter 16.0.0 | Twemoji, Twitter and contributors | CC BY 4.0 |
| flat, glossy | fluentui-emoji 1.3.0 | Fluent Emoji, Microsoft | MIT |
"""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

from PIL import Image

from personalize.mini.pretrain.world import CLASSES, STYLES
from toy2d.runs.files import UserError

PACKAGES = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "fluentui-emoji": "1.3.0",
}
# class: (code point of Noto and Twemoji, name in Fluent)
FACES = {
    "dog": ("1f436", "dog-face"), "cat": ("1f431", "cat-face"), "fox": ("1f98a", "fox"), "bear": ("1f43b", "bear"),
    "panda": ("1f43c", "panda"), "koala": ("1f428", "koala"), "tiger": ("1f42f", "tiger-face"), "lion": ("1f981", "lion"),
    "cow": ("1f42e", "cow-face"), "pig": ("1f437", "pig-face"), "frog": ("1f438", "frog"), "monkey": ("1f435", "monkey-face"),
    "penguin": ("1f427", "penguin"), "rabbit": ("1f430", "rabbit-face"), "mouse": ("1f42d", "mouse-face"), "owl": ("1f989", "owl"),
}  # fmt: skip
# held out of all training: name: (class, style, code point, Fluent name)
SUBJECTS = {
    "guide_dog": ("dog", "cartoon", "1f9ae", "guide-dog"),
    "poodle": ("dog", "bold", "1f429", "poodle"),
    "black_cat": ("cat", "glossy", "1f408-200d-2b1b", "black-cat"),
    "striped_cat": ("cat", "flat", "1f408", "cat"),
    "white_rabbit": ("rabbit", "flat", "1f407", "rabbit"),
    "polar_bear": ("bear", "bold", "1f43b-200d-2744-fe0f", "polar-bear"),
    "spotted_cow": ("cow", "bold", "1f404", "cow"),
    "little_monkey": ("monkey", "cartoon", "1f412", "monkey"),
}
# drawings of other things, on which the image encoder learns to tell instances apart
OTHERS = {
    "1f417": "boar", "1f43a": "wolf", "1f434": "horse-face", "1f99d": "raccoon", "1f424": "baby-chick", "1f414": "chicken",
    "1f986": "duck", "1f418": "elephant", "1f422": "turtle", "1f419": "octopus", "1f433": "spouting-whale", "1f994": "hedgehog",
    "1f984": "unicorn", "1f405": "tiger", "1f416": "pig", "1f401": "mouse", "1f40e": "horse", "1f425": "front-facing-baby-chick",
    "1f423": "hatching-chick", "1f43f-fe0f": "chipmunk", "1f413": "rooster", "1f439": "hamster", "1f402": "ox", "1f403": "water-buffalo",
    "1f406": "leopard", "1f410": "goat", "1f411": "ewe", "1f40f": "ram", "1f985": "eagle", "1f420": "tropical-fish", "1f41f": "fish",
    "1f40c": "snail", "1f41d": "honeybee", "1f41e": "lady-beetle", "1f98b": "butterfly", "1f40a": "crocodile", "1f98e": "lizard",
    "1f40d": "snake", "1f996": "t-rex", "1f995": "sauropod", "1f42c": "dolphin", "1f988": "shark", "1f980": "crab", "1f991": "squid",
    "1f992": "giraffe", "1f993": "zebra", "1f98f": "rhinoceros", "1f99b": "hippopotamus", "1f998": "kangaroo", "1f9a5": "sloth",
    "1f9a6": "otter", "1f9a8": "skunk", "1f9a9": "flamingo", "1f99c": "parrot", "1f99a": "peacock", "1f9a2": "swan",
}  # fmt: skip


class Artwork:
    """The three packages, unpacked in a folder; `drawing` reads one picture of them."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        for package, version in PACKAGES.items():
            if not (self.folder / package / "package.json").exists():
                fetch(package, version, self.folder)

    def drawing(self, style: str, code: str, name: str) -> Image.Image:
        """Read one drawing as a 64 x 64 RGBA picture.

        Raises:
            UserError: the package holds no such drawing.
        """
        source = {"cartoon": "google", "bold": "twitter"}.get(style)
        if source:
            path = self.folder / f"emoji-datasource-{source}/img/{source}/64/{code}.png"
        else:
            fluent = {"flat": "flat", "glossy": "modern"}[style]
            path = self.folder / f"fluentui-emoji/icons/{fluent}/{name}.svg"
        if not path.exists():
            raise UserError(f"no drawing {path}; delete {self.folder} to fetch the packages anew")
        picture = Image.open(path) if path.suffix == ".png" else _render(path)
        return picture.convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS)

    def training(self) -> dict[tuple[int, int], Image.Image]:
        """The drawings that the base model learns, by (class, style)."""
        return {
            (c, s): self.drawing(style, *FACES[animal])
            for c, animal in enumerate(CLASSES)
            for s, style in enumerate(STYLES)
        }

    def subjects(self) -> dict[str, Image.Image]:
        return {
            name: self.drawing(style, code, fluent)
            for name, (_, style, code, fluent) in SUBJECTS.items()
        }

    def instances(self) -> list[Image.Image]:
        """The training drawings and OTHERS in all styles; no subject is among them."""
        others = [self.drawing(s, code, name) for code, name in OTHERS.items() for s in STYLES]
        return [*self.training().values(), *others]


def _render(path: Path) -> Image.Image:
    try:
        import resvg_py
    except ImportError as e:
        raise UserError(
            "reading the SVG drawings needs resvg-py: pip install 'driftlab[pretrain]'"
        ) from e
    return Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=64, height=64)))
    )


def fetch(package: str, version: str, folder: Path) -> None:
    """Unpack a package (`npm pack`) in folder/package. npm checks the registry's checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {package} {version} from the npm registry (20-75 MB)")
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as e:
        raise UserError(
            "the artwork comes from the npm registry and npm is not installed (Debian: apt-get install npm)"
        ) from e
    except subprocess.CalledProcessError as e:
        raise UserError(f"npm pack {package}@{version} failed: {e.stderr.strip()[-200:]}") from e
    archive = folder / done.stdout.strip().splitlines()[-1]
    partial = folder / f".{package}"
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / "package").rename(folder / package)
    partial.rmdir()
    archive.unlink()


def digest(drawings: list[Image.Image]) -> str:
    """SHA-256 (16 hex digits) of the drawings' pixels, in order."""
    h = hashlib.sha256()
    for d in drawings:
        h.update(d.tobytes())
    return h.hexdigest()[:16]
