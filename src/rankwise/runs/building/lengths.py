"""How many tokens a model has positions for, and a tokenizer that cuts no later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankwise.runs.building.models import load_config, load_tokenizer
from rankwise.runs.recipes.recipe import ModelSpec
from rankwise.tasks import DataSpec, with_pad_token

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Families with an embedding for each position, by what their config says of its number. Those that turn queries and
# keys, or know distances alone, have no last position.
FROM_ZERO = (
    *("albert", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "convbert", "distilbert"),
    *("electra", "ernie", "flaubert", "fnet", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "layoutlm", "mbart"),
    *("megatron-bert", "mobilebert", "mvp", "nystromformer", "openai-gpt", "opt", "plbart", "rembert", "roc_bert"),
    *("squeezebert", "xlm", "yoso"),
)
AFTER_PAD = (  # position 0 of a text is the one behind the pad token's number
    *("camembert", "data2vec-text", "layoutlmv3", "lilt", "longformer", "luke", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
IF_BIASED = ("deberta", "deberta-v2")  # beside the distances, where the config says so


def positions(config: PretrainedConfig, pad: int) -> int | None:
    """Return the most tokens of a sequence that a model has positions for; none where there is no last one.

    Args:
        config: The model's.
        pad: The number of the pad token.
    """
    if config.model_type in AFTER_PAD:
        return int(config.max_position_embeddings) - pad - 1
    if config.model_type in FROM_ZERO or (config.model_type in IF_BIASED and config.position_biased_input):
        return int(config.max_position_embeddings)
    return None


def check_lengths(spec: ModelSpec, data: DataSpec, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the most tokens that the model has positions for, if there is such a number.

    Args:
        spec: Names the model.
        data: Says how long sequences may be.
        tokenizer: The model's, with a pad token.

    Raises:
        ValueError: The data asks for longer sequences.
    """
    config = load_config(spec)
    most = positions(config, tokenizer.pad_token_id)
    field = "block_size" if data.task == "text" else "max_length"
    asked = getattr(data, field)
    if most is not None and asked is not None and asked > most:
        raise ValueError(
            f"data.{field}={asked} is more than model.name={spec.name!r} ({config.model_type}) has positions for: give "
            f"{most} at most, or a model that reads longer texts"
        )
    return most


def fitting_tokenizer(spec: ModelSpec, data: DataSpec) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; its limit, at which data is cut by default, is one that the model has positions for.

    Raises:
        ValueError: The tokenizer is not there, or the data asks for longer sequences.
    """
    tokenizer = with_pad_token(load_tokenizer(spec))
    most = check_lengths(spec, data, tokenizer)
    if most is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, most)
    return tokenizer
