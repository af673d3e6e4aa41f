"""Texts as a condition: prompts through any tokenizer and text model of transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from .base import Batch, Condition, NetworkArguments, setting
from .user_images import Size

logger = logging.get_logger(__name__)

SMALL = "small"

# Tokenizers that know no length say 10^30 instead.
_NO_LENGTH = 1_000_000


class TextCondition(Condition):
    """The caption of each sample; the null condition is the encoding of "".

    Args:
        caption_column: column of the data with the texts; None takes `text` or `caption`.
        text_encoder: name or folder of a text encoder of transformers with its tokenizer, or `small`: a CLIP text model
            of two layers and a tokenizer, both trained on the captions.
        train_text_encoder: train a named text encoder too; `small` always is.
        max_text_tokens: texts are cut to this many tokens.

    Attributes:
        encoder, tokenizer: those of transformers, after `prepare` or in `for_pipeline`.
    """

    name = "text"
    argument = "prompt"
    network_argument = "encoder_hidden_states"
    further_network_arguments = ("encoder_attention_mask",)
    network_entries = ("cross_attention_dim",)
    adjective = "A text-to-image"
    task = "text-to-image"
    settings = {
        "caption_column": setting(str | None, None, "Column with the texts; `text` or `caption` when not given."),
        "text_encoder": setting(
            str,
            SMALL,
            "Name or folder of a transformers text encoder with its tokenizer, or `small`: a CLIP text model "
            "of two layers and a tokenizer, both trained on the data set's own captions.",
            on_resume="refused",
        ),
        "train_text_encoder": setting(bool, False, "Train a named text encoder too; `small` is always trained."),
        "max_text_tokens": setting(int, 77, "Texts are cut to this many tokens.", at_least=2),
    }
    flags = {
        "prompts": setting(list[str] | None, None, "Texts: as many samples of each, a row of the grid for each text."),
    }

    encoder: Any = None
    tokenizer: Any = None

    @staticmethod
    def check_settings(arguments: Any) -> None:
        if arguments.streaming:
            raise ValueError("streaming can't give texts yet, only classes and conditions made from the image itself.")

    def __init__(
        self,
        caption_column: str | None = None,
        text_encoder: str = SMALL,
        train_text_encoder: bool = False,
        max_text_tokens: int = 77,
    ):
        self.caption_column, self.text_encoder, self.max_text_tokens = caption_column, text_encoder, max_text_tokens
        self.trained = train_text_encoder or text_encoder == SMALL
        self._captions: dict[int, Any] = {}

    def column_arguments(self) -> dict[str, Any]:
        return {"caption_column": self.caption_column}

    def prepare(self, data: Any, seed: int = 0, token: str | None = None) -> None:
        if data.captions is None:
            raise ValueError("condition text needs texts: name the caption_column of a dataset_name.")
        building = self._building()
        self._captions.clear()  # of an earlier run
        torch.manual_seed(seed)
        if self.text_encoder == SMALL:
            self.tokenizer = building.train_tokenizer(data.captions, self.max_text_tokens)
            self.encoder = building.small_text_encoder(self.tokenizer)
        else:
            self.encoder, self.tokenizer = building.load_text_encoder(self.text_encoder, self.max_text_tokens, token)
        self.encoder.requires_grad_(self.trained).train(self.trained)

    @property
    def model_entries(self) -> dict[str, Any]:
        return {"cross_attention_dim": self._building().width(self.encoder)}

    def adopt(self, held_out: Any) -> None:
        if held_out.captions is None:
            raise ValueError(
                f"{held_out.description} has no texts, and the training data have; "
                "name the caption_column of a dataset_name."
            )

    def wrap(self, unet: Any) -> Any:
        return TextConditionedNetwork(unet, self.encoder) if self.trained else unet

    def unet_of(self, network: Any) -> Any:
        return network.unet if self.trained else network

    def inputs(
        self, batch: Batch, data: Any, dropped: torch.Tensor, generator: torch.Generator, before: int
    ) -> dict[str, Any]:
        device, captions = batch["samples"].device, self._captions_of(data)
        rows = torch.where(dropped, 0, captions.rows[batch["index"].cpu()])
        mask = captions.mask[rows].to(device)
        if self.trained:
            return {"input_ids": captions.ids[rows].to(device), "attention_mask": mask}
        return {"encoder_hidden_states": captions.states(rows, self.encoder.to(device)), "encoder_attention_mask": mask}

    def _captions_of(self, data: Any) -> Any:
        if id(data) not in self._captions:
            self._captions[id(data)] = self._building().Captions(data.captions, self.tokenizer)
        return self._captions[id(data)]

    def _building(self) -> Any:
        """By name: a pipeline's code on the Hub holds this module, but not what only training needs."""
        return importlib.import_module(".text_encoder", type(self).__module__.rpartition(".")[0])

    def pipeline_parts(self, network: Any) -> dict[str, Any]:
        encoder = network.text_encoder if self.trained else self.encoder
        return {"text_encoder": encoder.eval(), "tokenizer": self.tokenizer}

    def of_samples(self, data: Any, indices: list[int], generator: torch.Generator) -> dict[str, Any]:
        return {"prompt": [data.captions[i] for i in indices]}

    @classmethod
    def for_pipeline(cls, pipeline: Any) -> TextCondition:
        condition = cls()
        condition.unet, condition.encoder, condition.tokenizer = (
            pipeline.unet,
            pipeline.text_encoder,
            pipeline.tokenizer,
        )
        return condition

    def check(self, values: Mapping[str, Any]) -> None:
        super().check(values)
        if self.taken_by(self.unet) and (self.tokenizer is None or self.encoder is None):
            raise ValueError("The network takes text, and this pipeline has no text_encoder and tokenizer.")

    def read(self, argument: str, values: Mapping[str, Any], size: Size) -> list[str]:
        return prompt_list(argument, values[argument])

    def encode(self, entries: list[str], count: int, device: torch.device) -> NetworkArguments:
        states, mask = encode_prompts(self.tokenizer, self.encoder, entries, device)
        return {
            "encoder_hidden_states": states.expand(count, -1, -1),
            "encoder_attention_mask": mask.expand(count, -1),
        }

    def null(self, entries: list[str], count: int, device: torch.device) -> NetworkArguments:
        return self.encode([""], count, device)

    def absent(self, count: int, device: torch.device) -> NetworkArguments:
        return self.encode([""], count, device) if self.taken_by(self.unet) else {}

    def from_command_line(
        self, values: Mapping[str, Any], pipeline: Any, open_image: Callable[[str, str], Any]
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        return {"prompt": list(values.get("prompts", ()))}, {}

    @classmethod
    def saved_in(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> bool:
        return (index.get("text_encoder") or [None])[0] is not None

    @classmethod
    def call_example(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
        return {"prompt": "a red heart"}


class TextConditionedNetwork(nn.Module):
    """A denoiser and the text encoder that is trained along with it, as one network.

    Args:
        unet: takes `encoder_hidden_states` and `encoder_attention_mask`.
        text_encoder: of transformers; the denoiser attends to its `last_hidden_state`.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        # Other encoders have a pooler, or leave out layers at random.
        self.leaves_parameters_unused = not type(text_encoder).__name__.endswith(("CLIPTextModel", "T5EncoderModel"))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        **condition: Any,
    ) -> Any:
        """The denoiser's output for (batch, channels, height, width) samples and (batch, tokens) texts."""
        states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.unet(
            sample, timestep, encoder_hidden_states=states, encoder_attention_mask=attention_mask, **condition
        )


def prompt_list(argument: str, prompt: Any) -> list[str]:
    """One text or a list of them as a list. Raises ValueError for anything else."""
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


def tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(token numbers, mask) of the texts, int64, both (batch, tokenizer.model_max_length)."""
    return tokenize_prompts(tokenizer, texts, tokenizer.model_max_length)


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
