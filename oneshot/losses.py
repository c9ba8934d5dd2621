"""The losses of EOP-Net, cross-entropies of its three outputs and the contrast of prototypes, and
those of POPNet, the cross-entropies of both fine heads."""
import torch
import torch.nn.functional as F
from torch import Tensor

from oneshot.episodes import IGNORE
from oneshot.prototypes import (at_least_float, check_labels, class_masks, episode_labels,
                                foreground, query_target, static_prototypes)

TEMPERATURE = 0.1     # of the contrast


def oneshot_loss(out: dict, query_labels: Tensor, support_labels: Tensor, epoch: int,
                 epochs: int) -> dict[str, Tensor]:
    """Scalars agm, npm, coarse and contrast, and their sum as total:

        total = (1 - beta) agm + beta npm + coarse + contrast,   beta = epoch / epochs

    so AGM fades out and NPM fades in. out: of `EOPNet.forward`. Labels (B,H,W): as given to it.
    The contrast is 0 for 1-way and outside training mode.
    """
    classes = out['classes']
    num_labels = out['npm'].shape[1]
    # 1-way has two labels, which are no ids.
    if not torch.is_tensor(classes):
        check_labels(query_labels, num_labels)
        check_labels(support_labels, num_labels)
    terms = fine_losses(out, ('agm', 'npm'), query_labels, support_labels)
    # Every part is a person's pixel, also one of a class that the episode leaves out.
    people = foreground(query_labels).long()
    terms['coarse'] = F.cross_entropy(out['coarse'].float(), people, ignore_index=IGNORE)
    terms['contrast'] = torch.zeros_like(terms['coarse'])
    if 'f2' in out:
        query, support = out['f2']
        terms['contrast'] = contrast_loss(
            contrast_prototypes(query, query_labels, classes, num_labels),
            contrast_prototypes(support, support_labels, classes, num_labels))
    beta = epoch / epochs
    total = (1 - beta) * terms['agm'] + beta * terms['npm'] + terms['coarse'] + terms['contrast']
    return dict(terms, total=total)


def popnet_loss(out: dict, query_labels: Tensor, support_labels: Tensor, epoch: int,
                epochs: int) -> dict[str, Tensor]:
    """Scalars agm and ncm, and total = (1 - beta) agm + beta ncm, beta = epoch / epochs.

    out: of `POPNet.forward`. Labels (B,H,W): as given to it. No loss of POPNet was released; the
    schedule of the released EOP-Net still has POPNet's names.
    """
    terms = fine_losses(out, ('agm', 'ncm'), query_labels, support_labels)
    beta = epoch / epochs
    return dict(terms, total=(1 - beta) * terms['agm'] + beta * terms['ncm'])


def fine_losses(out: dict, heads: tuple[str, str], query_labels: Tensor,
                support_labels: Tensor) -> dict[str, Tensor]:
    """The cross-entropy of each fine head. Query classes that the support lacks count as
    background."""
    num_labels = out['agm'].shape[1]
    target = query_target(query_labels, support_labels, out['classes'], num_labels)
    return {name: F.cross_entropy(at_least_float(out[name]), target, ignore_index=IGNORE)
            for name in heads}


def contrast_prototypes(f2: Tensor, labels: Tensor, classes, num_labels: int) -> Tensor:
    """Static prototypes (B,K,C) of the fine features (B,C,h,w). That of the background is a mean
    over pixels without people: it leaves out people's pixels of classes not in `classes`."""
    masks = class_masks(episode_labels(labels, classes), num_labels, f2.shape[2:])
    masks[:, :1] = class_masks(foreground(labels), 1, f2.shape[2:])
    return static_prototypes(f2, masks)


def contrast_loss(query: Tensor, support: Tensor) -> Tensor:
    """Pulls each prototype of the query to the support's of the same label, away from the others:

        mean over the query's labels i of  -log softmax_j(cos(query_i, support_j) / 0.1) [j = i]

    query, support: (B,K,C). Labels that a support lacks are in no softmax; they have the loss 0.
    """
    in_query = query.detach().any(2)                                           # (B,K)
    in_support = support.detach().any(2)
    cosines = torch.einsum('bic,bjc->bij', F.normalize(query, dim=2), F.normalize(support, dim=2))
    # A finite number, so that there is no NaN where the support has no label at all.
    scores = (cosines / TEMPERATURE).masked_fill(~in_support[:, None], -1e4)
    own = -scores.log_softmax(2).diagonal(dim1=1, dim2=2)                      # (B,K)
    losses = torch.where(in_query & in_support, own, 0)
    return (losses.sum(1) / in_query.sum(1).clamp(min=1)).mean()
