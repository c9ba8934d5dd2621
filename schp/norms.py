"""The norm of SCHP's networks and of their SegFormer variant."""
import torch
import torch.nn as nn
import torch.nn.functional as F

EPS, SLOPE, MOMENTUM = 1e-5, 0.01, 0.1


class InPlaceABN(nn.Module):
    """Batch norm and activation with the meaning of InPlaceABN's weights (Rota Bulo et al. 2018, arXiv:1712.02616):

        y = act((x - mean) / sqrt(var + eps) * (|weight| + eps) + bias),   act: leaky ReLU with slope 0.01, or None

    x: (B, num_features, H, W). InPlaceABN recovers its input from its output, which needs a positive scale; so it uses
    |weight| + eps, and stored weights may be negative. A loader for plain batch norm must not copy `weight`: a quarter
    of negative scales changes every fifteenth pixel's label. It trains as BatchNorm2d does, except that the scale's
    gradient is that of |weight|. Checkpoints hold weight, bias, running_mean and running_var, and no
    num_batches_tracked.
    """

    def __init__(self, num_features, activation='leaky_relu', eps=EPS, momentum=MOMENTUM):
        if activation not in ('leaky_relu', None):
            raise ValueError(f'activation is {activation!r}; it can be leaky_relu or None')
        super().__init__()
        self.activation, self.eps, self.momentum = activation, eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def forward(self, x):
        if self.training and x.numel() == x.shape[1]:
            raise ValueError('norms need batches of at least two images in training: one value has no variance')
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight.abs() + self.eps, self.bias,
                         self.training, self.momentum, self.eps)
        return F.leaky_relu(x, SLOPE) if self.activation else x
