"""Small random models: the twin of a large one, and a tiny Llama with a tokenizer of its own.

On a twin, of the architecture of a large model, what its code does with a layout shows in no time. Its configuration is
the model's own, with few layers (one of each kind at least), few heads and experts, a small vocabulary, and every
window cut to 8 tokens, so that a short prompt already reaches past it. The tiny random Llama is made by code alone, for
smoke runs, where figures mean nothing.
"""

import copy
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

log = logging.getLogger(__name__)
LAYERS = 3  # at least, where the model has as many; one of each kind in any case
WINDOW = 8  # tokens; also of keys that an indexer chooses
EXPERTS, CHOSEN = 4, 2
VOCABULARY = 160
REACH = 64  # positions that a twin has at least
LARGEST = 150_000_000  # parameters of a twin; one that is larger does not take seconds
GAIN = 1.5  # weights are scaled to this over √width: log-probs then differ clearly from token to token
ROPE_BY_LENGTH = ("dynamic", "longrope")  # their angles change for a whole row once its longest prompt passes a limit
DEPTHS = ("num_hidden_layers", "decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers")
RANDOM = ("drop", "jitter")  # in the names of what makes a model draw random numbers while it trains


def silence(model: torch.nn.Module) -> None:
    """Set every probability of dropout, and every jitter of a router, to 0, in modules and configurations.

    A base is frozen, so its own dropout regularises nothing: it only makes a policy differ from its reference before
    any step. LoRA's dropout is not touched where adapters are added afterwards.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    for holder in [*model.modules(), *configs.values()]:
        if isinstance(holder, torch.nn.modules.dropout._DropoutNd):
            holder.p = 0.0
        for name, value in list(vars(holder).items()):
            if isinstance(value, float) and value and any(word in name.lower() for word in RANDOM):
                setattr(holder, name, 0.0)


def twin_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """A random fp32 twin on the CPU in eval mode, without dropout, the same at each call; None where none can be built.

    torch's own random state is left as it was.
    """
    return twin_of_config(model.config, type(model))


def twin_of_config(config: Any, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel | None:
    """As `twin_of`, from a configuration alone; kind: the class to build, else transformers' own for it."""
    for heads in (True, False):
        built = _built(kind, config.model_type, small_config(config, heads=heads))
        if built is not None:
            return built
    return None


def small_config(config: Any, *, heads: bool = True) -> Any:
    """A copy of a text model's configuration, made small; heads: fewer heads too, and the width that goes with them."""
    small = copy.deepcopy(config.get_text_config())
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    _few_layers(small)
    for name, value in _integers(small):
        limit = _limit(name)
        if limit is not None and value > limit:
            _set(small, name, limit)
        if name.endswith("token_id") and value >= VOCABULARY:
            _set(small, name, 2)
    if heads:
        _few_heads(small)
    _short_reach(small)
    return small


def _limit(name: str) -> int | None:
    """The largest value that an entry of the configuration may keep."""
    if ("window" in name and "layers" not in name and "pattern" not in name) or name in (
        "attention_chunk_size", "floor_scale", "index_topk",
    ):  # fmt: skip
        return WINDOW
    if name.startswith("vocab_size"):
        return VOCABULARY
    if "per_tok" in name or name in ("moe_k", "moe_top_k", "top_k_experts", "moe_topk"):
        return CHOSEN
    if name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"):
        return EXPERTS
    return {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}.get(name)


def _few_layers(config: Any) -> None:
    """Keep the first layer of each kind, and more from the front up to LAYERS."""
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int):
        return
    lists = {
        name: value for name, value in vars(config).items() if isinstance(value, list | tuple) and len(value) == depth
    }
    kinds = list(zip(*(map(str, value) for value in lists.values()), strict=True)) if lists else [()] * depth
    kept = {kinds.index(kind) for kind in kinds}
    kept |= set(range(max([min(LAYERS, depth), *_periods(config, depth)]))) if len(kept) < LAYERS else set()
    for name in DEPTHS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > len(kept):
            _set(config, name, len(kept))
    for name, value in lists.items():
        _set(config, name, type(value)(value[layer] for layer in sorted(kept)))


