"""Exact answers that samplers can be checked against: Gaussian mixtures, exact networks, convergence orders, laws."""

from .convergence import fitted_order, inversion_errors, rms
from .examples import LINE_MIXTURES, MIXTURES
from .guidance import guided_density, total_variation
from .laws import exact_line_statistics, gaussian_law, line_law, line_statistics, wasserstein
from .levels import NetworkView, view_of
from .mixture import GaussianMixture
from .moments import standard_errors
from .network import ExactNetwork, MixtureNetwork
from .sampling import sample, starting_noise

__all__ = [
    "LINE_MIXTURES",
    "MIXTURES",
    "ExactNetwork",
    "GaussianMixture",
    "MixtureNetwork",
    "NetworkView",
    "exact_line_statistics",
    "fitted_order",
    "gaussian_law",
    "guided_density",
    "inversion_errors",
    "line_law",
    "line_statistics",
    "rms",
    "sample",
    "standard_errors",
    "starting_noise",
    "total_variation",
    "view_of",
    "wasserstein",
]
