"""What goes in: tokens, vectors or images, each to one vector of width D per token.

Letters: B batch, L length, T tokens, D width, F features. `...` is `[B, L]` or `[T]`, as the layout says.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from heed.model.config_checks import check_integers


@dataclass(frozen=True)
class TokensConfig:
    """Token ids, looked up in a table."""

    vocabulary: int  # rows of the token table
    token_types: int = 0  # rows of the token type table; 0: there is none
    width: int | None = None  # of the tables, if it is not D: a linear layer leads to D (ELECTRA)
    scale: float = 1.0  # of what the token table holds (Gemma: √D)

    def __post_init__(self) -> None:
        check_integers(self, "vocabulary")
        check_integers(self, "token_types", least=0)
        if self.width is not None:
            check_integers(self, "width")

    def build(self, width: int) -> "TokenEmbedding":
        return TokenEmbedding(self, self.width or width)


class TokenEmbedding(nn.Module):
    """A token's own vector plus its type's."""

    def __init__(self, config: TokensConfig, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, width)
        self.types = nn.Embedding(config.token_types, width) if config.token_types else None
        self.scale = config.scale

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """`input_ids` and `token_type_ids`, each `[...]`, to `[..., D]`."""
        x = self.tokens(inputs["input_ids"])
        if self.scale != 1:
            x = x * self.scale
        return x if self.types is None else x + self.types(inputs["token_type_ids"])


@dataclass(frozen=True)
class VectorsConfig:
    """Vectors of F floats: audio frames, graph nodes, patches."""

    features: int  # F
    width: ClassVar[None] = None  # always D

    def __post_init__(self) -> None:
        check_integers(self, "features")

    def build(self, width: int) -> "FeatureProjection":
        return FeatureProjection(self.features, width)


class FeatureProjection(nn.Module):
    """A linear layer from F to D; none where they are equal."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, width) if features != width else nn.Identity()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """`features` `[..., F]` to `[..., D]`."""
        return self.project(inputs["features"])


@dataclass(frozen=True)
class ImagesConfig:
    """Images cut into square patches, with a learned class token before them (ViT, Dosovitskiy et al., 2021)."""

    channels: int
    height: int
    image_width: int
    patch: int
    width: ClassVar[None] = None  # always D

    def __post_init__(self) -> None:
        check_integers(self, "channels", "height", "image_width", "patch")
        if self.height % self.patch or self.image_width % self.patch:
            raise ValueError(f"an image of {self.height} x {self.image_width} is not cut into patches of {self.patch}")

    @property
    def patches(self) -> int:
        return (self.height // self.patch) * (self.image_width // self.patch)

    @property
    def features(self) -> int:
        """F: the values of a patch."""
        return self.channels * self.patch * self.patch

    def build(self, width: int) -> "PatchEmbedding":
        return PatchEmbedding(self, width)


class PatchEmbedding(nn.Module):
    """Patches to vectors; the class token stands at position 0, where the features are zeros and do not matter."""

    def __init__(self, config: ImagesConfig, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(config.features, width)
        self.class_token = nn.Parameter(torch.zeros(width))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """`features` `[..., F]` and `position_ids` `[...]` to `[..., D]`."""
        is_class_token = (inputs["position_ids"] == 0)[..., None]
        return torch.where(is_class_token, self.class_token, self.project(inputs["features"]))


def cut_into_patches(pixels_BCHW: Tensor, patch: int) -> Tensor:
    """Patches row by row, each flattened as a convolution's kernel is (channel, row, column), behind a row of zeros.

    Returns `[B, 1 + patches, F]`.
    """
    batch, channels, _, _ = pixels_BCHW.shape
    tiles = pixels_BCHW.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, rows, columns, patch, patch]
    features = tiles.permute(0, 2, 3, 1, 4, 5).reshape(batch, -1, channels * patch * patch)
    return torch.cat([torch.zeros_like(features[:, :1]), features], 1)
