"""Whisper's parts as an NPU can run them: static shapes, rank 4 at most, finite masks.

The modules have openai-whisper's parameter names, so its state dict loads as it is. tests/models/whisper/test_parity.py
compares each part token for token with openai-whisper. Vendor environments trace these modules, also with an old torch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

Dims = Mapping[str, int]

# Finite: -inf becomes NaN in fp16 and ruins an int8 scale. exp(-1e4) is exactly 0 in float32.
MASKED = -1e4
WINDOW = 12  # tokens of rknn_model_zoo's decoder


class PlainNorm(nn.LayerNorm):
    """Normalise rows by the primitives of torch's ONNX exporter before opset 17, which compilers know."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        return centred / deviation * self.weight + self.bias


Norm = type[nn.LayerNorm]
NORMS: dict[str, Norm] = {"op": nn.LayerNorm, "primitives": PlainNorm}


class Attention(nn.Module):
    """Attend with plain matmul and softmax over projected keys and values.

    x: (1, m, d), key and value: (1, n, d), mask: additive, broadcast to (1, heads, m, n).
    """

    def __init__(self, d: int, n_head: int) -> None:
        super().__init__()
        self.n_head, self.d_head = n_head, d // n_head
        self.query = nn.Linear(d, d)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = (1, -1, self.n_head, self.d_head)
        q = (self.query(x) * self.d_head**-0.5).reshape(heads).permute(0, 2, 1, 3)
        k = key.reshape(heads).permute(0, 2, 3, 1)
        v = value.reshape(heads).permute(0, 2, 1, 3)
        scores = q @ k if mask is None else q @ k + mask
        mixed = torch.softmax(scores, dim=-1) @ v
        rows: Tensor = self.out(mixed.permute(0, 2, 1, 3).reshape(1, -1, self.n_head * self.d_head))
        return rows


class SplitAttention(nn.Module):
    """Attend with one row to keys and values split into heads.

    x: (1, 1, d), key: (n_head, d_head, n), value: (n_head, n, d_head).
    """

    def __init__(self, d: int, n_head: int) -> None:
        super().__init__()
        self.n_head, self.d_head = n_head, d // n_head
        self.query = nn.Linear(d, d)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q = (self.query(x) * self.d_head**-0.5).reshape(self.n_head, 1, self.d_head)
        mixed = torch.softmax(q @ key, dim=-1) @ value
        row: Tensor = self.out(mixed.reshape(1, 1, self.n_head * self.d_head))
        return row


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, d: int, n_head: int, norm: Norm) -> None:
        super().__init__()
        self.attn = Attention(d, n_head)
        self.attn_ln = norm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.mlp_ln = norm(d)
        self.outlier: nn.Module | None = None  # branch of the huge neurons (nightjar/quantization/graph_rewrites.py)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn_ln(x)
        x = x + self.attn(y, self.attn.key(y), self.attn.value(y))
        return self.feed(x)

    def feed(self, x: Tensor) -> Tensor:
        """Run the feed-forward half."""
        y = self.mlp_ln(x)
        if self.outlier is not None:
            x = x + self.outlier(y)
        rows: Tensor = self.mlp(y)
        return x + rows


