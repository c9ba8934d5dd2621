"""Labels of an episode, and prototypes: the mean feature of each class of a support photo.

Labels (B,H,W) hold 0 background, 1..K-1 parts, 255 ignore. Features (B,C,h,w) are smaller: labels
are reduced to their size by the nearest pixel.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from oneshot.episodes import IGNORE

ALPHA = 0.001         # share of this episode's prototype in a smoothed one


# -------------------------------------------------------------------------------------------------
# Labels


def episode_labels(labels: Tensor, classes: tuple | Tensor | None) -> Tensor:
    """Labels (B,H,W) -> those of the episode. IGNORE stays.

    k-way: classes is a tuple, and all other classes become 0; None keeps all.
    1-way: classes is a tensor (B,), and a pixel is 1 if it has its image's class, else 0.
    """
    if classes is None:
        return labels
    if torch.is_tensor(classes):
        kept = (labels == classes.to(labels).view(-1, 1, 1)).to(labels.dtype)
    else:
        kept = labels * torch.isin(labels, torch.tensor(classes).to(labels))
    return torch.where(labels == IGNORE, IGNORE, kept)


def foreground(labels: Tensor) -> Tensor:
    """Labels (B,H,W) -> 1 on people, 0 elsewhere. IGNORE stays."""
    return torch.where(labels == IGNORE, IGNORE, labels.clamp(max=1))


def check_labels(labels: Tensor, num_labels: int):
    """ValueError where labels (B,H,W) are none of 0..num_labels-1 and not IGNORE."""
    strange = labels[(labels >= num_labels) & (labels != IGNORE)]
    if len(strange):
        raise ValueError(f'the label {int(strange[0])} is none of 0 to {num_labels - 1} and not '
                         f'{IGNORE}; is it of another data set?')


def class_masks(labels: Tensor, num: int, size: tuple[int, int]) -> Tensor:
    """Labels (B,H,W) -> float masks (B,num,h,w) of the labels 0..num-1 at this size (h,w)."""
    small = F.interpolate(labels[:, None].float(), size, mode='nearest')
    ids = torch.arange(num, device=labels.device).view(1, -1, 1, 1)
    return (small == ids).float()


def known_labels(support_labels: Tensor, classes, num_labels: int) -> Tensor:
    """bool (B,256): the labels of the episode that each support has at a quarter of its size, and
    IGNORE. support_labels (B,H,W); classes as of `episode_labels`."""
    labels = episode_labels(support_labels, classes)
    quarter = [math.ceil(side / 4) for side in labels.shape[1:]]
    present = class_masks(labels, num_labels, quarter).any(3).any(2)           # (B,K)
    known = F.pad(present, (0, IGNORE + 1 - num_labels))                       # (B,256)
    known[:, IGNORE] = True
    return known


def query_target(query_labels: Tensor, support_labels: Tensor, classes,
                 num_labels: int) -> Tensor:
    """Labels (B,H,W) that a query is to get: those of the episode. A class without a pixel in the
    support, at a quarter of its size, becomes 0, because nothing shows what it looks like."""
    labels = episode_labels(query_labels, classes).long()
    known = known_labels(support_labels, classes, num_labels)
    return labels * known.gather(1, labels.flatten(1)).view_as(labels)


# -------------------------------------------------------------------------------------------------
# Prototypes


def static_prototypes(features: Tensor, masks: Tensor) -> Tensor:
    """The mean of features (B,C,h,w) over each of masks (B,R,h,w) -> (B,R,C); zeros for an empty
    mask."""
    features = at_least_float(features)
    masks = masks.to(features)
    sums = torch.einsum('bchw,brhw->brc', features, masks)
    return sums / masks.sum((2, 3)).clamp(min=1)[..., None]


def at_least_float(x: Tensor) -> Tensor:
    """Half precision becomes float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_prototypes(prototypes: list[Tensor]) -> Tensor:
    """Prototypes (..,R,C) of several supports -> their mean (..,R,C), for each class over the
    supports that have it."""
    count = sum(p.any(-1, keepdim=True) for p in prototypes)
    return sum(prototypes) / count.clamp(min=1)


def smoothed_prototypes(stored: Tensor, static: Tensor, rows: Tensor, warm_up: bool,
                        update: bool) -> Tensor:
    """Prototypes that move slowly from episode to episode ("momentum-updated").

        used = (1 - ALPHA) stored + ALPHA static

    stored (K,C): of earlier episodes. static (B,R,C): of this one. rows (B,R): the row of `stored`
    that belongs to each. Returns the prototypes to use (B,R,C). With `update` they are stored,
    image after image. The gradient goes through `static` alone.
    """
    used = []
    for own, row in zip(static, rows):
        before = stored[row]
        known = before.any(1, keepdim=True)
        present = own.detach().any(1, keepdim=True)
        # A class without a stored prototype, such as a novel one, begins with its static one. So
        # does every class in the warm-up, while features still change.
        mixed = own
        if not warm_up:
            mixed = torch.where(known, (1 - ALPHA) * before + ALPHA * own, own)
            # A class that the support lacks is not wanted: it stays zero.
            mixed = torch.where(present, mixed, own)
        used.append(mixed)
        if update:
            with torch.no_grad():
                stored[row] = torch.where(present, mixed, before)
    return torch.stack(used)


def cosine(features: Tensor, prototypes: Tensor) -> Tensor:
    """Features (B,C,h,w), prototypes (B,R,C) -> (B,R,h,w) in -1..1; 0 for a prototype of zeros."""
    return torch.einsum('bchw,brc->brhw', F.normalize(features, dim=1),
                        F.normalize(prototypes, dim=2))
