"""Options of ours that the paper does not have. The paper's presets leave them off, except for
`distinct`.

    theta_same      `distinct`                  two detections of one person
    score           `parsing_quality`           people are ranked by their parts
    theta_person    `map_quality`               people without a clear center and map are left out
    theta_side      `unsure_sides`              left and right are left out where they are unsure
    whole           `keep_whole`                a person's pixels without a class are kept
    assign          `mixture`                   a pixel's class depends on the person's other pixels
    flip_test       `averaged`                  the photo and its mirror image
    lambda_cross    `balanced_cross_entropy`    tells similar classes apart
    degrade         `degrade`                   gray, dark, blurred and compressed training images
"""
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from util.fast import paint
from util.files import UNKNOWN

# -------------------------------------------------------------------------------------------------
# Inference


def averaged(out: dict, mirrored: dict, flip_pairs) -> dict:
    """The network's outputs for images and for their mirror images -> outputs whose logits and
    correlations are the means of both.

    A correlation is linear in its feature. So the mean of two correlations is the correlation of
    kernels and features that are joined along the channels, each times sqrt(1/2): they keep unit
    length, and `decode` needs no change. flip_pairs: labels (left, right), 1-based.
    """
    # In a mirror image, the left arm looks like a right one: their kernels change places.
    order = list(range(len(out['k_cate'])))
    for left, right in flip_pairs:
        order[left - 1] = right - 1
        order[right - 1] = left - 1

    result = {}
    for name, value in out.items():
        # K_cate (K, C) is the same for all images; the rest are maps (B, C, h, w), flipped back.
        other = mirrored[name][order] if name == 'k_cate' else mirrored[name].flip(3)
        if name == 'heatmap':
            result[name] = (value + other) / 2
        else:
            result[name] = torch.cat([value, other], dim=1) * 0.5 ** 0.5
    return result


def distinct(masks: torch.Tensor, theta: float) -> list:
    """Indices of the people to keep. Two peaks of the heat map may lie in one person: a mask is
    left out if its IoU with a better one that is kept is above theta.

    masks (N, h, w) bool, best first.
    """
    if theta >= 1:
        return list(range(len(masks)))

    # shared / union > theta, without a division by empty unions.
    flat = masks.flatten(1).float()                                             # (N, hw)
    shared = flat @ flat.T                                                      # (N, N)
    area = flat.sum(1)
    union = area + area[:, None] - shared
    same = (shared > theta * union).tolist()

    kept = []
    for n in range(len(masks)):
        if not any(same[n][k] for k in kept):
            kept.append(n)
    return kept


def parsing_quality(gate: torch.Tensor, q_ins: torch.Tensor, q_cate: torch.Tensor) -> torch.Tensor:
    """The score (N,) of each person: the mean, over the person's pixels, of its correlation times
    that of the best class. A person with clear parts ranks before one without.

    gate (N, h, w): the pixels of each person; q_ins (N, h, w); q_cate (K, h, w).
    """
    quality = q_ins * q_cate.amax(0)                                            # (N, h, w)
    gate = gate.flatten(1)
    total = (gate * quality.flatten(1)).sum(1)
    return total.clamp(min=0) / gate.sum(1).clamp(min=1)


