"""Turn the bytes of a sound file, or of an array, into a signal float32 (channels, frames)."""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import math
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..files import one_line

WAV_SUFFIXES = (".wav", ".wave")
SOUNDFILE_SUFFIXES = (".flac", ".ogg", ".oga", ".aif", ".aiff", ".mp3", ".opus")  # read where soundfile is installed
ARRAY_SUFFIXES = (".npy", ".npz", ".csv")
MAX_RATE = 768_000  # frames per second; above that, the header is damaged
MAX_TERMS = 10_000  # of the reduced ratio of two rates, beyond which the resampling filter would be huge
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_NPY_START, _ZIP_START = b"\x93NUMPY", b"PK"


@functools.cache
def signal_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that are read as signals."""
    more = SOUNDFILE_SUFFIXES if importlib.util.find_spec("soundfile") is not None else ()
    return frozenset((*WAV_SUFFIXES, *ARRAY_SUFFIXES, *more))


def advice_on_sound(suffix: str) -> str | None:
    """What sound files of this suffix need in order to be read; None for other suffixes."""
    if suffix in SOUNDFILE_SUFFIXES and suffix not in signal_suffixes():
        return "soundfile (pip install 'diffusers_ext[audio]')"
    return None


@dataclass(frozen=True)
class SignalDecoder:
    """Decode a sound or an array, and bring it to one rate and one number of channels.

    Args:
        channels: 1 takes the mean of all channels, more repeat a single one; None keeps them.
        sample_rate: frames per second that sounds are resampled to; None keeps their own. Arrays have no rate.
    """

    channels: int | None = None
    sample_rate: int | None = None
    noun = "signal"

    def __call__(self, data: bytes) -> np.ndarray:
        """The signal, float32 (channels, frames). Raises ValueError, or ImportError when scipy is missing."""
        values, rate = read_signal(data)
        if values.shape[1] == 0:
            raise ValueError("it has no frames")
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinite values")
        values = with_channels(values, self.channels)
        if rate is None or self.sample_rate in (None, rate):
            return values
        return resampled(values, rate, int(self.sample_rate or rate))

    def decoded_bytes(self, data: bytes) -> int:
        """How many bytes the decoded signal takes."""
        return self(data).nbytes

    def for_source(self, source: Any) -> SignalDecoder:
        """The decoder itself: its number of channels is known before signals are read."""
        return self

    def without_channels(self) -> SignalDecoder:
        """How it is decoded apart from the number of channels."""
        return replace(self, channels=None)


def with_channels(values: np.ndarray, channels: int | None) -> np.ndarray:
    """The signal with that many channels. Raises ValueError for a number that it can't have."""
    own = len(values)
    if channels in (None, own):
        return values
    if channels == 1:
        return values.mean(axis=0, keepdims=True)
    if own == 1:
        return np.repeat(values, int(channels or 1), axis=0)
    raise ValueError(f"it has {own} channels, but {channels} are needed; set channels to 1 to take their mean")


def resampled(values: np.ndarray, rate: int, target: int) -> np.ndarray:
    """The signal at another rate, by a polyphase filter that removes what the new rate can't hold.

    Raises ImportError without scipy.
    """
    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise ImportError(
            f"Recordings at {rate:,} Hz can't be brought to {target:,} Hz without scipy: pip install "
            "'diffusers_ext[audio]', or leave sample_rate out."
        ) from None
    common = math.gcd(rate, target)
    if max(rate, target) // common > MAX_TERMS:
        raise ValueError(f"its rate of {rate:,} Hz has no simple ratio to {target:,} Hz")
    return resample_poly(values.astype(np.float64), target // common, rate // common, axis=1).astype(np.float32)


def read_signal(data: bytes) -> tuple[np.ndarray, int | None]:
    """(float32 (channels, frames), frames per second or None for arrays). Raises ValueError for anything else."""
    if data.startswith((_NPY_START, _ZIP_START)):
        return _as_signal(_array(data)), None
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        values, rate = read_wav(data)
    elif importlib.util.find_spec("soundfile") is not None and _is_binary(data):
        values, rate = _read_with_soundfile(data)
    elif not _is_binary(data):
        return _as_signal(_table(data)), None
    else:
        raise ValueError("it is neither a WAV file nor an array, and soundfile is not installed for other sounds")
    if not 1 <= rate <= MAX_RATE:
        raise ValueError(f"its rate of {rate:,} Hz is not between 1 and {MAX_RATE:,}")
    return values, rate


def _is_binary(data: bytes) -> bool:
    return b"\0" in data[:4096]


def _read_with_soundfile(data: bytes) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        values, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"it is not a sound ({one_line(error)})") from None
    return np.ascontiguousarray(values.T), int(rate)


