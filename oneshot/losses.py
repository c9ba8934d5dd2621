"""The losses of EOP-Net."""
import torch
import torch.nn.functional as F

from oneshot.episodes import IGNORE
from oneshot.prototypes import class_masks, episode_labels, foreground, query_target, static_prototypes

TEMPERATURE = 0.1                            # of the contrast


def oneshot_loss(out, query_labels, support_labels, epoch, epochs):
    """out of `EOPNet.forward`, labels (B,H,W) as given to it -> dict of scalars: agm, npm, coarse, contrast, total.

    AGM fades out over the epochs and NPM fades in. Query classes that the support lacks count as background. The
    contrast is 0 for 1-way and outside training mode.
    """
    target = query_target(query_labels, support_labels, out['classes'], out['npm'].shape[1])
    terms = {name: F.cross_entropy(out[name].float(), target, ignore_index=IGNORE) for name in ('agm', 'npm')}
    terms['coarse'] = F.cross_entropy(out['coarse'].float(), foreground(query_labels).long(), ignore_index=IGNORE)
    terms['contrast'] = torch.zeros_like(terms['coarse'])
    if 'f2' in out:
        sides = [contrast_prototypes(f2, labels, out['classes'], out['npm'].shape[1])
                 for f2, labels in zip(out['f2'], (query_labels, support_labels))]
        terms['contrast'] = contrast_loss(*sides)
    beta = epoch / epochs
    total = (1 - beta) * terms['agm'] + beta * terms['npm'] + terms['coarse'] + terms['contrast']
    return dict(terms, total=total)


def contrast_prototypes(f2, labels, classes, num_labels):
    """Static prototypes (B,K,C) of all labels; that of the background leaves out the classes not in `classes`."""
    masks = class_masks(episode_labels(labels, classes), num_labels, f2.shape[2:])
    masks[:, :1] = class_masks(foreground(labels), 1, f2.shape[2:])
    return static_prototypes(f2, masks)


def contrast_loss(query, support):
    """Prototypes (B,K,C) of both: each of the query's is to be nearest to the support's of the same label -> scalar."""
    there, known = query.detach().any(2), support.detach().any(2)
    scores = torch.einsum('bic,bjc->bij', F.normalize(query, dim=2), F.normalize(support, dim=2)) / TEMPERATURE
    scores = scores.masked_fill(~known[:, None], -1e4)        # finite: no NaN where nothing is known
    losses = torch.where(there & known, -scores.log_softmax(2).diagonal(dim1=1, dim2=2), 0)
    return (losses.sum(1) / there.sum(1).clamp(min=1)).mean()
