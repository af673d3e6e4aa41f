"""The data of a run: the user's own, or those that the settings name; as latents where there is an autoencoder."""

from __future__ import annotations

import logging
import math
from typing import Any

import psutil
from accelerate import Accelerator

from ...conditions import Condition
from ...data.base import TrainingData
from ...data.images import load_image_data
from ...data.own import as_training_data
from ...data.schedule import MAX_REPEATS
from ...data.signals import SignalData, SignalOptions
from ..arguments import TrainingArguments
from ..batches import Batches
from ..latents import LatentEncoder

logger = logging.getLogger(__name__)

DEFAULT_RESOLUTION = 64  # as in diffusers' example
EMBEDDED_RESOLUTION = 28
SIZES_COMPARED = 32  # images whose sizes decide on the resolution
STREAM_EXAMPLES = 64  # samples of a stream that are at hand before the first step: for its channels, and for previews

# Settings that have no effect on signals.
IMAGE_SETTINGS = (
    "resolution image_column random_flip resize_scale random_resized_crop alpha_background preserve_input_precision "
    "channels_last"
)


def load_data(
    args: TrainingArguments,
    accelerator: Accelerator,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    condition: Condition | None = None,
) -> tuple[TrainingData, TrainingData | None]:
    """The data to train on, and held-out data where there are any.

    Args:
        accelerator: of the run; each machine's first process goes first.
        train_dataset, eval_dataset: the user's, or None.
        condition: whose columns are read, or None.

    Raises:
        ValueError, FileNotFoundError: one sentence on data that are missing or do not fit the settings.
    """
    held_out = None
    with accelerator.local_main_process_first():
        resolution = _resolution(args) if train_dataset is None else DEFAULT_RESOLUTION
        if train_dataset is not None:
            data = _own(args, train_dataset, "train_dataset")
        else:
            data = _load_split(args, args.train_split, resolution, condition)
        if isinstance(data, SignalData):
            _warn_of_image_settings(args)
        if eval_dataset is not None:
            held_out = _own(args, eval_dataset, "eval_dataset")
        elif train_dataset is None and args.held_out_split:
            held_out = _load_split(args, args.held_out_split, resolution, condition, data)
    _check_batch_size(args.train_batch_size, data)
    if held_out is not None and held_out.channels != data.channels:
        raise ValueError(
            f"The validation data have {held_out.channels} channels, the training data {data.channels}; set channels."
        )
    return (data, held_out) if args.vae is None else _as_latents(args, accelerator, data, held_out)


def make_batches(args: TrainingArguments, accelerator: Accelerator, accumulation: int, data: TrainingData) -> Batches:
    """What each process reads of the data. Raises ValueError for a stream without a number of steps."""
    if data.stream is not None and args.max_train_steps is None:
        raise ValueError("A stream needs max_train_steps, for it does not say how long an epoch is.")
    of_stream = (args.max_train_steps or 1) * accumulation
    return Batches(data, accelerator, args.train_batch_size, args.seed, args.dataloader_num_workers, of_stream)


def _as_latents(
    args: TrainingArguments, accelerator: Accelerator, data: TrainingData, held_out: TrainingData | None
) -> tuple[Any, Any]:
    with accelerator.local_main_process_first():
        encode = LatentEncoder(
            str(args.vae),
            accelerator.device,
            args.latent_cache_dir,
            crops=args.latent_crops,
            mirror=args.random_flip,
            max_memory_bytes=_memory_bytes(args),
            seed=args.seed,
            least_psnr=args.min_psnr,
            token=args.hub_token,
            warn=logger.warning if accelerator.is_main_process else logger.debug,
        )
        return encode(data), None if held_out is None else encode(held_out, training=False)


def _warn_of_image_settings(args: TrainingArguments) -> None:
    given = [name for name in IMAGE_SETTINGS.split() if name in args.given]
    if given:
        verb = "has" if len(given) == 1 else "have"
        logger.warning("%s %s no effect: the data are signals.", " and ".join(given), verb)


def _check_batch_size(batch_size: int, data: TrainingData) -> None:
    """Raise ValueError for a batch that can't be meant: it would fill the memory, or repeat every sample endlessly."""
    needed, memory = 4 * batch_size * data.channels * math.prod(data.size), psutil.virtual_memory().total
    if needed > memory / 8 or batch_size > MAX_REPEATS * len(data):
        raise ValueError(
            f"train_batch_size {batch_size:,} is too large: one batch of samples takes {needed / 2**30:.1f} GiB, this "
            f"machine has {memory / 2**30:.1f} GiB, and there are {len(data):,} samples."
        )


