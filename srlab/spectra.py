"""Spectra room: which frequencies a picture holds, and which a network misses or invents. Tensors in, tensors out.

Pictures are (..., H, W), so (C, H, W) and (B, C, H, W) alike: every leading axis is kept, on the device it came from.
uint8 is read as 0..255 -> 0..1. Frequencies are in cycles per pixel of the picture that is analysed: 0.5 is the finest
grating it can hold, and an LR picture upscaled by `scale` knew only frequencies up to 0.5 / scale.

One convention holds everywhere. `fourier` is linear in the picture and its squared magnitudes are powers that add up,
over the whole plane, to the mean square of the picture (Parseval), whatever its size. Real pictures have mirrored
spectra, so only the half plane of `rfft2` is stored and columns that stand for two count twice.

A picture is not periodic: its left and right borders meet with a jump, which paints a bright cross over its spectrum.
The Hann window fades the borders out and is the default; `window="none"` is for signals that are periodic.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Window = Literal["hann", "none"]

OCTAVES = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 0.7072)
"""Band edges: an octave each, in cycles per pixel; the last one also holds the corners of the plane, up to 0.707."""

JPEG_LINES = 1 / 8
"""Spacing of the lines that JPEG's 8 x 8 blocks can draw into a spectrum. Photographs of good quality show none: with
100 of BSDS500 removing them moves no ring by more than 0.12 dB, less than at the control spacing 0.11 (0.17 dB)."""


@dataclass(frozen=True)
class BandErrors:
    """How sr departs from hr, band by band; tensors (..., bands), relative to the power of hr in the band.

    For every coefficient |S - H|**2 = (|S| - |H|)**2 + 2 |S| |H| (1 - cos(phase difference)): the error splits, with
    no remainder, into detail of the wrong strength and detail in the wrong place.
    """

    edges: Tensor
    """(bands + 1,) in cycles per pixel; a band is low < f <= high, so the mean of the picture is in none"""
    relative: Tensor
    """power of the difference; 0 is perfect, 1 what a picture without this band would have"""
    amplitude: Tensor
    """the part of `relative` that wrong strengths make"""
    phase: Tensor
    """the part of `relative` that wrong places make; amplitude + phase = relative"""
    gain: Tensor
    """power of sr over power of hr: below 1 detail is missing, above 1 some is invented"""

    @property
    def snr_db(self) -> Tensor:
        """Signal to noise in dB, hr being the signal and sr - hr the noise."""
        return -10 * self.relative.log10()


@dataclass(frozen=True)
class RingCorrelation:
    """Fourier ring correlation of two pictures and the curves it is held against."""

    frequencies: Tensor
    """(rings,) in cycles per pixel, the mean of the picture left out"""
    correlation: Tensor
    """(..., rings), -1 to 1"""
    one_bit: Tensor
    """(rings,) correlation at which a coefficient carries one bit of information, for the rings' few coefficients"""
    half_bit: Tensor
    """(rings,) the same for half a bit, the usual limit of resolution"""

    def cutoff(self, threshold: Tensor | float) -> Tensor:
        """Frequency (...) at which the correlation first falls below `threshold`, interpolated between rings.

        `threshold` is `one_bit`, `half_bit` or a number such as 1/7. The answer is 0 if the lowest ring lies below
        it already and the highest frequency if none does.
        """
        margin = self.correlation - threshold  # (..., rings)
        below = margin < 0
        first = below.int().argmax(dim=-1, keepdim=True)  # (..., 1), 0 where none is below
        before = (first - 1).clamp_min(0)
        m0, m1 = margin.gather(-1, before), margin.gather(-1, first)
        f0, f1 = self.frequencies[before], self.frequencies[first]
        crossing = f0 + (f1 - f0) * m0 / (m0 - m1).clamp_min(torch.finfo(margin.dtype).tiny)
        crossing = torch.where(first == 0, torch.zeros_like(crossing), crossing).squeeze(-1)
        return torch.where(below.any(dim=-1), crossing, self.frequencies[-1])


