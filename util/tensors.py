"""The one function on tensors that all three systems share."""
import torch
import torch.nn.functional as F


def resize_map(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Feature maps (B, C, h, w) -> (B, C, *size), bilinear, corners on corners, as the released
    codes resize them."""
    return F.interpolate(x, size=size, mode='bilinear', align_corners=True)
