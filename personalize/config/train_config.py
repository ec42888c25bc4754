"""TrainConfig: every choice of one run, with the flag names and defaults of diffusers' DreamBooth
scripts.

Nothing heavy is imported here. `rules.resolve` fills in what was left open (None) and refuses flags
that would do nothing.
"""

import shlex
from dataclasses import dataclass, fields

from personalize.config.concepts import Concept, read_concepts
from personalize.config.kinds import TRAINING_KINDS, Kind, Word, new_words
from personalize.config.presets import PRESETS
from personalize.config.topics import (
    BaseModel,
    Checkpoints,
    ClassImages,
    Loss,
    Measuring,
    Optimization,
    Pictures,
    WhatTrains,
)


@dataclass(frozen=True)
class TrainConfig(  # the fields of the last class come first
    Measuring, Checkpoints, Optimization, ClassImages, Loss, WhatTrains, Pictures, BaseModel
):
    """Personalize a Stable Diffusion model with your own photos.

    Change only --objective and everything else, down to the noise, stays equal:

    $ personalize train --pretrained_model_name_or_path sd15/ --instance_data_dir photos/
        --instance_prompt "a photo of sks dog" --class_prompt "a photo of a dog"
        --objective l2 --train lora --output_dir runs/rex

    A first try, offline, in about a minute on two cores:

    $ personalize train --pretrained_model_name_or_path mini --output_dir runs/bear
    """

    def command(self) -> str:
        """The command line that gives this configuration: what differs from the defaults, or from
        the preset.
        """
        words = ["personalize", "train"]
        default = {f.name: f.default for f in fields(self)}
        default |= PRESETS[self.preset]() if self.preset else {}
        for name, usual in default.items():
            value = getattr(self, name)
            if value is False and usual is True:
                words.append(f"--no-{name}")
            elif value not in (usual, None) and name != "dry_run":
                values = value if isinstance(value, tuple) else () if value is True else (value,)
                words += [f"--{name}", *(shlex.quote(str(v)) for v in values)]
        return " ".join(words)

    @property
    def parts(self) -> tuple[str, ...]:
        """The objectives added up, without "standard"."""
        names = dict.fromkeys(self.objective.lower().replace(" ", "").split("+"))
        if self.with_prior_preservation:
            names["prior"] = None
        return tuple(n for n in names if n != "standard")

    @property
    def weights(self) -> dict[str, float]:
        """Term -> its weight, whether the objective has it or not."""
        return {
            "prior": self.prior_loss_weight,
            "l2": self.l2_reg_weight,
            "output": self.output_weight,
            "fisher": self.fisher_weight,
        }

    @property
    def weight(self) -> float | str | None:
        """The objective's weight; of a sum, all of them joined by +; None for standard."""
        weights = [self.weights[p] for p in self.parts]
        return weights[0] if len(weights) == 1 else "+".join(map(str, weights)) or None

    @property
    def kind(self) -> Kind:
        return TRAINING_KINDS[self.train]

    @property
    def words(self) -> tuple[Word, ...]:
        return new_words(self.placeholder_token, self.initializer_token, self.num_vectors)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The subjects: those of --concepts_list, or the one that the flags describe."""
        if self.concepts_list:
            return read_concepts(self.concepts_list)
        flags = (
            self.instance_data_dir or "",
            self.instance_prompt,
            self.class_prompt,
            self.class_data_dir,
        )
        return (Concept(*flags),)

    @property
    def class_prompts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.class_prompt for c in self.concepts if c.class_prompt))

    @property
    def text_trains(self) -> bool:
        """Does an embedding of the live model change while it trains?"""
        return self.train_text_encoder or bool(self.placeholder_token)

    @property
    def needs_class_images(self) -> bool:
        return "prior" in self.parts or ("output" in self.parts and self.output_source == "class")

    @property
    def holds_out(self) -> bool:
        """Are there pictures that do not train, to measure what is learnt?"""
        return bool(self.held_out or self.held_out_data_dir)

    def uses(self, *names: str) -> bool:
        return any(n in self.parts for n in names)