def _periods(config: Any, depth: int) -> list[int]:
    """Layers after which a rule by number, which no list states, has shown all that it does."""
    words = ("period", "interval", "pattern", "step", "every")
    return [min(value, depth) for name, value in _integers(config) if value <= 8 and any(w in name for w in words)]


def _few_heads(config: Any) -> None:
    """One or two heads for keys with at most two each for queries, the width of a head as it is."""
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int) or width % heads:
        return
    stated = [getattr(config, name, None) for name in ("num_key_value_heads", "num_kv_heads")]
    keys = next((value for value in stated if isinstance(value, int)), heads)
    few_keys = min(keys, 4 if keys == heads else 2)
    few = few_keys if keys == heads else few_keys * min(heads // keys, 2)
    for name, value in _integers(config):
        if value == width:
            _set(config, name, few * (width // heads))
        elif "head" in name and "dim" not in name and value in (heads, keys):
            _set(config, name, few if value == heads else few_keys)
        elif ("intermediate" in name or "ffn" in name or name == "n_inner") and value > 2 * WINDOW:
            _set(config, name, 96)


def _short_reach(config: Any) -> None:
    """Scalings by distance begin at once, positions reach as far as a check needs."""
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value < REACH:
            _set(config, name, REACH)
    ropes = getattr(config, "rope_parameters", None)
    for rope in [ropes, *ropes.values()] if isinstance(ropes, dict) else []:
        if isinstance(rope, dict) and "llama_4_scaling_beta" in rope and rope.get("rope_type") not in ROPE_BY_LENGTH:
            rope["original_max_position_embeddings"] = WINDOW


def _integers(config: Any) -> list[tuple[str, int]]:
    """The whole numbers of a configuration, under their own names and the common ones."""
    return [(n, v) for n, v in vars(config).items() if isinstance(v, int) and not isinstance(v, bool)]


def _set(config: Any, name: str, value: Any) -> None:
    """Set an entry, past checks that would look at the others before they have changed too."""
    vars(config)[type(config).attribute_map.get(name, name)] = value


def _built(kind: type[PreTrainedModel] | None, own: str, config: Any) -> PreTrainedModel | None:
    loud = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        # a model of text and images has its text model's layers; the class of the text alone is built
        by_name = partial(AutoModelForCausalLM.from_config, trust_remote_code=False)
        factory: Any = kind._from_config if kind and config.model_type == own else by_name
        with torch.device("meta"):
            size = sum(p.numel() for p in factory(copy.deepcopy(config), dtype=torch.float32).parameters())
        if size > LARGEST:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built: PreTrainedModel = factory(config, dtype=torch.float32).eval()
        with torch.no_grad():  # entries that do not fit each other may show themselves as late as here
            built(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
    except Exception as error:  # entries that must fit each other are many; another cut, or none, may do
        log.debug("no twin of %s this way: %s: %s", config.model_type, type(error).__name__, error)
        return None
    finally:
        transformers_logging.set_verbosity(loud)
    _scale(built)
    silence(built)
    return built.requires_grad_(True)


@torch.no_grad()
def _scale(model: PreTrainedModel) -> None:
    """Give each random matrix the size at which a layer's output is as large as its input."""
    embeddings = model.get_input_embeddings()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.ndim >= 2 and module is not embeddings and (spread := float(weight.std())) > 0:
                weight.mul_(GAIN / weight.shape[-1] ** 0.5 / spread)


SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TINY_VOCABULARY = 640
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


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 640 tokens, the same in every process; any text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = WORDS.split()
    bpe.train_from_iterator([" " + word for word in words] + [word.title() for word in words] + words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[2], pad_token=SPECIAL_TOKENS[2]
    )


def tiny_model(vocabulary: int) -> LlamaForCausalLM:
    """A Llama of two layers, width 64, fp32, weights drawn from a fixed seed; torch's own random state stays."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).float().eval()


def write_tiny_random(folder: Path) -> None:
    """Write the tiny random Llama and its tokenizer as a Hugging Face folder."""
    vocabulary = tiny_tokenizer()
    vocabulary.save_pretrained(folder)
    tiny_model(len(vocabulary)).save_pretrained(folder)
