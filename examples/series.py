"""Make time series of three channels, train on them by class, and compare their spectra with the data's.

python examples/series.py          # two minutes on two cores: figures and the pipeline in outputs/series-example
python examples/series.py --fast   # a few steps, to see that it runs
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from diffusers_ext.evaluation.signal_metrics import autocorrelation_distance, log_spectral_distance
from diffusers_ext.training import TrainingArguments, train

LENGTH = 128


def weather(number: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """(signals (number, 3, LENGTH), classes): temperature, humidity against it, and wind; a day has 24 frames."""
    generator = np.random.default_rng(seed)
    summer, hours = np.arange(number)[:, None] % 2 == 0, np.arange(LENGTH)
    phase, drift = generator.uniform(0, 0.5, (number, 1)), generator.normal(size=(number, LENGTH)).cumsum(1) / 10
    day = np.sin(2 * np.pi * (hours / 24 + phase))
    temperature = np.where(summer, 22, 2) + np.where(summer, 6, 2) * day + drift
    humidity = 65 - 2 * (temperature - temperature.mean(1, keepdims=True)) + generator.normal(size=(number, LENGTH))
    wind = np.abs(3 + generator.normal(size=(number, LENGTH)) + np.where(summer, 0, 3))
    signals = np.stack([temperature, humidity, wind], axis=1).astype(np.float32)
    return signals, ["summer" if row else "winter" for row in summer[:, 0]]


def main() -> None:
    """Write the file, train with the settings of the recipe `series`, and measure samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="take a few steps only")
    parser.add_argument("--output_dir", default="outputs/series-example", help="where everything is saved")
    flags = parser.parse_args()
    signals, classes = weather(64 if flags.fast else 2000, seed=0)
    file = Path(flags.output_dir) / "weather.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, signals=signals, labels=classes)
    arguments = TrainingArguments.from_recipe(
        "series",
        train_data_dir=str(file),
        condition="class",
        max_train_seconds=120,
        output_dir=flags.output_dir,
        **({"max_train_steps": 2, "train_batch_size": 4, "ddpm_num_inference_steps": 2} if flags.fast else {}),
    )
    pipeline = train(arguments)
    real, _ = weather(8 if flags.fast else 500, seed=1)
    samples = pipeline(class_labels=[i % 2 for i in range(len(real))], num_inference_steps=25, output_type="pt").audios
    for name, found in (("samples", samples), ("other data", torch.from_numpy(weather(len(real), seed=2)[0]))):
        distance = log_spectral_distance(found, torch.from_numpy(real))
        correlation = autocorrelation_distance(found, torch.from_numpy(real), 48)
        print(f"{name}: log-spectral distance {distance:.2f} dB, autocorrelation differs by up to {correlation:.3f}")


if __name__ == "__main__":
    main()
