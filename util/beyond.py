"""Options of ours that the paper does not have. The presets of the paper leave them off, except for `distinct`.

    theta_same          `distinct`                  two detections of one person
    score               `parsing_quality`           people are ranked by their parts
    theta_person        `map_quality`               people without a clear center and map are left out
    whole               `keep_whole`                a person's pixels without a class are kept
    assign              `mixture`                   a pixel's class depends on the person's other pixels
    flip_test           `averaged`                  the photo and its mirror image
    lambda_cross        `balanced_cross_entropy`    tells similar classes apart
    degrade             `degrade`                   gray, dark, blurred and compressed training images
"""
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from util.fast import paint
from util.files import UNKNOWN

# ---------------------------------------------------------------------------------------------------------------
# Inference


def averaged(out, mirrored, flip_pairs):
    """Outputs of images and of their mirror images -> outputs whose logits and correlations are the means of both.

    A correlation is linear in its feature, so the mean of two is that of kernels and features joined along the
    channels, each times sqrt(1/2): they keep unit length, and `decode` sees nothing new."""
    order = list(range(len(out['k_cate'])))
    for left, right in flip_pairs:
        order[left - 1], order[right - 1] = right - 1, left - 1
    mirrored = {k: v[order] if k == 'k_cate' else v.flip(3) for k, v in mirrored.items()}
    joined = {k: torch.cat([v, mirrored[k]], 1) * 0.5 ** 0.5 for k, v in out.items() if k != 'heatmap'}
    return dict(joined, heatmap=(out['heatmap'] + mirrored['heatmap']) / 2)


def distinct(masks, theta):
    """List of the people that no better one resembles with a mask IoU above theta: two peaks of the heat map may lie in
    one person. masks (N, h, w) bool, best first."""
    if theta >= 1:
        return list(range(len(masks)))
    flat = masks.flatten(1).float()
    shared, area = flat @ flat.T, flat.sum(1)
    same = (shared > theta * (area + area[:, None] - shared)).tolist()
    kept = []
    for n in range(len(masks)):
        if not any(same[n][k] for k in kept):
            kept.append(n)
    return kept


def parsing_quality(gate, q_ins, q_cate):
    """Mean over each person's pixels of its correlation times that of the best class -> (N,), a score: a person with
    clear parts ranks before one without. gate, q_ins (N, h, w), q_cate (K, h, w)."""
    gate, quality = gate.flatten(1), (q_ins * q_cate.amax(0)).flatten(1)
    return (gate * quality).sum(1).clamp(min=0) / gate.sum(1).clamp(min=1)


def map_quality(gate, q_ins, centers):
    """Mean correlation of each person's pixels times the root of the center's score -> (N,), a score
    that does not ask what the person wears. gate, q_ins (N, h, w), centers (N,) in 0..1."""
    gate = gate.flatten(1)
    mean = (gate * q_ins.flatten(1)).sum(1) / gate.sum(1).clamp(min=1)
    return mean * centers.sqrt()


def person_mask(q_ins, size, shape, theta):
    """Mask (H0, W0) uint8 of the person with the map q_ins (h, w), at the photo's size: 1 where it is
    above theta. size: that of the photo in the network, as of `paint`; shape: (H0, W0)."""
    mask = np.zeros(shape, np.uint8)
    paint(mask, q_ins[None], torch.zeros(1), size, theta)
    return mask


def keep_whole(parsing, q_ins, size, theta):
    """Writes 255 (this person, part unknown) into a label map, in place, where the person is and no
    class is: a person whose clothes are unsure is still a person. parsing (H0, W0) uint8; the rest
    as of `person_mask`."""
    mask = person_mask(q_ins, size, parsing.shape, theta)
    parsing[(parsing == 0) & (mask > 0)] = UNKNOWN


def mixture(q, gate, theta, temperature=0.1, rounds=10, power=0.5):
    """Classes of one person's pixels by a mixture model: small patches of a second garment on a first one vanish. The
    likelihood of class c is exp(q_c / temperature), as in `balanced_cross_entropy`; expectation maximization finds the
    mixing weights, the share of each class in the person. A share counts by its square root in every round: in full,
    coats would swallow scarves, and shoes socks. A class is kept if the mean posterior of the pixels that it wins is
    above theta.

    q (K, h, w), gate (h, w) bool -> maps (K, h, w): posteriors among the kept classes, 0 outside the person; means
    (K,): the mean posterior of the pixels that a class wins, before any is left out; 0 where it wins none."""
    logits, maps, means = q[:, gate] / temperature, torch.zeros_like(q), q.new_zeros(len(q))     # logits: (K, P)
    if gate.any():
        log_shares = logits.new_zeros(len(q), 1)                                          # equal at first
        for _ in range(rounds):
            shares = (logits + log_shares).softmax(0).mean(1, keepdim=True)
            log_shares = power * shares.clamp(min=1e-6).log()
        logits = logits + log_shares
        value, best = logits.softmax(0).max(0)
        won = torch.zeros_like(means).scatter_add_(0, best, torch.ones_like(value))
        means = means.scatter_add_(0, best, value) / won.clamp(min=1)
        maps[:, gate] = logits.masked_fill(means[:, None] <= theta, -torch.inf).softmax(0).nan_to_num(0)
    return maps, means


# ---------------------------------------------------------------------------------------------------------------
# Training


def balanced_cross_entropy(q_cates, targets, balance=0.5, temperature=0.1):
    """Cross-entropy of q_cate / temperature over the people's pixels: which class correlates most. Eq. (5) pulls each
    class's correlations up alone, and separates similar garments slowly. A pixel counts by the number of the batch's
    pixels of its class, to the power -balance. q_cates: list of (K, h, w); targets: list of `losses.Targets`."""
    q_cate = torch.stack(q_cates)                                            # (B, K, h, w)
    labels = torch.stack([person_labels(target) for target in targets])      # (B, h, w), 0 = none
    losses = F.cross_entropy(q_cate / temperature, (labels - 1).clamp(min=0), reduction='none')

    # Pixels of each class in the batch.
    flat = labels.flatten()
    counts = q_cate.new_zeros(q_cate.shape[1] + 1).scatter_add_(0, flat, torch.ones_like(flat, dtype=q_cate.dtype))
    weights = counts.clamp(min=1)[labels] ** -balance * (labels > 0)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def person_labels(target):
    """The classes of an image's pixels (h, w); 0 where there is no person, or the class is not known."""
    unknown = (target.labels == 255).any(0) | ~target.known
    if not len(target.labels):
        return torch.zeros_like(unknown, dtype=torch.long)
    return target.labels.amax(0) * ~unknown


def degrade(image, probability, rng):
    """uint8 RGB (H, W, 3) -> the same, each with this probability made gray, darker, blurred and compressed."""
    image, chosen = Image.fromarray(image), rng.random(4) < probability
    amount = rng.random(4).tolist()                        # plain floats: Pillow compares them with tuples
    if chosen[0]:
        image = ImageOps.grayscale(image).convert('RGB')
    if chosen[1]:
        image = ImageEnhance.Brightness(image).enhance(0.25 + 0.6 * amount[1])
    if chosen[2]:
        image = image.filter(ImageFilter.GaussianBlur(0.4 + 1.2 * amount[2]))
    if chosen[3]:
        stream = io.BytesIO()
        image.save(stream, 'JPEG', quality=int(10 + 50 * amount[3]))
        image = Image.open(stream, formats=['JPEG']).convert('RGB')
    return np.asarray(image)
