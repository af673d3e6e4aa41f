"""Train a diffusion model that is conditioned on a class, a text or an image.

    accelerate launch train/train_conditional.py --recipe diffusers_ext/recipes/mnist-classes.yaml
    python train/train_conditional.py --condition text --dataset_name my/captioned-images --caption_column text
    python train/train_conditional.py --condition image --image_condition super_resolution_4 --train_data_dir photos.zip
    python train/train_conditional.py --help

Takes every flag of train_unconditional.py; --condition is `class` when it is not given.
"""

import sys

from diffusers_ext.training.launching import run_script, start_missing_processes

if __name__ == "__main__":
    start_missing_processes()
    sys.exit(run_script(sys.argv[1:], condition="class"))
