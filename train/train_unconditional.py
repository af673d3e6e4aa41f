"""Train an unconditional diffusion model.

    accelerate launch train/train_unconditional.py --recipe diffusers_ext/recipes/mnist.yaml
    torchrun --nproc_per_node 2 train/train_unconditional.py --dataset_name my/images --resolution 32
    python train/train_unconditional.py --help

Takes the flags of diffusers' own example of this name, and more; see diffusers_ext/training/arguments.py.
"""

import sys

from diffusers_ext.training.launching import run_script, start_missing_processes

if __name__ == "__main__":
    start_missing_processes()
    sys.exit(run_script(sys.argv[1:]))
