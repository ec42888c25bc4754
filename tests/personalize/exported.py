"""Models as if trained, and how the official loaders open what was exported."""

import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file

from personalize.adapters.spectral import merge_shifts
from personalize.adapters.trainable import choose
from personalize.config.kinds import TRAINING_KINDS, Word
from personalize.export.formats import CROSS_ATTENTION, KOHYA
from personalize.pipeline.load import load

WORDS = (Word("<new1>", "dog"), Word("<new2>", "cat", 3))
PROMPT = "a photo of <new1> <new2> dog"
PAIRS = [(kind, form) for kind in TRAINING_KINDS for form in TRAINING_KINDS[kind].formats]
KV = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def moved(folder, kind, words=WORDS, text=True, **options):
    """A model that has trained, as far as anyone can see."""
    model = load(str(folder))
    what = {"words": words} if TRAINING_KINDS[kind].words else {"train_text_encoder": text}
    theta = choose(model, kind, **(what | options))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in theta.values():
            p += 0.05 * torch.randn(p.shape, generator=rng)
    return model


@torch.no_grad()
def answer(model, pipeline=None):
    """What the pipeline's own classes say to PROMPT."""
    opened = type(model)(pipeline or model.pipeline, model.family)
    x = torch.randn(1, *opened.latent_shape(64), generator=torch.Generator().manual_seed(0))
    return opened.predict(
        x, opened.schedule.timesteps[500].expand(1), opened.encode_prompts([PROMPT])
    )


def officially(base, form, folder):
    """The pipeline that the loader named in the format's documentation makes."""
    if form == "merged":
        return DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline = DiffusionPipeline.from_pretrained(base, use_safetensors=True)
    if form == "diffusers":
        pipeline.load_lora_weights(folder)
    elif form == "kohya":
        pipeline.load_lora_weights(folder / KOHYA)
    elif form == "svdiff":  # no other program reads it: by the code of the model card
        merge_shifts(pipeline, folder)
    elif form == "peft":
        for part in (p for p in folder.iterdir() if p.is_dir()):
            setattr(
                pipeline, part.name, PeftModel.from_pretrained(getattr(pipeline, part.name), part)
            )
    else:
        if form == "custom_diffusion":
            pipeline.unet.load_attn_procs(folder, weight_name=CROSS_ATTENTION, _pipeline=pipeline)
        for file in folder.glob("<*.safetensors"):
            learn(pipeline, file)
    return pipeline


def learn(pipeline, file):
    """A word's file, as diffusers' documentation says it for one text encoder and for two."""
    rows = load_file(file)
    if "clip_g" not in rows:
        pipeline.load_textual_inversion(file)
        return
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        parts = {n: getattr(pipeline, n + number) for n in ("tokenizer", "text_encoder")}
        pipeline.load_textual_inversion(rows[key], token=file.stem, **parts)
