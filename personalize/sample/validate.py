"""Grids while training: for each prompt the base's pictures above the live model's, from the same
seeds.

The live pipeline draws them, nothing is loaded anew; every picture has a generator of its own, so
training does not notice (a test compares the weights bit for bit). Step 0 shows the base beside
itself.
"""

from pathlib import Path

from PIL import Image

from personalize.config.train_config import TrainConfig
from personalize.pipeline.model import Model
from personalize.sample.sampler import Sampling, generate, grid, image_seed
from toy2d.runs.files import appearing


class Validation:
    """`figures/validation-STEP.png` at the steps that are `due`; `figures/base/` keeps the
    base's pictures for a resumed run.
    """

    def __init__(self, config: TrainConfig, model: Model, folder: Path, writes: bool = True):
        self.config, self.model, self.folder, self.writes = config, model, folder, writes
        count = config.num_validation_images
        self.seeds = [image_seed(config.seed, i) for i in range(count)]

    def due(self, step: int) -> bool:
        c = self.config
        return bool(c.validation_prompt) and (
            step % c.validation_steps == 0 or step == c.max_train_steps
        )

    def keep_base(self) -> None:
        """Draw the base's pictures unless they are there. Call it before training, and before a
        checkpoint is restored.
        """
        if self.config.validation_prompt and not all(f.exists() for f in self._files()):
            for image, file in zip(self._draw(), self._files(), strict=True):
                save_picture(image, file)

    def __call__(self, step: int) -> None:
        """Several processes may sample together (a sharded model needs them all); one of them
        writes.
        """
        base, n = (
            [Image.open(f, formats=["PNG"]).convert("RGB") for f in self._files()],
            len(self.seeds),
        )
        tuned = base if step == 0 else self._draw()
        rows, labels = [], []
        for i, prompt in enumerate(self.config.validation_prompt):
            rows += base[i * n : (i + 1) * n] + tuned[i * n : (i + 1) * n]
            labels += [f"{prompt} (base)", f"{prompt} (step {step})"]
        if self.writes:
            save_picture(grid(rows, n, labels), self.folder / f"validation-{step:06d}.png")

    def _draw(self) -> list[Image.Image]:
        c = self.config
        sampling = Sampling(
            steps=c.validation_inference_steps,
            guidance=c.validation_guidance,
            resolution=c.resolution,
            batch_size=c.sample_batch_size,
        )
        return generate(self.model, list(c.validation_prompt), self.seeds, sampling)

    def _files(self) -> list[Path]:
        count = len(self.config.validation_prompt) * len(self.seeds)
        return [self.folder / "base" / f"{i:05d}.png" for i in range(count)]


def save_picture(image: Image.Image, file: Path) -> Path:
    """A PNG that is whole or not there. Raises RunFailure if it cannot be written."""
    with appearing(file) as temporary:
        image.save(temporary, "PNG")
    return file
