"""The cosine space of UniParser (Secs. 3.2, 3.3): where kernels and features live, and how they
correlate.

Everything the network says about pixels is such a correlation: of a person's kernel with F_ins in
Eq. (2), or of a category's kernel with F_cate in Eq. (3).
"""
import torch
import torch.nn.functional as F


def to_space(x: torch.Tensor, space: str) -> torch.Tensor:
    """Brings kernels or features (n, C, ...) into their space (Tab. 4 c). Cosine: unit length along
    the channels."""
    if space == 'cosine':
        return F.normalize(x, dim=1)
    if space == 'sigmoid_before':
        return x.sigmoid()
    return x


def correlate(kernels: torch.Tensor, features: torch.Tensor, space: str) -> torch.Tensor:
    """The * of Eqs. (2) and (3), a 1x1 convolution: kernels (N, C), features (..., C, h, w) ->
    (..., N, h, w). In the cosine space these are cosines, in -1..1; those of Eq. (2) are in 0..1,
    because its kernels and features come from a ReLU."""
    q = torch.einsum('nc,...chw->...nhw', kernels, features)
    return q.sigmoid() if space == 'sigmoid_after' else q
