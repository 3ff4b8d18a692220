"""sentence-transformers on torch, in a loop of its own.

https://sbert.net/docs/package_reference/sentence_transformer/SentenceTransformer.html

Letters: B batch, L length, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
from torch import Tensor

from bench.peers.programs.loop import Ids, command_line, follow


class Encoder:
    """`encode()` without its tokenizer, so that it is given the ids that the others are given."""

    def __init__(self, folder: str, batch: int) -> None:
        self._model = SentenceTransformer(folder, device="cpu")
        self._batch = batch

    def answer(self, requests: Sequence[Ids]) -> list[np.ndarray]:
        """`[D]` for each, in batches of like length, longest first, as `encode` makes them."""
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index]))
        answers: list[np.ndarray] = [np.empty(0)] * len(requests)
        for start in range(0, len(order), self._batch):
            chosen = order[start : start + self._batch]
            with torch.inference_mode():
                embedding_BD = self._model(features([requests[index] for index in chosen]))["sentence_embedding"]
            for index, row_D in zip(chosen, embedding_BD.numpy(), strict=True):
                answers[index] = row_D
        return answers


def features(requests: Sequence[Ids]) -> dict[str, Tensor]:
    """`[B, L]` each, as the tokenizer gives them."""
    shape = len(requests), max(map(len, requests))
    ids_BL, mask_BL = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, ids_L in enumerate(requests):
        ids_BL[row, : len(ids_L)] = torch.from_numpy(ids_L)
        mask_BL[row, : len(ids_L)] = 1
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": torch.zeros_like(ids_BL)}


def main() -> None:
    parser = command_line()
    parser.add_argument("--source", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    follow(options.requests, Encoder(options.source, int(options.way)).answer)


if __name__ == "__main__":
    main()
