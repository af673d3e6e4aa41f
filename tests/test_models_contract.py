"""What every model of the package promises, whatever its architecture."""

import ast
import inspect
import json
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import diffusers_ext.models as models
from diffusers_ext.hub.bundle import bundle

TINY = {
    "AnnotatedUNet2DModel": {
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "level_attention": ("linear", "full"),
        "attention_heads": 2,
        "attention_head_dim": 4,
        "num_memory_kv": 2,
    },
    "GuidedUNet2DModel": {
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "attention_heads": 2,
        "attention_head_dim": 4,
    },
    "ADMUNet2DModel": {
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "layers_per_level": 1,
        "attention_resolutions": (2,),
        "attention_heads": 2,
        "norm_num_groups": 4,
    },
    "AttentionUNet2DModel": {
        "down_widths": (8, 8, 16, 16),
        "mid_width": 16,
        "up_widths": (8, 8, 8),
        "attention_heads": 2,
        "time_embed_dim": 16,
    },
    "SimpleUNet2DModel": {"widths": (8, 8, 16), "time_embed_dim": 10},
    "ToyUNet2DModel": {"widths": (8, 8)},
}
TIMED = [name for name in TINY if name != "ToyUNet2DModel"]
ATTENTIVE = ["AnnotatedUNet2DModel", "GuidedUNet2DModel", "ADMUNet2DModel", "AttentionUNet2DModel"]
every_model = pytest.mark.parametrize("name", TINY)


def tiny(name, seed=0, **overrides):
    torch.manual_seed(seed)
    return getattr(models, name)(**{"sample_size": 16, "in_channels": 1, **TINY[name], **overrides}).eval()


def images(channels=1, height=16, width=16, batch=2):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run(model, x, t=5, **kwargs):
    return model(x, t, **kwargs).sample


