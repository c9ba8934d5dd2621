"""The cosine space of UniParser (Secs. 3.1 to 3.3): where kernels and features live, and how they
correlate.

Everything the network says about pixels is such a correlation: of a person's kernel with F_ins in
Eq. (2), of a category's kernel with F_cate in Eq. (3), and of two kernels in Eq. (6). """
import torch
import torch.nn.functional as F


def to_space(x: torch.Tensor, space: str) -> torch.Tensor:
    """Brings kernels or features (B, C, ...) into their space (Tab. 4 c). Cosine: unit length along
    the channels."""
    if space == 'cosine':
        return F.normalize(x, dim=1)
    if space == 'sigmoid_before':
        return x.sigmoid()
    return x


def correlate(kernels: torch.Tensor, features: torch.Tensor, space: str) -> torch.Tensor:
    """The * of Eqs. (2) and (3), a 1x1 convolution: kernels (N, C), features (..., C, h, w) ->
    (..., N, h, w). In the cosine space these are cosines, in -1..1; of features after a ReLU, in
    0..1."""
    q = torch.einsum('nc,...chw->...nhw', kernels, features)
    return q.sigmoid() if space == 'sigmoid_after' else q
