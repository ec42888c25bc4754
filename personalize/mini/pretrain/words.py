"""The mini base's tokenizer.

Every word of the world's captions and of the benchmarks' prompts is one token. Rare words such as
"sks" are tokens that training never uses.
"""

from transformers import CLIPTokenizer

from personalize.mini.pretrain.world import captions_all
from personalize.pipeline.tokenizer import WORDS, word_tokenizer

LENGTH = 24  # tokens of a prompt, start and end included
RARE = "sks zwx xxy ohwx mnk vqd"  # never trained: identifiers for subjects


def tokenizer() -> CLIPTokenizer:
    words = {*WORDS.split(), *RARE.split(), *(w for c in captions_all() for w in c.split())}
    return word_tokenizer(words, LENGTH)