def relative_error(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@every_model
@pytest.mark.parametrize(("batch", "channels", "height", "width"), [(1, 3, 16, 16), (3, 4, 24, 16), (2, 1, 32, 8)])
def test_any_batch_channels_and_fitting_size(name, batch, channels, height, width):
    x = images(channels, height, width, batch)
    model = tiny(name, in_channels=channels)
    out = run(model, x)
    assert out.shape == x.shape
    assert out.std() > 0
    assert model.config.out_channels == channels


@every_model
def test_output_channels_may_differ(name):
    assert run(tiny(name, out_channels=2), images()).shape == (2, 2, 16, 16)


@every_model
@torch.no_grad()
def test_a_tuple_on_request(name):
    model = tiny(name)
    plain = model(images(), 5, return_dict=False)
    assert isinstance(plain, tuple)
    torch.testing.assert_close(plain[0], run(model, images()))


@every_model
def test_samples_of_a_batch_do_not_see_one_another(name):
    model, x = tiny(name), images(batch=3)
    together = run(model, x, torch.tensor([1, 50, 900]))
    alone = torch.cat([run(model, x[i : i + 1], t) for i, t in enumerate((1, 50, 900))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@every_model
def test_timesteps_come_as_numbers_and_tensors_of_any_dtype(name):
    model, x = tiny(name), images()
    expected = run(model, x, torch.tensor([7.0, 7.0]))
    kinds = [7, 7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7]), torch.tensor([7, 7], dtype=torch.int32)]
    for t in [*kinds, torch.tensor(7, dtype=torch.float64), torch.tensor([7, 7]).bfloat16()]:
        torch.testing.assert_close(run(model, x, t), expected)


@pytest.mark.parametrize("name", TIMED)
def test_fractional_timesteps_are_not_truncated(name):
    model, x = tiny(name), images()
    whole = run(model, x, 7)
    for t in (7.5, torch.tensor(7.5), torch.tensor([7.5, 7.5])):
        half = run(model, x, t)
        assert not torch.equal(half, whole)
        assert torch.equal(half, run(model, x, torch.full((2,), 7.5, dtype=torch.float64)))


@pytest.mark.parametrize("name", TIMED)
def test_each_sample_has_its_own_timestep(name):
    model, x = tiny(name), images()
    mixed = run(model, x, torch.tensor([3, 800]))
    torch.testing.assert_close(mixed[0], run(model, x, 3)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], run(model, x, 800)[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[0], run(model, x, 800)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize("t", [torch.zeros(3), torch.zeros(2, 1)])
def test_timesteps_of_another_shape_are_refused(name, t):
    with pytest.raises(ValueError, match="timestep has shape"):
        run(tiny(name), images(), t)


@every_model
def test_wrong_samples_are_refused_in_one_sentence(name):
    model = tiny(name)
    for x, what in (
        (images(channels=2), r"it takes \(batch, 1, height, width\)"),
        (images()[0], r"it takes \(batch, 1, height, width\)"),
        (images(height=5), "at least 8x8" if name == "AttentionUNet2DModel" else "multiples of"),
    ):
        with pytest.raises(ValueError, match=what) as error:
            run(model, x)
        assert str(error.value).endswith(".")
        assert "\n" not in str(error.value)


@torch.no_grad()
def test_attention_everywhere_takes_odd_sizes():
    assert run(tiny("AttentionUNet2DModel"), images(height=13, width=27)).shape == (2, 1, 13, 27)


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(name, dtype):
    x, t = images(), torch.tensor([3, 999])
    expected = run(tiny(name), x, t)
    out = run(tiny(name).to(dtype), x.to(dtype), t)
    assert out.dtype == dtype
    assert relative_error(out, expected) < (0.05 if dtype == torch.bfloat16 else 0.01)


@every_model
def test_autocast_of_a_float32_model(name):
    model, x = tiny(name), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(model, x)
    assert relative_error(out, run(model, x)) < 0.05


@every_model
def test_double_precision_is_double(name):
    out = run(tiny(name).double(), images().double(), 0)
    assert out.dtype == torch.float64
    assert 0 < relative_error(run(tiny(name), images(), 0), out) < 1e-5


@every_model
def test_weights_stored_in_eight_bits_compute_in_sixteen(name):
    """Casts that follow a weight's dtype instead of the input's fail here."""
    model, x = tiny(name).bfloat16(), images().bfloat16()
    expected = run(model, x)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert any(p.dtype == torch.float8_e4m3fn for p in model.parameters())
    assert relative_error(run(model, x), expected) < 0.5


@every_model
@pytest.mark.parametrize("storage", [torch.float16, torch.float8_e4m3fn])
def test_weights_stored_in_fewer_bits_train(name, storage):
    """After the forward pass the weights are narrow again: a backward that reads one itself fails here.

    Under autocast, whose copies the plain layers' backward reads.
    """
    model = tiny(name).train()
    model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images(), torch.tensor([3, 700])).sample.float().square().mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(g.float().isfinite().all() for g in gradients)


@every_model
def test_channels_last_gives_the_same(name):
    model, x = tiny(name), images()
    expected = run(model, x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(model, x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


def gradients_and_saved_bytes(model, x):
    """Gradients of a mean square by name, and the bytes the forward pass kept for the backward one."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x, torch.tensor([3, 700])).sample.square().mean()
    loss.backward()
    parameter_pointers = {p.data_ptr() for p in model.parameters()}
    saved = sum(size for pointer, size in kept.items() if pointer not in parameter_pointers)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, saved


@every_model
def test_gradient_checkpointing_gives_equal_gradients_and_keeps_less(name):
    plain, recomputed = tiny(name).train(), tiny(name).train()
    calls = []

    def counted(block, *args):
        calls.append(type(block).__name__)
        return checkpoint(block, *args, use_reentrant=False)

    recomputed.enable_gradient_checkpointing(counted)
    assert recomputed.is_gradient_checkpointing
    expected, much = gradients_and_saved_bytes(plain, images())
    got, little = gradients_and_saved_bytes(recomputed, images())
    assert len(calls) >= 5
    assert got.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient, rtol=1e-4, atol=1e-6)
    assert little < 0.7 * much


@every_model
def test_every_parameter_takes_part_in_training(name):
    model = tiny(name).train()
    optional = {"class_labels": torch.tensor([0, 1])} if name == "GuidedUNet2DModel" else {}
    model(images(), torch.tensor([3, 700]), **optional).sample.square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@every_model
def test_compiles_as_one_graph(name):
    """The eager backend: what is tested is that tracing meets no graph break."""
    torch._dynamo.reset()
    model, x = tiny(name), images()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    t = torch.tensor([3, 700])
    torch.testing.assert_close(run(compiled, x, t), run(model, x, t))


@every_model
def test_compiles_block_by_block(name):
    torch._dynamo.reset()
    model, x = tiny(name), images()
    expected = run(model, x)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(run(model, x), expected)


@pytest.mark.slow
def test_as_many_shapes_of_blocks_compile_as_a_u_net_has():
    """A U-Net's blocks differ in width: ten shapes of one class here, where torch's own limit is eight compilations."""
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:
        pytest.skip("this torch has one limit for all")
    torch._dynamo.reset()
    widths = {"channel_multipliers": (1, 2, 3, 4, 5), "level_attention": (None,) * 5, "mid_attention": None}
    model, x = tiny("AnnotatedUNet2DModel", **widths), images()
    assert len({m.conv1.weight.shape for m in model.modules() if hasattr(m, "conv1")}) == 10
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    run(model, x)


@pytest.mark.slow
def test_the_compiled_kernels_of_one_model_are_right():
    torch._dynamo.reset()
    model, x = tiny("SimpleUNet2DModel"), images()
    torch.testing.assert_close(run(torch.compile(model, fullgraph=True), x), run(model, x), rtol=1e-3, atol=1e-4)


@every_model
def test_saves_and_loads(name, tmp_path):
    model, x = tiny(name), images()
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    loaded = type(model).from_pretrained(tmp_path)
    assert json.loads(loaded.to_json_string()) == json.loads(model.to_json_string()) | {"_name_or_path": str(tmp_path)}
    assert torch.equal(run(loaded, x), run(model, x))
    half = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@every_model
def test_saves_in_shards_and_as_a_variant(name, tmp_path):
    model, x = tiny(name), images()
    model.save_pretrained(tmp_path, max_shard_size="10KB", variant="ema")
    assert len(list(tmp_path.glob("*ema*.safetensors"))) > 1
    assert torch.equal(run(type(model).from_pretrained(tmp_path, variant="ema"), x), run(model, x))
    with pytest.raises(OSError):
        type(model).from_pretrained(tmp_path)


@every_model
def test_builds_from_a_configuration(name):
    model = tiny(name, in_channels=3)
    again = type(model).from_config(model.config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@every_model
def test_named_blocks_exist(name):
    model = tiny(name)
    classes = {type(m).__name__ for m in model.modules()}
    assert set(model._repeated_blocks) <= classes
    assert set(model._no_split_modules) <= classes


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_processors_are_read_and_replaced(name):
    model, x = tiny(name), images()
    if not hasattr(model, "attn_processors"):
        pytest.skip("this diffusers has no AttentionMixin")
    expected, processors = run(model, x), model.attn_processors
    assert len(processors) >= 2
    seen = []

    class Recorded:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, attn, *args):
            seen.append(attn)
            return self.inner(attn, *args)

    model.set_attn_processor({key: Recorded(value) for key, value in processors.items()})
    torch.testing.assert_close(run(model, x), expected)
    assert len(set(seen)) == len(processors)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_fused_projections_give_the_same(name):
    model, x = tiny(name), images()
    if not hasattr(model, "fuse_qkv_projections"):
        pytest.skip("this diffusers has no AttentionMixin")
    expected = run(model, x)
    model.fuse_qkv_projections()
    assert any(n.endswith("to_qkv") for n, _ in model.named_modules())
    torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
    model.unfuse_qkv_projections()
    torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_attention_backend_can_be_chosen(name):
    model, x = tiny(name), images()
    if not hasattr(model, "attn_processors") or not hasattr(model, "set_attention_backend"):
        pytest.skip("this diffusers has no attention backends")
    expected = run(model, x)
    model.set_attention_backend("native")
    assert all(p._attention_backend is not None for p in model.attn_processors.values())
    torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)


@every_model
def test_lora_adapters_train_alone_and_save(name, tmp_path):
    peft = pytest.importorskip("peft")
    targets = ["to_q", "to_k", "to_v", "to_out.0"] if name in ATTENTIVE else ["conv1", "mid1.conv", "mid2.conv"]
    model, x = tiny(name), images()
    expected = run(model, x)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=True))
    torch.testing.assert_close(run(model, x), expected)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora" in n for n in trainable)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.fill_(0.1)
    adapted = run(model, x)
    assert not torch.allclose(adapted, expected, atol=1e-4)
    model.save_lora_adapter(tmp_path)
    fresh = tiny(name)
    fresh.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(run(fresh, x), adapted)


@every_model
def test_the_file_travels_alone(name):
    """A model's code is copied beside its weights, where only torch and diffusers can be counted on."""
    tree = ast.parse(bundle(getattr(models, name).__module__))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch", "diffusers"}
