"""UniParser's losses: Eqs. (4)-(6) of Chu et al. 2023, and their targets (Sec. 6.1).

Everything is derived from the labels of data.py, `parsing` (N, H, W) and `ignore` (H, W). No sum over pixels has an
ignored one, sums for categories and parts no 255 either. A term with nothing to learn from is exactly 0.

Dice needs three sums, of p*t, p*p and t*t. Each is a matrix product here: the N times K maps of people and parts are
never built, no shape depends on the number of parts, and so the host never waits for the device.
The functions of released.py stand in where `recipe` is `released`.
"""
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from uniparser import correlate
import released
from util.beyond import balanced_cross_entropy
from util.tensors import middle_and_extent, pad_to


def uniparser_loss(out, parsings, ignores, config, fusion=None):
    """L_total = L_c + lambda_aux L_aux + lambda_par L_par + lambda_metric L_metric     Eq. (4)

    out: what the model returned; parsings: list of B tensors (N_i, H, W); ignores: (B, H, W); fusion: the model's,
    which `convs` and `multi` need.
    Returns a dict of scalars before their weights: center, aux_ins, aux_cate, aux_neg (together L_aux), parsing,
    metric; pull and cross if lambda_pull and lambda_cross are set; and total.
    """
    with torch.autocast(out['f_ins'].device.type, enabled=False):
        out = {k: v.float() for k, v in out.items()}
        stride_4 = out['f_ins'].shape[-2:]
        targets = [make_targets(p, i, stride_4, config) for p, i in zip(parsings, ignores)]
        maps = [make_maps(out, i, t, config) for i, t in enumerate(targets)]
        ins, cate, neg = auxiliary_loss(out, maps, targets, config)
        losses = dict(center=center_loss(out['heatmap'], targets), aux_ins=ins, aux_cate=cate, aux_neg=neg,
                      parsing=parsing_loss(out, maps, targets, config, fusion),
                      metric=metric_loss(out, targets, config))
        weights = dict(center=config.lambda_center, aux_ins=config.lambda_ins, aux_cate=config.lambda_cate,
                       aux_neg=config.lambda_neg, parsing=config.lambda_par, metric=config.lambda_metric)
        if config.lambda_pull and config.recipe == 'paper':
            losses['pull'], weights['pull'] = pull_loss(out, targets), config.lambda_pull
        if config.lambda_cross:
            losses['cross'], weights['cross'] = balanced_cross_entropy(maps, targets), config.lambda_cross
        losses['total'] = sum(weights[k] * losses[k] for k in losses)                                   # Eq. (4)
    return losses


# ---------------------------------------------------------------------------------------------------------------
# Targets


