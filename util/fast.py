"""What makes a CPU fast. Each function equals the plain lines in its docstring
(tests/test_fast.py)."""
import numpy as np
import torch
import torch.nn.functional as F

# How many values `paint` enlarges at a time: what a CPU's cache holds, and what takes 64 MB of a
# GPU.
CPU_VALUES = 2 ** 17
GPU_VALUES = 2 ** 24


# -------------------------------------------------------------------------------------------------
# Network


def convolve_with_coordinates(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A 3x3 convolution of x (B, C, h, w) and of two more maps, the relative coordinates x and y in
    -1..1:

        # weight (O, C + 2, 3, 3)
        F.conv2d(torch.cat([x, x_map, y_map], dim=1), weight, padding=1)

    The share of the coordinates is the same for every image, so it is computed once and added. Two
    more channels would slow down the convolution on CPUs, which prefer multiples of 16.
    """
    h, w = x.shape[-2:]
    # Like linspace(-1, 1, n), whose length an ONNX file would fix.
    rows = torch.arange(h, dtype=torch.float32, device=x.device)
    cols = torch.arange(w, dtype=torch.float32, device=x.device)
    rows = 2 * rows / rows[-1:].clamp(min=1) - 1
    cols = 2 * cols / cols[-1:].clamp(min=1) - 1
    y_map = rows.view(-1, 1).expand(1, 1, h, w)
    x_map = cols.expand(1, 1, h, w)
    coordinates = torch.cat([x_map, y_map], dim=1).to(weight.dtype)
    share = F.conv2d(coordinates, weight[:, -2:], padding=1)
    return F.conv2d(x, weight[:, :-2], padding=1) + share


def deform_conv2d_cpu(x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor,
                      weight: torch.Tensor, bias: torch.Tensor | None,
                      stride: int) -> torch.Tensor:
    """Modulated deformable convolution with 3x3 taps, ten times as fast as torchvision's on a CPU:

        torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding=1, mask=mask)

    x (B, C, H, W), offset (B, 18, h, w), mask (B, 9, h, w) -> (B, O, h, w). An embedding bag sums
    the four pixels around each tap with their weights; a matrix product per group of channels does
    the rest.
    """
    B, C, H, W = x.shape
    h, w = offset.shape[-2:]
    tap = torch.arange(-1, 2)

    # Where each of the nine taps of each output pixel reads: (B, h, w, 9).
    offset = offset.permute(0, 2, 3, 1).reshape(B, h, w, 9, 2).float()
    y = offset[..., 0] + stride * torch.arange(h).view(-1, 1, 1) + tap.repeat_interleave(3)
    x_ = offset[..., 1] + stride * torch.arange(w).view(-1, 1) + tap.repeat(3)

    # The four pixels around it and their bilinear weights, 0 outside the image.
    y0 = y.floor().long()
    x0 = x_.floor().long()
    wy = y - y.floor()
    wx = x_ - x_.floor()
    rows = torch.stack([y0, y0, y0 + 1, y0 + 1], dim=-1)
    cols = torch.stack([x0, x0 + 1, x0, x0 + 1], dim=-1)
    share = torch.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx], dim=-1)
    inside = (rows >= 0) & (rows < H) & (cols >= 0) & (cols < W)
    share = share * inside * mask.permute(0, 2, 3, 1)[..., None]

    # One bag of four pixels per tap. The table is no copy in channels-last.
    image = torch.arange(B).view(-1, 1, 1, 1, 1)
    pixels = (image * H + rows.clamp(0, H - 1)) * W + cols.clamp(0, W - 1)
    table = x.permute(0, 2, 3, 1).reshape(-1, C)
    share = share.view(-1, 4).to(x.dtype)
    taps = F.embedding_bag(pixels.view(-1, 4), table, per_sample_weights=share, mode='sum')

    # The convolution itself, as a matrix product.
    groups = C // weight.shape[1]
    weight = weight.permute(0, 2, 3, 1)                         # (O, 3, 3, C / groups)
    if groups == 1:
        out = F.linear(taps.view(B, h, w, 9 * C), weight.flatten(1), bias)
        return out.permute(0, 3, 1, 2)
    taps = taps.view(B, h, w, 9, groups, -1).permute(4, 0, 1, 2, 3, 5)
    taps = taps.reshape(groups, B * h * w, -1)
    out = taps @ weight.reshape(groups, -1, taps.shape[2]).mT
    out = out.permute(1, 0, 2).reshape(B, h, w, -1)
    if bias is not None:
        out = out + bias
    return out.permute(0, 3, 1, 2)


# -------------------------------------------------------------------------------------------------
# Losses


def cell_sums(k_ins: torch.Tensor, f_ins: torch.Tensor, masks: torch.Tensor,
              known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums that Dice needs for the map q = k . F_ins of every cell and the mask t of every
    person:

        q = k_ins @ f_ins                                       # (S*S, hw)
        return q @ masks.T, q.square() @ known                  # sum q t, sum q q over known pixels

    q is linear in k, so sum q t = k . (F t), sum q q = k . (F F^T) k, and no map of a cell is made.
    k_ins (S*S, C), f_ins (C, hw), masks (N, hw), known (hw,) -> (S*S, N), (S*S,).
    """
    qt = k_ins @ (f_ins @ masks.T)
    gram = (f_ins * known) @ f_ins.T
    qq = (k_ins @ gram * k_ins).sum(1)
    return qt, qq


