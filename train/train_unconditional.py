"""Train an unconditional diffusion model.

    accelerate launch train/train_unconditional.py --recipe train/recipes/mnist.yaml
    torchrun --nproc_per_node 2 train/train_unconditional.py --dataset_name my/images --resolution 32
    python train/train_unconditional.py --help

Takes the flags of diffusers' own example of this name, and more; see diffusers_ext/training/arguments.py.
"""

import sys

from diffusers_ext.training import TrainingArguments, TrainingDiverged, TrainingInterrupted, parse_arguments, train
from diffusers_ext.training.launching import start_missing_processes


def main(argv: list[str]) -> int:
    debug = "--debug" in argv
    try:
        arguments: TrainingArguments = parse_arguments(argv)
        train(arguments)
    except TrainingInterrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return 128 + interrupted.signal_number
    except (ValueError, OSError, ImportError, TrainingDiverged) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    start_missing_processes()
    sys.exit(main(sys.argv[1:]))
