"""Tokenizers for random pipelines and the mini base: a vocabulary of common prompt words."""

from collections import Counter
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

WORDS = """
a an the of in on at with and near under by wearing holding photo picture drawing painting close
up good nice cool sks zwx new my one this that is it red blue green yellow purple pink white black
brown shiny wet small big old dog cat fox panda bear bird horse cow pig sheep rabbit mouse lion
tiger monkey frog fish duck owl wolf elephant toy vase backpack bowl can candle clock boot teapot
stuffed animal plushie sneaker sunglasses sloth monster person man woman beach snow jungle forest
street city desert mountain sea sky night farm room kitchen garden field river park house road
grass wooden floor cobblestone rug autumn leaves eiffel tower water tree trees background top dirt
hat santa scarf rainbow wheat cube shaped bad blurry low quality high detailed style art
"""


def t5_tokenizer() -> T5Tokenizer:
    """One piece per word of WORDS; everything else is unknown."""
    words = [("\u2581" + w, -1.0) for w in sorted(set(WORDS.split()))]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=marks + words, extra_ids=0, model_max_length=512)


def word_tokenizer(words: set[str], length: int = 77) -> CLIPTokenizer:
    """Byte-pair merges learnt on the words alone until every one is one token; the same in every
    process. Prompts of `length` tokens.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _byte_pair_merges(words)
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *dict.fromkeys(tokens)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def _byte_pair_merges(words: set[str]) -> list[tuple[str, str]]:
    """The commonest neighbours first, ties by spelling (tokenizers' own trainer breaks them by
    chance).
    """
    split = [[*w[:-1], w[-1] + "</w>"] for w in words]
    merges = []
    while counts := Counter(pair for w in split for pair in pairwise(w)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        split = [_merged(w, best) for w in split]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out
