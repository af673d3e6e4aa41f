"""Texts as conditions: prompts through any tokenizer and text model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers.utils import logging

logger = logging.get_logger(__name__)

# Tokenizers that know no length say 10^30 instead.
_NO_LENGTH = 1_000_000


def prompt_list(argument: str, prompt: Any) -> list[str] | None:
    """One text or a list of them as a list; None stays None.

    Raises:
        ValueError: for anything else.
    """
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"{argument} must be a text or a list of texts, got {prompt!r:.60}.")
    return list(prompts)


def encode_prompts(
    tokenizer: Any, text_encoder: Any, prompts: Sequence[str], device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of a text model for each prompt, padded to its full length.

    Gradients flow where they are on, so that an encoder can be trained along. A prompt that is too long is cut, and a
    warning says what was lost.

    Args:
        tokenizer: of transformers, with a pad token.
        text_encoder: its text model, whose output has `last_hidden_state`.
        prompts: n texts; "" is the null condition.
        device: of the text model.

    Returns:
        States (n, tokens, dim) and the mask (n, tokens), 1 at tokens to attend to.

    Raises:
        ValueError: for a tokenizer without a pad token, or when neither it nor the model knows a greatest length.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(f"The {type(tokenizer).__name__} has no pad token; set tokenizer.pad_token.")
    length = _text_length(tokenizer, text_encoder)
    ids, mask = tokenize_prompts(tokenizer, prompts, length)
    for prompt, full in zip(prompts, mask.all(dim=1).tolist()):
        if full:
            _warn_of_lost_text(tokenizer, prompt, length)
    ids, mask = ids.to(device), mask.to(device)
    return text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def tokenize_prompts(tokenizer: Any, prompts: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(token numbers, mask) of the prompts, padded and cut to `length`: int64, both (n, length).

    A row attends to at least one token, also where a tokenizer makes none of an empty text.
    """
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask = tokens.attention_mask.clone()
    mask[~mask.any(dim=1), 0] = 1
    return tokens.input_ids, mask


def _text_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a padded prompt."""
    positions = getattr(text_encoder.config, "max_position_embeddings", None) or _NO_LENGTH
    length = min(tokenizer.model_max_length, positions)
    if length >= _NO_LENGTH:
        raise ValueError(f"The {type(tokenizer).__name__} knows no greatest length; set tokenizer.model_max_length.")
    return int(length)


def _warn_of_lost_text(tokenizer: Any, prompt: str, length: int) -> None:
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    kept = length - tokenizer.num_special_tokens_to_add()
    if len(ids) > kept:
        lost = ids[kept:] if tokenizer.truncation_side == "right" else ids[: len(ids) - kept]
        _warn_once(f"A prompt is longer than {length} tokens; this part of it was cut off: '{tokenizer.decode(lost)}'")


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    """Training meets a long caption once an epoch."""
    logger.warning(message)
