"""Settings of the network, of the autoencoder whose latents it is trained on, and of its condition."""

from dataclasses import dataclass

from ...conditions.registry import CONDITIONS
from ...settings.declaration import FREE, REFUSED
from . import groups, needs


@dataclass
class NetworkOptions:
    """What is trained, and on what kind of samples."""

    model: str = groups.model(
        "small",
        "Preset name, configuration file or folder, `unet2d` (diffusers' UNet2DModel), or a class of your own as "
        "`path/to/file.py:Class`.",
        needs=(needs.MODEL_BY_NAME, needs.NO_START),
        short=True,
        on_resume=REFUSED,
        replaced_by="model",
    )
    model_config_name_or_path: str | None = groups.model(
        None,
        "Configuration of a diffusers UNet2DModel to train.",
        needs=needs.NO_START,
        on_resume=FREE,
        replaced_by="model",
    )
    init_from: str | None = groups.model(
        None,
        "Folder of a run, or a pipeline's name on the Hub: start with its network, architecture and weights, such as a "
        "flow map with a network trained by flow matching.",
        needs=needs.GENERATION,
        replaced_by="model",
    )
    model_options: str | None = groups.model(
        None, 'JSON with entries of the model\'s configuration, {"dropout": 0.1}, say.', json=True, replaced_by="model"
    )
    gradient_checkpointing: bool = groups.model(False, "Recompute activations in the backward pass, to save memory.")
    channels_last: bool | None = groups.model(
        None,
        "Keep images and weights in channels-last memory format; measured under --mixed_precision auto if not given.",
    )
    task: str = groups.latent(
        "generation",
        "`generation` trains a diffusion model; `autoencoder` trains an autoencoder for a model of latents.",
        choices=("generation", "autoencoder"),
        on_resume=REFUSED,
    )
    vae: str | None = groups.latent(
        None,
        "Autoencoder of diffusers, a folder or a name on the Hub: images are encoded once, the network is trained on "
        "their latents, and the pipeline decodes them.",
        needs=needs.GENERATION,
        short=True,
        on_resume=FREE,
    )
    latent_crops: int = groups.latent(
        1,
        "Random crops of each image that are encoded; with 1, an image has the same crop in every epoch.",
        at_least=1,
        at_most=1024,
        needs=(needs.GENERATION, needs.LATENTS),
    )
    latent_cache_dir: str | None = groups.latent(
        None,
        "Folder of the cache of latents; the folder of the Hub's files (HF_HOME) when not given.",
        needs=(needs.GENERATION, needs.LATENTS),
        on_resume=FREE,
    )
    kl_weight: float = groups.latent(
        1e-6, "Weight of the autoencoder's KL term beside its reconstruction loss.", at_least=0, needs=needs.AUTOENCODER
    )
    adversarial_weight: float = groups.latent(
        0.0,
        "Weight of the gradients of a patch discriminator beside those of the reconstruction error, for sharper "
        "reconstructions; 0 trains without one.",
        at_least=0,
        needs=needs.AUTOENCODER,
    )
    adversarial_start: int = groups.latent(
        500,
        "Training batches before the patch discriminator begins.",
        at_least=0,
        needs=(needs.AUTOENCODER, needs.ADVERSARIAL),
    )
    min_psnr: float = groups.latent(
        20.0,
        "Warn if reconstructions have a lower PSNR, in decibels.",
        at_least=0,
        needs=needs.RECONSTRUCTS,
        on_resume=FREE,
    )


@dataclass
class ConditionOptions:
    """What the network is conditioned on; the conditions bring more."""

    condition: str | None = groups.condition(
        None,
        "What the network is conditioned on; nothing when not given.",
        choices=lambda: CONDITIONS,  # those that the user registered, too
        short=True,
        on_resume=REFUSED,
        replaced_by="condition",
    )
    condition_dropout: float = groups.conditional(
        0.1,
        "Probability with which a sample's condition is replaced by the null condition; guidance needs it.",
        at_least=0,
        below=1,
    )
    label_free_epochs: int = groups.conditional(
        0,
        "The last so many of num_epochs are trained on the null condition alone (a source project's way); a run that "
        "max_train_steps ends before them has none.",
        at_least=0,
    )
    guidance_scale: float = groups.conditional(
        1.0,
        "Guidance of previews: 0 unconditional, 1 conditional, above 1 sharper.",
        at_least=0,
        short=True,
        on_resume=FREE,
    )