def part_sums(q_ins: torch.Tensor, q_cate: torch.Tensor, labels: torch.Tensor,
              known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sums that Dice needs for p = q_ins * q_cate and the mask t of every part of every person:

        p = q_ins[:, None] * q_cate                             # (N, K, hw)
        t = F.one_hot(labels, K + 1).movedim(2, 1)[:, 1:] * known[:, None]
        return (p * t).sum(2), (p.square() * known[:, None]).sum(2), t.sum(2)

    A pixel of a person has one label, so sum p t gathers p at the labels; sum p p is a matrix
    product. No N x K maps are built.
    q_ins (N, hw), q_cate (K, hw), labels (N, hw) int64 in 0..K, known (N, hw) -> (N, K) each.
    """
    # Label 0, the background, is a class of zeros in front, cut off at the end.
    own = F.pad(q_cate, (0, 0, 1, 0)).gather(0, labels) * q_ins * known
    size = (len(labels), len(q_cate) + 1)
    pt = known.new_zeros(size).scatter_add(1, labels, own)[:, 1:]
    pp = (q_ins.square() * known) @ q_cate.square().T
    tt = known.new_zeros(size).scatter_add(1, labels, known)[:, 1:]
    return pt, pp, tt


# -------------------------------------------------------------------------------------------------
# Painting


def paint(parsing: np.ndarray, maps: torch.Tensor, classes: torch.Tensor, size: tuple[int, int],
          theta: float) -> None:
    """Writes one person's labels into parsing (H0, W0) uint8. A pixel takes the class of the
    largest value where that exceeds theta, and stays as it is elsewhere:

        used = maps of the photo alone, without the padding     # size (h, w) / 4 cells
        value, index = (used, bilinear to (H0, W0), centers on centers).max(0)
        above = value > theta
        parsing[above] = (classes[index] + 1)[above]

    maps (k, h, w): correlations of the given classes (0-based), zero outside the person;
    size (h, w): of the network's input without padding, in pixels. A few rows are enlarged at a
    time, and of these only the classes and columns that can exceed theta: a pixel above theta lies
    beside a cell above theta.
    """
    above = (maps > theta).cpu().numpy()
    names = (classes + 1).to(torch.uint8)
    y = bilinear_taps(maps.shape[1], size[0] / 4, parsing.shape[0])
    x = bilinear_taps(maps.shape[2], size[1] / 4, parsing.shape[1])

    # The columns from the first cell above theta to the last are enlarged, at most.
    columns = np.flatnonzero(above.any((0, 1)))
    if not len(columns):
        return
    width = columns[-1] - columns[0] + 2
    pixels = max(1, parsing.size * width // maps.shape[2])

    # Bands of rows of the maps, and the rows of the photo between whose edges they lie.
    values = CPU_VALUES if maps.device.type == 'cpu' else GPU_VALUES
    step = max(1, values * maps.shape[1] // (len(maps) * pixels))
    edges = np.flatnonzero(np.diff(y.low // step, prepend=-1, append=-1))
    for top, bottom in zip(edges[:-1], edges[1:]):
        # The classes and the columns with a cell above theta in this band.
        near = above[:, y.low[top]:y.high[bottom - 1] + 1].any(1)
        some = np.flatnonzero(near.any(axis=1))
        cols = np.flatnonzero(near.any(axis=0))
        if not len(some):
            continue
        left = np.searchsorted(x.high, cols[0])
        right = np.searchsorted(x.low, cols[-1], side='right')

        # Bilinear: first along y, then along x.
        y0, y1, wy = y.part(top, bottom, maps.device)
        x0, x1, wx = x.part(left, right, maps.device)
        band = maps[some]
        rows = torch.lerp(band.index_select(1, y0), band.index_select(1, y1), wy[:, None])
        enlarged = torch.lerp(rows.index_select(2, x0), rows.index_select(2, x1), wx)
        if len(some) == 1:
            value = enlarged[0]
            labels = int(names[some[0]])
        else:
            value, index = enlarged.max(0)
            labels = names[some].index_select(0, index.flatten()).view(index.shape)
            labels = labels.cpu().numpy()
        np.copyto(parsing[top:bottom, left:right], labels, where=(value > theta).cpu().numpy())


class Taps:
    """For each pixel along one axis, as arrays: the lower cell, the upper cell, and the weight of
    the upper."""

    def __init__(self, low: np.ndarray, high: np.ndarray, weight: np.ndarray):
        self.low = low
        self.high = high
        self.weight = weight

    def part(self, start, stop, device):
        """The three arrays of the pixels start..stop, as tensors."""
        arrays = (self.low, self.high, self.weight)
        return [torch.from_numpy(values[start:stop]).to(device) for values in arrays]


def bilinear_taps(cells: int, used: float, pixels: int) -> Taps:
    """Bilinear weights along one axis, centers on centers, where `used` (real) of the map's `cells`
    cover `pixels`."""
    source = (np.arange(pixels) + 0.5) * (used / pixels) - 0.5
    source = source.clip(0, cells - 1)
    low = np.floor(source).astype(np.int64)
    return Taps(low, np.minimum(low + 1, cells - 1), (source - low).astype(np.float32))