def map_quality(gate: torch.Tensor, q_ins: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """A score (N,) that does not ask what a person wears: the mean correlation of the person's
    pixels times the root of the center's score.

    gate (N, h, w): the pixels of each person; q_ins (N, h, w); centers (N,) in 0..1.
    """
    gate = gate.flatten(1)
    total = (gate * q_ins.flatten(1)).sum(1)
    return total / gate.sum(1).clamp(min=1) * centers.sqrt()


def person_mask(q_ins: torch.Tensor, size: tuple, shape: tuple, theta: float) -> np.ndarray:
    """Mask (H0, W0) uint8 of one person at the photo's size: 1 where the map exceeds theta.

    q_ins (h, w); size: (height, width) of the photo in the network, as of `paint`; shape: (H0, W0).
    """
    mask = np.zeros(shape, np.uint8)
    paint(mask, q_ins[None], torch.zeros(1), size, theta)
    return mask


def keep_whole(parsing: np.ndarray, q_ins: torch.Tensor, size: tuple, theta: float):
    """Writes 255 (this person, part unknown) into a label map, in place, where the person is. The
    classes are painted over it: a person whose clothes are unsure is still a person.

    parsing (H0, W0) uint8; the others as of `person_mask`.
    """
    paint(parsing, q_ins[None], torch.tensor([UNKNOWN - 1]), size, theta)


def unsure_sides(q_cate: torch.Tensor, flip_pairs: torch.Tensor, theta: float) -> torch.Tensor:
    """Where a left part and the right one correlate alike, within theta: no side is better than the
    wrong one. q_cate (K, h, w); flip_pairs (P, 2): labels (left, right), 1-based -> bool (K, h, w),
    True for both."""
    unsure = torch.zeros_like(q_cate, dtype=torch.bool)
    for left, right in flip_pairs.tolist():
        close = (q_cate[left - 1] - q_cate[right - 1]).abs() < theta
        unsure[left - 1] = close
        unsure[right - 1] = close
    return unsure


def mixture(q: torch.Tensor, gate: torch.Tensor, theta: float, temperature: float = 0.1,
            rounds: int = 10, power: float = 0.5) -> tuple:
    """Classes of one person's pixels by a mixture model: small patches of a second garment on a
    first one vanish.

    The likelihood of class c is exp(q_c / temperature), as in `balanced_cross_entropy`. Expectation
    maximization finds the mixing weights, the share of each class in the person. A class is kept
    if the mean posterior of the pixels that it wins is above theta.

    q (K, h, w), gate (h, w) bool -> maps (K, h, w): posteriors among the kept classes, 0 outside
    the person; means (K,): the mean posterior of the pixels that a class wins, before any class is
    left out; 0 where it wins none.
    """
    maps = torch.zeros_like(q)
    means = q.new_zeros(len(q))
    if not gate.any():
        return maps, means

    # Expectation maximization, from equal shares. A share counts by a power of it, its square root,
    # in every round: in full, coats would swallow scarves, and shoes socks.
    logits = q[:, gate] / temperature                                           # (K, P)
    log_shares = logits.new_zeros(len(q), 1)
    for _ in range(rounds):
        posteriors = (logits + log_shares).softmax(0)
        shares = posteriors.mean(1, keepdim=True)
        log_shares = power * shares.clamp(min=1e-6).log()
    logits = logits + log_shares

    # The mean posterior of the pixels that each class wins.
    value, best = logits.softmax(0).max(0)                                      # (P,) each
    won = torch.zeros_like(means).scatter_add_(0, best, torch.ones_like(value))
    means = means.scatter_add_(0, best, value) / won.clamp(min=1)

    # Posteriors among the kept classes. If none is kept, softmax gives NaN, and the maps stay 0.
    kept = logits.masked_fill(means[:, None] <= theta, -torch.inf)
    maps[:, gate] = kept.softmax(0).nan_to_num(0)
    return maps, means


# -------------------------------------------------------------------------------------------------
# Training


def balanced_cross_entropy(q_cates: list, targets: list, balance: float = 0.5,
                           temperature: float = 0.1) -> torch.Tensor:
    """Cross-entropy of q_cate / temperature over the people's pixels: which class correlates most.
    Eq. (5) pulls each class's correlations up alone, and separates similar garments slowly.

    A pixel's weight is n ** -balance, where n is the number of the batch's pixels of its class.
    q_cates: list of (K, h, w); targets: list of `losses.Targets` -> a scalar.
    """
    q_cate = torch.stack(q_cates)                                               # (B, K, h, w)
    labels = torch.stack([person_labels(target) for target in targets])         # (B, h, w)
    losses = F.cross_entropy(q_cate / temperature, (labels - 1).clamp(min=0), reduction='none')

    # Pixels of each class in the batch.
    flat = labels.flatten()
    ones = torch.ones_like(flat, dtype=q_cate.dtype)
    counts = q_cate.new_zeros(q_cate.shape[1] + 1).scatter_add_(0, flat, ones)

    # Pixels without a label have weight 0; a batch may have no others.
    weights = counts.clamp(min=1)[labels] ** -balance * (labels > 0)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def person_labels(target) -> torch.Tensor:
    """The classes (h, w) of an image's pixels, from its `losses.Targets`; 0 where there is no
    person, or the class is not known."""
    unknown = (target.labels == 255).any(0) | ~target.known
    if not len(target.labels):
        return torch.zeros_like(unknown, dtype=torch.long)
    return target.labels.amax(0) * ~unknown


def degrade(image: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> the same, each with this probability made gray, darker, blurred and
    compressed."""
    image = Image.fromarray(image)
    chosen = rng.random(4) < probability
    # Plain floats: Pillow compares them with tuples.
    amount = rng.random(4).tolist()
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