class Encoder(nn.Module):
    """mel (1, n_mels, 2 * n_ctx), with `conv2d` (1, n_mels, 1, 2 * n_ctx) -> hidden (1, n_ctx, d)."""

    positional_embedding: Tensor

    def __init__(self, dims: Dims, n_ctx: int, conv2d: bool, norm: Norm) -> None:
        super().__init__()
        d = dims["n_audio_state"]
        self.conv1: nn.Module
        self.conv2: nn.Module
        if conv2d:
            self.conv1 = nn.Conv2d(dims["n_mels"], d, kernel_size=(1, 3), padding=(0, 1))
            self.conv2 = nn.Conv2d(d, d, kernel_size=(1, 3), stride=(1, 2), padding=(0, 1))
        else:
            self.conv1 = nn.Conv1d(dims["n_mels"], d, kernel_size=3, padding=1)
            self.conv2 = nn.Conv1d(d, d, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positional_embedding", torch.empty(n_ctx, d))
        layers = range(dims["n_audio_layer"])
        self.blocks = nn.ModuleList(EncoderBlock(d, dims["n_audio_head"], norm) for _ in layers)
        self.ln_post = norm(d)

    def forward(self, mel: Tensor) -> Tensor:
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mel))))
        if x.dim() == 4:
            x = x.reshape(1, self.positional_embedding.shape[1], -1)
        x = x.permute(0, 2, 1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        hidden: Tensor = self.ln_post(x)
        return hidden


class KeyValue(nn.Module):
    """Project rows to keys and values in the layout of each head's products, so that no decoder step transposes them.

    x: (1, n, d) -> (n_head, d_head, n), (n_head, n, d_head).
    """

    def __init__(self, d: int, n_head: int) -> None:
        super().__init__()
        self.heads = (-1, n_head, d // n_head)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.key(x).reshape(self.heads), self.value(x).reshape(self.heads)
        return keys.permute(1, 2, 0), values.permute(1, 0, 2)


class CrossBlock(nn.Module):
    """One layer's projections under their name in a decoder block."""

    def __init__(self, d: int, n_head: int) -> None:
        super().__init__()
        self.cross_attn = KeyValue(d, n_head)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.cross_attn(hidden)
        return pair


class Cross(nn.Module):
    """hidden (1, n_audio_ctx, d) -> cross_k_0, cross_v_0, cross_k_1, ... as `KeyValue` splits them."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        d, n_head = dims["n_text_state"], dims["n_text_head"]
        self.blocks = nn.ModuleList(CrossBlock(d, n_head) for _ in range(dims["n_text_layer"]))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return tuple(rows for block in self.blocks for rows in block(hidden))


class DecoderBlock(EncoderBlock):
    """Self-attention, cross-attention and feed-forward."""

    attention: type[Attention | SplitAttention]

    def __init__(self, d: int, n_head: int, norm: Norm) -> None:
        super().__init__(d, n_head, norm)
        self.cross_attn = self.attention(d, n_head)
        self.cross_attn_ln = norm(d)

    def rest(self, x: Tensor, cross_k: Tensor, cross_v: Tensor) -> Tensor:
        """Run cross-attention and feed-forward."""
        return self.feed(x + self.cross_attn(self.cross_attn_ln(x), cross_k, cross_v))


class PrefixBlock(DecoderBlock):
    """Run over a whole prefix: x (1, n, d), audio (1, n_audio_ctx, d) -> (1, n, d)."""

    attention = Attention
    cross_attn: Attention

    def forward(self, x: Tensor, audio: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        y = self.attn_ln(x)
        x = x + self.attn(y, self.attn.key(y), self.attn.value(y), mask)
        return self.rest(x, self.cross_attn.key(audio), self.cross_attn.value(audio))


class CachedBlock(DecoderBlock):
    """Run one row over a cache: x (1, 1, d) -> x, its new key and value rows, (1, 1, d) each."""

    attention = SplitAttention

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor, self_k: Tensor, self_v: Tensor, cross_k: Tensor, cross_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = self.attn_ln(x)
        new_k, new_v = self.attn.key(y), self.attn.value(y)
        key, value = torch.cat([self_k, new_k], dim=1), torch.cat([self_v, new_v], dim=1)
        x = x + self.attn(y, key, value, mask)
        return self.rest(x, cross_k, cross_v), new_k, new_v


class Decoder(nn.Module):
    """Base of the protocols' decoders: tables, blocks, and the head tied to the token table.

    length: rows of the prefix or the cache; with host embedding there is no positional table.
    """

    block: type[DecoderBlock]
    positional_embedding: Tensor
    no_bias: Tensor

    def __init__(self, dims: Dims, length: int, host_embedding: bool, norm: Norm) -> None:
        super().__init__()
        d = dims["n_text_state"]
        self.d, self.host_embedding = d, host_embedding
        self.token_embedding = nn.Embedding(dims["n_vocab"], d, _weight=torch.empty(dims["n_vocab"], d))
        if not host_embedding:
            self.register_buffer("positional_embedding", torch.empty(length, d))
        layers = range(dims["n_text_layer"])
        self.blocks = nn.ModuleList(self.block(d, dims["n_text_head"], norm) for _ in layers)
        self.ln = norm(d)
        # A zero bias makes the head a Gemm on the table itself; a MatMul would store it transposed: 80 MB more in tiny.
        self.register_buffer("no_bias", torch.zeros(dims["n_vocab"]), persistent=False)

    def logits(self, x: Tensor) -> Tensor:
        """(1, n, d) -> (1, n, n_vocab); the 2-D product becomes one Gemm on the shared table."""
        rows = functional.linear(self.ln(x).reshape(-1, self.d), self.token_embedding.weight, self.no_bias)
        return rows.reshape(1, -1, self.token_embedding.num_embeddings)


class PrefixDecoder(Decoder):
    """Protocols `window` and `static`: the whole prefix at every step.

    tokens (1, length) int64 or embedding (1, length, d), audio (1, n_audio_ctx, d), for `static` last (1, 1, length)
    one-hot -> logits of every row, or of the `last` one alone, in `slices` consecutive tensors of the vocabulary.
    """

    block = PrefixBlock

    def __init__(self, dims: Dims, length: int, host_embedding: bool, norm: Norm, slices: int, masked: float) -> None:
        super().__init__(dims, length, host_embedding, norm)
        mask = torch.full((1, 1, length, length), masked, device="cpu").triu(1)  # on "meta" it would import dynamo
        self.register_buffer("mask", mask, persistent=False)
        self.heads = nn.ModuleList()
        if slices > 1:  # of one size, and the rest in the last
            size = dims["n_vocab"] // slices
            sizes = [size] * (slices - 1) + [dims["n_vocab"] - size * (slices - 1)]
            self.heads.extend(nn.Linear(self.d, size, bias=False) for size in sizes)
            if host_embedding:
                del self.token_embedding  # nothing reads the table as a whole

    def forward(self, prefix: Tensor, audio: Tensor, last: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        x = prefix
        if not self.host_embedding:
            x = self.token_embedding(prefix) + self.positional_embedding
        for block in self.blocks:
            x = block(x, audio, self.mask)
        x = x if last is None else last @ x
        if self.heads:
            x = self.ln(x)
            return tuple(head(x) for head in self.heads)
        return self.logits(x)


class CachedDecoder(Decoder):
    """Protocol `cached`: one token and a KV cache on the host.

    token, position (1, 1) int64 or embedding (1, 1, d); mask (1, 1, 1, length + 1); then per layer self_k, self_v
    (1, length, d) and per layer cross_k, cross_v as from `Cross` -> logits (1, 1, n_vocab), then per layer new_k, new_v
    (1, 1, d).
    """

    block = CachedBlock

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.host_embedding:
            x, mask, *cache = inputs
        else:
            token, position, mask, *cache = inputs
            x = self.token_embedding(token) + functional.embedding(position, self.positional_embedding)
        new: list[Tensor] = []
        own, cross = cache[: len(cache) // 2], cache[len(cache) // 2 :]
        for i, block in enumerate(self.blocks):
            pair = slice(2 * i, 2 * i + 2)
            x, new_k, new_v = block(x, mask, *own[pair], *cross[pair])
            new += [new_k, new_v]
        return (self.logits(x), *new)


def weight_shapes(dims: Dims) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors by name, allocating none."""
    norm = nn.LayerNorm
    with torch.device("meta"):
        encoder = Encoder(dims, dims["n_audio_ctx"], conv2d=False, norm=norm)
        decoder = PrefixDecoder(dims, dims["n_text_ctx"], host_embedding=False, norm=norm, slices=1, masked=MASKED)
    return {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in (("encoder", encoder), ("decoder", decoder))
        for name, tensor in module.state_dict().items()
    }


def load(module: nn.Module, state: Mapping[str, Tensor], part: str, positional: str = "first") -> nn.Module:
    """Fill a module from a checkpoint's state, cut to its own shapes: positional rows, slices of the head, kernels."""
    filled = {}
    head_rows = 0  # of the token table in the head's slices so far
    for name, tensor in module.state_dict().items():
        rows, is_head = len(tensor), name.startswith("heads.")
        value = state[f"{part}.token_embedding.weight" if is_head else f"{part}.{name}"]
        if is_head:
            value = value[head_rows : head_rows + rows]
            head_rows += rows
        elif name == "positional_embedding":
            value = value[:rows] if positional == "first" else value[-rows:]
        elif tensor.dim() == 4:  # a kernel of two dimensions over one row
            value = value.unsqueeze(2)
        filled[name] = value
    module.load_state_dict(filled, assign=True)  # shares the weights: large-v3 has 6 GB of them
    return module.eval().requires_grad_(False)
