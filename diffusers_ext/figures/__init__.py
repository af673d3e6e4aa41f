"""Pictures of samples, processes, schedules and losses: takes tensors and arrays, gives files.

Images are tensors (number, channels, height, width) in [-1, 1] with 1 or 3 channels. Every file is written beside its
place and then renamed, so that a viewer, or a run that is killed, never leaves half a picture.
"""

from .curves import embedding_heatmap, plot_convergence, plot_guidance_sweep, plot_losses, plot_schedule
from .files import COLORS, drawing
from .images import comparison_grid, evenly, image_grid, save_gif, scatter_grid, strip, tensor_to_uint8
from .studies import plot_experiments

__all__ = [
    "COLORS",
    "comparison_grid",
    "drawing",
    "embedding_heatmap",
    "evenly",
    "image_grid",
    "plot_convergence",
    "plot_experiments",
    "plot_guidance_sweep",
    "plot_losses",
    "plot_schedule",
    "save_gif",
    "scatter_grid",
    "strip",
    "tensor_to_uint8",
]