def fourier(picture: Tensor, window: Window = "hann") -> Tensor:
    """Fourier coefficients whose squared magnitudes are powers in the units of the picture squared.

    The mean is taken out before the window and put back at frequency 0: otherwise the window would smear it, which is
    the largest number by far, over the lowest frequencies.

    Args:
        picture: (..., H, W), float or uint8, sides of at least 4.
        window: "hann", or "none" for a periodic signal.

    Returns:
        (..., H, W // 2 + 1) complex, linear in the picture. The squared magnitudes of the whole plane add up to mean**2
        plus the mean square of the rest, both means weighted, by the window and by its square.

    Raises:
        ValueError: too small, not finite, or an unknown window.
    """
    x = _checked(picture)
    height, width = x.shape[-2:]
    taper = _taper(height, width, window).to(x)
    mean = (x * taper).sum(dim=(-2, -1), keepdim=True) / taper.sum()
    coefficients = torch.fft.rfft2((x - mean) * taper) / math.sqrt(height * width * float(taper.square().sum()))
    coefficients[..., 0, 0] = mean[..., 0, 0].to(coefficients.dtype)
    return coefficients


def power_map(picture: Tensor, window: Window = "hann") -> Tensor:
    """Directional map: power of every frequency, (..., H, W), frequency 0 in the middle as `frequency_axes` says.

    Its sum is the mean square of the picture. For the map of an error take the picture `sr - hr`.
    """
    half = fourier(picture, window).abs().square()  # (..., H, W // 2 + 1)
    height, width = picture.shape[-2:]
    rows, columns = -torch.arange(height) % height, torch.arange((width - 1) // 2, 0, -1)
    mirrored = half[..., rows, :][..., columns]  # power at -f is the power at f
    return torch.fft.fftshift(torch.cat([half, mirrored], dim=-1), dim=(-2, -1))


def frequency_axes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Vertical (H,) and horizontal (W,) frequencies of the rows and columns of `power_map`."""
    return torch.fft.fftshift(torch.fft.fftfreq(height)), torch.fft.fftshift(torch.fft.fftfreq(width))


def radial_power_spectrum(
    picture: Tensor,
    window: Window = "hann",
    *,
    total: bool = False,
    rings: int | None = None,
    corners: bool = False,
    lines: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Power against frequency, all directions together.

    Args:
        picture: (..., H, W).
        window: "hann" or "none".
        total: False gives the density, the azimuthal average: white noise of variance v is flat at v, whatever the
            size of the picture. True gives the power in each ring: a grating of amplitude a has a**2 / 2 in its ring,
            and with `corners` all rings add up to the mean square of the picture.
        rings: number of rings between 0 and 0.5; default one per coefficient of the shorter side. Give a number to
            average pictures of different sizes.
        corners: also return the incomplete rings from 0.5 to 0.707.
        lines: remove lines at multiples of this frequency by interpolation across them: `JPEG_LINES` for photographs
            that were JPEGs and were not resized since.

    Returns:
        frequencies (R,) in cycles per pixel, power (..., R); entry 0 is frequency 0, the squared mean.

    Raises:
        ValueError: more rings than the picture has, or lines too dense to be told apart.
    """
    power = fourier(picture, window).abs().square()
    height, width = picture.shape[-2:]
    power = _without_lines(power, width, lines, window)
    frequencies, density, count = _ring_average(power, width, rings, corners)
    return frequencies, density * (count if total else height * width)


def azimuthal_average(
    values: Tensor, width: int, *, rings: int | None = None, corners: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean over rings of any real quantity given per coefficient: frequencies (R,), means (..., R).

    Args:
        values: (..., H, width // 2 + 1), laid out as `fourier` returns it.
        width: of the picture, which the half plane does not tell (2 n and 2 n + 1 look alike).
        rings, corners: as in `radial_power_spectrum`.
    """
    frequencies, means, _ = _ring_average(values, width, rings, corners)
    return frequencies, means


def band_errors(
    sr: Tensor,
    hr: Tensor,
    edges: tuple[float, ...] = OCTAVES,
    window: Window = "hann",
    lines: float | None = None,
) -> BandErrors:
    """Compare sr with hr in frequency bands.

    Args:
        sr, hr: pictures (..., H, W) of one shape.
        edges: rising, in cycles per pixel; bands are low < f <= high.
        window, lines: as in `radial_power_spectrum`.

    Returns:
        `BandErrors`, tensors (..., bands). Where hr holds nothing the ratios are infinite, or NaN if sr is empty too.

    Raises:
        ValueError: unequal shapes, edges that do not rise, or a band without a single coefficient.
    """
    _check_pair(sr, hr)
    limits = torch.tensor(edges, dtype=torch.float64)
    if len(edges) < 2 or not bool((limits.diff() > 0).all()):
        raise ValueError(f"edges are {edges}, expected at least two rising frequencies in cycles per pixel")
    s, h = fourier(sr, window), fourier(hr, window)
    height, width = hr.shape[-2:]
    _, _, f, multiplicity = _plane(height, width, h.device)
    band = torch.bucketize(f, limits.to(f))  # 0 is f <= edges[0], then one per band, then beyond the last
    count = len(edges) - 1

    def per_band(values: Tensor) -> Tensor:
        values = _without_lines(values, width, lines, window)
        return _sums(values * multiplicity, band, count + 2)[..., 1:-1]

    held = per_band(torch.ones_like(f))
    if not held.all():
        empty = int((held == 0).int().argmax())
        raise ValueError(
            f"no coefficient of {height}x{width} pixels lies in {edges[empty]:.4g} < f <= {edges[empty + 1]:.4g}: "
            f"is the picture too small for these bands?"
        )
    signal = per_band(h.abs().square())
    amplitude = per_band((s.abs() - h.abs()).square()) / signal
    relative = per_band((s - h).abs().square()) / signal
    return BandErrors(
        edges=limits.to(f),
        relative=relative,
        amplitude=amplitude,
        phase=(relative - amplitude).clamp_min(0),  # |S - H| >= ||S| - |H||: negative by rounding only
        gain=per_band(s.abs().square()) / signal,
    )


def ring_correlation(a: Tensor, b: Tensor, window: Window = "hann", rings: int | None = None) -> RingCorrelation:
    """Fourier ring correlation: do two pictures hold the same detail, frequency by frequency?

    Brightness and contrast cancel: only agreement of the patterns counts, 0 where a picture holds nothing. The one-bit
    and half-bit curves are those of van Heel and Schatz (J. Struct. Biol. 151, 2005), with the number of independent
    coefficients in a ring: mirrored ones count once, and the window ties neighbours together. The lowest rings hold so
    few that chance alone can lift noise above a curve there.

    Args:
        a, b: pictures (..., H, W) of one shape, for example sr and hr.
        window, rings: as in `radial_power_spectrum`.

    Raises:
        ValueError: unequal shapes or more rings than the picture has.
    """
    _check_pair(a, b)
    height, width = a.shape[-2:]
    fa, fb = fourier(a, window), fourier(b, window)
    frequencies, cross, count = _ring_average((fa * fb.conj()).real, width, rings, False)
    norms = [_ring_average(f.abs().square(), width, rings, False)[1] for f in (fa, fb)]
    correlation = (cross / (norms[0] * norms[1]).sqrt()).nan_to_num(0.0)
    root = (count / 2 / _tied_neighbours(height, width, window)).clamp_min(1.0).sqrt()  # at n = 1 both curves are 1
    return RingCorrelation(
        frequencies=frequencies[1:],
        correlation=correlation[..., 1:].clamp(-1, 1),
        one_bit=((0.5 + 2.4142 / root) / (1.5 + 1.4142 / root))[1:],
        half_bit=((0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root))[1:],
    )


def replica_energy(picture: Tensor, scale: int, radius: float | None = None, window: Window = "hann") -> Tensor:
    """Share of the power near the multiples of 1 / scale, where copies of the LR spectrum appear.

    Putting LR pixels on a `scale` times finer grid repeats their spectrum around every multiple of 1 / scale, in both
    directions. An upsampler must remove these replicas; what it leaves is seen as blocks or a checkerboard. Real
    pictures hold true detail there as well, so compare with the share of hr.

    Args:
        picture: an upscaled picture, (..., H, W).
        scale: upsampling factor, at least 2.
        radius: how far around a multiple to look, cycles per pixel; by default 1 / (4 scale), half the way to where
            the replica ends.
        window: "hann" or "none".

    Returns:
        Shares (...) of the power of all frequencies but 0; NaN for a constant picture.
    """
    if scale < 2:
        raise ValueError(f"scale is {scale}: replicas need an upsampling factor of at least 2")
    radius = 1 / (4 * scale) if radius is None else radius
    power = fourier(picture, window).abs().square()
    fy, fx, f, multiplicity = _plane(*picture.shape[-2:], power.device)
    nearest_y, nearest_x = torch.round(fy * scale), torch.round(fx * scale)
    distance = torch.hypot(fy - nearest_y / scale, fx - nearest_x / scale)
    inside = (distance <= radius) & ((nearest_y != 0) | (nearest_x != 0))
    power = power * multiplicity * (f > 0)
    return (power * inside).sum(dim=(-2, -1)) / power.sum(dim=(-2, -1))


def checkerboard_energy(picture: Tensor, scale: int) -> Tensor:
    """Power exactly at the multiples of 1 / scale: of the pattern that repeats in every cell of scale x scale pixels.

    An upsampler that treats its scale**2 sub-pixels differently prints the same small cell everywhere. The average over
    all cells shows it, its variance is the power at the lines, and the content of the picture averages out.

    Args:
        picture: (..., H, W); rows and columns beyond a multiple of `scale` are left out.
        scale: period in pixels, at least 2: the upsampling factor, or 8 for the blocks of JPEG.

    Returns:
        (...) in the units of the picture squared; the square root is the visible amplitude.

    Raises:
        ValueError: a scale below 2 or larger than the picture.
    """
    x = _checked(picture)
    rows, columns = (side // scale if scale >= 2 else 0 for side in x.shape[-2:])
    if not (rows and columns):
        raise ValueError(f"scale is {scale}, expected a period of at least 2 pixels that fits into {tuple(x.shape)}")
    x = x[..., : rows * scale, : columns * scale]
    cell = x.unflatten(-1, (columns, scale)).unflatten(-3, (rows, scale)).mean(dim=(-4, -2))  # (..., scale, scale)
    return cell.var(dim=(-2, -1), correction=0)


def zone_plate(size: int, highest: float = 0.5, channels: int = 1) -> Tensor:
    """Rings whose frequency rises evenly from 0 in the middle to `highest` at the middle of each side.

    Every frequency and direction has its place, so one look shows what an upsampler keeps, loses or aliases. Returns
    (channels, size, size) float32 in [0, 1].
    """
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    squared = axis[:, None].square() + axis.square()
    picture = 0.5 + 0.5 * torch.cos(2 * math.pi * highest * squared / size)
    return picture.float().expand(channels, -1, -1).clone()


def grating(size: int, frequency: float, angle: float = 0.0, phase: float = 0.0, channels: int = 1) -> Tensor:
    """A sine grating between 0 and 1: mean 0.5, amplitude 0.5, hence power 1/8 at its frequency.

    Args:
        size: side in pixels.
        frequency: cycles per pixel; multiples of 1 / size fit the picture exactly when angle is 0 or 90.
        angle: degrees, of the direction in which the brightness changes; 0 gives vertical stripes.
        phase: radians.
        channels: equal colour planes, of (channels, size, size) float32 in [0, 1].
    """
    axis = torch.arange(size, dtype=torch.float64)
    turn = math.radians(angle)
    along = math.cos(turn) * axis + math.sin(turn) * axis[:, None]  # (size, size)
    picture = 0.5 + 0.5 * torch.sin(2 * math.pi * frequency * along + phase)
    return picture.float().expand(channels, -1, -1).clone()


def checker(size: int, cell: int = 1, channels: int = 1) -> Tensor:
    """A chessboard of black and white squares of `cell` pixels, (channels, size, size) float32."""
    axis = torch.arange(size) // cell
    return ((axis[:, None] + axis) % 2).float().expand(channels, -1, -1).clone()


def _checked(picture: Tensor) -> Tensor:
    """The picture as float32 or float64."""
    if picture.ndim < 2 or min(picture.shape[-2:]) < 4:
        raise ValueError(f"picture is {tuple(picture.shape)}, expected (..., H, W) with sides of at least 4 pixels")
    if picture.dtype == torch.uint8:
        return picture.float() / 255
    if not picture.is_floating_point():
        raise ValueError(f"picture is {picture.dtype}, expected uint8 or float in [0, 1]")
    if not bool(picture.isfinite().all()):
        raise ValueError("picture holds NaN or infinite values: has the network that made it diverged?")
    return picture if picture.dtype == torch.float64 else picture.float()


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"pictures are {tuple(a.shape)} and {tuple(b.shape)}, expected one shape: is it the same scale?"
        )


@lru_cache(maxsize=32)
def _taper(height: int, width: int, window: Window) -> Tensor:
    """Window over the picture, (H, W) float64."""
    if window == "none":
        return torch.ones(height, width, dtype=torch.float64)
    if window != "hann":
        raise ValueError(f'window is {window!r}, expected "hann" or "none"')
    return torch.outer(*(torch.hann_window(n, dtype=torch.float64) for n in (height, width)))


def _tied_neighbours(height: int, width: int, window: Window) -> float:
    """How many coefficients share what one would hold without a window: (35 / 18)**2 = 3.8 for Hann."""
    squared = _taper(height, width, window).square()
    return float(height * width * squared.square().sum() / squared.sum().square())


def _plane(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frequencies (H, 1), (1, Wh), their length (H, Wh), and how many coefficients a column stands for, (1, Wh)."""
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None]
    multiplicity = torch.full_like(fx, 2.0)
    multiplicity[:, 0] = 1.0
    if width % 2 == 0:
        multiplicity[:, -1] = 1.0
    return fy, fx, torch.hypot(fy, fx), multiplicity


def _sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums (..., count) of half-plane values (..., H, Wh) that share an index (H, Wh)."""
    flat = values.expand(*values.shape[:-2], *index.shape).flatten(-2)
    return flat.new_zeros(*flat.shape[:-1], count).index_add_(-1, index.flatten(), flat)


def _ring_average(values: Tensor, width: int, rings: int | None, corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies (R,), means (..., R) over rings, and how many coefficients each ring holds, (R,)."""
    height = values.shape[-2]
    finest = min(height, width) // 2
    rings = finest if rings is None else rings
    if not 1 <= rings <= finest:
        raise ValueError(f"rings is {rings}, expected 1 to {finest}: {height}x{width} pixels hold no finer ones")
    _, _, f, multiplicity = _plane(height, width, values.device)
    index = torch.round(f * 2 * rings).long()
    count = int(index.max()) + 1
    held = _sums(multiplicity.expand_as(f), index, count).to(values)
    means = _sums(values * multiplicity.to(values), index, count) / held
    end = count if corners else rings + 1
    return torch.arange(end, device=values.device) / (2 * rings), means[..., :end], held[:end]


def _without_lines(values: Tensor, width: int, spacing: float | None, window: Window) -> Tensor:
    """Half-plane values with the coefficients on lines replaced by the mean of their neighbours across the line.

    Leaving them out instead would bias the rings they lie on: most pictures are strongest along the axes, and there the
    lines cross. The window widens a line by one coefficient to each side.
    """
    if spacing is None:
        return values
    height = values.shape[-2]
    if not 0 < spacing <= 0.5 or spacing * min(height, width) < 8:
        raise ValueError(
            f"lines every {spacing:.4g} cycles per pixel leave nothing of {height}x{width} pixels: "
            f"expected a spacing of at most 0.5 and at least eight coefficients from line to line"
        )
    reach, step = (1.5, 4) if window == "hann" else (0.5, 2)

    def on_line(f: Tensor, side: int) -> Tensor:
        nearest = torch.round(f.abs() / spacing).clamp_min(1.0)  # frequency 0 is no line
        return (f.abs() - nearest * spacing).abs() * side <= reach

    fy, fx, _, _ = _plane(height, width, values.device)
    across = (values.roll(step, dims=-2) + values.roll(-step, dims=-2)) / 2
    values = torch.where(on_line(fy, height), across, values)
    column = torch.arange(values.shape[-1], device=values.device)
    right = torch.where(column + step > width // 2, width - column - step, column + step)  # mirrored beyond 0.5
    across = (values[..., (column - step).abs()] + values[..., right]) / 2
    return torch.where(on_line(fx, width), across, values)
