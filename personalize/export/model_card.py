"""The model card: what was trained how, the exact command, the numbers.

Prompts in it are data, never markup; home folders are ~.
"""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from personalize.config.kinds import TRAINING_KINDS
from toy2d.runs.files import write_atomic

CARD = """---
{front}
---

# {title}

Made by driftlab with

{command}

{usage}{settings}

{measured}
"""
USAGE = """Open it with

```python
from diffusers import DiffusionPipeline

{code}
```

"""
BASE = "pipeline = DiffusionPipeline.from_pretrained(BASE, use_safetensors=True)\n"
WORDS = """for file in Path("{folder}").glob("*.safetensors"):  # one for each new word
    for key, rows in load_file(file).items() if not file.name.startswith("pytorch_") else ():
        n = "_2" if key == "clip_g" else ""  # SDXL: rows for each of two text encoders
        parts = {{p: getattr(pipeline, p + n) for p in ("tokenizer", "text_encoder")}}
        pipeline.load_textual_inversion(rows, token=file.stem if "clip" in key else key, **parts)"""
READ = "from pathlib import Path\nfrom safetensors.torch import load_file\n\n"
CODE = {  # what opens the first format that the kind leaves (kinds.py)
    "merged": 'pipeline = DiffusionPipeline.from_pretrained("pipeline", use_safetensors=True)',
    "diffusers": BASE + 'pipeline.load_lora_weights("lora")',
    "peft": "from pathlib import Path\nfrom peft import PeftModel\n\n"
    + BASE
    + """for part in Path("peft").iterdir():  # diffusers itself loads none of these adapters
    if part.is_dir():
        network = PeftModel.from_pretrained(getattr(pipeline, part.name), part)
        setattr(pipeline, part.name, network)""",
    "custom_diffusion": READ
    + BASE
    + """# Without _pipeline diffusers 0.42 reads the file and sets nothing.
# A transformer (SD-3) has no load_attn_procs: personalize export RUN --format merged
weights = "pytorch_custom_diffusion_weights.safetensors"
pipeline.unet.load_attn_procs("custom_diffusion", weight_name=weights, _pipeline=pipeline)
"""
    + WORDS.format(folder="custom_diffusion"),
    "svdiff": "from pathlib import Path\nfrom personalize.adapters.spectral import merge_shifts\n\n"
    + BASE
    + 'merge_shifts(pipeline, Path("svdiff"))',
    "token": READ + BASE + WORDS.format(folder="token"),
}


def model_card(folder: str | Path, command: str, config: Mapping, metrics: Mapping) -> None:
    """README.md in `folder`: front matter that the hub reads, the command, how to open the weights,
    settings, measures.
    """
    front = ModelCardData(
        base_model=public_name(config.get("pretrained_model_name_or_path")),
        library_name="diffusers",
        tags=["text-to-image", "diffusers", "driftlab", f"objective-{config.get('objective')}"],
        instance_prompt=config.get("instance_prompt"),
    )
    kind = TRAINING_KINDS.get(config.get("train"))
    code = CODE[kind.leaves[0]] if kind else ""
    if kind and kind.words and config.get("train_text_encoder"):  # no other file holds that
        code = "# first: personalize export RUN --format merged --out pipeline\n" + CODE["merged"]
    text = CARD.format(
        front="\n".join(f"{k}: {_yaml(v)}" for k, v in front.to_dict().items()),
        title=_inline(config.get("instance_prompt") or "") or "A personalized model",
        command=_fenced(_shown(command)),
        usage=USAGE.format(code=code) if code else "",
        settings=_table("setting", config),
        measured=_table("measured", metrics),
    )
    write_atomic(Path(folder) / "README.md", text.encode(errors="replace"))


def public_name(source: str | None) -> str | None:
    """A hub id as it is, a folder by its last name only."""
    if source and Path(source).expanduser().exists():
        return Path(source).expanduser().resolve().name
    return source


def _shown(value) -> str:
    home = str(Path.home())
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if home == "/" else re.sub(rf"(?<![\w.-]){re.escape(home)}(?=/|\b)", "~", text)


def _yaml(value) -> str:
    """JSON is YAML, once what YAML calls unprintable is escaped.

    huggingface_hub's own to_yaml (and ModelCard, which calls it) writes a prompt that holds a line
    "---" so that the front matter ends there.
    """
    special = "[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(special, lambda c: f"\\u{ord(c[0]):04x}", text)


def _inline(text) -> str:
    """Text inside Markdown: one line, no markup of its own, no table cell ended."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|$#~])", r"\\\1", line)[:500]


def _fenced(text: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}\n{text}\n{fence}"


def _table(title: str, values: Mapping) -> str:
    rows = [f"| {_inline(k)} | {_inline(_shown(v))} |" for k, v in values.items() if v is not None]
    return "\n".join([f"| {title} | |", "|---|---|", *rows])
