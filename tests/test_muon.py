"""The Muon optimizer: against torch's own where there is one, against AdamW for the rest, and through a resumed run."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import StopAt
from safetensors.torch import load_file
from torch import nn

from diffusers_ext.training import train
from diffusers_ext.training.muon import Muon, matrices_of, orthogonalized


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.SiLU(), nn.Conv2d(24, 20, 3), nn.Flatten(), nn.Linear(320, 24))


def train_some(network, optimizer, steps=5, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(6, 3, 8, 8, generator=generator).contiguous(memory_format=memory_format)
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_updates_have_the_singular_vectors_of_the_momentum_and_singular_values_near_one():
    update = torch.randn(20, 24, 3, 3, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
    (result,) = orthogonalized([update])
    assert result.shape == update.shape
    diagonal = (u.T @ result.flatten(1) @ v.T).diagonal()
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    values = torch.linalg.svdvals(result.flatten(1))
    assert ((values > 0.6) & (values < 1.3)).all()


def test_memory_format_changes_an_update_by_rounding_only():
    update = torch.randn(20, 24, 3, 3, generator=torch.Generator().manual_seed(0))
    (result,) = orthogonalized([update])
    (other,) = orthogonalized([update.contiguous(memory_format=torch.channels_last)])
    assert (other - result).norm() < 0.02 * other.norm()


def test_matrices_of_one_shape_go_together_and_come_out_as_alone():
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 24), (24, 20), (16, 16), (20, 6, 2, 2), (24, 5, 2, 2)]
    updates = [torch.randn(shape, generator=generator) for shape in shapes]
    updates[3] = updates[3].contiguous(memory_format=torch.channels_last)
    for update, result in zip(updates, orthogonalized(updates)):
        (alone,) = orthogonalized([update])
        assert result.shape == update.shape
        assert result.dtype == torch.float32
        assert (result - alone).norm() < 0.01 * alone.norm()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_a_matrix_moves_as_with_the_optimizer_of_torch(shape):
    torch.manual_seed(0)
    ours = nn.Linear(*shape, bias=False)
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.03, "weight_decay": 0.1}
    first, second = (
        Muon(ours, **options),
        torch.optim.Muon(theirs.parameters(), adjust_lr_fn="match_rms_adamw", **options),
    )
    start = ours.weight.detach().clone()
    for _ in range(10):
        gradient = torch.randn_like(start)
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    moved = theirs.weight - start
    assert (ours.weight - theirs.weight).norm() < 0.02 * moved.norm()


def test_all_but_the_inner_matrices_follows_adamw():
    network = small_network()
    inner = matrices_of(network)
    assert [tuple(m.shape) for m in inner] == [(24, 3, 3, 3), (20, 24, 3, 3), (24, 320)]
    twin = copy.deepcopy(network)
    optimizer = Muon(network, lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for parameter, other in zip(network.parameters(), twin.parameters()):
        parameter.grad = torch.randn_like(parameter)
        other.grad = parameter.grad.clone()
    optimizer.step()
    adamw.step()
    matrices = {id(m) for m in inner}
    for parameter, other in zip(network.parameters(), twin.parameters()):
        assert torch.equal(parameter, other) != (id(parameter) in matrices)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_state_goes_on_where_it_was(memory_format):
    network = small_network().to(memory_format=memory_format)
    optimizer = Muon(network)
    train_some(network, optimizer, memory_format=memory_format)
    resumed = copy.deepcopy(network)
    second = Muon(resumed)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, its in ((network, optimizer), (resumed, second)):
        train_some(module, its, memory_format=memory_format)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), resumed.parameters()))


def test_a_resumed_run_ends_with_the_same_weights_and_state(tiny_run, tmp_path):
    settings = {"optimizer": "muon", "channels_last": True}
    train(whole := tiny_run(**settings))
    train(half := tiny_run(**settings, output_dir=str(tmp_path / "half")), callbacks=[StopAt(3)])
    half.resume_from_checkpoint = "latest"
    train(half)
    folders = [Path(run.output_dir) / "checkpoint-6" for run in (whole, half)]
    for name in ("model.safetensors", "ema.safetensors"):
        first, second = (load_file(folder / name) for folder in folders)
        assert all(torch.equal(first[key], second[key]) for key in first), name
    first, second = (load_file(folder / "optimizer.safetensors") for folder in folders)
    assert any(name.endswith("/momentum") for name in first)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_an_unknown_optimizer_is_one_sentence(tiny_run):
    with pytest.raises(ValueError, match="optimizer must be one of adamw, muon, got 'sgd'"):
        tiny_run(optimizer="sgd")
