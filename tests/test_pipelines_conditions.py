"""Texts and images as conditions: what they become, what the pipeline does with them, what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from diffusers_ext import ADMUNet2DModel, GenerationPipeline, SubsequenceDDIMScheduler
from diffusers_ext.conditions.image_transforms import random_masks
from diffusers_ext.conditions.user_images import image_tensor, mask_tensor
from diffusers_ext.pipelines import IMAGE_TRANSFORMS, encode_prompts, image_transform

WORDS = "[PAD] [UNK] [BOS] [EOS] a the red green blue cat dog house on left right of small big".split()  # noqa: SIM905
TOKENS, DIM = 8, 16
TINY_UNET2D = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_tokenizer(special=True, length=TOKENS):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, [("[BOS]", 2), ("[EOS]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=length,
    )


def make_encoder(kind="clip"):
    torch.manual_seed(1)
    sizes = {"vocab_size": len(WORDS), "hidden_size": DIM, "intermediate_size": 16}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": TOKENS}
    if kind == "clip":
        return CLIPTextModel(CLIPTextConfig(**sizes, **heads, bos_token_id=2, eos_token_id=3, pad_token_id=0)).eval()
    if kind == "bert":
        return BertModel(BertConfig(**sizes, **heads)).eval()
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()


def make_pipeline(condition=None, in_channels=1, condition_channels=0, text=True, weak=False, **options):
    def network(seed, base_channels):
        torch.manual_seed(seed)
        return ADMUNet2DModel(
            sample_size=8,
            in_channels=in_channels,
            base_channels=base_channels,
            channel_multipliers=(1, 2),
            layers_per_level=1,
            norm_num_groups=4,
            attention_heads=2,
            cross_attention_dim=DIM if text else None,
            condition_channels=condition_channels,
            **options,
        )

    pipeline = GenerationPipeline(
        network(0, 8),
        SubsequenceDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
        text_encoder=make_encoder() if text else None,
        tokenizer=make_tokenizer() if text else None,
        weak_unet=network(1, 4) if weak else None,
        condition=condition,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline, seed=0, **arguments):
    arguments = {"num_inference_steps": 3, "output_type": "latent", **arguments}
    return pipeline(generator=generator(seed), **arguments).images


class Seen:
    """What a network is told in each call of the `with` block."""

    def __init__(self, network):
        self.network, self.calls = network, []

    def __enter__(self):
        self.hook = self.network.register_forward_pre_hook(
            lambda _, inputs, told: self.calls.append(told), with_kwargs=True
        )
        return self.calls

    def __exit__(self, *_):
        self.hook.remove()


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "bert", "t5"])
def test_prompts_are_padded_to_the_full_length_and_padding_changes_nothing(kind):
    encoder = make_encoder(kind)
    states, mask = encode_prompts(make_tokenizer(), encoder, ["a red cat", "", "the house"], "cpu")
    assert states.shape == (3, TOKENS, DIM)
    assert mask.tolist() == [[1] * 5 + [0] * 3, [1] * 2 + [0] * 6, [1] * 4 + [0] * 4]
    ids = torch.tensor([[2, WORDS.index("a"), WORDS.index("red"), WORDS.index("cat"), 3]])
    with torch.no_grad():
        alone = encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states[:1, :5], alone, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_text_model():
    encoder = make_encoder()
    encode_prompts(make_tokenizer(), encoder, ["a red cat"], "cpu")[0].square().sum().backward()
    assert encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_an_empty_text_without_special_tokens_attends_to_one_token():
    states, mask = encode_prompts(make_tokenizer(special=False), make_encoder(), ["", "cat"], "cpu")
    assert mask.sum(dim=1).tolist() == [1, 1]
    assert states.isfinite().all()


def test_what_is_cut_from_a_long_prompt_is_named_once(caplog):
    tokenizer, encoder = make_tokenizer(), make_encoder()
    exact, long = "a red cat on the house", "a red cat on the house left of the big dog"
    states, _ = encode_prompts(tokenizer, encoder, [exact], "cpu")
    assert not caplog.records
    for _ in range(2):
        cut, _ = encode_prompts(tokenizer, encoder, [long], "cpu")
    assert torch.equal(cut, states)
    (record,) = caplog.records
    assert "longer than 8 tokens" in record.message
    assert "'left of the big dog'" in record.message


def test_length_is_the_smaller_of_tokenizer_and_model():
    long, short = make_tokenizer(length=int(1e30)), make_tokenizer(length=5)
    assert encode_prompts(long, make_encoder(), ["a cat"], "cpu")[0].shape[1] == TOKENS
    assert encode_prompts(short, make_encoder(), ["a cat"], "cpu")[0].shape[1] == 5


def test_tokenizers_that_can_not_pad_are_one_sentence():
    with pytest.raises(ValueError, match="knows no greatest length"):
        encode_prompts(make_tokenizer(length=int(1e30)), make_encoder("t5"), ["a cat"], "cpu")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no pad token"):
        encode_prompts(tokenizer, make_encoder(), ["a cat"], "cpu")


def test_text_guidance_is_the_formula_with_the_encoding_of_nothing():
    pipeline = make_pipeline()
    x, t = torch.randn(2, 1, 8, 8, generator=generator()), 500
    pipeline.scheduler.set_timesteps(timesteps=[t])
    got = pipeline(
        prompt=["a red cat", "the house"], latents=x, guidance_scale=3.0, timesteps=[t], output_type="latent"
    ).images
    outputs = []
    with torch.no_grad():
        for prompts in (["", ""], ["a red cat", "the house"]):
            states, mask = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, prompts, "cpu")
            told = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            outputs.append(pipeline.unet(x, t, **told).sample)
    null, conditional = outputs
    expected = pipeline.scheduler.step(null + 3.0 * (conditional - null), t, x).prev_sample
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (conditional - null).abs().max() > 1e-3


def test_prompts_in_guidance():
    pipeline = make_pipeline()
    plain, guided = call(pipeline, prompt="a red cat"), call(pipeline, prompt="a red cat", guidance_scale=3.0)
    assert not torch.equal(plain, guided)
    assert torch.equal(call(pipeline), call(pipeline, prompt=""))
    assert torch.equal(call(pipeline), call(pipeline, prompt="a red cat", guidance_scale=0))
    negative = call(pipeline, prompt="a red cat", negative_prompt="the dog", guidance_scale=0)
    assert torch.equal(negative, call(pipeline, prompt="the dog"))
    several = call(pipeline, prompt=["a red cat"] * 2, negative_prompt="", guidance_scale=3.0)
    assert torch.equal(several, call(pipeline, batch_size=2, prompt="a red cat", guidance_scale=3.0))
    with Seen(pipeline.unet) as calls:
        call(pipeline, prompt="a red cat")
    assert [len(told["encoder_hidden_states"]) for told in calls] == [1] * 3


def test_class_and_text_are_dropped_together():
    pipeline = make_pipeline(num_class_embeds=10)
    with Seen(pipeline.unet) as calls:
        call(pipeline, prompt=["a cat", "a dog"], class_labels=[1, 2], guidance_scale=2.0)
    assert calls[0]["class_labels"].tolist() == [10, 10, 1, 2]
    states, _ = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, ["", "", "a cat", "a dog"], "cpu")
    torch.testing.assert_close(calls[0]["encoder_hidden_states"], states)
    with Seen(pipeline.unet) as calls:
        call(pipeline, class_labels=[1, 2], guidance_scale=2.0)
    torch.testing.assert_close(calls[0]["encoder_hidden_states"], states[:1].expand(4, -1, -1))


def test_a_network_of_diffusers_with_cross_attention():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=DIM,
    )
    pipeline = GenerationPipeline(unet, DDIMScheduler(), make_encoder(), make_tokenizer())
    pipeline.set_progress_bar_config(disable=True)
    plain, guided = call(pipeline, prompt="a red cat"), call(pipeline, prompt="a red cat", guidance_scale=3.0)
    assert guided.isfinite().all()
    assert not torch.equal(plain, guided)
    assert torch.equal(call(pipeline), call(pipeline, prompt="a red cat", guidance_scale=0))


# --- image conditions -------------------------------------------------------------------------------------------------


def test_channels():
    assert [image_transform(name, 3).channels for name in IMAGE_TRANSFORMS] == [3, 3, 3, 3, 1, 4]
    assert [image_transform(name, 1).channels for name in IMAGE_TRANSFORMS if name != "colorization"] == [1] * 4 + [2]
    assert image_transform(None, 5).channels == 5


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_super_resolution_is_the_mean_of_squares_interpolated(factor):
    images = torch.rand(2, 3, 16, 16, generator=generator()) * 2 - 1
    small = images.unflatten(3, (-1, factor)).unflatten(2, (-1, factor)).mean(dim=(3, 5))
    condition = image_transform(f"super_resolution_{factor}", 3).from_target(images)
    expected = F.interpolate(small, size=(16, 16), mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(condition, expected)
    flat = torch.full((1, 3, 16, 16), 0.25)
    torch.testing.assert_close(image_transform(f"super_resolution_{factor}", 3).from_target(flat), flat)


def test_what_a_user_gives_is_what_training_saw():
    """From the same picture, each way of giving it and the transform of training make one condition."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    target = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    small = picture.resize((8, 8), Image.Resampling.BOX)
    condition = image_transform("super_resolution_2", 3)
    # The small picture is rounded to 8 bits.
    assert (condition.from_user(small, None, (16, 16)) - condition.from_target(target)).abs().max() < 2.5 / 127.5
    condition = image_transform("colorization", 3)
    torch.testing.assert_close(condition.from_user(picture, None, (16, 16)), condition.from_target(target))
    grey = condition.from_user(picture.convert("L"), None, (16, 16))
    assert (grey - condition.from_target(target)).abs().max() <= 1.01 / 127.5
    torch.testing.assert_close(image_transform("image", 3).from_user([picture], None, (16, 16)), target)
    condition, known = image_transform("inpainting", 3), random_masks(target, generator())
    torch.testing.assert_close(
        condition.from_user(picture, 1 - known, (16, 16)), condition.from_target(target, generator())
    )


