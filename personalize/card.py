"""The model card: what was trained how, the exact command, the numbers. Prompts in it are data, never markup; home folders are ~."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from toy2d.runfolder import write_atomic

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
CODE = {
    "full": 'pipeline = DiffusionPipeline.from_pretrained("pipeline", use_safetensors=True)',
    "lora": "pipeline = DiffusionPipeline.from_pretrained(BASE, use_safetensors=True)\n"
    'pipeline.load_lora_weights("lora")',
}


def model_card(folder: str | Path, command: str, config: Mapping, metrics: Mapping) -> None:
    """README.md in `folder`: front matter that the hub reads, the command, how to open the weights, settings, measures."""
    front = {
        "base_model": public_name(config.get("pretrained_model_name_or_path")),
        "instance_prompt": config.get("instance_prompt"),
        "library_name": "diffusers",
        "tags": ["text-to-image", "diffusers", "driftlab", f"objective-{config.get('objective')}"],
    }
    code = CODE.get(config.get("train"))
    text = CARD.format(
        front="\n".join(f"{k}: {_yaml(v)}" for k, v in front.items() if v),
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
    """JSON is YAML, once what YAML calls unprintable is escaped."""
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
