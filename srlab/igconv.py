"""Implicit grid convolution: one small network that emits the sub-pixel convolution kernel of any integer scale.

The method of IGConv, arXiv 2408.09674 (the paper). A fixed-scale SPConv stores its own weight for each scale. IGConv
stores a continuous function instead: asked for scale r, a hyper-network is evaluated at the centres of an r x r grid
laid over one low-resolution pixel, once for every kernel element (input channel and tap), and answers with the RGB
weight that the SPConv of that scale has there.

The hyper-network is `hypernetwork.ImplicitKernel`.

* `IGConv`: that kernel as a convolution, then pixel shuffle.
* `IGSample`: a second such kernel predicts where in the input picture each output pixel looks (after DySample).
* `IGConvPlus`: the sum of both, with FGRep (kernels averaged over flips and rotations) in each.

All are upsamplers in the sense of `upsamplers.py`. Behaviour follows the official code, so that its checkpoints fit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srlab.hypernetwork import ImplicitKernel
from srlab.upsamplers import RGB, SPConv, WithSkip, checked_scale

CPU_STRIP = 20_480  # LR pixels that IGConv+ works on at once: 32 rows of 640; 8 rows took 1.2 times as long
GPU_STRIP = 131_072  # a GPU needs more at once to be busy
RINGS = [  # taps that an averaged 3 x 3 filter weighs alike
    [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    [[0, 1, 0], [1, 0, 1], [0, 1, 0]],
    [[1, 0, 1], [0, 0, 0], [1, 0, 1]],
]
SAMPLED_RADIUS = 2  # LR pixels: one for bilinear reading, one for shifts, which stay well below it when learnt


class IGConv(nn.Module):
    """Implicit grid convolution: feats (B, C, h, w) -> sr (B, 3, h * scale, w * scale) at any integer scale.

    Args:
        channels: width C of the features.
        kernel_size, implicit_dim, hidden_layers, fgrep, max_scale, fourier: as in `ImplicitKernel`; defaults are the
            paper's. Plain IGConv has `fgrep=False`; IGConv+ averages its kernels.
    """

    scales = None  # any integer

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        implicit_dim: int = 256,
        hidden_layers: int = 4,
        fgrep: bool = False,
        max_scale: int = 4,
        fourier: bool = True,
    ):
        super().__init__()
        self.hyper = ImplicitKernel(
            channels,
            RGB,
            kernel_size=kernel_size,
            implicit_dim=implicit_dim,
            hidden_layers=hidden_layers,
            fgrep=fgrep,
            max_scale=max_scale,
            fourier=fourier,
        )

    @property
    def receptive_radius(self) -> int:
        return self.hyper.kernel_size // 2

    def kernel(self, scale: int) -> Tensor:
        """The sub-pixel convolution weight of `scale`, (3 * scale**2, C, k, k), as `SPConv.weight` is laid out.

        A copy: the upsampler keeps its own, whatever is written into this one.
        """
        return self.hyper(scale).clone()

    def forward(self, feats: Tensor, scale: int, lr: Tensor | None = None) -> Tensor:
        kernel = self.hyper(scale)
        return F.pixel_shuffle(F.conv2d(feats, kernel, padding=self.receptive_radius), scale)

    @torch.no_grad()
    def instantiate(self, scale: int) -> SPConv:
        """The plain sub-pixel convolution that does the same at `scale`: 3 * scale**2 * C * k**2 weights, no bias."""
        kernel = self.hyper(scale)
        conv = SPConv(self.hyper.channels, scale, bias=False, kernel_size=self.hyper.kernel_size).to(kernel)
        conv.weight.copy_(kernel)
        return conv.train(self.training)


class IGSample(nn.Module):
    """Input-dependent sampling: where in the input picture does each output pixel look? (paper's IGSample)

    A kernel of 12 maps gives, for each output pixel and colour, a shift (x, y) and its scope; the picture is read
    bilinearly at (own position + shift * sigmoid(scope) / 2), in LR pixels. Shifts of zero give bilinear upsampling.

    The official initialisation is kept: its comment says that the colours start with equal shifts, but rows are laid
    out axis first and repeated colour first: (x of red, x of blue, y of green) start equal, and so do the others.

    Args:
        channels: width C of the features.
        kernel_size, implicit_dim, hidden_layers, fgrep, max_scale, fourier: as in `ImplicitKernel`; defaults are the
            paper's.
    """

    scales = None

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        implicit_dim: int = 256,
        hidden_layers: int = 2,
        fgrep: bool = True,
        max_scale: int = 4,
        fourier: bool = True,
    ):
        super().__init__()
        self.hyper = ImplicitKernel(
            channels,
            4 * RGB,
            kernel_size=kernel_size,
            implicit_dim=implicit_dim,
            hidden_layers=hidden_layers,
            groups=2,
            last_bias=False,
            fgrep=fgrep,
            max_scale=max_scale,
            fourier=fourier,
        )
        self._start_near_bilinear()

    @torch.no_grad()
    def _start_near_bilinear(self) -> None:
        for parameter in self.hyper.layers.parameters():
            nn.init.trunc_normal_(parameter, std=0.01)
        last = self.hyper.layers[-1].weight  # (12, D / 2, 1, 1): six rows of shifts, six rows of scopes
        two_rows = nn.init.trunc_normal_(torch.empty_like(last[:2]), std=0.01)
        last.copy_(torch.cat([two_rows.repeat(RGB, 1, 1, 1), torch.zeros_like(last[: 2 * RGB])]))

    @property
    def receptive_radius(self) -> int:
        return max(SAMPLED_RADIUS, self.hyper.kernel_size // 2)

    def kernel(self, scale: int) -> Tensor:
        """Filter bank of the sampling maps, (12 * scale**2, C, k, k). A copy, as `IGConv.kernel`."""
        return self.hyper(scale).clone()

    def forward(self, feats: Tensor, scale: int, lr: Tensor) -> Tensor:
        maps = F.conv2d(feats, self.hyper(scale), padding=self.hyper.kernel_size // 2)
        return F.pixel_shuffle(sample_picture(lr, maps.contiguous(), scale), scale)

    @torch.no_grad()
    def instantiate(self, scale: int) -> StoredIGSample:
        return StoredIGSample(self.kernel(scale), scale).train(self.training)


def sample_picture(lr: Tensor, maps: Tensor, scale: int, first_row: int = 0) -> Tensor:
    """Read `lr` bilinearly where `maps` say, each colour at its own places.

    Maps are read as the convolution leaves them: pixel shuffle would move four numbers per value that it has to move
    afterwards, and rows of LR pixels, not of HR pixels, are what `grid_sample` finds side by side in memory. Places are
    computed in 32 bits at least: bfloat16 knows the columns of a picture 1000 wide to five pixels.

    Args:
        lr: (B, 3, h, w); read with its border repeated.
        maps: (B, 12 * scale**2, rows, w) in pixel-shuffle order: shifts (x of R, G, B, then y), then their scopes.
        scale: upsampling factor.
        first_row: row of `lr` that the first row of `maps` belongs to.

    Returns:
        (B, 3 * scale**2, rows, w), to be pixel-shuffled into `rows * scale` rows of the picture.
    """
    (batch, _, h, w), rows = lr.shape, maps.shape[-2]
    shift_x, shift_y, scope_x, scope_y = maps.reshape(batch, 4, RGB, scale, scale, rows, w).unbind(1)
    number = {"device": lr.device, "dtype": torch.promote_types(lr.dtype, torch.float32)}
    sub_pixels = (torch.arange(scale, **number)[:, None] + 0.5) / scale  # (scale, 1), in LR pixels
    columns = 2 * (torch.arange(w, **number) + sub_pixels) / w - 1  # (v, w); -1 and 1 are the picture's outer edges
    lines = 2 * (torch.arange(first_row, first_row + rows, **number) + sub_pixels) / h - 1  # (u, rows)
    # shift * sigmoid(scope) / 2 LR pixels, where a pixel is 2 / w of the picture's width
    x = torch.addcmul(columns[:, None], shift_x, scope_x.sigmoid(), value=1 / w)  # (B, colour, u, v, rows, w)
    y = torch.addcmul(lines[:, None, :, None], shift_y, scope_y.sigmoid(), value=1 / h)
    grid = torch.stack([x, y], dim=-1).view(batch * RGB, scale**2 * rows, w, 2)
    picture = lr.reshape(batch * RGB, 1, h, w).to(grid)
    sampled = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.view(batch, RGB * scale**2, rows, w).to(lr)


class StoredIGSample(nn.Module):
    """IGSample for one scale: the filter bank is a stored weight, 12 * scale**2 * C * k**2 parameters.

    Args:
        weight: filter bank (12 * scale**2, C, k, k).
        scale: the scale it was computed for.
    """

    def __init__(self, weight: Tensor, scale: int):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(weight)

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.scale,)

    @property
    def receptive_radius(self) -> int:
        return max(SAMPLED_RADIUS, self.weight.shape[-1] // 2)

    def forward(self, feats: Tensor, scale: int | None = None, lr: Tensor | None = None) -> Tensor:
        checked_scale(self.scale if scale is None else scale, self.scales)
        maps = F.conv2d(feats, self.weight, padding=self.weight.shape[-1] // 2)
        return F.pixel_shuffle(sample_picture(lr, maps, self.scale), self.scale)

    def instantiate(self, scale: int) -> StoredIGSample:
        checked_scale(scale, self.scales)
        return StoredIGSample(self.weight.detach().clone(), self.scale)


class IGConvPlus(WithSkip):
    """IGConv+ : IGConv and IGSample added, both with kernels averaged over flips and rotations (paper's IGConv+).

    Where the encoder subtracts a mean colour, the model adds it back to the sum although the sampled picture already
    carries it: the official code does so, and its weights have learnt it. Its frequency loss is in `losses.py`.

    Args:
        channels: width C of the features.
        kernel_size, implicit_dim, hidden_layers, max_scale, fourier: as in `ImplicitKernel`; IGSample has half the
            layers.
        fgrep: average the kernels; the paper's IGConv+ does.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        implicit_dim: int = 256,
        hidden_layers: int = 4,
        fgrep: bool = True,
        max_scale: int = 4,
        fourier: bool = True,
    ):
        shared = {"kernel_size": kernel_size, "implicit_dim": implicit_dim}
        shared |= {"fgrep": fgrep, "max_scale": max_scale, "fourier": fourier}
        super().__init__(
            IGConv(channels, hidden_layers=hidden_layers, **shared),
            IGSample(channels, hidden_layers=hidden_layers // 2, **shared),
        )

    def bank(self, scale: int) -> Tensor:
        """Filters of both parts, (15 * scale**2, C, k, k): 3 * scale**2 are IGConv's, the others IGSample's."""
        return torch.cat([self.main.hyper(scale), self.skip.hyper(scale)])

    def forward(self, feats: Tensor, scale: int, lr: Tensor | None = None) -> Tensor:
        """`main(feats, scale) + skip(feats, scale, lr)`, by one convolution."""
        fold = self.main.hyper.fgrep and torch.is_grad_enabled()  # without gradients: to the bit as once stored
        return paint_and_sample(feats, self.bank(scale), scale, lr, fold=fold)

    @torch.no_grad()
    def instantiate(self, scale: int) -> StoredIGConvPlus:
        """One stored filter bank that does the same at `scale`: 15 * scale**2 * C * k**2 parameters, no bias."""
        return StoredIGConvPlus(self.bank(scale), scale).train(self.training)


def paint_and_sample(feats: Tensor, bank: Tensor, scale: int, lr: Tensor | None, *, fold: bool) -> Tensor:
    """What a filter bank of IGConv+ makes of features: pixels painted, and pixels read from the picture, added.

    Works in strips of rows. For a whole picture 15 maps per HR pixel would be held in memory, several times over; here
    those of one strip are, beside the picture itself.

    Args:
        feats: (B, C, h, w).
        bank: (15 * scale**2, C, k, k), see `IGConvPlus.bank`.
        scale: the scale the bank is for.
        lr: the picture that is read, (B, 3, h, w).
        fold: the bank is averaged over flips and rotations, so that features may be summed first; see `_maps`.

    Returns:
        (B, 3, h * scale, w * scale).

    Raises:
        ValueError: no `lr`.
    """
    if lr is None:
        raise ValueError("IGConv+ samples the input picture: pass it as lr (B, 3, h, w)")
    batch, _, h, w = lr.shape
    pixels = CPU_STRIP if lr.device.type == "cpu" else GPU_STRIP
    rows = max(1, pixels // (batch * w))
    if rows >= h:
        return _strip(feats, bank, scale, lr, 0, h, fold)
    sr = lr.new_empty(batch, RGB, h * scale, w * scale)
    for first in range(0, h, rows):
        last = min(first + rows, h)
        sr[:, :, first * scale : last * scale] = _strip(feats, bank, scale, lr, first, last, fold)
    return sr


def _strip(feats: Tensor, bank: Tensor, scale: int, lr: Tensor, first: int, last: int, fold: bool) -> Tensor:
    """Rows `first` to `last` of the LR pixels, painted and sampled: (B, 3, (last - first) * scale, w * scale)."""
    h, reach = feats.shape[-2], bank.shape[-1] // 2
    if last - first == h:
        maps = _maps(feats, bank, (reach, reach), fold)
    else:
        above, below = max(0, first - reach), min(h, last + reach)
        rows = feats[:, :, above:below]
        if below - above < last - first + 2 * reach:  # the strip touches the picture's border: rows of zeros
            rows = F.pad(rows, (0, 0, above - first + reach, last + reach - below))
        maps = _maps(rows, bank, (0, reach), fold)
    maps = maps.contiguous()  # rows of one map side by side
    painted, places = maps.split([RGB * scale**2, 4 * RGB * scale**2], dim=1)
    return F.pixel_shuffle(painted + sample_picture(lr, places, scale, first), scale)


def _maps(feats: Tensor, bank: Tensor, padding: tuple[int, int], fold: bool) -> Tensor:
    """Convolution of features with a filter bank; folded, a third of the products is left.

    A 3 x 3 filter averaged over flips and rotations has three numbers per channel: one for the middle, one for the four
    edges, one for the four corners. So features are summed over each of these rings first, and filters see the sums. On
    a CPU that takes half the time at x4 and four fifths at x2, forward and backward, 36 channels; elsewhere it was not
    measured and is not done.
    """
    if not fold or bank.shape[-1] != 3 or feats.device.type != "cpu":
        return F.conv2d(feats, bank, padding=padding)
    channels = feats.shape[1]
    rings = feats.new_tensor(RINGS).repeat_interleave(channels, dim=0)[:, None]  # (3 * C, 1, 3, 3)
    sums = F.conv2d(torch.cat([feats] * len(RINGS), dim=1), rings, padding=padding, groups=len(rings))
    taps = torch.cat([bank[..., 1, 1], bank[..., 0, 1], bank[..., 0, 0]], dim=1)  # (maps, 3 * C)
    return F.conv2d(sums, taps[..., None, None])


class StoredIGConvPlus(nn.Module):
    """IGConv+ for one scale: the filters of both parts as one stored weight. Values are those of `IGConvPlus`.

    Args:
        weight: filter bank (15 * scale**2, C, k, k): IGConv's 3 * scale**2 filters, then IGSample's 12 * scale**2.
        scale: the scale it was computed for.
    """

    def __init__(self, weight: Tensor, scale: int):
        super().__init__()
        self.scale = checked_scale(scale)
        self.weight = nn.Parameter(weight)

    @property
    def scales(self) -> tuple[int, ...]:
        return (self.scale,)

    @property
    def receptive_radius(self) -> int:
        return max(SAMPLED_RADIUS, self.weight.shape[-1] // 2)

    def forward(self, feats: Tensor, scale: int | None = None, lr: Tensor | None = None) -> Tensor:
        checked_scale(self.scale if scale is None else scale, self.scales)
        return paint_and_sample(feats, self.weight, self.scale, lr, fold=False)

    def instantiate(self, scale: int) -> StoredIGConvPlus:
        checked_scale(scale, self.scales)
        return StoredIGConvPlus(self.weight.detach().clone(), self.scale)