def test_inpainting_hides_what_is_not_known():
    images = torch.rand(64, 3, 16, 16, generator=generator()) + 0.1
    condition = image_transform("inpainting", 3).from_target(images, generator(1))
    masked, known = condition[:, :3], condition[:, 3:]
    assert set(known.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masked, images * known)
    # Every image has both, and all in all a good part is hidden.
    assert (known.mean(dim=(1, 2, 3)) > 0).all()
    assert (known.mean(dim=(1, 2, 3)) < 1).all()
    assert 0.15 < 1 - known.mean().item() < 0.5


def test_masks_are_a_function_of_the_generator_and_of_each_image_alone():
    images = torch.zeros(4, 1, 32, 24)
    first, second, other = (random_masks(images, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(random_masks(images[:2], generator(3)), first[:2])


def test_masks_are_rectangles_or_strokes():
    masks = 1 - random_masks(torch.zeros(200, 1, 32, 32), generator())
    rectangles = 0
    for mask in masks[:, 0]:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        rectangles += bool(mask[rows][:, columns].all())
        assert 0.02 < mask.mean() < 0.8
    assert 70 < rectangles < 130


def test_images_in_every_form_are_the_same():
    array = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), dtype=np.uint8)
    expected = torch.from_numpy(array).permute(0, 3, 1, 2) / 255
    tensors = torch.from_numpy(array).permute(0, 3, 1, 2)
    forms = [
        array,
        array.astype("float32") / 255,
        tensors,
        tensors / 255,
        [Image.fromarray(a) for a in array],
        list(array),
        list(tensors),
        [tensors[:1], Image.fromarray(array[1])],
    ]
    for form in forms:
        torch.testing.assert_close(image_tensor("image", form, (3,), (6, 4)), expected)
    for form in (Image.fromarray(array[0]), array[0], tensors[0]):
        torch.testing.assert_close(image_tensor("image", form, (3,), (6, 4)), expected[:1])
    grey = Image.fromarray(array[0]).convert("L")
    for form in (grey, np.asarray(grey), Image.fromarray(array[0])):
        torch.testing.assert_close(image_tensor("image", form, (1,), (6, 4)).mul(255).round()[0, 0], _tensor(grey))


