"""The losses of SCHP."""
import numpy as np
import torch
import torch.nn.functional as F

from schp.layers import resize

IGNORE = 255                                              # label of pixels that are left out of the losses


def schp_loss(out, labels, soft=None, cycle=0, recipe='paper', batchmean=False):
    """Terms of the loss and their sum 'total'. For parsing and fusion: 0.5 Lovasz + 0.5 cross-entropy; plus the edges'.

    out: `forward`'s dict with all heads; labels (B,H,W) integers, 255 = unknown. From cycle 1 on, `soft` holds the
    averaged model's fusion and edge logits, and a KL divergence towards corrected labels replaces cross-entropy.

    recipe 'paper': corrected labels are mixtures of probabilities, the divergence is a mean over pixels, and unknown
    pixels are in no term. 'released': as the released code computes it. It mixes logits with one-hot labels before
    the softmax, takes the mean over pixels and classes, and its one-hot helper writes 0 over the label 255: unknown
    pixels are background from cycle 1 on, beginning after the parsing head's Lovasz term; the edges' cross-entropy
    counts them as "no edge". The consistency term of the released code is always 0 and left out here. `batchmean`, of
    the SegFormer variant: the released divergence is a mean over pixels alone."""
    if (cycle > 0) != (soft is not None):
        raise ValueError(f'cycle {cycle} {"needs" if cycle else "takes no"} soft labels')
    released, labels, terms = recipe == 'released', labels.long(), {}
    edge = edges(labels) if released else edges(labels).masked_fill(labels == IGNORE, IGNORE)
    for head in ('parsing', 'fusion'):
        logits = resize(out[head].float(), labels.shape[1:])
        terms[f'lovasz_{head}'] = 0.5 * lovasz_softmax(logits, labels)
        if soft is None:
            terms[f'ce_{head}'] = 0.5 * masked_mean(cross_entropy(logits, labels), labels != IGNORE)
        else:
            target = soft_target(soft['fusion'], labels, cycle, released)
            labels = labels.masked_fill(labels == IGNORE, 0) if released else labels
            terms[f'kl_{head}'] = 0.5 * kl_divergence(logits, target, labels, released, batchmean)
    logits = resize(out['edge'].float(), edge.shape[1:])
    if soft is None:    # the released weights, pos/total of "no edge" and neg/total of "edge", make both count alike
        loss = cross_entropy(logits, edge)
        terms['ce_edge'] = (masked_mean(loss, edge == 0) + masked_mean(loss, edge == 1)) / 2
    else:
        target = soft_target(soft['edge'], edge, cycle, released)
        terms['kl_edge'] = kl_divergence(logits, target, edge, released, batchmean)
    return {**terms, 'total': sum(terms.values())}


def lovasz_softmax(logits, labels):
    """Lovasz-Softmax (Berman, Triki and Blaschko, CVPR 2018): the mean over the classes c present in the batch of
    sum_i m_(i) [J(m_(1..i)) - J(m_(1..i-1))], errors m = |1(y = c) - p_c| in descending order, J the Jaccard loss of
    the pixels up to i being wrong. logits (B,C,H,W), labels (B,H,W)."""
    known = (labels != IGNORE).flatten()
    probabilities = logits.softmax(1).movedim(1, 0).flatten(1)[:, known]          # (C,P)
    labels = labels.flatten()[known]                                              # (P,)
    present = labels.unique()
    foreground = labels == present[:, None]                                       # (K,P)
    errors = (foreground.float() - probabilities[present]).abs()
    weights = torch.zeros_like(errors)                    # J(m_(1..i)) - J(m_(1..i-1)), at the pixel of m_(i)
    with torch.no_grad():
        for row, error, truth in zip(weights, errors, foreground):
            order = descending(error)
            wrong = truth[order].cumsum(0)                # pixels of c among the first i
            count = torch.arange(1, len(wrong) + 1, device=wrong.device)
            jaccard = 1 - (wrong[-1] - wrong) / (wrong[-1] + count - wrong)
            row[order] = jaccard.diff(prepend=jaccard.new_zeros(1))
    return (errors * weights).sum() / max(1, len(present))


def descending(values):
    """The order of values (P,) from the largest on. On CPUs numpy sorts three times faster than torch."""
    if values.device.type == 'cpu':
        return torch.from_numpy(np.argsort(-values.numpy()))
    return values.argsort(descending=True)


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction='none')


def masked_mean(values, mask):
    return (values * mask).sum() / mask.sum().clamp(min=1)


def soft_target(soft, labels, cycle, released=False):
    """Corrected labels (B,C,H,W), probabilities: m/(m+1) of the averaged model's, 1/(m+1) of the labels'."""
    share, soft = 1 / (cycle + 1), resize(soft.detach().float(), labels.shape[1:])
    onehot = F.one_hot(labels.masked_fill(labels == IGNORE, 0), soft.shape[1]).movedim(-1, 1).float()
    if released:
        return ((1 - share) * soft + share * onehot).softmax(1)
    return (1 - share) * soft.softmax(1) + share * onehot


def kl_divergence(logits, target, labels, released=False, batchmean=False):
    """KL(target || softmax(logits)), a mean over the pixels whose label is known; released: over pixels and classes."""
    divergence = F.kl_div(logits.log_softmax(1), target, reduction='none')
    if released:
        return divergence.sum(1).mean() if batchmean else divergence.mean()
    return masked_mean(divergence.sum(1), labels != IGNORE)


def edges(labels):
    """labels (B,H,W) -> edge map (B,H,W) int64 of 0 and 1. Of two neighbors with different known labels one pixel is
    an edge: the left one, the lower one, and of diagonal pairs the upper one; then 3x3 dilation."""
    edge, known = torch.zeros_like(labels, dtype=torch.bool), labels != IGNORE

    def differ(a, b):
        return (labels[a] != labels[b]) & known[a] & known[b]

    every, low, high = slice(None), slice(1, None), slice(None, -1)
    for here, there in (((every, every, high), (every, every, low)), ((every, low, every), (every, high, every)),
                        ((every, high, high), (every, low, low)), ((every, high, low), (every, low, high))):
        edge[here] |= differ(here, there)
    return F.max_pool2d(edge.float(), 3, 1, 1).long()
