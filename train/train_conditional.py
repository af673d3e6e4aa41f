"""Train a diffusion model that is conditioned on a class, a text or an image.

    accelerate launch train/train_conditional.py --recipe mnist-classes
    python train/train_conditional.py --condition class --dataset_name embedded --max_train_seconds 60
    python train/train_conditional.py --condition image --image_condition super_resolution_2 --model small-adm
    python train/train_conditional.py --help condition

Takes every flag of train_unconditional.py; the condition is `class` when neither a flag nor the recipe names one.
"""

import sys

from diffusers_ext.cli import run_script

if __name__ == "__main__":
    sys.exit(run_script(sys.argv[1:], condition="class"))
