"""The weights of a run: those that are trained, those that are evaluated and saved, and how a checkpoint keeps them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from .ema import PowerFunctionAverage, WeightAverage, carrying
from .sharding import WholeCopy, gathered, own_parameters, scattered, whole

_COMPILED = "_orig_mod."


def clean_name(name: str) -> str:
    """A parameter's name without what torch.compile puts into it."""
    return name.replace(_COMPILED, "")


def uncompiled(network: Any) -> Any:
    """The network without the wrappers of torch.compile, compiled in place instead, so that no name changes."""
    if hasattr(network, "_orig_mod"):
        network = network._orig_mod
        network.compile()
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if hasattr(child, "_orig_mod"):
                setattr(part, name, child._orig_mod)
                child._orig_mod.compile()
    return network


class Weights:
    """The network's weights, and those of them that are evaluated and saved: averages or raw, and the best so far.

    Args:
        model: the network as it is trained, with the wrappers of distributed training.
        network: the network itself, without wrappers.
        ema: the average that is evaluated and saved, or None for the raw weights.
        whole_copy: a copy in one piece of a network that is sharded.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        network: torch.nn.Module,
        ema: WeightAverage | None = None,
        whole_copy: WholeCopy | None = None,
    ):
        self._accelerator, self.model, self.network, self.ema = accelerator, model, network, ema
        self._whole = whole_copy
        self._kept: Any = None
        self.best: dict[str, torch.Tensor] | None = None

    @property
    def sharded(self) -> bool:
        """Whether each process holds a piece of the network only."""
        return self._whole is not None

    @property
    def described(self) -> torch.nn.Module:
        """The network whose class and configuration are those of the saved one; its weights may be others."""
        return self.network if self._whole is None else self._whole.network

    @contextmanager
    def evaluated(self) -> Iterator[Any]:
        """Context of the network, in one piece, with the weights to evaluate and save; all processes call it."""
        if self._kept is not None:
            yield self._kept
        elif self._whole is not None:
            self.model.reshard()  # an evaluation leaves it gathered
            pieces = dict(own_parameters(self.network)) if self.ema is None else self.ema.averages
            with self._whole.filled(self.network, pieces, self._accelerator.device) as network:
                yield network
        else:
            with self.ema.applied_to(self.network) if self.ema is not None else nullcontext():
                yield self.network

    @contextmanager
    def with_best(self) -> Iterator[Any]:
        """As `evaluated`, with the best weights so far where some were kept."""
        with self.evaluated() as network, carrying(network, self.best or {}):
            yield network

    def remember_best(self) -> None:
        """Keep the weights that are evaluated now as the best so far; all processes call it."""
        with self.evaluated() as network:
            self.best = {name: p.detach().cpu().clone() for name, p in network.named_parameters()}

    def keep(self) -> Any:
        """Put the weights to save into the network for good, and give it, in one piece; all processes call it."""
        if self._whole is not None:
            with self.evaluated() as filled:
                network = filled
            network.to(self._accelerator.device)
        else:
            network = self._accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
            if self.ema is not None:
                self.ema.copy_to(network)
        if self.best is not None:
            network.load_state_dict(self.best, strict=False)
        self._kept = network.eval()
        return self._kept

    def state_dict(self) -> dict[str, Any]:
        """The trained weights and buffers, whole, under the names that the network without wrappers has."""
        return {clean_name(name): whole(value) for name, value in self.network.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved weights. Raises ValueError when any is missing, left over or of another shape."""
        own = {clean_name(name): value for name, value in self.network.state_dict().items()}
        for name in [*(own.keys() - state.keys()), *(state.keys() - own.keys())]:
            raise ValueError(f"it is of another model: '{name}' is in one of both only")
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ValueError(f"it is of another model: '{name}' has another shape")
        pieces = scattered(own, state)
        for name, value in own.items():
            _local(value).copy_(pieces[name])


class AverageState:
    """An average of weights as a part that a checkpoint keeps.

    Args:
        average: whose values are pieces where the network is sharded.
        network: that it follows.

    Attributes:
        average: as given.
    """

    def __init__(self, average: WeightAverage, network: torch.nn.Module):
        self.average, self._network = average, network

    def state_dict(self) -> dict[str, Any]:
        """The averages, whole, and the number of updates behind them."""
        averages = gathered(self._network, self.average.averages)
        return {**{clean_name(name): value for name, value in averages.items()}, "updates": self.average.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved averages. Raises ValueError when they are of another network."""
        updates = state.pop("updates")
        names = {clean_name(name): name for name in self.average.averages}
        if names.keys() != state.keys():
            raise ValueError("its averages are of another model")
        parameters = dict(self._network.named_parameters())
        own = {clean: parameters[name] for clean, name in names.items()}
        pieces = scattered(own, state)
        self.average.load({name: pieces[clean] for clean, name in names.items()}, updates)

    def start_afresh(self) -> None:
        """Begin with the weights as they are now."""
        if isinstance(self.average, PowerFunctionAverage):
            raise ValueError(
                "a power-function average can't begin in the middle of a run; resume with the ema_kind, ema_sigma_rel "
                "and ema_snapshots that it was begun with"
            )
        self.average.load(dict(own_parameters(self._network)), 0)


class OptimizerState:
    """The optimizer's memory as tensors; its settings (learning rate, betas, ...) are those of the present run.

    Args:
        optimizer: without wrappers.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Tensors by "number of the parameter/name", whole."""
        return {
            f"{number}/{name}": whole(value)
            for number, parameter in enumerate(self._parameters())
            for name, value in self._optimizer.state.get(parameter, {}).items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved tensors. Raises ValueError when they are of other parameters."""
        entries: dict[int, dict[str, Any]] = {}
        parameters = self._parameters()
        for key, value in state.items():
            number, _, name = key.partition("/")
            if int(number) >= len(parameters):
                raise ValueError("it is of another model or optimizer: it has more parameters")
            parameter = parameters[int(number)]
            if isinstance(value, torch.Tensor) and value.shape not in (parameter.shape, torch.Size([])):
                raise ValueError("it is of another model or optimizer: a parameter has another shape")
            entries.setdefault(int(number), {})[name] = value
        saved = self._optimizer.state_dict()
        shaped = {n: {k: _sharded(v, parameters[n]) for k, v in entry.items()} for n, entry in entries.items()}
        self._optimizer.load_state_dict({"state": shaped, "param_groups": copy.deepcopy(saved["param_groups"])})


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if hasattr(value, "to_local") else value


def _sharded(value: Any, like: Any) -> Any:
    """A saved tensor as the optimizer needs it: in pieces or in the memory format where the parameter is."""
    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    if not hasattr(like, "device_mesh"):
        return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device_mesh.device_type), like.device_mesh, like.placements)
