"""Exact answers that samplers can be checked against: Gaussian mixtures, exact networks, convergence orders, laws."""

from .audit import Audit, audit
from .convergence import fitted_order, inversion_errors, rms
from .examples import LINE_MIXTURES, MIXTURES
from .flow_map import ExactFlowMap
from .guidance import guided_density, total_variation
from .laws import exact_line_statistics, gaussian_law, line_law, line_statistics, wasserstein
from .levels import NetworkView, view_of
from .mixture import GaussianMixture
from .moments import standard_errors
from .network import ExactNetwork, MixtureNetwork
from .posterior import PosteriorBias, posterior_bias
from .prove import prove
from .report import Report, plot_reports, table
from .sampling import sample, starting_noise

__all__ = [
    "LINE_MIXTURES",
    "MIXTURES",
    "Audit",
    "ExactFlowMap",
    "ExactNetwork",
    "GaussianMixture",
    "MixtureNetwork",
    "NetworkView",
    "PosteriorBias",
    "Report",
    "audit",
    "exact_line_statistics",
    "fitted_order",
    "gaussian_law",
    "guided_density",
    "inversion_errors",
    "line_law",
    "line_statistics",
    "plot_reports",
    "posterior_bias",
    "prove",
    "rms",
    "sample",
    "standard_errors",
    "starting_noise",
    "table",
    "total_variation",
    "view_of",
    "wasserstein",
]