def _resolution(args: TrainingArguments) -> int:
    """The side of the images: as set, or the one that all of them have when it is below the default of 64."""
    if args.modality == "signal" or args.length is not None:  # not used
        return DEFAULT_RESOLUTION
    if args.resolution is not None or args.uses_embedded_data:
        return args.resolution or EMBEDDED_RESOLUTION
    cropped = args.center_crop or args.random_resized_crop is not None or args.resize_scale != 1
    if args.streaming or cropped:
        return DEFAULT_RESOLUTION
    own = _common_side(_load_images(args, args.train_split, None, image_column=args.image_column, max_memory_bytes=0))
    if own is None or own >= DEFAULT_RESOLUTION:
        return DEFAULT_RESOLUTION
    logger.warning("resolution is %d, the size of the images; set it to train at another one.", own)
    return own


def _common_side(data: Any) -> int | None:
    """The side that images spread over the data have in common; None when they are not square or differ."""
    if len(data.size) != 2 or data.size[0] != data.size[1]:
        return None
    count = min(len(data), SIZES_COMPARED)
    try:
        for number in range(count):
            data[number * len(data) // count]
    except ValueError:  # it is of another size
        return None
    return data.size[0]


# --- reading ----------------------------------------------------------------------------------------------------------


def _own(args: TrainingArguments, dataset: Any, name: str) -> TrainingData:
    return as_training_data(dataset, name=name, **_image_options(args, args.resolution, name == "train_dataset"))


def _load_split(
    args: TrainingArguments,
    split: str,
    resolution: int,
    condition: Condition | None,
    train: TrainingData | None = None,
) -> TrainingData:
    """A split; held-out signals get the shape and the normalisation of the training data `train`."""
    columns = {} if condition is None else condition.column_arguments()
    signals = _signal_options(args, training=train is None)
    if isinstance(train, SignalData):
        signals = signals.like(train)
    columns |= {"image_column": args.image_column, "modality": args.modality, "signals": signals}
    data = _load_images(args, split, resolution, **columns)
    if condition is not None and args.condition_image_column is not None:
        data.accompany(_load_images(args, split, resolution, image_column=args.condition_image_column))
    return data


def _load_images(args: TrainingArguments, split: str, resolution: int | None, **more: Any) -> Any:
    training = split == args.train_split
    held = STREAM_EXAMPLES if training else max(args.validation_size, 2 * args.evaluation_size)
    options = {
        "cache_dir": args.cache_dir,
        "token": args.hub_token,
        "streamed_examples": held if args.streaming else None,
        "shuffle_buffer_size": args.shuffle_buffer_size,
        **_image_options(args, resolution, training),
        **more,
    }
    folder = args.train_data_dir if args.dataset_name is None else None
    return load_image_data(args.dataset_name, args.dataset_config_name, folder, split, **options)


def _signal_options(args: TrainingArguments, training: bool) -> SignalOptions:
    return SignalOptions(
        length=args.length,
        sample_rate=args.sample_rate,
        channels=args.channels,
        normalization=args.normalization,
        columns=tuple(args.signal_columns) or None,
        center_crop=args.center_crop or not training,
        skip_unreadable=args.on_unreadable_image == "skip",
        equal_peaks=args.equal_peaks,
        max_memory_bytes=_memory_bytes(args),
        seed=args.seed,
    )


def _image_options(args: TrainingArguments, resolution: int | None, training: bool) -> dict[str, Any]:
    return {
        "resolution": resolution,
        "channels": args.channels,
        "center_crop": (args.center_crop or not training) and resolution is not None,
        "random_flip": args.random_flip and training and args.vae is None,  # latents are mirrored as a whole
        "resize_scale": args.resize_scale,
        "random_resized_crop": (args.random_resized_crop, 1.0) if args.random_resized_crop and training else None,
        "preserve_input_precision": args.preserve_input_precision,
        "alpha_background": args.alpha_background,
        "on_unreadable_image": args.on_unreadable_image,
        "max_memory_bytes": _memory_bytes(args),
        "seed": args.seed,
    }


def _memory_bytes(args: TrainingArguments) -> int:
    return int(args.max_memory_dataset_gb * 1024**3)
