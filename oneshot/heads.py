"""The fine heads, NPM and AGM: from the cosines to each class's prototype to logits of classes.
POPNet has the same heads; it calls NPM NCM, nearest centroid.

NPM, nearest prototype, looks at the cosines alone. AGM, attention guidance, runs convolutions on
the feature, emphasized where it is like the prototype. The loss begins with AGM and ends with NPM,
whose answer is the network's.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from oneshot.backbone import Atrous, DeepLab


class FineHeads(DeepLab):
    """A DeepLab with the fine heads: the base of a network, because released state dicts have the
    modules of all parts side by side. config: see `oneshot.config.Config`."""

    def __init__(self, config):
        super().__init__(config.stem, config.middle, config.channels, config.high_level)
        self.config = config
        self.scaler = nn.Parameter(torch.tensor(10.0))

    def add_fine_heads(self):
        """Makes the modules. A subclass calls it after those of its own: optimizers and released
        state dicts have this order."""
        c = self.config.channels
        self.decoder2 = conv_pair(c)
        self.decoder3 = Atrous(c, c)
        self.agm_class = nn.Conv2d(c, 2, 1)
        if self.config.one_way:
            self.npm_class = nn.Conv2d(1, 2, 1)
        else:
            self.npm_class_fg = nn.Conv2d(1, 1, 1)
            self.npm_class_bg = nn.Conv2d(1, 1, 1)
            self.npm_bg_fusion = nn.Conv2d(1, 1, 1)
            self.agm_bg_fusion = nn.Conv2d(1, 1, 1)

    def npm_head(self, cosines: Tensor) -> Tensor:
        """Cosines (B,K-1,h,w) to the prototypes -> logits (B,K,h,w). 1-way: (B,1,h,w) ->
        (B,2,h,w).

            class_i    = scaler fg(c_i)
            background = scaler fusion(mean_i bg(1 - c_i))

        fg, bg and fusion are 1x1 convolutions of one channel.
        """
        if self.config.one_way:
            return self.scaler * self.npm_class(cosines)
        flat = cosines.flatten(0, 1)[:, None]                      # (B (K-1), 1, h, w)
        classes = self.npm_class_fg(flat).view_as(cosines)
        rest = self.npm_class_bg(1 - flat).view_as(cosines)
        background = self.npm_bg_fusion(rest.mean(1, keepdim=True))
        return self.scaler * torch.cat([background, classes], 1)

    def agm_head(self, f2: Tensor, cosines: Tensor, present: Tensor) -> Tensor:
        """Like npm_head, also from the fine feature f2 (B,C,h,w). present (K-1): the classes that
        any support of the batch has.

            a_i        = agm_class(decoder3(decoder2(c_i f2 + f2)))      2 channels
            class_i    = a_i[0]
            background = fusion(mean_i a_i[1])

        The released code runs these convolutions once per class. Here all present classes go
        through them together, and the absent ones, whose cosines are 0, share one pass. Statistics
        of BatchNorm are those of the loop over the classes.
        """
        if self.config.one_way:
            # As released, f2 is not added.
            return self.agm_tower((f2 * cosines)[:, None], [0])[:, 0]
        passes = cosines[:, present]                               # (B,P,h,w)
        if not present.all():
            passes = torch.cat([passes, torch.zeros_like(cosines[:, :1])], 1)
        # The pass of each class; that of the absent ones is the last.
        of_class = torch.where(present, present.cumsum(0) - 1, present.sum()).tolist()
        # On a CPU one pass at a time stays in the cache. In training BatchNorm needs all at once.
        together = len(of_class) if self.training or f2.is_cuda else 1
        logits = []
        for chunk in passes.split(together, 1):
            emphasized = f2[:, None] * (1 + chunk)[:, :, None]     # (B,P,C,h,w)
            logits.append(self.agm_tower(emphasized, of_class))
        logits = torch.cat(logits, 1)[:, of_class]                 # (B,K-1,2,h,w)
        background = self.agm_bg_fusion(logits[:, :, 1].mean(1, keepdim=True))
        return torch.cat([background, logits[:, :, 0]], 1)

    def agm_tower(self, x: Tensor, of_class: list[int]) -> Tensor:
        """x (B,P,C,h,w) -> logits (B,P,2,h,w) of P passes. of_class: the pass of each class."""
        batch = x.shape[:2]
        conv = self.decoder3.atrous_convolution
        x = self.decoder2(x.flatten(0, 1))
        x = F.relu(pass_norm(conv.depthwise_bn, conv.depthwise(x), batch, of_class))
        x = F.relu(pass_norm(conv.pointwise_bn, conv.pointwise(x), batch, of_class))
        return self.agm_class(x).unflatten(0, batch)


def conv_pair(c: int) -> nn.Sequential:
    """Two 3x3 convolutions without a ReLU between them, as released."""
    return nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1))


def pass_norm(bn: nn.BatchNorm2d, x: Tensor, batch: tuple[int, int],
              of_class: list[int]) -> Tensor:
    """bn of x (B*P,C,h,w), batch = (B, P), as if it were called once per pass with its B images.

    In training each pass has statistics of its own. The running ones move once per class, in the
    order of `of_class`, the pass of each class.
    """
    if not bn.training:
        return bn(x)
    images, passes = batch
    shape = x.shape
    # One call with P*C channels normalizes each pass by itself. The momentum 1 leaves its
    # statistics in mean and var.
    mean = bn.running_mean.new_zeros(passes * shape[1])
    var = bn.running_var.new_zeros(passes * shape[1])
    x = F.batch_norm(x.reshape(images, -1, *shape[2:]), mean, var, bn.weight.repeat(passes),
                     bn.bias.repeat(passes), training=True, momentum=1.0, eps=bn.eps)
    for i in of_class:
        bn.running_mean.lerp_(mean.view(passes, -1)[i], bn.momentum)
        bn.running_var.lerp_(var.view(passes, -1)[i], bn.momentum)
    bn.num_batches_tracked += len(of_class)
    return x.view(shape)
