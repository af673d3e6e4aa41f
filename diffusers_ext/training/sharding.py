"""Networks in pieces: FSDP2 (PyTorch's `fully_shard`) as Accelerate's configuration files ask for it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor, distribute_tensor


def uses_fsdp(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP, which this takes up where Accelerate passes over it: on CPUs, over gloo.

    Raises:
        ValueError: for settings of FSDP that a run can't have.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.distributed_type == DistributedType.NO:
        return False
    plugin = FullyShardedDataParallelPlugin()
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise ValueError("Training under FSDP takes version 2; set fsdp_version: 2 in the launcher's configuration.")
    if "FULL" not in str(plugin.state_dict_type):
        # The sharded kind keeps its index as a pickle, and nothing here unpickles.
        raise ValueError(
            "Training under FSDP takes whole checkpoints; set fsdp_state_dict_type: FULL_STATE_DICT in the launcher's "
            "configuration."
        )
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        # In both places, as Accelerate itself does: a new view of the state begins as a copy of the partial one.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return True


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all of one in pieces; all processes take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_parameters(network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, values) of all parameters; of one in pieces, the piece of this process, which shares its memory."""
    for name, parameter in network.named_parameters():
        yield name, parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter


def gathered(network: torch.nn.Module, pieces: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors of the `pieces` that the processes have of something shaped like the parameters; all take part."""
    parameters = dict(network.named_parameters())
    return {name: _whole(piece, parameters[name]) for name, piece in pieces.items()}


def scattered(likes: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This process's pieces of whole tensors that are shaped like `likes`; all take part."""
    return {name: _piece(tensor, likes[name]) for name, tensor in tensors.items()}


def _whole(piece: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return piece
    pieces = DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return pieces.full_tensor()


def _piece(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return tensor
    device = like.device_mesh.device_type
    return distribute_tensor(tensor.to(device), like.device_mesh, like.placements).to_local()


class WholeCopy:
    """A copy of a network that is about to be sharded, in one piece; on the CPU except while it is used.

    Args:
        network: not yet sharded.
    """

    def __init__(self, network: torch.nn.Module):
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @contextmanager
    def filled(
        self, network: torch.nn.Module, pieces: Mapping[str, torch.Tensor], device: torch.device
    ) -> Iterator[torch.nn.Module]:
        """Context with the copy on `device`, of `pieces` as this and the other processes have them; all take part."""
        self.network.load_state_dict(gathered(network, pieces), strict=False)
        try:
            yield self.network.to(device)
        finally:
            self.network.to("cpu")
