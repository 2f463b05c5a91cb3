"""The layers of a streaming Zipformer of the first generation, each with a training pass and a streaming one."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Say how large everything is; a chunk is counted in frames of 20 ms."""

    n_mels: int = 80
    width: int = 96
    attention: int = 64
    heads: int = 4
    position: int = 4
    feedforward: int = 192
    kernel: int = 31
    layers: tuple[int, ...] = (2, 2, 2, 2, 2)
    downsampling: tuple[int, ...] = (1, 2, 4, 8, 2)
    channels: tuple[int, ...] = (8, 32, 64)
    chunk: int = 32
    left_chunks: int = 4
    joiner: int = 128
    context: int = 2

    @property
    def left(self) -> int:
        """Return how many frames of 20 ms before a chunk are attended to."""
        return self.chunk * self.left_chunks


class DoubleSwish(nn.Module):
    """x * sigmoid(x - 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x - 1.0)


class Norm(nn.Module):
    """Scale each frame to a root mean square of one; nothing is centred."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.tensor(math.log(0.25)))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps.exp()).pow(-0.5)


class Subsampling(nn.Module):
    """Turn (n, T, 80) log-mels into (n, (T - 7) // 2, width)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        first, second, third = shape.channels
        self.conv = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=(0, 1)),
            DoubleSwish(),
            nn.Conv2d(first, second, 3, stride=2),
            DoubleSwish(),
            nn.Conv2d(second, third, 3, stride=(1, 2)),
            DoubleSwish(),
        )
        self.out = nn.Linear(third * (((shape.n_mels - 1) // 2 - 1) // 2), shape.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(((x + 6.0) * 0.25).unsqueeze(1))
        n, channels, frames, height = x.shape
        return self.out(x.transpose(1, 2).reshape(n, frames, channels * height))


class Attention(nn.Module):
    """Attend by content and by distance; the weights serve two sets of values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.attention, self.position = shape.heads, shape.attention, shape.position
        self.wide = shape.attention // 2  # of all heads' values
        self.project = nn.Linear(shape.width, 2 * shape.attention + self.wide + shape.heads * shape.position)
        self.places = nn.Linear(shape.width, shape.heads * shape.position, bias=False)
        self.out = nn.Linear(self.wide, shape.width)
        self.project2 = nn.Linear(shape.width, self.wide, bias=False)
        self.out2 = nn.Linear(self.wide, shape.width)
        with torch.no_grad():  # as icefall begins: attention adds little at first
            self.project.weight *= (shape.attention // shape.heads) ** -0.25
            for last in (self.places, self.out, self.out2):
                last.weight *= 0.1

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project frames to query, key, value and the query for distances."""
        sizes = [self.attention, self.attention, self.wide, self.heads * self.position]
        query, key, value, place = self.project(x).split(sizes, dim=-1)
        return query, key, value, place

    def weigh(self, query: Tensor, place: Tensor, key: Tensor, table: Tensor) -> Tensor:
        """Return weights (m, heads, c, n) of queries (m, c, ·) over keys (m, n, ·) that end where the queries do."""
        m, c, _ = query.shape
        n = key.shape[1]
        q = query.reshape(m, c, self.heads, -1).permute(0, 2, 1, 3)
        p = place.reshape(m, c, self.heads, -1).permute(0, 2, 1, 3)
        k = key.reshape(m, n, self.heads, -1).permute(0, 2, 3, 1)
        distances = self.places(table).reshape(1, -1, self.heads, self.position).permute(0, 2, 3, 1)
        by_distance = p @ distances  # (m, heads, c, n + c - 1), furthest first
        index = torch.arange(c - 1, -1, -1, device=query.device).unsqueeze(1) + torch.arange(n, device=query.device)
        shifted = torch.gather(by_distance, 3, index.expand(m, self.heads, c, n))
        return (q @ k + shifted).softmax(-1)

    def mix(self, weights: Tensor, value: Tensor) -> Tensor:
        """Mix values (m, n, wide) by weights: (m, c, wide)."""
        m, n, _ = value.shape
        v = value.reshape(m, n, self.heads, -1).permute(0, 2, 1, 3)
        return (weights @ v).permute(0, 2, 1, 3).reshape(m, -1, self.wide)


def distance_table(c: int, n: int, width: int) -> Tensor:
    """Return sines and cosines of how far a key lies behind a query, from the furthest on: (n + c - 1, width)."""
    behind = torch.arange(n - 1, -c, -1, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    return torch.stack([torch.sin(behind * rate), torch.cos(behind * rate)], dim=2).reshape(len(behind), width)


class Convolution(nn.Module):
    """A gated pointwise, a causal depthwise and a pointwise convolution."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.before = shape.kernel - 1
        self.pointwise1 = nn.Linear(shape.width, 2 * shape.width)
        self.depthwise = nn.Conv1d(shape.width, shape.width, shape.kernel, groups=shape.width)
        self.activation = DoubleSwish()
        self.pointwise2 = nn.Linear(shape.width, shape.width)
        with torch.no_grad():
            self.pointwise2.weight *= 0.1

    def forward(self, x: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve (n, S, width) behind what came before, (n, width, kernel - 1), nothing where it is None."""
        gated = F.glu(self.pointwise1(x), dim=-1).transpose(1, 2)
        gated = F.pad(gated, (self.before, 0)) if cache is None else torch.cat([cache, gated], dim=2)
        kept = gated[:, :, gated.shape[2] - self.before :]
        return self.pointwise2(self.activation(self.depthwise(gated)).transpose(1, 2)), kept


class Feedforward(nn.Sequential):
    """Widen, activate, narrow."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(
            nn.Linear(shape.width, shape.feedforward), DoubleSwish(), nn.Linear(shape.feedforward, shape.width)
        )
        with torch.no_grad():
            self[2].weight *= 0.1


# What streaming keeps of a layer: (n,) and (n, width) of the pooling, keys and both values (left, n, ·), and the last
# frames of both convolutions (n, width, kernel - 1).
LayerStates = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Layer(nn.Module):
    """One Zipformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.feed1, self.feed2, self.feed3 = (Feedforward(shape) for _ in range(3))
        self.pool = nn.Linear(shape.width, shape.width, bias=False)
        self.attention = Attention(shape)
        self.conv1, self.conv2 = Convolution(shape), Convolution(shape)
        self.norm = Norm()
        self.bypass = nn.Parameter(torch.tensor(0.5))
        with torch.no_grad():
            self.pool.weight *= 0.1

    def forward(self, x: Tensor, table: Tensor, c: int, left: int) -> Tensor:
        """Run a whole sequence (n, S, width) of chunks of `c` frames."""
        start = x
        x = x + self.feed1(x)
        heard = torch.arange(1, x.shape[1] + 1, device=x.device).unsqueeze(1)
        x = x + self.pool(x.cumsum(1) / heard)
        query, key, value, place = self.attention.split(x)
        n, frames, _ = x.shape

        def chunks(t: Tensor) -> Tensor:
            return t.reshape(n * (frames // c), c, -1)

        def windows(t: Tensor) -> Tensor:
            seen = F.pad(t, (0, 0, left, 0)).unfold(1, left + c, c)  # (n, chunks, ·, left + c)
            return seen.permute(0, 1, 3, 2).reshape(n * (frames // c), left + c, -1)

        weights = self.attention.weigh(chunks(query), chunks(place), windows(key), table)
        x = x + self.attention.out(self.attention.mix(weights, windows(value)).reshape(n, frames, -1))
        x = x + self.conv1(x)[0]
        x = x + self.feed2(x)
        mixed = self.attention.mix(weights, windows(self.attention.project2(x)))
        x = x + self.attention.out2(mixed.reshape(n, frames, -1))
        x = x + self.conv2(x)[0]
        x = x + self.feed3(x)
        return start + (self.norm(x) - start) * self.bypass

    def stream(self, x: Tensor, table: Tensor, states: LayerStates) -> tuple[Tensor, LayerStates]:
        """Run one chunk (n, c, width) behind what is kept; return it and what is to be kept."""
        length, average, key, value, value2, conv1, conv2 = states
        left = key.shape[0]
        start = x
        x = x + self.feed1(x)
        summed = x.cumsum(1) + (average * length.unsqueeze(1)).unsqueeze(1)
        heard = torch.arange(1, x.shape[1] + 1, device=x.device).unsqueeze(0) + length.unsqueeze(1)
        pooled = summed * (1.0 / heard).unsqueeze(2)
        length, average = length + x.shape[1], pooled[:, -1]
        x = x + self.pool(pooled)
        query, own_key, own_value, place = self.attention.split(x)
        keys = torch.cat([key, own_key.transpose(0, 1)])
        values = torch.cat([value, own_value.transpose(0, 1)])
        weights = self.attention.weigh(query, place, keys.transpose(0, 1), table)
        x = x + self.attention.out(self.attention.mix(weights, values.transpose(0, 1)))
        convolved, conv1 = self.conv1(x, conv1)
        x = x + convolved
        x = x + self.feed2(x)
        values2 = torch.cat([value2, self.attention.project2(x).transpose(0, 1)])
        x = x + self.attention.out2(self.attention.mix(weights, values2.transpose(0, 1)))
        convolved, conv2 = self.conv2(x, conv2)
        x = x + convolved
        x = x + self.feed3(x)
        x = start + (self.norm(x) - start) * self.bypass
        kept = (keys[keys.shape[0] - left :], values[values.shape[0] - left :], values2[values2.shape[0] - left :])
        return x, (length, average, *kept, conv1, conv2)


class Downsample(nn.Module):
    """Replace every few frames by a weighted mean of them."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        n, frames, width = x.shape
        x = x.reshape(n, frames // self.factor, self.factor, width)
        weights = (x * self.query).sum(-1, keepdim=True).softmax(2)
        return (x * weights).sum(2)


class Combine(nn.Module):
    """Add two sequences with weights that sum to one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * self.weight + second * (1.0 - self.weight)