def make_targets(parsing, ignore, size, config):
    """The targets of one image, at the size (h, w) of the features:
    regions (N, S, S) bool: each person's positive cells; cells (N,): its barycenter's cell; exists (N,) bool; labels
    (N, h, w) like parsing; persons (N, h, w) bool; known (h, w) bool; ignored_cells (S, S); present (K,) bool: the
    categories with a pixel in the image (a thin one may have none in `labels`); categories (K, h*w) float: where anyone
    wears each category; category_known (h*w,) float."""
    S, K = config.grid, config.num_classes
    regions, cells, exists = center_target(parsing, (4 * size[0], 4 * size[1]), config)
    rows, cols = [(2 * torch.arange(S, device=ignore.device) + 1) * n // (2 * S) for n in ignore.shape]
    first = 2 if config.recipe == 'paper' else 0
    labels = pad_to(parsing[:, first::4, first::4], size).long()             # nearest: labels cannot be averaged
    known = ~pad_to(ignore[first::4, first::4], size)
    present = parsing.new_zeros(256, dtype=torch.bool).scatter_(0, parsing.flatten().long(), True)
    categories, category_known = category_masks(labels, known, K)
    target = dict(regions=regions, cells=cells, exists=exists, labels=labels, persons=labels > 0, known=known,
                  ignored_cells=ignore[rows][:, cols], present=present[1:K + 1], categories=categories,
                  category_known=category_known)
    if config.recipe == 'released':
        target.update(released.part_targets(parsing, size, K))
    return target


def barycenters(parsing):
    """Means of the pixels of each person along y and x, truncated to a pixel: ((N,), (N,)) int64; extents in pixels,
    largest minus smallest: ((N,), (N,)); exists (N,) bool."""
    person = parsing > 0
    center, extent = zip(*(middle_and_extent(person.sum(axis)) for axis in (2, 1)))        # of (N, H), then (N, W)
    return center, extent, person.flatten(1).any(1)


def center_target(parsing, size, config):
    """Cells of the S x S grid over size (H, W) whose center should fire: a rectangle of sigma times the person's height
    and width around its barycenter (Sec. 6.1). Returns regions (N, S, S), cells (N,), exists (N,), see `make_targets`.
    A cell belongs to one person (`settle`); with recipe `released`, to everyone whose rectangle has it."""
    S, grid = config.grid, torch.arange(config.grid, device=parsing.device)
    center, extent, exists = barycenters(parsing)
    cell, inside = [], []
    for c, e, n in zip(center, extent, size):
        own = (S * c // n).clamp(max=S - 1)
        half = 0.5 * config.sigma * e
        low, high = [torch.floor(S * v / n + 1e-4).long() for v in (c - half, c + half)]   # 1e-4: an exact border stays
        if config.center_radius:
            low, high = torch.maximum(low, own - config.center_radius), torch.minimum(high, own + config.center_radius)
        cell.append(own)
        inside.append((grid >= low[:, None]) & (grid <= high[:, None]))      # (N, S)
    regions = inside[0][:, :, None] & inside[1][:, None] & exists[:, None, None]
    cells = cell[0] * S + cell[1]
    return (regions if config.recipe == 'released' else settle(regions, cells, exists)), cells, exists


def settle(regions, cells, exists):
    """Where regions (N, S, S) overlap, the later person keeps the cell, but a barycenter's own cell stays with its
    person: regions without overlap."""
    number = torch.arange(1, len(regions) + 1, device=cells.device)
    owner = F.pad(regions * number[:, None, None], (0, 0, 0, 0, 1, 0)).amax(0)             # (S, S); 0: nobody
    own = torch.zeros_like(owner).flatten().scatter_reduce(0, cells, number * exists, 'amax').view_as(owner)
    return torch.where(own > 0, own, owner) == number[:, None, None]


def category_masks(labels, known, num_classes):
    """Where anyone wears each category (K, hw), and where the categories are known (hw,): outside `ignore` and where no
    person is 255. labels (N, h, w), known (h, w)."""
    labels = labels.flatten(1)
    known = (known.flatten() & ~(labels == 255).any(0)).float()
    masks = known.new_zeros(num_classes + 1, len(known)).scatter_(0, labels * (labels <= num_classes), 1.0)[1:]
    return masks * known, known


def make_maps(out, i, target, config):
    """Correlations of image i: q_cate (K, h, w) as Eq. (3), and q_ins (N, h, w) as Eq. (2) with the kernels at the
    barycenters' cells."""
    k_ins = out['k_ins'][i].flatten(1).T                                     # (S*S, C)

    def correlations(cells):
        return correlate(k_ins[cells], out['f_ins'][i], config.space)
    if config.recipe == 'released':
        q_ins = released.person_maps(correlations, target)
    else:
        q_ins = correlations(target['cells'])
    return dict(q_ins=q_ins, q_cate=correlate(out['k_cate'], out['f_cate'][i], config.space))


# ---------------------------------------------------------------------------------------------------------------
# Terms


def dice_loss(pt, pp, tt):
    """1 - 2 sum(p t) / (sum(p p) + sum(t t)) from the three sums [34], smoothed by 0.001 as in the released code."""
    return 1 - (2 * pt + 0.002) / (pp + tt + 0.002)


def mean(values, weights):
    """Weighted mean over lists of tensors; 0 where all weights are 0."""
    values, weights = torch.cat([v.flatten() for v in values]), torch.cat([w.flatten() for w in weights])
    weights = weights.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def center_loss(heatmap, targets):
    """L_c: focal loss [33] of the heat map (B, 1, S, S), summed, over the number of positive cells of the batch + 1."""
    positive = torch.stack([t['regions'].any(0) for t in targets])
    counted = positive | ~torch.stack([t['ignored_cells'] for t in targets])
    loss = sigmoid_focal_loss(heatmap[:, 0], positive.to(heatmap.dtype))
    return (loss * counted).sum() / (positive.sum() + 1)


def auxiliary_loss(out, maps, targets, config):
    """L_aux = 1/N_c sum_i Dice(q_ins^i, q_ins^i*)
             + 1/N_cate sum_{j,k} Dice(q_cate^j, q_cate^j*) + l1(q_cate^k, 0)     Eq. (5)

    i: the positive cells of the batch, each with its person's mask; j: the categories with a known pixel at stride 4,
    k: those without any pixel in the image; averaged over the images. Returns the three parts. Recipe `released`: the
    mean over the categories j instead of all, and its own term for all others.
    """
    ins = mean(*zip(*[instance_dice(out['k_ins'][i], out['f_ins'][i], t, config) for i, t in enumerate(targets)]))
    dice, visible, absent = [], [], []
    for m, t in zip(maps, targets):
        q = m['q_cate'].flatten(1)                                           # (K, hw)
        masks, known = t['categories'].to(q.dtype), t['category_known'].to(q.dtype)
        area, p = masks.sum(1), F.relu(q)                                    # Dice sees no negative correlation
        dice.append(dice_loss((p * masks).sum(1), p.square() @ known, area))                            # (K,)
        visible.append(area > 0)
        absent.append(q.abs() @ known / known.sum().clamp(min=1) * ~t['present'])                       # l1, (K,)
    dice, visible, absent = map(torch.stack, (dice, visible, absent))        # (B, K)
    if config.recipe == 'released':
        return ins, mean([dice], [visible]), released.absent_category_loss(maps, targets, visible)
    return ins, (dice * visible).mean(), absent.mean()                       # Eq. (5): over all N_cate categories


def instance_dice(k_ins, f_ins, target, config):
    """Dice of every cell's map q = k . F_ins with every person's mask -> (S*S, N), and which of them count, (S*S, N)
    bool: the cell is the person's, and one of the person's pixels is known. q is linear in k, so sum(q q) =
    k . (F F^T) k and sum(q t) = k . F t, and no map is made. Features are not negative: Dice needs no ReLU."""
    k, f = k_ins.flatten(1).T, f_ins.flatten(1)                              # (S*S, C), (C, hw)
    known = target['known'].flatten().to(f.dtype)
    masks = target['persons'].flatten(1) * known                             # (N, hw)
    area = masks.sum(1)
    if config.space == 'sigmoid_after':                                      # not linear: makes every map
        q = (k @ f).sigmoid()
        pt, pp = q @ masks.T, q.square() @ known
    else:
        pt, pp = k @ (f @ masks.T), (k @ ((f * known) @ f.T) * k).sum(1)
    seen = area > 0
    if config.recipe == 'released':                                          # also people without pixels at stride 4
        seen = seen | ~target['persons'].flatten(1).any(1)
    return dice_loss(pt, pp[:, None], area), target['regions'].flatten(1).T & seen


def parsing_loss(out, maps, targets, config, fusion=None):
    """L_par: Dice of q_parsing^{n,c} with person n's part c (Sec. 3.4), averaged over the parts in the images.

    Index fusion, q_parsing = q_ins * q_cate: a pixel of person n has one label, so the sums of p*t come from gathering
    q_cate at the labels, and those of p*p from a matrix product."""
    losses, counts = [], []
    for i, (m, t) in enumerate(zip(maps, targets)):
        labels, K = t['labels'].flatten(1), config.num_classes               # (N, hw)
        known = (t['known'].flatten() & (labels != 255)).to(m['q_ins'].dtype)                           # (N, hw)
        labels = labels * (labels <= K)
        area = known.new_zeros(len(labels), K + 1).scatter_add(1, labels, known)[:, 1:]
        if config.fusion == 'index':
            q_ins, q_cate = m['q_ins'].flatten(1), F.relu(m['q_cate'].flatten(1))
            own = F.pad(q_cate, (0, 0, 1, 0)).gather(0, labels) * q_ins * known
            pp = (q_ins.square() * known) @ q_cate.square().T
        else:
            p = fusion(m['q_ins'], m['q_cate'], out['f_cate'][i]).flatten(2)                            # (N, K, hw)
            own = F.pad(p, (0, 0, 1, 0)).gather(1, labels[:, None])[:, 0] * known
            pp = (p.square() * known[:, None]).sum(2)
        pt = area.new_zeros(len(labels), K + 1).scatter_add(1, labels, own)[:, 1:]
        if config.recipe == 'released' and config.fusion == 'index':
            area, pt = released.part_sums(t['parts'] * t['known'], q_ins, q_cate)
        losses.append(dice_loss(pt, pp, area))
        counts.append(area > 0)
    return mean(losses, counts)


def metric_loss(out, targets, config):
    """L_metric = (sum l1(A_cate, Diag) + sum l1(A_ins, Diag)) / (N_cate + N_c)     Eq. (6)

    A: the correlations of the kernels with each other, A_ins of the people of one image. Averaged over the images.
    """
    if config.recipe == 'released':
        return mean(*released.metric_terms(out, targets, config.lambda_pull > 0))
    cate = distance_to_identity(out['k_cate'], torch.ones_like(out['k_cate'][:, 0]))
    losses = []
    for k_ins, t in zip(out['k_ins'], targets):
        ins = distance_to_identity(k_ins.flatten(1).T[t['cells']], t['exists'].float())
        losses.append((cate + ins) / (config.num_classes + t['exists'].sum()))                          # Eq. (6)
    return torch.stack(losses).mean()


def distance_to_identity(kernels, exists):
    """Sum of |k_i . k_j - (i = j)| over the pairs of existing kernels (n, C)."""
    A = kernels @ kernels.T
    return ((A - torch.eye(len(A), device=A.device)).abs() * exists * exists[:, None]).sum()


def pull_loss(out, targets):
    """Sec. 6.5 (CIHP): brings the pixels of a category together. One minus the mean cosine over all pairs of its
    pixels, which is 1 - |mean f|^2, averaged over the categories in the images."""
    losses, counts = [], []
    for f_cate, t in zip(out['f_cate'], targets):
        masks = t['categories'].to(f_cate.dtype)
        area = masks.sum(1)
        center = masks @ f_cate.flatten(1).T / area.clamp(min=1)[:, None]              # (K, C)
        losses.append(1 - center.square().sum(1))
        counts.append(area > 0)
    return mean(losses, counts)
