"""A tiny random Llama with a small tokenizer, made by code alone: for smoke runs, where figures mean nothing."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 640
# what the byte pairs are learned from: words of titles and prompts, so that a title takes few tokens
WORDS = """
the of and in a to man night day love life time world star war king black white dark last first big good bad great
little lost dead city house street home girl boy woman men women mother father brother sister story story of the
return rise fall secret legend adventures mystery heart blood fire ice sun moon sea river road mountain winter
summer American French English part one two three four five (1930) (1941) (1952) (1963) (1974) (1985) (1986) (1989)
(1991) (1992) (1993) (1994) (1995) (1996) (1997) (1998) (1999) (2000) (2001) (2003) (2005) (2008) (2010) (2014)
(2017) (2019) films movies artists books music that one person liked in order of time next likes taste this is by
from with for on at drama comedy crime action horror romance thriller western science fiction animation documentary
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 640 tokens, the same in every process; any text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = WORDS.split()
    bpe.train_from_iterator([" " + word for word in words] + [word.title() for word in words] + words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[2], pad_token=SPECIAL_TOKENS[2]
    )


def model(vocabulary: int) -> LlamaForCausalLM:
    """Two layers, width 64, fp32, weights drawn from a fixed seed; torch's own random state is left alone."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).float().eval()


def write(folder: Path) -> None:
    """Write the model and its tokenizer as a Hugging Face folder."""
    vocabulary = tokenizer()
    vocabulary.save_pretrained(folder)
    model(len(vocabulary)).save_pretrained(folder)
