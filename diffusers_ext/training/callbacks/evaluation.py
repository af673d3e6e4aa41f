"""Evaluates generated samples against held-out data while a network trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..recording import Recorder
from ..sample_evaluation import BROKEN, EVALUATION, SampleEvaluation
from ..weights import Weights
from .base import TrainerCallback


class SampleEvaluationCallback(TrainerCallback):
    """Evaluates samples every so many steps, and at the end with the weights that will be saved.

    Args:
        evaluation: on all processes.
        every: optimizer steps; None evaluates at the end only.
        best_at: the step of the best weights, where some are kept.
        announce: fires an event of the callbacks.
    """

    name = "evaluation"

    def __init__(
        self,
        evaluation: SampleEvaluation,
        weights: Weights,
        pipeline_of: Callable[[Any], Any],
        recorder: Recorder,
        every: int | None,
        best_at: Callable[[], int],
        announce: Callable[..., None],
    ):
        self.evaluation, self._weights, self._pipeline_of = evaluation, weights, pipeline_of
        self._recorder, self._every, self._best_at, self._announce = recorder, every, best_at, announce
        self.evaluated_at = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the weights of this step when it is due."""
        if self._every is not None and state.global_step % self._every == 0:
            self._evaluate(state.global_step, self._weights.evaluated)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the weights that will be saved."""
        self._evaluate(self._last_step(state.global_step), self._weights.with_best)

    def _last_step(self, step: int) -> int:
        return step if self._weights.best is None else self._best_at()

    def measured_again(self, step: int) -> list[str]:
        """The samples of `step` are evaluated again by a resumed run whose checkpoint was saved before that."""
        return [] if self.evaluated_at in (step, self._last_step(step)) else [EVALUATION]

    def _evaluate(self, step: int, weights: Callable[[], Any]) -> None:
        if self.evaluated_at == step:
            return
        self.evaluated_at = step
        self._weights.model.eval()
        with weights() as network:
            measures = self.evaluation(self._pipeline_of(network))
        if BROKEN in measures:
            self._recorder.warn(
                f"{measures[BROKEN]} samples to be measured hold pixels that are no numbers; none is measured."
            )
        kind = "raw" if self._weights.ema is None else "EMA"
        metrics = {"evaluation_weights": kind, "evaluation_weights_step": step, **measures}
        self._recorder.log(**metrics)
        self._announce("on_evaluate", metrics=metrics)

    def state_dict(self) -> dict[str, Any]:
        """The step whose weights were evaluated last."""
        return {"evaluated_at": self.evaluated_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self.evaluated_at = state["evaluated_at"]

    def start_afresh(self) -> None:
        """Begin to evaluate in the middle of a run."""
