"""Labels of an episode and prototypes: the mean feature of each class of a support photo.

Labels (B,H,W) hold 0 background, 1..K-1 parts, 255 ignore.
"""
import math

import torch
import torch.nn.functional as F

from oneshot.episodes import IGNORE


def episode_labels(labels, classes):
    """Labels (B,H,W) of an episode. k-way: classes outside `classes` (a tuple, None = all) become 0. 1-way, where
    `classes` (B,) is a tensor: 1 where the pixel has the image's class, else 0. IGNORE stays."""
    if classes is None:
        return labels
    if torch.is_tensor(classes):
        kept = (labels == classes.to(labels).view(-1, 1, 1)).to(labels.dtype)
    else:
        kept = labels * torch.isin(labels, torch.tensor(classes).to(labels))
    return torch.where(labels == IGNORE, IGNORE, kept)


def foreground(labels):
    """Labels (B,H,W) -> 1 on people, 0 elsewhere; IGNORE stays."""
    return torch.where(labels == IGNORE, IGNORE, labels.clamp(max=1))


def class_masks(labels, num, size):
    """Labels (B,H,W) -> (B,num,h,w) float: which of the labels 0..num-1 the nearest pixel has."""
    small = F.interpolate(labels[:, None].float(), size, mode='nearest')
    return (small == torch.arange(num, device=labels.device).view(1, -1, 1, 1)).float()


def static_prototypes(features, masks):
    """The mean of features (B,C,h,w) over each of masks (B,R,h,w) -> (B,R,C); zeros for an empty mask."""
    sums = torch.einsum('bchw,brhw->brc', features.float(), masks)
    return sums / masks.sum((2, 3)).clamp(min=1)[..., None]


def cosine(features, prototypes):
    """Features (B,C,h,w), prototypes (B,R,C) -> (B,R,h,w) in -1..1; 0 for a prototype of zeros."""
    return torch.einsum('bchw,brc->brhw', F.normalize(features, dim=1), F.normalize(prototypes, dim=2))


def known_labels(support_labels, classes, num_labels):
    """bool (B,256): the labels of the episode that each support has at 1/4 of its size, and IGNORE. support_labels
    (B,H,W), classes as of `episode_labels`."""
    labels = episode_labels(support_labels, classes)
    quarter = [math.ceil(side / 4) for side in labels.shape[1:]]
    known = F.pad(class_masks(labels, num_labels, quarter).any(3).any(2), (0, IGNORE + 1 - num_labels))
    known[:, IGNORE] = True
    return known


def query_target(query_labels, support_labels, classes, num_labels):
    """The query's labels (B,H,W) of the episode; classes without a pixel in the support at 1/4 of its size become 0."""
    labels, known = episode_labels(query_labels, classes).long(), known_labels(support_labels, classes, num_labels)
    return labels * known.gather(1, labels.flatten(1)).view_as(labels)