def _array(data: bytes) -> np.ndarray:
    loaded: Any = np.load(io.BytesIO(data), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    if len(loaded.files) != 1:
        raise ValueError(f"a .npz file of one signal holds one array, not {len(loaded.files)}")
    return loaded[loaded.files[0]]


def _table(data: bytes) -> np.ndarray:
    """The numbers of a .csv file, (frames, columns), without its header."""
    rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    if not rows:
        raise ValueError("the file is empty")
    first = 0 if all(map(_is_number, rows[0])) else 1
    try:
        return np.array(rows[first:], dtype=np.float64)
    except ValueError:
        raise ValueError(
            "a .csv file of one signal holds numbers only: a row per frame, a column per channel"
        ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_signal(array: np.ndarray) -> np.ndarray:
    """An array (frames,), (frames, channels) or (channels, frames) as float32 (channels, frames).

    The longer side is the time.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it must hold numbers, got {array.dtype}")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(
            f"it must have the shape (frames,), (channels, frames) or (frames, channels), got {array.shape}"
        )
    if array.size == 0:
        raise ValueError("it has no frames")
    array = array.T if array.shape[0] > array.shape[1] else array
    return np.ascontiguousarray(array, dtype=np.float32)


# --- WAV --------------------------------------------------------------------------------------------------------------


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    """(float32 (channels, frames), frames per second) of a WAV file: PCM of 8 to 32 bits, or floats.

    Integers are scaled to [-1, 1). Raises ValueError for other encodings, and for a file that is cut short.
    """
    encoding, channels, rate, bits, body = _wav_parts(data)
    frame = channels * bits // 8
    if frame == 0:
        raise ValueError("its header names no channels or no bits")
    body = body[: len(body) - len(body) % frame]
    values = _wav_values(body, encoding, bits)
    return np.ascontiguousarray(values.reshape(-1, channels).T), rate


def _wav_parts(data: bytes) -> tuple[int, int, int, int, bytes]:
    """(encoding, channels, rate, bits, bytes of the values)."""
    header, place = None, 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        start = place + 8
        if name == b"fmt " and size >= 16 and start + size <= len(data):
            encoding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, start)
            if encoding == _EXTENSIBLE and size >= 26:
                encoding = struct.unpack_from("<H", data, start + 24)[0]
            header = encoding, channels, rate, bits
        if name == b"data" and header is not None:
            size = len(data) - start if size == 0xFFFFFFFF else size  # written as a stream
            if start + size > len(data):
                raise ValueError(f"it is cut short: {len(data) - start:,} of {size:,} bytes are there")
            return *header, data[start : start + size]
        place = start + size + size % 2
    raise ValueError("it is a WAV file without a header or without sound")


def _wav_values(body: bytes, encoding: int, bits: int) -> np.ndarray:
    if encoding == _FLOAT and bits in (32, 64):
        return np.frombuffer(body, dtype=f"<f{bits // 8}").astype(np.float32)
    if encoding != _PCM or bits not in (8, 16, 24, 32):
        raise ValueError(f"its encoding {encoding} with {bits} bits is not read; save it as 16-bit PCM")
    if bits == 8:
        return (np.frombuffer(body, dtype=np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:
        parts = np.frombuffer(body, dtype=np.uint8).reshape(-1, 3)
        whole = np.zeros((len(parts), 4), dtype=np.uint8)
        whole[:, 1:] = parts
        return whole.view("<i4")[:, 0].astype(np.float32) / 2**31
    return np.frombuffer(body, dtype=f"<i{bits // 8}").astype(np.float32) / 2 ** (bits - 1)


def wav_bytes(signal: np.ndarray, sample_rate: int) -> bytes:
    """A signal (channels, frames) as the bytes of a WAV file of 16 bits; values outside [-1, 1] are cut off."""
    body = np.round(np.clip(np.nan_to_num(signal), -1, 1) * 32767).astype("<i2").T.tobytes()
    frame = 2 * len(signal)
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, _PCM, len(signal), sample_rate, sample_rate * frame, frame, 16)
    header += struct.pack("<4sI", b"data", len(body))
    return struct.pack("<4sI4s", b"RIFF", 4 + len(header) + len(body), b"WAVE") + header + body