def _tensor(grey):
    return torch.from_numpy(np.array(grey)).float()


def test_masks_in_every_form_are_the_same():
    mask = np.zeros((6, 4), dtype=np.uint8)
    mask[2:, :3] = 255
    expected = torch.from_numpy(mask / 255).float()[None, None]
    tensor = torch.from_numpy(mask)
    forms = [Image.fromarray(mask), Image.fromarray(mask).convert("1"), mask, mask > 0, mask[..., None], tensor]
    forms += [
        mask // 255,
        tensor // 255,
        tensor[None],
        tensor[None, None],
        tensor > 0,
        expected * 0.9,
        [mask],
        mask[None, ..., None],
    ]
    for form in forms:
        assert torch.equal(mask_tensor("mask_image", form, (6, 4)), expected)
    assert mask_tensor("mask_image", [mask, tensor], (6, 4)).shape == (2, 1, 6, 4)


# --- image conditions in the pipeline ---------------------------------------------------------------------------------


def picture(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


def test_image_guidance_leads_away_from_zeros():
    pipeline = make_pipeline("inpainting", in_channels=3, condition_channels=4, text=False)
    image, mask = picture(2, 3, 8, 8), torch.zeros(8, 8)
    mask[4:] = 1
    with Seen(pipeline.unet) as calls:
        guided = call(pipeline, image=image, mask_image=mask, guidance_scale=2.0)
    null, conditional = calls[0]["image_condition"].chunk(2)
    assert null.abs().max() == 0
    torch.testing.assert_close(conditional[:, :3, :4], image[:, :, :4] * 2 - 1)
    assert conditional[:, :3, 4:].abs().max() == 0
    assert torch.equal(conditional[:, 3], (1 - mask).expand(2, 8, 8))
    assert not torch.equal(guided, call(pipeline, image=image, mask_image=mask))
    assert torch.equal(call(pipeline, image=image, mask_image=mask, guidance_scale=0), call(pipeline, batch_size=2))


def test_super_resolution_takes_small_pil_images():
    pipeline = make_pipeline("super_resolution_2", in_channels=3, condition_channels=3, text=False)
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    images = pipeline(image=[small, small], num_inference_steps=2, generator=generator()).images
    assert [i.size for i in images] == [(8, 8)] * 2
    wide = Image.fromarray(np.zeros((4, 8, 3), dtype=np.uint8))
    assert call(pipeline, image=wide, width=16).shape == (1, 3, 8, 16)
    assert call(pipeline, image=wide, latents=torch.randn(2, 3, 8, 16)).shape == (2, 3, 8, 16)


def test_an_image_as_it_is_has_the_channels_the_network_takes():
    pipeline = make_pipeline(None, condition_channels=2, text=False)
    image = picture(2, 8, 8)
    with Seen(pipeline.unet) as calls:
        call(pipeline, batch_size=2, image=image)
    torch.testing.assert_close(calls[0]["image_condition"], (image * 2 - 1).expand(2, 2, 8, 8))


INPAINTING = {"condition": "inpainting", "condition_channels": 2, "text": False}
ENLARGING = {"condition": "super_resolution_4", "condition_channels": 1, "text": False}
IMAGE = torch.zeros(1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "arguments", "sentence"),
    [
        ({}, {"prompt": ["a cat", "a dog"], "batch_size": 3}, "batch_size 3, prompt 2"),
        ({}, {"prompt": ["a cat", "a dog"], "negative_prompt": ["a"] * 3}, "prompt 2, negative_prompt 3"),
        ({}, {"prompt": 3}, "prompt must be a text or a list of texts, got 3"),
        ({}, {"prompt": []}, "prompt must be a text"),
        ({}, {"prompt": ["a cat", None]}, "prompt must be a text"),
        ({}, {"negative_prompt": "a cat"}, "negative_prompt goes with prompt, which is missing"),
        ({}, {"guidance_scale": 2}, "needs a condition, one of class_labels, prompt, image"),
        ({}, {"image": IMAGE}, "the network takes no image .condition_channels is 0."),
        ({}, {"class_labels": 1}, "the network knows no classes"),
        ({"weak": True}, {"prompt": "a", "negative_prompt": "a"}, "negative_prompt was given, but .* its weak_unet"),
        ({"text": False}, {"prompt": "a cat"}, "the network takes no text"),
        (INPAINTING, {"image": IMAGE}, "mask_image is missing; inpainting needs one"),
        (INPAINTING, {"mask_image": IMAGE}, "mask_image goes with image, which is missing"),
        (INPAINTING, {"image": torch.zeros(1, 4, 8), "mask_image": IMAGE}, "image is 4x8 pixels .* must be 8x8"),
        (INPAINTING, {"image": IMAGE, "mask_image": torch.zeros(4, 4)}, "mask_image is 4x4 pixels .* must be 8x8"),
        (INPAINTING, {"image": torch.zeros(3, 8, 8), "mask_image": IMAGE}, "image has 3 channels; it must have 1"),
        (INPAINTING, {"image": IMAGE - 1, "mask_image": IMAGE}, "values from -1 to -1; floats take 0 to 1"),
        (INPAINTING, {"image": IMAGE * torch.nan, "mask_image": IMAGE}, "values from nan to nan"),
        (INPAINTING, {"image": "cat.png", "mask_image": IMAGE}, "image must be a PIL image, .* got 'cat.png'"),
        (INPAINTING, {"image": [], "mask_image": IMAGE}, "image is an empty list"),
        (INPAINTING, {"image": torch.zeros(8), "mask_image": IMAGE}, r"image has shape \(8,\)"),
        (INPAINTING, {"image": [IMAGE] * 2, "mask_image": [IMAGE] * 3}, "image holds 2 images and mask_image 3"),
        (INPAINTING, {"image": [IMAGE] * 2, "mask_image": IMAGE, "batch_size": 3}, "batch_size 3, image 2"),
        (ENLARGING, {"image": IMAGE}, "image is 8x8 pixels .* must be 2x2"),
        (ENLARGING, {"image": IMAGE, "height": 10}, "height and width divisible by 4, got 10x8"),
        (ENLARGING, {"image": IMAGE, "mask_image": IMAGE}, "'super_resolution_4', which takes none"),
        ({**ENLARGING, "condition_channels": 3}, {"image": IMAGE}, "has 1 channels, but the network takes 3"),
        ({"condition": "colorization", "condition_channels": 1, "text": False}, {"image": IMAGE}, "3 channels, got 1"),
        ({"condition": "sketch"}, {}, "condition must be one of image, super_resolution_2"),
        ({"condition_channels": 2, "text": False}, {"image": Image.new("RGB", (8, 8))}, "2 channels are needed"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make_pipeline(**settings)(**arguments)
    assert "\n" not in str(caught.value)


def test_a_network_of_text_without_an_encoder_is_one_sentence():
    pipeline = make_pipeline()
    pipeline.tokenizer = None
    with pytest.raises(ValueError, match="no text_encoder and tokenizer"):
        pipeline()


def test_an_image_column_is_no_transform_of_the_target():
    with pytest.raises(ValueError, match="comes from images of its own"):
        image_transform("image", 3).from_target(torch.zeros(1, 3, 8, 8))


# --- saving -----------------------------------------------------------------------------------------------------------


def load(path):
    pipeline = DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_saved_and_loaded_with_text_model_tokenizer_and_weak_network_gives_the_same_images(tmp_path):
    pipeline = make_pipeline(weak=True)
    pipeline.tokenizer.model_max_length = 6  # below what the text model could take, as training may choose it
    pipeline.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.text_encoder) is CLIPTextModel
    assert loaded.tokenizer.model_max_length == 6
    arguments = {"prompt": ["a red cat", "the house"], "guidance_scale": 2.0}
    assert torch.equal(call(loaded, **arguments), call(pipeline, **arguments))
    loaded.weak_unet = pipeline.weak_unet = None
    arguments["negative_prompt"] = "the dog"
    assert torch.equal(call(loaded, **arguments), call(pipeline, **arguments))


def test_saved_and_loaded_keeps_its_image_transform(tmp_path):
    pipeline = make_pipeline("super_resolution_2", condition_channels=1, text=False)
    pipeline.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    image = picture(1, 4, 4)
    assert loaded.config.condition == "super_resolution_2"
    assert torch.equal(call(loaded, image=image), call(pipeline, image=image))


def test_a_pipeline_of_another_ones_components():
    pipeline = make_pipeline("super_resolution_2", condition_channels=1, weak=True)
    twin = GenerationPipeline.from_pipe(pipeline)
    arguments = {"prompt": "a red cat", "image": picture(1, 4, 4), "guidance_scale": 2.0}
    assert torch.equal(call(twin, **arguments), call(pipeline, **arguments))
    plain = DDPMPipeline(UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **TINY_UNET2D), DDPMScheduler())
    twin = GenerationPipeline.from_pipe(plain)
    assert twin.unet is plain.unet
    assert call(twin).shape == (1, 1, 8, 8)


def test_a_weak_network_can_be_added_on_loading(tmp_path):
    pipeline = make_pipeline(weak=True)
    weak, pipeline.weak_unet = pipeline.weak_unet, None
    pipeline.save_pretrained(tmp_path)
    assert DiffusionPipeline.from_pretrained(tmp_path, weak_unet=weak).weak_unet is weak


def test_bfloat16_with_text_and_image():
    pipeline = make_pipeline("super_resolution_2", condition_channels=1).to(torch.bfloat16)
    images = call(pipeline, prompt="a red cat", image=picture(2, 1, 4, 4), guidance_scale=2.0)
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_offloading_takes_the_text_model_away_before_the_walk_and_keeps_a_weak_network():
    pipeline = make_pipeline(weak=True)
    expected = call(pipeline, prompt="a red cat", guidance_scale=2.0)
    pipeline.enable_model_cpu_offload(device="cpu")
    hooks = {name: getattr(pipeline, name)._hf_hook for name in ("text_encoder", "unet", "weak_unet")}
    assert hooks["text_encoder"].prev_module_hook is None
    assert hooks["unet"].prev_module_hook.model is pipeline.text_encoder
    assert hooks["weak_unet"].prev_module_hook is None
    assert torch.equal(call(pipeline, prompt="a red cat", guidance_scale=2.0), expected)


def test_a_network_that_takes_none_of_it_is_told_nothing():
    pipeline = make_pipeline(text=False)
    with Seen(pipeline.unet) as calls:
        call(pipeline)
    assert calls == [{}] * 3
