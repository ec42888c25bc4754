"""New words: a new token whose embedding row trains while every other row stays equal to the bit.

"<new1>" starts as the row of a word that exists already. n vectors are n tokens with diffusers'
names: "<new1> <new1>_1 ...".

T5 learns no new words: it spells them in pieces. CLIP towers whose configuration has the old
eos_token_id 2 (SDXL's, SD-3's) read their pooled embedding at the highest token, which is now the
new word: in training as in every pipeline that loads it.
The rows are PEFT's trainable tokens: a small parameter beside the table, so neither a gradient nor
weight decay can reach the table.

Shapes: k new tokens, E embedding width.
"""

import torch
from peft import TrainableTokensConfig
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn

from personalize.config.kinds import Word
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError


def vocabularies(model: Model) -> dict[str, tuple]:
    """{"text_encoder": (its tokenizer, itself), ...} of the encoders that learn words."""
    pipeline = model.pipeline
    found = {}
    for name in model.trainable_text_encoders:
        tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
        found[name] = tokenizer, getattr(pipeline, name)
    return found


@torch.no_grad()
def add_words(model: Model, words: tuple[Word, ...]) -> None:
    """Add trainable words, each starting at its initializer's row.

    Raises UserError for a word that cannot be added.
    """
    if any(w.vectors > 1 for w in words) and not hasattr(model.pipeline, "maybe_convert_prompt"):
        name = type(model.pipeline).__name__
        raise UserError(f"--num_vectors: {name} reads one vector per word; leave it at 1")
    rows = {}
    for part, (tokenizer, encoder) in vocabularies(model).items():
        table = encoder.get_input_embeddings().weight
        start = {w: table[_row_of(tokenizer, part, w.initializer)] for w in words}
        rows[part] = {w.placeholder: start[w].expand(w.vectors, -1) for w in words}
    add_rows(model, rows)


@torch.no_grad()
def add_rows(model: Model, rows: dict[str, dict[str, Tensor]]) -> None:
    """Add {part: {placeholder: rows (k E)}} to tokenizers and text encoders as trainable words.

    Raises UserError for a known word.
    """
    for part, (tokenizer, encoder) in vocabularies(model).items():
        tokens = [t for w, r in rows[part].items() for t in Word(w, "", len(r)).tokens]
        if known := sorted(set(tokens) & tokenizer.get_vocab().keys()):
            other = f"<my-{known[0].strip('<>')}>"
            raise UserError(
                f"{known[0]!r} is a word of this model already; choose another, e.g. {other}"
            )
        extend(tokenizer, encoder, tokens, torch.cat(list(rows[part].values())))
        ids = tokenizer.convert_tokens_to_ids(tokens)
        target = next(n for n, m in encoder.named_modules() if m is encoder.get_input_embeddings())
        encoder.add_adapter(TrainableTokensConfig(token_indices=ids, target_modules=[target]))


@torch.no_grad()
def set_rows(model: Model, rows: dict[str, dict[str, Tensor]]) -> None:
    """Set the rows of words that were added. Raises UserError if they are not those words."""
    for part, words in learnt_rows(model).items():
        shapes = {w: r.shape for w, r in words.items()}
        given = {w: r.shape for w, r in rows.get(part, {}).items()}
        if given != shapes:
            raise UserError(f"the learnt words of {part} are {sorted(given)}, not {sorted(shapes)}")
        layer = getattr(model.pipeline, part).get_input_embeddings()
        (p,) = layer.trainable_tokens_delta.values()
        p.copy_(torch.cat([rows[part][w] for w in words]))


def _row_of(tokenizer, part: str, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(
            f"--initializer_token {word!r} is {len(ids)} tokens for the model's {part}; "
            "choose a word that is one, such as the class (dog, toy)"
        )
    return ids[0]


@torch.no_grad()
def extend(tokenizer, encoder: nn.Module, tokens: list[str], rows: Tensor) -> None:
    """Append `tokens` with their `rows` (k E); the other rows keep their bits."""
    tokenizer.add_tokens(tokens)
    highest = max(tokenizer.convert_tokens_to_ids(tokens))
    if highest >= encoder.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng(devices=[]):  # the new rows are drawn before they are set
            encoder.resize_token_embeddings(highest + 1, mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    table[tokenizer.convert_tokens_to_ids(tokens)] = rows.to(table)


def learnt_rows(model: Model) -> dict[str, dict[str, Tensor]]:
    """{part: {placeholder: rows (k E)}} as they are now; empty if no word was added."""
    found = {}
    for part, (tokenizer, encoder) in vocabularies(model).items():
        layer = encoder.get_input_embeddings()
        if isinstance(layer, TrainableTokensLayer):
            (ids,), (rows,) = layer.token_indices.values(), layer.trainable_tokens_delta.values()
            found[part] = _by_placeholder(tokenizer.convert_ids_to_tokens(ids), rows.detach())
    return found


def _by_placeholder(tokens: list[str], rows: Tensor) -> dict[str, Tensor]:
    """Token "<a>_1" that follows "<a>" belongs to it."""
    words: dict[str, list[Tensor]] = {}
    for token, row in zip(tokens, rows, strict=True):
        stem, _, number = token.rpartition("_")
        belongs = stem in words and number == str(len(words[stem]))
        words.setdefault(stem if belongs else token, []).append(row)
    return {word: torch.stack(group) for word, group in words.items()}
