"""Settings of the data."""

from dataclasses import dataclass

from ...data.normalization import NORMALIZATIONS
from ...data.sounds import MAX_RATE
from ...settings.declaration import FREE
from . import groups, needs


@dataclass
class DataOptions:
    """What is trained on, and how it is prepared."""

    dataset_name: str | None = groups.data(
        None,
        "Hub name, local folder in `datasets` layout, or `embedded` (real MNIST digits; the default).",
        short=True,
        on_resume=FREE,
        replaced_by="train_dataset",
    )
    dataset_config_name: str | None = groups.data(
        None, "Configuration of the data set.", needs=needs.CONFIGURATIONS, on_resume=FREE, replaced_by="train_dataset"
    )
    train_data_dir: str | None = groups.data(
        None,
        "Folder of images or sounds, or a .zip/.tar archive of one; ignored if dataset_name is given.",
        needs=needs.NO_DATASET_NAME,
        short=True,
        on_resume=FREE,
        replaced_by="train_dataset",
    )
    cache_dir: str | None = groups.data(None, "Where downloaded data sets are kept.", on_resume=FREE)
    train_split: str = groups.data("train", "Split to train on.", on_resume=FREE, replaced_by="train_dataset")
    image_column: str | None = groups.data(
        None, "Column with the images; found by its type when not given.", on_resume=FREE, replaced_by="train_dataset"
    )
    modality: str | None = groups.data(
        None,
        "What the data are; found out from files and columns when not given.",
        choices=("image", "signal"),
        on_resume=FREE,
    )
    length: int | None = groups.data(
        None,
        "Frames that signals are cropped or padded to; their own length when not given.",
        at_least=1,
        at_most=2**24,
        on_resume=FREE,
    )
    sample_rate: int | None = groups.data(
        None,
        "Frames per second that recordings are resampled to; that of the first one when not given.",
        at_least=1,
        at_most=MAX_RATE,
        on_resume=FREE,
    )
    normalization: str = groups.data(
        "standardize",
        "How signals are scaled: standardize (mean 0, deviation 1 for each channel), spectral (sounds: all bands of "
        "frequency have equal power, loud and quiet places are brought nearer), peak (into [-1, 1]) or none.",
        choices=NORMALIZATIONS,
        on_resume=FREE,
    )
    equal_peaks: bool = groups.data(
        False, "Scale each signal to the peak 1, so that its loudness is not part of what is learned."
    )
    signal_columns: list[str] = groups.data(
        [],
        "Column with the signals; or columns of numbers, the channels of one long signal with a row per frame.",
        on_resume=FREE,
    )
    resolution: int | None = groups.data(
        None,
        "Image side in pixels; default: 64, or the side that all images share when it is smaller.",
        at_least=1,
        at_most=16_384,
        short=True,
        on_resume=FREE,
    )
    channels: int | None = groups.data(
        None, "1 or 3; the images' own number when not given.", at_least=1, at_most=1024, on_resume=FREE
    )
    center_crop: bool = groups.data(False, "Crop in the middle; at random otherwise.")
    random_flip: bool = groups.data(False, "Flip horizontally with probability 1/2.", short=True)
    resize_scale: float = groups.data(
        1.0, "Resize the shorter side to this multiple of the resolution before cropping.", above=0
    )
    random_resized_crop: float | None = groups.data(
        None, "Crop a random part of at least this share of the area (0.8, say) and resize it.", above=0, at_most=1
    )
    alpha_background: str = groups.data("white", "Colour on which transparent images are flattened.")
    on_unreadable_image: str = groups.data(
        "skip", "`skip` names and counts an unreadable image, `error` stops.", choices=("skip", "error"), on_resume=FREE
    )
    preserve_input_precision: bool = groups.data(False, "Keep 16- and 32-bit images' precision instead of 8 bits.")
    max_memory_dataset_gb: float = groups.data(
        2.0, "Data that decode to less than this are held in memory.", above=0, on_resume=FREE
    )
    streaming: bool = groups.data(
        False,
        "Read dataset_name as it comes, without downloading it; the run counts as one epoch of max_train_steps.",
        on_resume=FREE,
        replaced_by="train_dataset",
    )
    shuffle_buffer_size: int = groups.data(
        1000, "Rows of a stream that are shuffled among one another.", at_least=1, needs=needs.STREAMING
    )
    dataloader_num_workers: int = groups.data(
        0,
        "Processes that prepare batches; 0 prepares them in the main process.",
        at_least=0,
        at_most=256,
        on_resume=FREE,
    )
