"""The norm of SCHP's networks and of their SegFormer variant."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class InPlaceABN(nn.Module):
    """Batch norm and activation with the meaning of InPlaceABN's weights (Rota Bulo et al. 2018, arXiv:1712.02616):

        y = act((x - mean) / sqrt(var + eps) * (|weight| + eps) + bias),   act: leaky ReLU with slope 0.01, or None

    x: (B, num_features, H, W). It trains as BatchNorm2d does, except that the scale's gradient is that of |weight|.
    Checkpoints hold weight, bias, running_mean and running_var, and no num_batches_tracked. A loader for plain batch
    norm must not copy `weight`: a quarter of negative scales changes every fifteenth pixel's label.
    """

    def __init__(self, num_features, activation='leaky_relu', eps=1e-5, momentum=0.1):
        if activation not in ('leaky_relu', None):
            raise ValueError(f'activation is {activation!r}; it can be leaky_relu or None')
        super().__init__()
        self.activation, self.eps, self.momentum = activation, eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight.abs() + self.eps, self.bias,
                         self.training, self.momentum, self.eps)
        return F.leaky_relu(x, 0.01) if self.activation else x
