"""The losses of SCHP.

For the parsing and the fusion logits: half a Lovasz-Softmax loss and half a cross-entropy; for the
edge logits a balanced cross-entropy. From cycle 1 on, the averaged model corrects the labels, and
divergences towards the corrected labels take the place of the cross-entropies.
"""
import numpy as np
import torch
import torch.nn.functional as F

from util.tensors import resize_map

# Label of pixels that are left out of the losses.
IGNORE = 255


def schp_loss(out: dict, labels: torch.Tensor, soft: dict | None = None, cycle: int = 0,
              recipe: str = 'paper', batchmean: bool = False) -> dict:
    """The terms of the loss, and their sum 'total': scalars by name.

    out: what `forward` returns, with all heads; labels: integers (B, H, W), 255 = unknown; soft:
    from cycle 1 on, the averaged model's fusion and edge logits.

    recipe 'paper': corrected labels are mixtures of probabilities, a divergence is a mean over
    pixels, and unknown pixels are left out of every term.

    recipe 'released', as the released code computes it:
    - logits are mixed with one-hot labels before the softmax;
    - a divergence is a mean over pixels and classes, or with `batchmean` over pixels alone, as in
      the SegFormer variant;
    - the edge terms count unknown pixels as "no edge";
    - its one-hot helper writes 0 over the label 255. So from cycle 1 on unknown pixels are
      background, beginning after the Lovasz term of the parsing head.
    Its consistency term is always 0 and left out here."""
    if (cycle > 0) != (soft is not None):
        raise ValueError(f'cycle {cycle} {"needs" if cycle else "takes no"} soft labels')
    if recipe not in ('paper', 'released'):
        raise ValueError(f'recipe is {recipe!r}; it can be paper or released')
    released = recipe == 'released'
    labels = labels.long()
    num_classes = out['fusion'].shape[1]
    strange = labels[(labels >= num_classes) & (labels != IGNORE) | (labels < 0)]
    if len(strange):
        raise ValueError(f'the label {int(strange[0])} is none of 0 to {num_classes - 1} and not '
                         f'{IGNORE}; is it of another data set?')
    edge = edges(labels)
    if not released:
        edge = edge.masked_fill(labels == IGNORE, IGNORE)

    terms = {}
    for head in ('parsing', 'fusion'):
        logits = resize_map(out[head].float(), labels.shape[1:])
        terms[f'lovasz_{head}'] = 0.5 * lovasz_softmax(logits, labels)
        if soft is None:
            loss = cross_entropy(logits, labels)
            terms[f'ce_{head}'] = 0.5 * masked_mean(loss, labels != IGNORE)
        else:
            target = soft_target(soft['fusion'], labels, cycle, released)
            if released:
                labels = labels.masked_fill(labels == IGNORE, 0)
            terms[f'kl_{head}'] = 0.5 * kl_divergence(logits, target, labels, released, batchmean)

    logits = resize_map(out['edge'].float(), edge.shape[1:])
    if soft is None:
        # Edges and other pixels count alike: the released code weights them by their shares.
        loss = cross_entropy(logits, edge)
        terms['ce_edge'] = (masked_mean(loss, edge == 0) + masked_mean(loss, edge == 1)) / 2
    else:
        target = soft_target(soft['edge'], edge, cycle, released)
        terms['kl_edge'] = kl_divergence(logits, target, edge, released, batchmean)
    return {**terms, 'total': sum(terms.values())}


# ---- terms -------------------------------------------------------------------------------------


def lovasz_softmax(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz-Softmax (Berman, Triki and Blaschko, CVPR 2018), the mean over the classes c in the
    batch of

        sum_i m_(i) [J(m_(1..i)) - J(m_(1..i-1))]

    with the errors m = |1(y = c) - p_c| in descending order. J is the Jaccard loss if the pixels up
    to i are wrong. logits (B, C, H, W), labels (B, H, W)."""
    known = (labels != IGNORE).flatten()
    probabilities = logits.softmax(1).movedim(1, 0).flatten(1)[:, known]     # (C, P)
    labels = labels.flatten()[known]                                         # (P,)
    present = labels.unique()                                                # (K,)
    foreground = labels == present[:, None]                                  # (K, P)
    errors = (foreground.float() - probabilities[present]).abs()

    # J(m_(1..i)) - J(m_(1..i-1)), at the pixel of m_(i).
    weights = torch.zeros_like(errors)
    with torch.no_grad():
        for row, error, truth in zip(weights, errors, foreground):
            order = descending(error)
            # Pixels of the class among the first i.
            wrong = truth[order].cumsum(0)
            count = torch.arange(1, len(wrong) + 1, device=wrong.device)
            size = wrong[-1]
            jaccard = 1 - (size - wrong) / (size + count - wrong)
            row[order] = jaccard.diff(prepend=jaccard.new_zeros(1))
    return (errors * weights).sum() / max(1, len(present))


def descending(values: torch.Tensor) -> torch.Tensor:
    """The order of values (P,) from the largest on. On CPUs numpy sorts three times faster."""
    if values.device.type == 'cpu':
        return torch.from_numpy(np.argsort(-values.numpy()))
    return values.argsort(descending=True)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W), (B, H, W) -> (B, H, W), 0 at unknown pixels."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction='none')


def kl_divergence(logits: torch.Tensor, target: torch.Tensor, labels: torch.Tensor,
                  released: bool = False, batchmean: bool = False) -> torch.Tensor:
    """KL(target || softmax(logits)): the mean over pixels whose label is known; with `released`
    over all pixels and classes, or with `batchmean`, too, over all pixels."""
    divergence = F.kl_div(logits.log_softmax(1), target, reduction='none')
    if not released:
        return masked_mean(divergence.sum(1), labels != IGNORE)
    if batchmean:
        return divergence.sum(1).mean()
    return divergence.mean()


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean where the mask is true; 0 where it is true nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


# ---- targets -----------------------------------------------------------------------------------


def soft_target(soft: torch.Tensor, labels: torch.Tensor, cycle: int,
                released: bool = False) -> torch.Tensor:
    """Label refinement in cycle m: y_hat = m/(m+1) y_hat + 1/(m+1) y.

    soft: the averaged model's logits (B, C, h, w); labels (B, H, W) -> probabilities (B, C, H, W).
    """
    share = 1 / (cycle + 1)
    soft = resize_map(soft.detach().float(), labels.shape[1:])
    known = labels.masked_fill(labels == IGNORE, 0)
    onehot = F.one_hot(known, soft.shape[1]).movedim(-1, 1).float()
    if released:
        return ((1 - share) * soft + share * onehot).softmax(1)
    return (1 - share) * soft.softmax(1) + share * onehot


def edges(labels: torch.Tensor) -> torch.Tensor:
    """labels (B, H, W) -> edge map (B, H, W), int64, of 0 and 1.

    Where two neighbors have different known labels, one of them is an edge: the left one, the lower
    one, and of diagonal pairs the upper one. Then 3x3 dilation."""
    known = labels != IGNORE
    edge = torch.zeros_like(known)
    every = slice(None)
    upper = left = slice(None, -1)
    lower = right = slice(1, None)
    pairs = (((every, left), (every, right)), ((lower, every), (upper, every)),
             ((upper, left), (lower, right)), ((upper, right), (lower, left)))
    for here, there in pairs:
        here = (every, *here)
        there = (every, *there)
        edge[here] |= (labels[here] != labels[there]) & known[here] & known[there]
    return F.max_pool2d(edge.float(), 3, 1, 1).long()
