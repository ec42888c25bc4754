"""Each format opened by its official loader, as its documentation says: what `formats.checked`
compares a run with.
"""

from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file

from personalize.export.read import CROSS_ATTENTION

KOHYA = "kohya_lora.safetensors"


def open_lora(pipeline, folder: Path) -> None:
    pipeline.load_lora_weights(str(folder), weight_name="pytorch_lora_weights.safetensors")


def open_kohya(pipeline, folder: Path) -> None:
    pipeline.load_lora_weights(str(folder), weight_name=KOHYA)


def open_peft(pipeline, folder: Path) -> None:
    for part in (p for p in folder.iterdir() if p.is_dir()):
        network = PeftModel.from_pretrained(getattr(pipeline, part.name), part)
        setattr(pipeline, part.name, network)


def open_words(pipeline, folder: Path) -> None:
    """Files of two text encoders are two tensors, each for its own."""
    names = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name == CROSS_ATTENTION:
            continue
        tensors = load_file(file)
        if not tensors.keys() <= names.keys():
            pipeline.load_textual_inversion(str(file))
            continue
        for key, rows in tensors.items():
            encoder = getattr(pipeline, names[key])
            tokenizer = getattr(pipeline, names[key].replace("text_encoder", "tokenizer"))
            pipeline.load_textual_inversion(
                rows, token=file.stem, text_encoder=encoder, tokenizer=tokenizer
            )


def open_custom_diffusion(pipeline, folder: Path) -> None:
    """Without `_pipeline` diffusers 0.42 reads the file and sets nothing."""
    pipeline.unet.load_attn_procs(str(folder), weight_name=CROSS_ATTENTION, _pipeline=pipeline)
    open_words(pipeline, folder)
