"""Data sets of the user: torch data sets, `datasets` tables, lists and iterables of dictionaries.

Every row is a dictionary with one of

- `samples`: numbers (channels, *size) in [-1, 1], used as they are, with any number of dimensions;
- `images`: a Pillow image, an array uint8, or an array of floats in [0, 1]; prepared as `ImageOptions` says;

and, where training needs them, `labels` (an integer or a string), `captions` (a string), `condition` (a second sample
or image of the same kind), and numbers in further columns. The singular names `sample`, `image`, `label`, `caption`,
and `text` mean the same.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np

from .base import TrainingData, number_column
from .images import ExampleData, ImageOptions, image_data
from .own_rows import (
    CAPTION_KEYS,
    CONDITION_KEYS,
    IMAGE_KEYS,
    LABEL_KEYS,
    SAMPLE_KEYS,
    Classes,
    Columns,
    RowExamples,
    Rows,
)
from .own_stream import Iterated, OwnStream, RowFormat
from .tables import TableSource, find_caption_column, find_image_column, find_label_column, holds_numbers, read_column
from .transforms import size_text

logger = logging.getLogger(__name__)

STREAM_HEAD = 256  # rows of a stream that are kept at hand, for checks, figures and the fingerprint


def as_training_data(
    dataset: Any, *, name: str = "train_dataset", streamed_examples: int = STREAM_HEAD, **image_options: Any
) -> TrainingData:
    """A data set of the user as the data that the trainer reads.

    Args:
        dataset: a torch `Dataset`, a `datasets.Dataset` (or its iterable kind), a list, or an iterable of dictionaries;
            see this module's description for the columns. An attribute `label_names` names the classes 0, 1, ...;
            without it the classes are numbered in the order of their sorted values. Rows are read when they are needed,
            with Python's, NumPy's and PyTorch's global random numbers set by (seed, epoch, index): random augmentation
            in `__getitem__` differs between epochs and is the same after a resume.
        name: what to call the data set in messages.
        streamed_examples: how many rows of an iterable without a length are kept at hand.
        image_options: see `ImageOptions`; they apply to `images`. Only `seed` and `resolution`, as a check, apply to
            `samples`.

    Raises ValueError or TypeError, in one sentence, for data that cannot be used.
    """
    options = ImageOptions(**image_options)
    if isinstance(dataset, ExampleData):
        return dataset
    if _is_plain_image_table(dataset):
        return _table_data(dataset, options, name)
    if hasattr(dataset, "__getitem__") and _length(dataset) is not None and not isinstance(dataset, (Mapping, str)):
        rows = Rows(dataset, name, options.seed)
        return _row_data(rows, RowFormat.of(rows, options), options, _label_names(dataset))
    if isinstance(dataset, Iterable) and not isinstance(dataset, (Mapping, str)):
        return _streamed_data(dataset, options, name, streamed_examples)
    raise TypeError(
        f"{name} must be a torch Dataset, a datasets.Dataset, a list or an iterable of dictionaries, "
        f"got {type(dataset).__name__}."
    )


def _length(dataset: Any) -> int | None:
    if not isinstance(dataset, Sized):
        return None
    try:
        return len(dataset)
    except TypeError:  # how torch's and `datasets`' iterable kinds say that they have no length
        return None


def _label_names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "label_names", None)
    features = getattr(dataset, "features", None) or {}  # a ClassLabel of `datasets`
    for key in LABEL_KEYS if names is None and isinstance(features, Mapping) else ():
        names = names or getattr(features.get(key), "names", None)
    return None if names is None else [str(each) for each in names]


def _is_plain_image_table(dataset: Any) -> bool:
    """A `datasets.Dataset` with image files and no transform of the user's: read like every table of the package."""
    import datasets

    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] is not None:
        return False
    if any(key in dataset.features for key in (*SAMPLE_KEYS, *CONDITION_KEYS)):
        return False
    named = [key for key in IMAGE_KEYS if key in dataset.features] or list(dataset.features)
    return any(isinstance(dataset.features[key], datasets.Image) for key in named)


