"""Training-mode forwards of the two encoders: padded batches, dropout, gradients.

The weights are those of `ops.esm2.Esm2` and `ops.dnabert.Dnabert`; what differs is that the packed
forwards of inference write in place. tests/unit/test_encoder_training.py holds the two together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ops.attention import alibi_slopes
from ops.classifier import Classifier, ClassifierConfig
from ops.dnabert import Dnabert, DnabertConfig, DnabertLayer
from ops.esm2 import TOKEN_DROPOUT_SCALE, Esm2, Esm2Config, Esm2Layer


def esm2_hidden(model: Esm2, tokens: Tensor, lengths: Tensor, drop: float = 0.0) -> Tensor:
    """Last hidden states (rows, longest, width) of padded tokens (rows, longest)."""
    longest = tokens.shape[1]
    # A product instead of a look-up: the gradient of a look-up adds up a letter's many thousand
    # rows one by one where it has to be deterministic.
    letters = F.one_hot(tokens, model.config.vocab).to(_working_dtype(tokens.device))
    x = (letters @ model.embed_tokens.weight.to(letters.dtype)) * TOKEN_DROPOUT_SCALE
    tables = rotary_tables(model.config.width // model.config.heads, longest, x.device)
    cos, sin = (table.to(letters.dtype) for table in tables)
    mask = real_tokens(lengths, longest)[:, None, None, :]
    for layer in model.layers:
        x = esm2_layer(layer, x, cos, sin, mask, drop)
    return model.norm_after(x)


def esm2_layer(
    layer: Esm2Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, drop: float
) -> Tensor:
    """One layer; a function of its own, so that it is compiled once for all layers."""
    rows, longest = x.shape[:2]
    qkv = layer.qkv(layer.norm1(x)).view(rows, longest, 3, layer.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = turn(q, cos, sin), turn(k, cos, sin)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + _drop(layer.out(attended.transpose(1, 2).flatten(2)), drop)
    return x + _drop(layer.fc2(F.gelu(layer.fc1(layer.norm2(x)))), drop)


def dnabert_hidden(model: Dnabert, tokens: Tensor, lengths: Tensor, drop: float = 0.0) -> Tensor:
    """Last hidden states (rows, longest, width) of padded tokens (rows, longest)."""
    rows, longest = tokens.shape
    x = model.norm(model.embed_tokens(tokens) + model.token_type)
    at = torch.arange(longest, device=x.device)
    slopes = alibi_slopes(model.config.heads).to(x.device)
    bias = -slopes[:, None, None] * (at[:, None] - at[None, :]).abs()
    unreal = ~real_tokens(lengths, longest)[:, None, None, :]
    bias = bias[None].expand(rows, -1, -1, -1).masked_fill(unreal, -torch.inf)
    bias = bias.to(_working_dtype(x.device))
    for layer in model.layers:
        x = dnabert_layer(layer, x, bias, drop)
    return x


def dnabert_layer(layer: DnabertLayer, x: Tensor, bias: Tensor, drop: float) -> Tensor:
    """One layer; bias (rows, heads, longest, longest) is ALiBi, -inf where there is no token."""
    rows, longest = x.shape[:2]
    q, k, v = layer.qkv(x).view(rows, longest, 3, bias.shape[1], -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    hidden = layer.norm1(_drop(layer.out(attended.transpose(1, 2).flatten(2)), drop) + x)
    gate, value = layer.gated(hidden).chunk(2, dim=-1)
    return layer.norm2(_drop(layer.wo(F.gelu(gate) * value), drop) + hidden)


def compile_layers() -> None:
    """Compiles the two layer functions, once per shape for all layers of a process."""
    global esm2_layer, dnabert_layer
    esm2_layer = torch.compile(esm2_layer, dynamic=False)
    dnabert_layer = torch.compile(dnabert_layer, dynamic=False)


def _working_dtype(device: torch.device) -> torch.dtype:
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else torch.float32


def rotary_tables(head_width: int, longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (longest, head width / 2) as in `ops.layers.Rotary`, fp32."""
    exponents = torch.arange(0, head_width, 2, device=device).float() / head_width
    angles = torch.arange(longest, device=device).float()[:, None] / 10000**exponents
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (rows, heads, tokens, head width), out of place."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def real_tokens(lengths: Tensor, longest: int) -> Tensor:
    """(rows, longest) bool: which positions hold tokens of the row."""
    return torch.arange(longest, device=lengths.device)[None, :] < lengths[:, None]


def mean_esm2(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over residues: `<cls>` and `<eos>` left out, as `ops.pooling` does."""
    at = torch.arange(hidden.shape[1], device=lengths.device)[None, :]
    inside = (at > 0) & (at < lengths[:, None] - 1)
    return _masked_mean(hidden, inside)


def mean_dnabert(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over all tokens of the row, [CLS] and [SEP] included."""
    return _masked_mean(hidden, real_tokens(lengths, hidden.shape[1]))


def _masked_mean(hidden: Tensor, inside: Tensor) -> Tensor:
    weights = inside.float()[..., None]
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def _drop(x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p) if p else x


class Trainee(nn.Module):
    """Both encoders and the heads that train them: joint, one per modality, and two for masks."""

    def __init__(self, esm2: Esm2Config, dnabert: DnabertConfig, hidden: int) -> None:
        super().__init__()
        self.esm2 = Esm2(esm2, _no_attention)
        self.dnabert = Dnabert(dnabert, _no_attention)
        self.joint = Classifier(ClassifierConfig((dnabert.width, esm2.width), hidden))
        self.esm2_head = nn.Linear(esm2.width, 2)
        self.dnabert_head = nn.Linear(dnabert.width, 2)
        self.esm2_mask_head = nn.Linear(esm2.width, esm2.vocab)
        self.dnabert_mask_head = nn.Linear(dnabert.width, dnabert.vocab)

    def reset(self, seed: int) -> None:
        """Seeded weights: embeddings normal with 1 / sqrt(width), linears Xavier, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.dnabert.token_type.zero_()
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.Embedding):
                    scale = module.weight.shape[1] ** -0.5
                    nn.init.normal_(module.weight, std=scale, generator=generator)

    def joint_logits(self, dna: Tensor, protein: Tensor, drop: float) -> Tensor:
        """Logits (rows, 2) of the MLP over both embeddings."""
        joint = self.joint
        x = F.dropout(torch.cat([dna, protein], 1), drop, training=self.training)
        x = F.relu(joint.bn1(joint.hidden_layer(x)))
        return joint.output_layer(F.dropout(x, 0.5, training=self.training))


def _no_attention(*_: object) -> Tensor:
    raise AssertionError("a trainee is run by the functions of this module")
