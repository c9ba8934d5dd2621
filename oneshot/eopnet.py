"""EOP-Net: a photo in the classes of an example.

`forward` follows the paper: features of both photos, prototypes of the support, the coarse head,
which finds people, and the fine heads, which find classes.
"""
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from oneshot.backbone import Atrous
from oneshot.config import Config
from oneshot.heads import conv_pair
from oneshot.network import ExampleNetwork
from oneshot.prototypes import (check_labels, class_masks, cosine, foreground, smoothed_prototypes,
                                static_prototypes)
from util.tensors import resize_map


class EOPNet(ExampleNetwork):
    """model(query, support, support_labels) -> dict of logits, see `forward`.

    Settings are those of `Config`, which may be given as keyword arguments:
    EOPNet(num_labels=20).
    """
    system = 'eopnet'
    name = 'EOP-Net'
    sign = 's2_trans.weight'

    def __init__(self, config: Config = Config(), **changes):
        config = replace(config, **changes)
        super().__init__(config)
        c = config.channels
        # Smoothed prototypes of background and people, beside those of the classes.
        self.s1_prototype = nn.Parameter(torch.zeros(2, c), requires_grad=False)
        # From the decoder's feature to the coarse and the fine one.
        self.s1_trans = nn.Conv2d(c, c, 1)
        self.s2_trans = nn.Conv2d(c, c, 1)
        # The coarse head.
        self.s1_conv1 = conv_pair(c)
        self.s1_conv2 = Atrous(c, c)
        self.s1_semantic = nn.Conv2d(c, 2, 1)
        self.add_fine_heads()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,3,H,W) as of `oneshot.data.normalize` -> coarse feature f1 and fine feature f2,
        (B,C,h,w) each."""
        x = self.mid_level(images)
        return self.s1_trans(x), self.s2_trans(x)

    def fine_feature(self, features: tuple[Tensor, Tensor]) -> Tensor:
        return features[1]

    def people_prototype(self, features: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        f1 = features[0]
        return static_prototypes(f1, class_masks(foreground(labels), 2, f1.shape[2:]))[:, 1:]

    def coarse_logits(self, features: tuple[Tensor, Tensor], people: Tensor) -> Tensor:
        return self.coarse_head(features[0], people)

    def coarse_head(self, f1: Tensor, prototype: Tensor) -> Tensor:
        """f1 (B,C,h,w), the prototype of people (B,1,C) -> logits (B,2,h,w) of background and
        people."""
        x = cosine(f1, prototype) * f1 + f1
        return self.s1_semantic(self.s1_conv2(self.s1_conv1(x)))

    def forward(self, query: Tensor, support: Tensor, support_labels: Tensor, classes=None,
                epoch: int | None = None) -> dict:
        """Photos (B,3,H,W) as of `oneshot.data.normalize` and the support's labels (B,H,W) -> dict
        of logits at the query's size: agm and npm (B,K,H,W), 1-way (B,2,H,W); coarse (B,2,H,W).

        classes: k-way, the ids that the episode keeps (None = all); 1-way, a tensor (B,) of each
        image's class. epoch: needed in training mode; None = after the warm-up. The dict also
        holds `classes` and, for the contrast of k-way training, `f2`: the fine features of query
        and support.
        """
        classes = self.check_classes(classes)
        if self.training and epoch is None:
            raise ValueError('training needs the epoch: the first ones are a warm-up')
        check_labels(support_labels, self.config.num_labels)
        batch = len(support_labels)

        # Features of both photos.
        f1, f2 = self.encode(query)
        s1, s2 = self.encode(support)

        # Prototypes of the classes that the episode keeps, smoothed after the warm-up.
        fine = self.episode_prototypes(s2, support_labels, classes, epoch)

        # Prototypes of background and people. The released code passes `epoch` in the place of its
        # warm-up flag, so only epoch 0 smooths.
        masks = class_masks(foreground(support_labels), 2, s1.shape[2:])
        people = static_prototypes(s1.detach(), masks)
        people = smoothed_prototypes(self.s1_prototype, people, torch.arange(2).expand(batch, -1),
                                     epoch != 0, self.training)

        # Logits, enlarged to the query's size.
        out = self.fine_logits(f2, fine, ('agm', 'npm'))
        out['coarse'] = self.coarse_head(f1, people[:, 1:])
        out = {name: resize_map(logits, query.shape[2:]) for name, logits in out.items()}
        out['classes'] = classes
        if self.training and not self.config.one_way:
            out['f2'] = f2, s2
        return out


def screened(out: dict, head: str = 'npm') -> Tensor:
    """out of `EOPNet.forward` -> the head's labels (B,H,W), background where the coarse head sees
    no people."""
    return out[head].argmax(1) * out['coarse'].argmax(1)