def _table_data(table: Any, options: ImageOptions, name: str) -> ExampleData:
    if len(table) == 0:
        raise ValueError(f"{name} has no rows.")
    features = table.features
    image = find_image_column(features, next((key for key in IMAGE_KEYS if key in features), None), name)
    caption = next((key for key in CAPTION_KEYS if key in features), None)
    roles = (image, *LABEL_KEYS, *CAPTION_KEYS)
    numbers = [column for column in features if column not in roles and holds_numbers(features[column])]
    label, caption = find_label_column(features, None, name), find_caption_column(features, caption, name)
    source = TableSource(table, image, label, caption)
    source.columns = complete_columns({column: read_column(table, column) for column in numbers}, name)
    return image_data(source, options, name)


def complete_columns(values: Mapping[str, list[Any]], name: str) -> dict[str, np.ndarray]:
    """The columns that hold numbers in every row, float32 (rows, width); others are ignored with a warning."""
    columns = {}
    for column, column_values in values.items():
        try:
            columns[column] = number_column(column_values, column, name)
        except ValueError as error:
            logger.warning("%s The column is ignored.", error)
    return columns


class OwnData(ExampleData):
    """The data of a data set of the user, with how its rows are read."""

    form: RowFormat
    classes: Classes | None


def _row_data(rows: Rows, form: RowFormat, options: ImageOptions, label_names: list[str] | None) -> OwnData:
    columns = form.columns
    light = _read_light_columns(rows, columns)
    classes = None if columns.label is None else Classes.of(light[columns.label], label_names, rows.name)
    labels = None
    if classes is not None and columns.label is not None:
        labels = np.array(
            [classes.number(value, row) for row, value in enumerate(light[columns.label])], dtype=np.int64
        )
    data = OwnData(
        RowExamples(rows, form.sample),
        form.prepare,
        labels,
        None if classes is None else classes.names,
        rows.name,
        None if columns.caption is None else [str(text) for text in light[columns.caption]],
        complete_columns({name: light[name] for name in columns.numbers}, rows.name),
        "images" if columns.is_image else "samples",
    )
    columns = replace(columns, numbers=tuple(data.columns))
    data.form, data.classes = replace(form, columns=columns), classes
    if not columns.is_image and options.resolution is not None and set(data.size) != {options.resolution}:
        raise ValueError(
            f"the samples of {rows.name} have the size {size_text(data.size)} and are used as they are, but resolution "
            f"is {options.resolution}; leave resolution out, or give 'images', which are resized."
        )
    if form.condition is not None:
        data.companion = ExampleData(RowExamples(rows, form.condition), form.prepare, title=rows.name)
    return data


def _read_light_columns(rows: Rows, columns: Columns) -> dict[str, list[Any]]:
    """Labels, captions and numbers of all rows: a first pass over the data, only where there are such columns."""
    found: dict[str, list[Any]] = {name: [] for name in columns.light}
    for index in range(len(rows)) if found else ():
        row = rows(index)
        for name, values in found.items():
            if row.get(name) is None and name not in columns.numbers:
                raise ValueError(f"row {index} of {rows.name} has no '{name}', which the first row has.")
            values.append(row.get(name))
    return found


def _streamed_data(dataset: Any, options: ImageOptions, name: str, streamed_examples: int) -> OwnData:
    if iter(dataset) is dataset:
        raise ValueError(
            f"{name} can be read only once, but training reads it again in every epoch and after a resume; "
            "give a list, a torch Dataset, or an IterableDataset whose __iter__ starts from the beginning."
        )
    iterated = Iterated(dataset, name, options.seed)
    head = Rows([row for row, _ in itertools.islice(iterated.rows(0, 0), streamed_examples)], name, options.seed)
    form = RowFormat.of(head, options)
    if form.columns.caption is not None:
        logger.warning("captions of %s are ignored: texts need a data set with a length", name)
        form = replace(form, columns=replace(form.columns, caption=None))
    data = _row_data(head, form, options, _label_names(dataset))
    data.stream = OwnStream(iterated, data.form, data.classes, (data.channels, *data.size))
    data.description += f", the first {len(data)} of a stream"
    return data
