"""The groups of settings, in the order of `--help-all`.

What changes how a run learns is named when a resumed run has another value, unless a setting says otherwise.
"""

from dataclasses import replace

from ...settings import Group
from ...settings.declaration import NAMED, REFUSED
from . import needs

data = Group("data", "Data", on_resume=NAMED)
model = Group("model", "Network", on_resume=NAMED)
latent = Group("latent", "Autoencoder and latents", on_resume=NAMED)
condition = Group("condition", "Condition", (needs.GENERATION,), NAMED)
objective = Group("objective", "Noise path and objective", (needs.GENERATION,), NAMED)
optimisation = Group("optimisation", "Optimisation", on_resume=NAMED)
average = Group("ema", "Average of the weights (EMA)", on_resume=NAMED)
evaluation = Group("evaluation", "Validation, previews and evaluation")
output = Group("output", "Output and checkpoints")
hub = Group("hub", "Hub")

# Parts of groups, with needs of their own.
conditional = replace(condition, needs=(needs.GENERATION, needs.CONDITIONAL))
loss = replace(objective, needs=())
learning = replace(objective, needs=(needs.GENERATION, needs.NO_TOY))
path = replace(learning, on_resume=REFUSED)
