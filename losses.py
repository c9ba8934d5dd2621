"""UniParser's losses: Eqs. (4)-(6) of Chu et al. 2023, and their targets (Sec. 6.1).

    loss = make_loss(config, model.fusion)          # UniParserLoss, or ReleasedLoss of released.py
    terms = loss(model(images), parsings, ignores)  # dict of scalars: center, aux_ins, .., total
    terms['total'].backward()

Everything is derived from the labels of data.py, `parsing` (N, H, W) and `ignore` (H, W). Ignored
pixels are left out of every sum over pixels; pixels labeled 255 also out of the sums of categories
and parts. Ignored cells of the heat map are no negatives. A term with nothing to learn from is
exactly 0.

Two steps per batch: `make_targets` and `correlations` for each image, then one method for each term
of the paper.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from correlation import correlate
from util.beyond import balanced_cross_entropy
from util.config import Config
from util.fast import cell_sums, part_sums
from util.files import UNKNOWN


@dataclass
class Targets:
    """What one image with N people teaches, at the size (h, w) of the features, which have stride
    4.

    regions          (N, S, S) bool       each person's positive cells of the heat map
    cells            (N,) int64           its barycenter's cell, row * S + column
    exists           (N,) bool            whether it has a pixel in the image
    ignored_cells    (S, S) bool          cells whose middle is ignored
    labels           (N, h, w) int64      like parsing, nearest: labels cannot be averaged
    persons          (N, h, w) bool       the pixels of each person
    known            (h, w) bool          pixels that are not ignored
    present          (K,) bool            categories with a pixel in the image, even if `labels`,
                                          at stride 4, misses it
    categories       (K, h*w) float       where anyone wears each category
    category_known   (h*w,) float         where the categories are known: not ignored, nobody is 255
    """
    regions: Tensor
    cells: Tensor
    exists: Tensor
    ignored_cells: Tensor
    labels: Tensor
    persons: Tensor
    known: Tensor
    present: Tensor
    categories: Tensor
    category_known: Tensor


@dataclass
class Correlations:
    """The maps of one image: q_ins (N, h, w) of its people, q_cate (K, h, w) of the categories."""
    q_ins: Tensor
    q_cate: Tensor


class UniParserLoss:
    """loss(out, parsings, ignores) -> dict of scalars, see `__call__`. fusion: the model's, which
    `convs` and `multi` need."""
    # `ReleasedLoss`. released.py sets it, because that file imports this one.
    released = None
    # The row and column, in each 4x4 block of pixels, whose label is that of the feature.
    first_pixel = 2

    def __init__(self, config: Config, fusion=None):
        self.config = config
        self.fusion = fusion

    def __call__(self, out: dict, parsings: list, ignores: Tensor) -> dict:
        """L_total = L_c + lambda_aux L_aux + lambda_par L_par + lambda_metric L_metric     Eq. (4)

        out: what the model returned; parsings: list of B tensors (N_i, H, W); ignores: (B, H, W).
        Returns the terms before their weights: center, aux_ins, aux_cate, aux_neg (together L_aux),
        parsing, metric; pull and cross if lambda_pull and lambda_cross are set; and total.
        """
        config = self.config
        with torch.autocast(out['f_ins'].device.type, enabled=False):
            out = {name: value.float() for name, value in out.items()}

            # The targets and the maps of each image.
            size = out['f_ins'].shape[-2:]
            targets = []
            maps = []
            for i, (parsing, ignore) in enumerate(zip(parsings, ignores)):
                targets.append(self.make_targets(parsing, ignore, size))
                maps.append(self.correlations(out, i, targets[i]))

            # One method per term of the paper.
            losses = {}
            losses['center'] = self.center_loss(out['heatmap'], targets)
            # Eq. (5): people; present and absent categories.
            losses['aux_ins'] = self.instance_loss(out, targets)
            losses['aux_cate'], losses['aux_neg'] = self.category_loss(maps, targets)
            losses['parsing'] = self.parsing_loss(out, maps, targets)
            losses['metric'] = self.metric_loss(out, targets)
            weights = dict(center=config.lambda_center, aux_ins=config.lambda_ins,
                           aux_cate=config.lambda_cate, aux_neg=config.lambda_neg,
                           parsing=config.lambda_par, metric=config.lambda_metric)
            # Terms that are off by default.
            if config.lambda_pull:
                losses['pull'] = self.pull_loss(out['f_cate'], targets)
                weights['pull'] = config.lambda_pull
            if config.lambda_cross:
                losses['cross'] = balanced_cross_entropy([m.q_cate for m in maps], targets)
                weights['cross'] = config.lambda_cross
            losses['total'] = sum(weights[name] * losses[name] for name in weights)  # Eq. (4)
        return losses

    # ---- targets and maps

    def make_targets(self, parsing: Tensor, ignore: Tensor, size: tuple) -> Targets:
        """The targets of one image: parsing (N, H, W), ignore (H, W); size: (h, w) of the
        features."""
        S = self.config.grid
        K = self.config.num_classes
        regions, cells, exists = self.center_cells(parsing, (4 * size[0], 4 * size[1]))

        # Ignored cells: by the pixel in the middle. (The map of released light is two cells larger
        # than the labels; its cells are shifted by less than a pixel.)
        middle = 2 * torch.arange(S, device=ignore.device) + 1
        rows = middle * ignore.shape[0] // (2 * S)
        cols = middle * ignore.shape[1] // (2 * S)
        ignored_cells = ignore[rows][:, cols]

        # Labels at stride 4.
        first = self.first_pixel
        labels = pad_to(parsing[:, first::4, first::4], size).long()
        known = ~pad_to(ignore[first::4, first::4], size)

        # Categories: of the whole image, and at stride 4.
        present = parsing.new_zeros(256, dtype=torch.bool)
        present.scatter_(0, parsing.flatten().long(), True)
        categories, category_known = category_masks(labels, known, K)
        return Targets(regions, cells, exists, ignored_cells, labels, persons=labels > 0,
                       known=known, present=present[1:K + 1], categories=categories,
                       category_known=category_known)

    def center_cells(self, parsing: Tensor, size: tuple) -> tuple[Tensor, Tensor, Tensor]:
        """regions, cells and exists of `Targets`; size: (H, W) that the grid covers."""
        return center_target(parsing, size, self.config)

    def correlations(self, out: dict, i: int, target: Targets) -> Correlations:
        """Maps of image i: q_ins as Eq. (2), with the kernels at the barycenters' cells, and q_cate
        as Eq. (3)."""
        k_ins = out['k_ins'][i].flatten(1).T                    # (S*S, C)
        q_ins = self.person_maps(k_ins, out['f_ins'][i], target)  # (N, h, w)   Eq. (2)
        q_cate = correlate(out['k_cate'], out['f_cate'][i], self.config.space)  # (K, h, w)  Eq. (3)
        return Correlations(q_ins, q_cate)

    def person_maps(self, k_ins: Tensor, f_ins: Tensor, target: Targets) -> Tensor:
        return correlate(k_ins[target.cells], f_ins, self.config.space)

    # ---- the terms of Eq. (4)

    def center_loss(self, heatmap: Tensor, targets: list[Targets]) -> Tensor:
        """L_c: focal loss [33] of the heat map (B, 1, S, S), summed, over the number of positive
        cells of the batch + 1."""
        positive = torch.stack([t.regions.any(0) for t in targets])
        ignored = torch.stack([t.ignored_cells for t in targets])
        is_counted = positive | ~ignored
        loss = sigmoid_focal_loss(heatmap[:, 0], positive.to(heatmap.dtype), alpha=0.25, gamma=2.0)
        return (loss * is_counted).sum() / (positive.sum() + 1)

    def instance_loss(self, out: dict, targets: list[Targets]) -> Tensor:
        """1/N_c sum_i Dice(q_ins^i, q_ins^i*)     Eq. (5), first part

        i: the positive cells of the batch, each with the mask of its person.
        """
        dices = []
        counted = []
        for k_ins, f_ins, target in zip(out['k_ins'], out['f_ins'], targets):
            k = k_ins.flatten(1).T                              # (S*S, C)
            f = f_ins.flatten(1)                                # (C, hw)
            known = target.known.flatten().to(f.dtype)
            masks = target.persons.flatten(1) * known           # (N, hw)
            area = masks.sum(1)
            # Features are not negative, and neither is q: Dice needs no ReLU.
            pt, pp = self.instance_sums(k, f, masks, known)     # (S*S, N), (S*S,)
            dices.append(dice_loss(pt, pp[:, None], area))
            counted.append(target.regions.flatten(1).T & self.is_seen(target, area))
        return masked_mean(dices, counted)

    def instance_sums(self, k: Tensor, f: Tensor, masks: Tensor,
                      known: Tensor) -> tuple[Tensor, Tensor]:
        """For q = k . f of every cell: sum q t with the mask t of every person, and sum q q."""
        if self.config.space == 'sigmoid_after':
            q = (k @ f).sigmoid()
            return q @ masks.T, q.square() @ known
        return cell_sums(k, f, masks, known)

    def is_seen(self, target: Targets, area: Tensor) -> Tensor:
        """The people that count (N,) bool: those with a known pixel. area: their number of known
        pixels (N,)."""
        return area > 0

    def category_loss(self, maps: list[Correlations],
                      targets: list[Targets]) -> tuple[Tensor, Tensor]:
        """1/N_cate sum_{j,k} Dice(q_cate^j, q_cate^j*) + l1(q_cate^k, 0)     Eq. (5), other parts

        j: the categories with a known pixel at stride 4, k: those without any pixel in the image;
        averaged over the images. Returns both parts.
        """
        dice, visible = self.category_dice(maps, targets)       # (B, K) each
        absent = []
        for m, t in zip(maps, targets):
            q = m.q_cate.flatten(1)                             # (K, hw)
            known = t.category_known.to(q.dtype)
            l1 = q.abs() @ known / known.sum().clamp(min=1)
            absent.append(l1 * ~t.present)
        # Over all N_cate categories.
        return (dice * visible).mean(), torch.stack(absent).mean()

    def category_dice(self, maps: list[Correlations],
                      targets: list[Targets]) -> tuple[Tensor, Tensor]:
        """Dice of each category's map with its pixels, and whether it has any: (B, K) each."""
        dice = []
        visible = []
        for m, t in zip(maps, targets):
            p = F.relu(m.q_cate.flatten(1))                     # Dice sees no negative correlation
            masks = t.categories.to(p.dtype)
            area = masks.sum(1)
            squares = p.square() @ t.category_known.to(p.dtype)
            dice.append(dice_loss((p * masks).sum(1), squares, area))
            visible.append(area > 0)
        return torch.stack(dice), torch.stack(visible)

    def parsing_loss(self, out: dict, maps: list[Correlations], targets: list[Targets]) -> Tensor:
        """L_par: Dice of q_parsing^{n,c} with person n's part c (Sec. 3.4), averaged over the parts
        in the images."""
        dices = []
        counted = []
        for i, (m, t) in enumerate(zip(maps, targets)):
            pt, pp, area = self.parsing_sums(m, t, out['f_cate'][i])  # (N, K) each
            dices.append(dice_loss(pt, pp, area))
            counted.append(area > 0)
        return masked_mean(dices, counted)

    def parsing_sums(self, m: Correlations, t: Targets,
                     f_cate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For p = q_parsing of every person and class and the mask t of its part: sum p t, sum p p,
        sum t t."""
        labels = t.labels.flatten(1)                            # (N, hw)
        known = (t.known.flatten() & (labels != UNKNOWN)).to(m.q_ins.dtype)
        labels = labels * (labels <= self.config.num_classes)
        if self.config.fusion == 'index':
            # q_parsing = q_ins * q_cate
            return part_sums(m.q_ins.flatten(1), F.relu(m.q_cate.flatten(1)), labels, known)
        p = self.fusion(m.q_ins, m.q_cate, f_cate).flatten(2)   # (N, K, hw)
        classes = torch.arange(1, self.config.num_classes + 1, device=labels.device)
        mask = (labels[:, None] == classes[:, None]) * known[:, None]  # (N, K, hw)
        return (p * mask).sum(2), (p.square() * known[:, None]).sum(2), mask.sum(2)

    def metric_loss(self, out: dict, targets: list[Targets]) -> Tensor:
        """L_metric = (sum l1(A_cate, Diag) + sum l1(A_ins, Diag)) / (N_cate + N_c)     Eq. (6)

        A: the correlations of the kernels with each other, A_ins of the people of one image.
        Averaged over the images.
        """
        k_cate = out['k_cate']
        cate = distance_to_identity(k_cate, k_cate.new_ones(len(k_cate)))
        losses = []
        for k_ins, t in zip(out['k_ins'], targets):
            ins = distance_to_identity(k_ins.flatten(1).T[t.cells], t.exists.float())
            losses.append((cate + ins) / (len(k_cate) + t.exists.sum()))  # Eq. (6)
        return torch.stack(losses).mean()

    def pull_loss(self, f_cates: Tensor, targets: list[Targets]) -> Tensor:
        """Sec. 6.5 (CIHP): brings the pixels of a category together. One minus the mean cosine over
        all pairs of its pixels, which is 1 - |mean f|^2, averaged over the categories in the
        images."""
        losses = []
        counted = []
        for f_cate, t in zip(f_cates, targets):
            masks = t.categories.to(f_cate.dtype)
            area = masks.sum(1)
            center = masks @ f_cate.flatten(1).T / area.clamp(min=1)[:, None]  # (K, C)
            losses.append(1 - center.square().sum(1))
            counted.append(area > 0)
        return masked_mean(losses, counted)


def make_loss(config: Config, fusion=None) -> UniParserLoss:
    """The loss of the config's recipe. `released` needs that file to be imported, as uniparser.py
    does."""
    loss = config.choose(UniParserLoss, UniParserLoss.released)
    if loss is None:
        raise ImportError('the recipe `released` needs `import released`')
    return loss(config, fusion)


def uniparser_loss(out: dict, parsings: list, ignores: Tensor, config: Config,
                   fusion=None) -> dict:
    """Eq. (4) in one call, see `UniParserLoss`."""
    return make_loss(config, fusion)(out, parsings, ignores)


# -------------------------------------------------------------------------------------------------
# Centers (Sec. 6.1)


def center_target(parsing: Tensor, size: tuple, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """The positive cells of each person, where each cell belongs to one person (the paper does not
    say what happens to cells of two): regions (N, S, S), cells (N,), exists (N,), see `Targets`.
    size: (H, W) that the grid covers."""
    regions, cells, exists = positive_cells(parsing, size, config)
    return resolve_overlaps(regions, cells, exists), cells, exists


def positive_cells(parsing: Tensor, size: tuple, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of the S x S grid over size (H, W) whose center should fire: a rectangle of sigma times
    the person's height and width around its barycenter (Sec. 6.1). People may share cells. Returns
    regions (N, S, S), cells (N,), exists (N,), see `Targets`."""
    S = config.grid
    (center_y, center_x), (height, width), exists = barycenters(parsing)
    row, rows = cells_along(center_y, height, size[0], config)  # (N,), (N, S)
    col, cols = cells_along(center_x, width, size[1], config)
    regions = rows[:, :, None] & cols[:, None] & exists[:, None, None]
    return regions, row * S + col, exists


def barycenters(parsing: Tensor) -> tuple[tuple, tuple, Tensor]:
    """Each person's mean pixel (y, x), truncated: ((N,), (N,)) int64; its height and width, largest
    minus smallest position: ((N,), (N,)); whether it has a pixel (N,) bool."""
    person = parsing > 0
    center_y, height = middle_and_extent(person.sum(2))
    center_x, width = middle_and_extent(person.sum(1))
    return (center_y, center_x), (height, width), person.flatten(1).any(1)


def cells_along(center, extent, length, config):
    """One axis of a grid over `length` pixels: the cell of each center (N,), and which cells lie
    within half of sigma times the extent of it (N, S) bool."""
    S = config.grid
    own = (S * center // length).clamp(max=S - 1)
    half = 0.5 * config.sigma * extent
    # 1e-4: rounding must not move an edge that lies on a border to the cell before it.
    low = torch.floor(S * (center - half) / length + 1e-4).long()
    high = torch.floor(S * (center + half) / length + 1e-4).long()
    if config.center_radius:
        low = torch.maximum(low, own - config.center_radius)
        high = torch.minimum(high, own + config.center_radius)
    cells = torch.arange(S, device=center.device)
    return own, (cells >= low[:, None]) & (cells <= high[:, None])


def middle_and_extent(count: Tensor) -> tuple[Tensor, Tensor]:
    """Number of pixels at each of n positions (..., n) -> their mean position, truncated; the
    largest minus the smallest position."""
    n = count.shape[-1]
    position = torch.arange(n, device=count.device)
    middle = (count * position).sum(-1) // count.sum(-1).clamp(min=1)
    some = (count > 0).int()
    first = some.argmax(-1)
    last = n - 1 - some.flip(-1).argmax(-1)
    return middle, (last - first).clamp(min=0)


def resolve_overlaps(regions: Tensor, cells: Tensor, exists: Tensor) -> Tensor:
    """Where regions (N, S, S) overlap, the later person keeps the cell, but a barycenter's own cell
    stays with its person: regions without overlap."""
    number = torch.arange(1, len(regions) + 1, device=cells.device)
    # The number of the last person at each cell (S, S); 0: nobody.
    # A layer of zeros first: the maximum needs at least one.
    owner = F.pad(regions * number[:, None, None], (0, 0, 0, 0, 1, 0)).amax(0)
    # The number of the person whose barycenter lies there; of two, the later one.
    center = torch.zeros_like(owner).flatten()
    center = center.scatter_reduce(0, cells, number * exists, 'amax').view_as(owner)
    return torch.where(center > 0, center, owner) == number[:, None, None]


# -------------------------------------------------------------------------------------------------
# Parts and sums


def pad_to(labels: Tensor, size: tuple) -> Tensor:
    """(..., h', w') zero-padded at the right and bottom to size: the released light map is larger
    than the labels."""
    return F.pad(labels, (0, size[1] - labels.shape[-1], 0, size[0] - labels.shape[-2]))


def category_masks(labels, known, num_classes):
    """Where anyone wears each category (K, hw), and where the categories are known (hw,): outside
    `ignore` and where no person is 255. labels (N, h, w), known (h, w)."""
    labels = labels.flatten(1)
    known = (known.flatten() & ~(labels == UNKNOWN).any(0)).float()
    masks = known.new_zeros(num_classes + 1, len(known))
    masks.scatter_(0, labels * (labels <= num_classes), 1.0)
    return masks[1:] * known, known


def dice_loss(pt: Tensor, pp: Tensor, tt: Tensor) -> Tensor:
    """1 - 2 sum(p t) / (sum(p p) + sum(t t)) from the three sums [34]; each has 0.001 added, as in
    the released code."""
    return 1 - (2 * pt + 0.002) / (pp + tt + 0.002)


def masked_mean(values: list[Tensor], counted: list[Tensor]) -> Tensor:
    """Mean over lists of tensors of the values that count (bool); 0 where none does."""
    values = torch.cat([v.flatten() for v in values])
    counted = torch.cat([c.flatten() for c in counted]).to(values.dtype)
    return (values * counted).sum() / counted.sum().clamp(min=1)


def distance_to_identity(kernels: Tensor, exists: Tensor) -> Tensor:
    """Sum of |k_i . k_j - (i = j)| over the pairs of existing kernels (n, C)."""
    A = kernels @ kernels.T
    distance = (A - torch.eye(len(A), device=A.device)).abs()
    return (distance * exists * exists[:, None]).sum()
