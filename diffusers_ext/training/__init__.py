"""Training: settings and what the user brings in, a saved pipeline out.

Where things are, in the order in which to read them:

- The run: `trainer` is the loop, `stepping` one step, `run` lists the parts, `state` the counters.
- Its settings: `arguments`, with the table in `options`; `building` makes the parts from them; `pretrained` loads
  those that are named.
- What a step sees: `batches`, `binding` and `conditioning`, `latents`; `autoencoding` where that is what is trained.
- What a step moves: `weights`, averages in `ema`, `muon`, `sharding`; `losses` reads the loss.
- How fast: `precision`, `probe` chooses it, `efficiency` measures it, `allocator`, `launching`.
- Besides the steps: `callbacks`, which use `recording`, `diagnostics`, `validation`, `sample_evaluation`, `report`.
- What survives a kill: `checkpoint` (files), `checkpointing`, `resume`, `folder`, `interruption`, `agreement`.
- What comes out: `pipeline`, `plain` networks, `saving`; `unfinished` samples from a checkpoint.
"""

from .agreement import TrainingFailed
from .arguments import TrainingArguments, parse_arguments
from .callbacks import TrainerCallback
from .interruption import TrainingInterrupted
from .losses import TrainingDiverged
from .state import TrainerControl, TrainerState
from .trainer import Trainer, train

__all__ = [
    "Trainer",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "TrainingArguments",
    "TrainingDiverged",
    "TrainingFailed",
    "TrainingInterrupted",
    "parse_arguments",
    "train",
]
