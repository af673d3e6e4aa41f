"""Train an unconditional diffusion model, or a conditioned one with --condition.

    accelerate launch train/train_unconditional.py --recipe mnist
    torchrun --nproc_per_node 2 train/train_unconditional.py --recipe mnist --max_train_steps 100
    python train/train_unconditional.py --help

Takes the flags of diffusers' own example of this name, and more; `--help-all` lists them. `diffusers-ext train` does
the same without a checkout.
"""

import sys

from diffusers_ext.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(sys.argv[1:]))
