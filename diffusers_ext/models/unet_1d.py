"""The ADM U-Net over one dimension: audio, time series, any channels and any length that the down-sampling divides."""

from .unet_adm import ADMNetwork


class SignalUNet1DModel(ADMNetwork):
    """Predicts from a noisy signal, its timestep and, where built for them, a class, numbers, a text and a signal.

    `sample` is (batch, channels, length); `image_condition` is (batch, condition_channels, length), such as a signal of
    narrower bandwidth. A `patch_size` of 4 or 8 makes the first levels of audio cheap. See `ADMNetwork` for the
    arguments.
    """

    dims = 1
