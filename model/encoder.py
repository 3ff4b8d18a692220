"""The encoder: embeddings, a stack of blocks, and optionally one vector per sequence, or labels.

Letters: B batch, L length, T tokens, D width, F features, C labels, N heads. `...` is `[B, L]` or `[T]`, as the layout
says.
"""

from collections.abc import Iterator, MutableSequence

import torch
from torch import Tensor, nn

from heed.model.attention_plan import AttentionPlan, plan_for_padded_rows
from heed.model.config import EncoderConfig, ImagesConfig, LabelsConfig, PoolingConfig
from heed.model.embeddings import cut_into_patches
from heed.model.layout import GlobalTokens, Layout, Padded
from heed.model.pooling import Pooling
from heed.model.positions import column_positions, counted_positions
from heed.model.transformer_block import Block


class Embeddings(nn.Module):
    """What goes into the first layer: a token's own vector and its position's, summed and normed."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.inputs.width or config.width
        self.inputs = config.inputs.build(config.width)
        self.positions = config.positions.build(width, config.position_rows) if config.positions else None
        self.norm = config.embedding_norm.build(width) if config.embedding_norm else None
        self.project = nn.Linear(width, config.width) if width != config.width else None

    def forward(self, inputs: dict[str, Tensor], layout: Layout) -> Tensor:
        x = self.inputs(inputs)
        if self.positions is not None:
            x = x + self.positions(layout.positions)
        for layer in (self.norm, self.project):
            if layer is not None:
                x = layer(x)
        return x


class Encoder(nn.Module):
    """A self-attention encoder.

    Calling the encoder takes padded rows, as clients send them; `encode` takes tokens in any layout.
    """

    norm: nn.Module | None
    head: nn.Module | None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        heads = config.layers[0].attention.heads
        relative = config.relative_bias
        self.relative_bias = relative.build(heads, config.width, config.max_length) if relative else None
        self.blocks: MutableSequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            layer.build(config.width, config.position_rows) for layer in config.layers
        )
        self.norm = config.final_norm.build(config.width) if config.final_norm else None
        self.head = config.head.build(config.width) if config.head else None

    def encode(self, inputs: dict[str, Tensor], plan: AttentionPlan) -> dict[str, Tensor]:
        """Tokens to answers.

        Args:
            inputs: `input_ids` and `token_type_ids` `[...]`, or `features` `[..., F]`.
            plan: where the tokens lie, and how attention is computed.

        Returns:
            `last_hidden_state` `[..., D]`, and what the head makes of it: `sentence_embedding` `[B, D]`, and
            `unnormalized_embedding` if that is scaled to length 1; or `logits` `[B, C]` or `[..., C]`.
        """
        x = self.embeddings(inputs, plan.layout)
        for block, last in self._layers():
            x = block(x, plan, self.relative_bias, last)
        return self._finish(x, plan.layout)

    def encode_with_attentions(self, inputs: dict[str, Tensor], plan: AttentionPlan) -> dict[str, Tensor]:
        """The same, and `attentions`: the weights of every layer and head, `[B, layers, N, L, L]`."""
        x = self.embeddings(inputs, plan.layout)
        weights = []
        for block, last in self._layers():
            weights.append(block.weights(x, plan, self.relative_bias))
            x = block(x, plan, self.relative_bias, last)
        real_query = plan.layout.real_BL[:, None, None, :, None]
        return self._finish(x, plan.layout) | {"attentions": torch.stack(weights, 1).masked_fill(~real_query, 0.0)}

    def _layers(self) -> Iterator[tuple[Block, bool]]:
        """The blocks, and whether each is the last. Some models have one block several times."""
        for number, block in enumerate(self.blocks, 1):
            yield block, number == len(self.blocks)

    def _finish(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        if self.norm is not None:
            x = self.norm(x)
        outputs = {"last_hidden_state": x}
        if isinstance(self.head, Pooling):
            pooled_BD = self.head.unscaled(x, layout)
            outputs["sentence_embedding"] = self.head.scaled(pooled_BD)
            if "unnormalized_embedding" in self.outputs:
                outputs["unnormalized_embedding"] = pooled_BD
        elif self.head is not None:
            outputs["logits"] = self.head(x, layout)
        return outputs

    @property
    def head_output(self) -> str:
        """What the head's answer is called."""
        return "sentence_embedding" if isinstance(self.config.head, PoolingConfig) else "logits"

    @property
    def outputs(self) -> list[str]:
        """The names of what `encode` returns, in order."""
        head = self.config.head
        of_head = [self.head_output] if head else []
        if isinstance(head, PoolingConfig) and head.gives_unit_length:
            of_head.append("unnormalized_embedding")
        return ["last_hidden_state", *of_head]

    @property
    def per_token(self) -> set[str]:
        """The outputs that have a value for each token."""
        head = self.config.head
        labels_tokens = isinstance(head, LabelsConfig) and head.per == "token"
        return {"last_hidden_state", "logits"} if labels_tokens else {"last_hidden_state"}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        adjacency: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        attentions: bool = False,
    ) -> dict[str, Tensor]:
        """The answers for padded rows.

        Args:
            input_ids: `[B, L]`, at most `config.max_length` columns; for models over tokens.
            attention_mask: `[B, L]`, 1 for a real token, 0 for padding; all real when left out.
            token_type_ids: `[B, L]`; zeros when left out.
            features: `[B, L, F]`; for models over vectors.
            pixel_values: `[B, channels, height, width]`; for models over images.
            adjacency: `[B, L, L]`, True where token i may attend to token j; for models with the pattern `Adjacency`.
            global_attention_mask: `[B, L]`, 1 for tokens that attend to all and that all attend to; for Longformer.
            attentions: whether to return the attention weights, too.

        Returns:
            See `encode`; per-token answers are `[B, L, ...]`, zeros at padding.
        """
        inputs = self._inputs(input_ids, token_type_ids, features, pixel_values)
        real_BL = self._real(inputs, attention_mask)
        shift_B1 = real_BL.long().argmax(1, keepdim=True) if self.config.position_rule.kind == "stripped" else None
        if shift_B1 is not None:  # rows begin with their first real token
            inputs = {name: _shifted(tensor, shift_B1) for name, tensor in inputs.items()}
            real_BL = _shifted(real_BL, shift_B1)
            adjacency = None if adjacency is None else _shifted_pairs(adjacency, shift_B1)
            global_attention_mask = None if global_attention_mask is None else _shifted(global_attention_mask, shift_B1)
        inputs["position_ids"] = self._positions(inputs, real_BL)
        layout = Padded(
            real_BL,
            inputs["position_ids"],
            None if adjacency is None else adjacency.bool(),
            self._global_tokens(global_attention_mask, real_BL),
        )
        encode = self.encode_with_attentions if attentions else self.encode
        return self._outputs(encode(inputs, plan_for_padded_rows(layout)), real_BL, shift_B1)

    def _real(self, inputs: dict[str, Tensor], attention_mask: Tensor | None) -> Tensor:
        """True for real tokens, `[B, L]`.

        Raises:
            ValueError: the rows are longer than the model takes.
        """
        shape = next(iter(inputs.values())).shape[:2]
        if shape[1] > self.config.max_length:
            raise ValueError(f"rows of {shape[1]} columns are more than the model takes, {self.config.max_length}")
        if attention_mask is None:
            attention_mask = torch.ones(shape, device=next(self.parameters()).device)
        return attention_mask.bool()

    def _outputs(self, outputs: dict[str, Tensor], real_BL: Tensor, shift_B1: Tensor | None) -> dict[str, Tensor]:
        """Zeros at padding, and every token back in its own column."""
        for name in self.per_token:
            outputs[name] = outputs[name].masked_fill(~real_BL[:, :, None], 0.0)
            if shift_B1 is not None:
                outputs[name] = _shifted(outputs[name], -shift_B1)
        if "attentions" in outputs and shift_B1 is not None:
            outputs["attentions"] = _shifted_pairs(outputs["attentions"], -shift_B1)
        return outputs

    def _inputs(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        features: Tensor | None,
        pixel_values: Tensor | None,
    ) -> dict[str, Tensor]:
        """The inputs of `encode`, without the positions."""
        if pixel_values is not None:
            assert isinstance(self.config.inputs, ImagesConfig)
            features = cut_into_patches(pixel_values, self.config.inputs.patch)
        if features is not None:
            return {"features": features.to(next(self.parameters()).dtype)}
        if input_ids is None:
            raise ValueError("one of input_ids, features and pixel_values must be given")
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return {"input_ids": input_ids, "token_type_ids": types}

    def _positions(self, inputs: dict[str, Tensor], real_BL: Tensor) -> Tensor:
        rule = self.config.position_rule
        if rule.kind == "counted":
            return counted_positions(inputs["input_ids"], rule.padding_id)
        return column_positions(real_BL)

    def _global_tokens(self, mask_BL: Tensor | None, real_BL: Tensor) -> GlobalTokens | None:
        """The tokens that the mask marks; without a mask the model's first; None if the model has no global tokens."""
        if "global_attention_mask" not in self.config.needs:
            return None
        if mask_BL is None:
            columns_L = torch.arange(real_BL.shape[1], device=real_BL.device)
            mask_BL = (columns_L < self.config.first_tokens_global).expand(real_BL.shape)
        is_global_BL = mask_BL.bool() & real_BL
        count = max(2, int(is_global_BL.sum(1).max()))
        present_BL, slots_BL = is_global_BL.long().sort(dim=1, descending=True, stable=True)
        padding = max(0, count - real_BL.shape[1])
        return GlobalTokens(
            nn.functional.pad(slots_BL, (0, padding))[:, :count],
            nn.functional.pad(present_BL, (0, padding))[:, :count].bool(),
        )


def _shifted(x: Tensor, by_B1: Tensor) -> Tensor:
    """Rows `[B, L, ...]`, each moved to the left by its own number of columns."""
    length = x.shape[1]
    columns_BL = (torch.arange(length, device=x.device) + by_B1) % length
    return x[torch.arange(len(x), device=x.device)[:, None], columns_BL]


def _shifted_pairs(x: Tensor, by_B1: Tensor) -> Tensor:
    """`[B, ..., L, L]`, each row's queries and keys moved to the left by its own number of columns."""
    for dimension in (-2, -1):
        x = _shifted(x.movedim(dimension, 1), by_B1).movedim(1, dimension)
    return x
