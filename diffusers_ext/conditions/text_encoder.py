"""Text encoders and tokenizers for training: a small pair of our own, or any of transformers' by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ..files import one_line
from .text import tokenize

VOCABULARY = 4096  # at most; a few thousand short captions hold fewer frequent pieces
MOST_STATES = 2**30  # bytes of an untrained encoder's states that are kept, instead of computed at each step
ENCODED = 64  # captions at a time
SHOWN_AFTER = 3.0  # seconds, a progress bar on a terminal
START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
# transformers' AutoModel builds both towers or both halves of these; a prompt needs the text encoder alone.
_TEXT_CLASSES = {"clip": "CLIPTextModel", "t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}


def train_tokenizer(captions: Sequence[str], max_tokens: int) -> PreTrainedTokenizerFast:
    """A lower-case byte-level BPE tokenizer (Sennrich et al. 2016, arXiv:1508.07909) of the captions' own pieces.

    Args:
        captions: texts to learn the pieces from; any other text can be encoded too, in smaller pieces.
        max_tokens: upper bound of its `model_max_length`, which is otherwise that of the longest caption.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        show_progress=False,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    longest = max(len(encoding.ids) for encoding in tokenizer.encode_batch(list(captions)))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=min(longest, max_tokens),
    )


def small_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """A freshly initialised CLIP text model of two layers and 128 channels for this tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def load_text_encoder(name: str, max_tokens: int, token: str | None = None) -> tuple[Any, Any]:
    """Load a text encoder and its tokenizer from transformers, by Hub name or folder.

    Weights are read from safetensors only, and no code of the folder or repository is run.

    Args:
        name: Hub name or folder.
        max_tokens: upper bound of the tokenizer's `model_max_length`.
        token: of the Hub, for private repositories.

    Raises:
        ValueError: one sentence, if there is no text encoder of this name that transformers itself knows.
    """
    safe: dict[str, Any] = {"token": token, "trust_remote_code": False}  # None would ask at the prompt
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        config = AutoConfig.from_pretrained(name, **safe)
        kind = _TEXT_CLASSES.get(config.model_type.removesuffix("_text_model"))
        model_class: Any = AutoModel if kind is None else getattr(transformers, kind)
        # float32, because neither AdamW nor a float32 denoiser takes the half precision of some checkpoints.
        encoder = model_class.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **safe)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"text_encoder '{name}' needs code of its own, which is never run; choose one that transformers knows."
            ) from None
        reason = one_line(error)[:300]
        raise ValueError(f"text_encoder '{name}' could not be loaded: {reason}") from None
    if tokenizer.pad_token is None:
        raise ValueError(f"text_encoder '{name}' has a tokenizer without a padding token; choose another.")
    positions = getattr(encoder.config, "max_position_embeddings", None) or max_tokens
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions, max_tokens)
    return encoder, tokenizer


class Captions:
    """The distinct captions of a data set as tokens, padded to the longest, and what a text encoder makes of them.

    Args:
        captions: one text for each sample.
        tokenizer: of transformers, with a padding token.

    Attributes:
        rows: int64 (samples,), the row of each sample's caption in `ids` and `mask`. Row 0 is "", the null condition.
        ids, mask: int64 (rows, tokens).
    """

    def __init__(self, captions: Sequence[str], tokenizer: Any):
        distinct = {"": 0}
        self.rows = torch.tensor([distinct.setdefault(text, len(distinct)) for text in captions])
        ids, mask = tokenize(tokenizer, list(distinct))
        longest = int(mask.any(dim=0).nonzero().max()) + 1
        self.ids, self.mask = ids[:, :longest].clone(), mask[:, :longest].clone()
        self._states: torch.Tensor | None = None

    @torch.no_grad()
    def states(self, rows: torch.Tensor, encoder: Any) -> torch.Tensor:
        """The last hidden states (n, tokens, dim) of captions by their rows (n,), on the device of the encoder.

        The encoder must stay as it is between calls: the states of up to 1 GiB of captions are computed once.
        """
        device = next(encoder.parameters()).device
        if self._states is None and self.ids.numel() * width(encoder) * 4 <= MOST_STATES:
            self._states = self._all_states(encoder, device)
        return self._encode(rows, encoder, device) if self._states is None else self._states[rows].to(device)

    def _all_states(self, encoder: Any, device: torch.device) -> torch.Tensor:
        states = torch.empty(*self.ids.shape, width(encoder))
        hidden = None if os.environ.get("LOCAL_RANK", "0") == "0" else True
        parts = torch.arange(len(self.ids)).split(ENCODED)
        for part in tqdm(parts, desc="Encoding captions", leave=False, delay=SHOWN_AFTER, disable=hidden):
            states[part] = self._encode(part, encoder, device).cpu()
        return states

    def _encode(self, rows: torch.Tensor, encoder: Any, device: torch.device) -> torch.Tensor:
        ids, mask = self.ids[rows].to(device), self.mask[rows].to(device)
        return encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def width(encoder: Any) -> int:
    """Channels of a text encoder's hidden states."""
    return getattr(encoder.config, "hidden_size", None) or encoder.config.d_model
