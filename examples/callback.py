"""A callback of your own: it sees every event of a run, keeps a state in the checkpoints, and may stop the run.

python examples/callback.py          # stops when the mean loss of 100 steps no longer falls
python examples/callback.py --fast   # a few steps, to see that it runs
"""

import argparse

from diffusers_ext.training import TrainerCallback, TrainingArguments, train


class StopOnPlateau(TrainerCallback):
    """Stop the run when the mean of the last `patience` logged losses is no lower than that of those before."""

    def __init__(self, patience: int):
        self.patience, self.losses = patience, []

    def on_train_begin(self, args, state, control, model, **kwargs):
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{parameters:,} parameters, at most {state.max_steps} steps")

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:  # a line of the validation loss, say
            return
        self.losses = [*self.losses, logs["loss"]][-2 * self.patience :]
        if len(self.losses) == 2 * self.patience:
            before, now = (
                sum(half) / self.patience for half in (self.losses[: self.patience], self.losses[-self.patience :])
            )
            if now >= before:
                control.stop(f"Step {state.global_step}: the loss no longer falls ({before:.4f}, then {now:.4f}).")

    # With these two, a resumed run decides as one that was never stopped.
    def state_dict(self):
        return {"losses": self.losses}

    def load_state_dict(self, state):
        self.losses = list(state["losses"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="take a few steps only")
    parser.add_argument("--output_dir", default="outputs/callback", help="where the pipeline is saved")
    flags = parser.parse_args()
    arguments = TrainingArguments(
        output_dir=flags.output_dir,
        overwrite_output_dir=True,
        dataset_name="embedded",
        train_split="train[:64]" if flags.fast else "train",
        model="small",
        model_options='{"base_channels": 8}' if flags.fast else '{"base_channels": 32}',
        train_batch_size=4 if flags.fast else 32,
        max_train_steps=6 if flags.fast else 2000,
        logging_steps=1 if flags.fast else 10,
        ddpm_num_inference_steps=2 if flags.fast else 50,
        save_figures=not flags.fast,
        logger="none",
    )
    train(arguments, callbacks=[StopOnPlateau(patience=2 if flags.fast else 10)])
