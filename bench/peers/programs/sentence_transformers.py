"""sentence-transformers on torch, in a loop of its own.

https://sbert.net/docs/package_reference/sentence_transformer/SentenceTransformer.html

Letters: B batch, L length, D width.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from bench.peers.programs.loop import Ids, command_line, follow


class Encoder:
    """`encode()` without its tokenizer, so that it is given the ids that the others are given."""

    def __init__(self, folder: str, batch: int, pool: ThreadPoolExecutor) -> None:
        self._model = SentenceTransformer(folder, device="cpu")
        self._batch = batch
        self._pool = pool

    def answer(self, requests: Sequence[Ids]) -> list[np.ndarray]:
        """`[D]` for each, in batches of like length, longest first, as `encode` makes them."""
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index]))
        batches = [order[start : start + self._batch] for start in range(0, len(order), self._batch)]
        answered = self._pool.map(lambda batch: self._embeddings([requests[index] for index in batch]), batches)
        by_index = dict(zip(order, (row_D for rows_BD in answered for row_D in rows_BD), strict=True))
        return [by_index[index] for index in range(len(requests))]

    def _embeddings(self, requests: Sequence[Ids]) -> np.ndarray:
        """`[B, D]`."""
        with torch.inference_mode():
            return np.asarray(self._model(features(requests))["sentence_embedding"])


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
    parser.add_argument("--threads", type=int, required=True, help="of torch, for one batch")
    parser.add_argument("--pool", type=int, default=1, help="batches that are computed at once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with ThreadPoolExecutor(options.pool) as pool:
        follow(options.requests, Encoder(options.source, int(options.way), pool).answer)


if __name__ == "__main__":
    main()
