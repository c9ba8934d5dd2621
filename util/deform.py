"""Modulated deformable convolution [Zhu et al. 2019, arXiv:1811.11168], fast on CPUs too."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops import deform_conv2d


class ModulatedDeformConv2d(nn.Conv2d):
    """Deformable convolution v2: a plain convolution predicts, for each output pixel and each of the 9 taps, an offset
    (dy, dx) in pixels and a weight in 0..1. Starts as the plain convolution times 1/2 (offsets 0, sigmoid(0))."""

    def __init__(self, conv):
        super().__init__(conv.in_channels, conv.out_channels, 3, conv.stride, padding=1, groups=conv.groups,
                         bias=False)
        self.weight = conv.weight
        self.conv_offset = nn.Conv2d(conv.in_channels, 27, 3, conv.stride, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x):                                                    # (B, C, H, W)
        offset, mask = self.conv_offset(x).split((18, 9), dim=1)
        if x.device.type == 'cpu' and not torch.compiler.is_exporting():     # ONNX has an operator for it
            return deform_conv2d_cpu(x, offset, mask.sigmoid(), self.weight, self.bias, self.stride[0])
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, mask=mask.sigmoid())


def deform_conv2d_cpu(x, offset, mask, weight, bias, stride):
    """torchvision's deform_conv2d with 3x3 taps and padding 1, ten times as fast on a CPU: an embedding bag sums the
    four pixels around each tap with their weights, and the rest is one matrix product (per group of channels)."""
    (B, C, H, W), (h, w), tap = x.shape, offset.shape[-2:], torch.arange(-1, 2)
    offset = offset.permute(0, 2, 3, 1).reshape(B, h, w, 9, 2).float()
    y = offset[..., 0] + stride * torch.arange(h).view(-1, 1, 1) + tap.repeat_interleave(3)             # (B, h, w, 9)
    x_ = offset[..., 1] + stride * torch.arange(w).view(-1, 1) + tap.repeat(3)
    (y0, wy), (x0, wx) = ((v.floor().long(), v - v.floor()) for v in (y, x_))
    rows, cols = torch.stack([y0, y0, y0 + 1, y0 + 1], dim=-1), torch.stack([x0, x0 + 1, x0, x0 + 1], dim=-1)
    share = torch.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx], dim=-1)
    share = share * ((rows >= 0) & (rows < H) & (cols >= 0) & (cols < W)) * mask.permute(0, 2, 3, 1)[..., None]
    pixels = (torch.arange(B).view(-1, 1, 1, 1, 1) * H + rows.clamp(0, H - 1)) * W + cols.clamp(0, W - 1)
    table = x.permute(0, 2, 3, 1).reshape(-1, C)                             # no copy in channels-last
    taps = F.embedding_bag(pixels.view(-1, 4), table, per_sample_weights=share.view(-1, 4).to(x.dtype), mode='sum')
    groups, weight = C // weight.shape[1], weight.permute(0, 2, 3, 1)                      # (O, 3, 3, C / groups)
    if groups == 1:
        return F.linear(taps.view(B, h, w, 9 * C), weight.flatten(1), bias).permute(0, 3, 1, 2)
    taps = taps.view(B, h, w, 9, groups, -1).permute(4, 0, 1, 2, 3, 5).reshape(groups, B * h * w, -1)
    out = (taps @ weight.reshape(groups, -1, taps.shape[2]).mT).permute(1, 0, 2).reshape(B, h, w, -1)
    return (out if bias is None else out + bias).permute(0, 3, 1, 2)
