"""How much an error counts at each noise level."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Weights on the squared error of x0, functions of the signal-to-noise ratio alone: they mean the same to every
# prediction type. The other two are factors on the output's own error, whatever it predicts.
X0_WEIGHTINGS = ("snr", "min_snr", "p2", "sigmoid", "edm")
WEIGHTINGS = ("none", *X0_WEIGHTINGS, "snr_over_snr_plus_1")


@dataclass(frozen=True)
class Weighting:
    """A weight for every noise level, on the squared error of x0 or of the output.

    With snr = alpha^2 / sigma^2, so that the squared error of epsilon is snr times that of x0:

    - `none`: 1 on the output;
    - `snr`: snr on x0, which is 1 on epsilon (Ho et al. 2020, arXiv:2006.11239, eq. 14);
    - `min_snr`: min(snr, min_snr_gamma) on x0 (Hang et al. 2023, arXiv:2303.09556, eq. 8);
    - `p2`: 1 / (p2_k + snr)^p2_gamma on epsilon (Choi et al. 2022, arXiv:2204.00227, eq. 8);
    - `sigmoid`: sigmoid(sigmoid_bias - log snr) on epsilon (Kingma and Gao 2023, arXiv:2303.00848); the paper's factor
      -d log snr / dt belongs to the distribution of times and is left to it;
    - `edm`: (s^2 + sigma_data^2) / (s * sigma_data)^2 on x0, s = sigma / alpha (Karras et al. 2022, arXiv:2206.00364,
      table 1); times are not drawn from that paper's distribution of s;
    - `snr_over_snr_plus_1`: the literal factor snr / (snr + 1) on the output, which on v_prediction equals `snr`.

    Args:
        name: one of `WEIGHTINGS`.
        min_snr_gamma: above 0.
        p2_gamma, p2_k: at least 0, and above 0.
        sigmoid_bias: the log snr at which the weight on epsilon is 1/2.
        sigma_data: standard deviation of the data, above 0.

    Raises:
        ValueError: for an unknown name.
    """

    name: str = "none"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    sigmoid_bias: float = 0.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got '{self.name}'.")

    def on_x0(self, snr: torch.Tensor) -> torch.Tensor:
        """Weights on the squared error of x0, of the shape of `snr`; for the names in `X0_WEIGHTINGS`."""
        if self.name == "snr":
            return snr
        if self.name == "min_snr":
            return snr.clamp(max=self.min_snr_gamma)
        if self.name == "p2":
            return snr / (self.p2_k + snr) ** self.p2_gamma
        if self.name == "sigmoid":
            return snr * torch.sigmoid(self.sigmoid_bias - snr.log())
        if self.name == "edm":
            return snr + 1 / self.sigma_data / self.sigma_data  # a square of the smallest numbers would be 0
        raise ValueError(f"Weighting '{self.name}' is one of the output, not of x0.")

    def on_output(self, snr: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Weights on the squared error of the output.

        An error of the output is an error of x0 divided by b (x0 = a * x_t + b * output), so that a weight w on the
        squared error of x0 is w * b^2 on the output's: the one conversion between prediction types.

        Args:
            snr: signal-to-noise ratios.
            b: of the same shape, from `GaussianPath.x0_coefficients`.
        """
        if self.name == "none":
            return torch.ones_like(snr)
        if self.name == "snr_over_snr_plus_1":
            return snr / (snr + 1)
        return self.on_x0(snr) * b**2
