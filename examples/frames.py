"""Frames of sound: vectors in, one label for each of them out, on a long input.

A voice is a spectrum, and a single frame of 10 ms is too noisy to tell whose it is. Chunked attention lets the frames
of each second tell one another, at a cost that is linear in the length. The model is trained on a few seconds,
exported, served, and asked for a minute of sound in one request.
"""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from examples.serving import free_port, served
from heed.exporting import export_bundle
from heed.model import Encoder
from heed.model.config import (
    AttentionConfig,
    EncoderConfig,
    FeedForwardConfig,
    LabelsConfig,
    LayerConfig,
    NormConfig,
    VectorsConfig,
)
from heed.model.patterns import Chunk, Pattern, Window

BUILD = Path("build")
SPEAKERS = ("Ada", "Blaise", "Grace")
BANDS = 40  # values in a frame
SECOND = 100  # frames
MINUTE = 60 * SECOND
NOISE = 3.0

console = Console(highlight=False)


def voices() -> np.ndarray:
    """Each speaker's spectrum, two formants on a slope: `[speakers, bands]`."""
    bands = np.arange(BANDS)
    formants = [(6, 21), (9, 26), (13, 32)]
    return np.array([sum(np.exp(-(((bands - at) / 3) ** 2)) for at in pair) - bands / BANDS for pair in formants])


def sound(seconds: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Somebody speaks each second: frames `[L, bands]` and who it was `[L]`."""
    speakers = np.repeat(random.integers(0, len(SPEAKERS), seconds), SECOND)
    loudness = random.uniform(0.5, 1.5, (len(speakers), 1))
    frames = loudness * voices()[speakers] + NOISE * random.standard_normal((len(speakers), BANDS))
    return frames.astype(np.float32), speakers


def listener(pattern: Pattern) -> Encoder:
    """One layer of width 32 over frames."""
    layer = LayerConfig(AttentionConfig(heads=2, pattern=pattern), FeedForwardConfig(64), NormConfig(epsilon=1e-5))
    return Encoder(
        EncoderConfig(
            inputs=VectorsConfig(features=BANDS),
            width=32,
            layers=(layer,),
            max_length=MINUTE,
            head=LabelsConfig(SPEAKERS, per="token"),
        )
    )


def train(model: Encoder, steps: int = 150) -> None:
    """Adam on cross-entropy over the frames of a few seconds at a time."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    random = np.random.default_rng(0)
    for _ in range(steps):
        frames, speakers = sound(16, random)
        logits = model(features=torch.from_numpy(frames)[None])["logits"][0]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(speakers))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def draw(path: Path, truth: np.ndarray, answers: dict[str, np.ndarray]) -> None:
    """A strip for each: who speaks in the first twelve seconds."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    strips = {"who spoke": truth} | answers
    figure, axes = plt.subplots(len(strips), 1, figsize=(9, 1.2 * len(strips)), sharex=True, layout="constrained")
    for axis, (title, speakers) in zip(axes, strips.items(), strict=True):
        image = axis.imshow(
            speakers[None, : 12 * SECOND], aspect="auto", cmap="viridis", interpolation="nearest",
            extent=(0, 12, 0, 1), vmin=0, vmax=len(SPEAKERS) - 1,
        )  # fmt: skip
        axis.set_yticks([])
        axis.set_title(title, loc="left", fontsize=10)
    axes[-1].set_xlabel("seconds")
    colours = [image.cmap(image.norm(index)) for index in range(len(SPEAKERS))]
    handles = [Patch(color=colour) for colour in colours]
    figure.legend(handles, SPEAKERS, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(build: Path = BUILD) -> dict[str, float]:
    """Returns the share of frames that each model labels right."""
    torch.manual_seed(0)
    build.mkdir(parents=True, exist_ok=True)
    frames, truth = sound(60, np.random.default_rng(1))
    chunked, alone = listener(Chunk(SECOND)), listener(Window(0))
    for model in (chunked, alone):
        train(model)
        model.eval()
    export_bundle(chunked, build / "frames", force=True)
    with served(build / "frames", f"127.0.0.1:{free_port()}") as client:
        answer = client.infer({"features": frames[None]}, ["labels", "logits"])
    heard = np.array([SPEAKERS.index(label) for label in answer["labels"][0]])
    with torch.no_grad():
        guessed = alone(features=torch.from_numpy(frames)[None])["logits"][0].argmax(-1).numpy()
        reference = chunked.double()(features=torch.from_numpy(frames).double()[None])["logits"].numpy()
    accuracies = {"each frame alone": float((guessed == truth).mean()), "chunked": float((heard == truth).mean())}
    for name, share in accuracies.items():
        console.print(f"{name:20} {share:6.1%} of {len(truth)} frames labelled right")
    difference = np.abs(answer["logits"] - reference).max() / max(1, np.abs(reference).max())
    console.print(f"served and reference differ by {difference:.1e}")
    draw(build / "frames.png", truth, {"each frame alone": guessed, "chunked attention, served": heard})
    return accuracies


if __name__ == "__main__":
    main()
