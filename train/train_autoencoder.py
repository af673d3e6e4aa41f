"""Train an autoencoder, on whose latents a diffusion model can then be trained with --vae.

    python train/train_autoencoder.py --model ae-2x --max_train_seconds 300 --output_dir outputs/autoencoder
    python train/train_autoencoder.py --help latent

The other scripts train on its latents with `--vae outputs/autoencoder`. This one takes the flags of
train_unconditional.py for the data, the optimizer and the output; without a checkout,
`diffusers-ext train --task autoencoder --loss l1` does the same.
"""

import sys

from diffusers_ext.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(sys.argv[1:], task="autoencoder", loss="l1"))
