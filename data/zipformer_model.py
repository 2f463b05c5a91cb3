"""A small streaming Zipformer of the first generation, and the transducer around its encoder.

The architecture is that of Yao et al., "Zipformer" (2023), in the variant that icefall calls
pruned_transducer_stateless7_streaming: five stacks at 50, 25, 12.5, 6.25 and 25 Hz, attention weights used twice, a
pooling over all that was heard. Inputs, states and outputs of the streaming pass are those that sherpa-onnx knows.

Training sees a whole utterance, chunk by chunk in one batch: each chunk attends to the same keys that streaming keeps
for it, zeros before the beginning among them, so that both passes give the same numbers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zipformer_layers import Combine, Downsample, Layer, Shape, Subsampling, distance_table

LOOKAHEAD = 7  # frames of 10 ms that the first convolutions need beyond a chunk
FLOOR = -15.942385  # log of float32's epsilon: what digital silence is in Kaldi's filterbank


class Stack(nn.Module):
    """Some layers at a frame rate of their own."""

    def __init__(self, shape: Shape, layers: int, factor: int) -> None:
        super().__init__()
        self.factor, self.c, self.left = factor, shape.chunk // factor, shape.left // factor
        self.layers = nn.ModuleList(Layer(shape) for _ in range(layers))
        self.register_buffer("table", distance_table(self.c, self.left + self.c, shape.width), persistent=False)
        if factor > 1:
            self.down = Downsample(shape.width, factor)
            self.bias = nn.Parameter(torch.randn(factor, shape.width) * 0.01)
            self.combine = Combine()

    def up(self, before: Tensor, x: Tensor) -> Tensor:
        """Repeat frames to the rate of what came in, and combine the two."""
        n, frames, width = x.shape
        x = (x.unsqueeze(2) + self.bias).reshape(n, frames * self.factor, width)
        return self.combine(before, x)

    def forward(self, x: Tensor) -> Tensor:
        before = x
        if self.factor > 1:
            x = self.down(x)
        for layer in self.layers:
            x = layer(x, self.table, self.c, self.left)
        return self.up(before, x) if self.factor > 1 else x

    def stream(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run one chunk; states: what is kept of the layers, one behind the other along the first axis of each."""
        before, kept = x, []
        if self.factor > 1:
            x = self.down(x)
        for number, layer in enumerate(self.layers):
            x, new = layer.stream(x, self.table, tuple(state[number] for state in states))
            kept.append(new)
        new_states = [torch.stack(each) for each in zip(*kept, strict=True)]
        return (self.up(before, x) if self.factor > 1 else x), new_states


KINDS = ("cached_len", "cached_avg", "cached_key", "cached_val", "cached_val2", "cached_conv1", "cached_conv2")


class Encoder(nn.Module):
    """Log-mels to frames of 40 ms for the joiner."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = Subsampling(shape)
        self.stacks = nn.ModuleList(
            Stack(shape, layers, factor) for layers, factor in zip(shape.layers, shape.downsampling, strict=True)
        )
        self.skip = nn.ModuleDict({str(i): Combine() for i in skips(shape.downsampling)})
        self.down = Downsample(shape.width, 2)
        self.project = nn.Linear(shape.width, shape.joiner)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run (n, 2 S + 7, 80), S in whole chunks; return (n, S / 2, joiner) and the frames of 20 ms (n, S, width)."""
        x = self.embed(x)
        outputs: list[Tensor] = []
        for number, stack in enumerate(self.stacks):
            x = stack(self._skipped(number, x, outputs))
            outputs.append(x)
        return self.project(self.down(x)), x

    def stream(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run one chunk (n, 2 c + 7, 80); states grouped by kind, as `initial_states` gives them."""
        x = self.embed(x)
        count = len(self.stacks)
        outputs: list[Tensor] = []
        kept: list[list[Tensor]] = []
        for number, stack in enumerate(self.stacks):
            own = [states[kind * count + number] for kind in range(len(KINDS))]
            x, new = stack.stream(self._skipped(number, x, outputs), own)
            outputs.append(x)
            kept.append(new)
        return self.project(self.down(x)), [new[kind] for kind in range(len(KINDS)) for new in kept]

    def _skipped(self, number: int, x: Tensor, outputs: list[Tensor]) -> Tensor:
        source = skips(self.shape.downsampling).get(number)
        return x if source is None else self.skip[str(number)](outputs[source], x)

    def initial_states(self, n: int = 1) -> dict[str, Tensor]:
        """Return what streaming begins with, zeros all, by name."""
        shape, sizes = self.shape, {}
        for i, (layers, factor) in enumerate(zip(shape.layers, shape.downsampling, strict=True)):
            left, wide = shape.left // factor, shape.attention // 2
            for kind, size in zip(
                KINDS,
                (
                    (layers, n),
                    (layers, n, shape.width),
                    (layers, left, n, shape.attention),
                    (layers, left, n, wide),
                    (layers, left, n, wide),
                    (layers, n, shape.width, shape.kernel - 1),
                    (layers, n, shape.width, shape.kernel - 1),
                ),
                strict=True,
            ):
                sizes[kind, i] = size
        dtype = {"cached_len": torch.int64}
        order = [(kind, i) for kind in KINDS for i in range(len(shape.layers))]
        return {f"{kind}_{i}": torch.zeros(sizes[kind, i], dtype=dtype.get(kind, torch.float32)) for kind, i in order}


def skips(downsampling: Sequence[int]) -> dict[int, int]:
    """Say which stack also takes which earlier one's output: the last as fine as itself, behind a coarser one."""
    found = {}
    for i in range(2, len(downsampling)):
        if downsampling[i - 1] > downsampling[i]:
            found[i] = next(j for j in range(i - 2, -1, -1) if downsampling[j] <= downsampling[i] or j == 0)
    return found


class Decoder(nn.Module):
    """The last two tokens to a vector for the joiner; there is no recurrence."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.conv = nn.Conv1d(shape.width, shape.width, shape.context, groups=shape.width // 4, bias=False)
        self.project = nn.Linear(shape.width, shape.joiner)

    def forward(self, y: Tensor) -> Tensor:
        """Turn tokens (n, context), -1 for none, into (n, joiner)."""
        rows = self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)
        return self.project(F.relu(self.conv(rows.transpose(1, 2)).squeeze(-1)))


class Joiner(nn.Module):
    """A frame and a context to the logits of what is said there."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.out = nn.Linear(shape.joiner, vocabulary)
        with torch.no_grad():
            self.out.bias[0] = 3.0  # most frames say nothing

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.out(torch.tanh(encoder_out + decoder_out))


class Transducer(nn.Module):
    """Encoder, decoder and joiner, and the heads that training alone has."""

    def __init__(self, shape: Shape, vocabulary: int, classes: Sequence[int] = ()) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape, vocabulary)
        self.joiner = Joiner(shape, vocabulary)
        self.heads = nn.ModuleList(nn.Linear(shape.width, n) for n in classes)
