"""SCHP: Self-Correction for Human Parsing (Li, Xu, Wei and Yang, TPAMI 2020, arXiv:1910.09777).

One photo of a person goes in, the class of every pixel comes out. The network is A-CE2P: an edge branch helps the
parsing branch, and a last layer fuses both. Training then goes through cycles: the weights of each cycle's network are
averaged, and the averaged network corrects the labels of the next cycle.

    paper                  here                shape              what
    ResNet-101             conv1 .. layer4     c1 (B,256,h,w),    h = H/4, w = W/4; c2 has stride 8,
                                               c2, c3, c4         c3 and c4 stride 16 (layer4 is dilated)
    context encoding       context_encoding    (B,512,H/16,W/16)  pyramid pooling (PSP) of c4
    parsing branch         decoder             (B,256,h,w)        feature; its conv4 gives 'parsing' logits (B,C,h,w)
    edge branch            edge                3 x (B,256,..)     features of c1, c2, c3; 'edge' logits (B,2,h,w)
    fusion                 fushion             (B,C,h,w)          'fusion' logits, those that inference uses
    model aggregation      average             cycle m: w_hat = m/(m+1) w_hat + 1/(m+1) w, then `reestimate_norms`
    label refinement       soft_target         cycle m: y_hat = m/(m+1) y_hat + 1/(m+1) y

util/ace2p.py has the network's blocks, util/labels.py the label sets, util/crowd.py the extension to several people.
Modules and parameters have the names of the released code (github.com/GoGoDuck912/Self-Correction-Human-Parsing),
"fushion" included, so its checkpoints load as they are. The paper's text leaves details open; constants are the
released code's. Images are BGR: `predict` takes RGB photos and turns the channels itself.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from util.checkpoints import load_strictly, read_checkpoint
from util.ace2p import (MOMENTUM, Bottleneck, ContextEncoding, Decoder, EdgeBranch, InPlaceABN, conv,
                        convert_plain_norms, fold_norms, resize, stack_maps, unit)
from util.labels import choose_labels, flip_order
from util.warp import as_array, crop_matrix, invert, label_map, warp

MEAN, STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)  # of B, G, R in 0..1
IGNORE = 255                                              # label of pixels that are left out of the losses
HEADS = ('parsing', 'fusion', 'edge')


# ---------------------------------------------------------------------------------------------------------------
# Network


class SCHP(nn.Module):
    """labels: class names, the background first; size: (H, W) of the input; flip_pairs: ids that swap when the image
    is mirrored. blocks and width are the paper's ResNet-101; (1, 1, 1, 1) and 8 train in seconds on a CPU."""

    def __init__(self, labels, size=(473, 473), flip_pairs=(), blocks=(3, 4, 23, 3), width=64):
        super().__init__()
        self.labels, self.size, self.flip_pairs = tuple(labels), tuple(size), tuple(map(tuple, flip_pairs))
        self.blocks, self.width, self.num_classes = tuple(blocks), width, len(labels)
        self.conv1, self.bn1 = conv(3, width, 3, 2), InPlaceABN(width)
        self.conv2, self.bn2 = conv(width, width, 3), InPlaceABN(width)
        self.conv3, self.bn3 = conv(width, 2 * width, 3), InPlaceABN(2 * width)
        channels = 2 * width
        for i, (count, stride) in enumerate(zip(blocks, (1, 2, 2, 1))):
            planes, dilation = width * 2 ** i, 2 if i == 3 else 1
            first = Bottleneck(channels, planes, stride, dilation)
            channels = 4 * planes
            rest = [Bottleneck(channels, planes, 1, dilation) for _ in range(1, count)]
            setattr(self, f'layer{i + 1}', nn.Sequential(first, *rest))
        mid = 4 * width
        self.context_encoding = ContextEncoding(channels, 2 * mid)
        self.decoder = Decoder(2 * mid, mid, mid, mid * 3 // 16, self.num_classes)
        self.edge = EdgeBranch((mid, 2 * mid, 4 * mid), mid)
        self.fushion = nn.Sequential(*unit(4 * mid, mid), nn.Dropout2d(0.1), conv(mid, self.num_classes, bias=True))

    def forward(self, images, heads=HEADS):
        """images (B,3,H,W), BGR, normalized by MEAN and STD -> dict of logits: parsing and fusion (B,C,h,w), edge
        (B,2,h,w); h = ceil(H/4), w = ceil(W/4). Only the heads asked for are computed."""
        x = self.bn1(self.conv1(images)).relu_()          # (B,  64, H/2, W/2)
        x = self.bn2(self.conv2(x)).relu_()
        x = self.bn3(self.conv3(x)).relu_()               # (B, 128, H/2, W/2)
        c1 = self.layer1(F.max_pool2d(x, 3, 2, 1))        # (B, 256, h, w)
        c2 = self.layer2(c1)                              # (B, 512, h/2, w/2)
        c3 = self.layer3(c2)                              # (B,1024, h/4, w/4)
        context = self.context_encoding(self.layer4(c3))  # (B, 512, h/4, w/4)
        feature = self.decoder(context, c1)               # (B, 256, h, w)
        edge_features = self.edge.features(c1, c2, c3)
        compute = dict(parsing=lambda: self.decoder.conv4(feature), edge=lambda: self.edge(edge_features),
                       fusion=lambda: self.fushion(torch.cat([feature, stack_maps(edge_features)], 1)))
        return {head: compute[head]() for head in heads}

    def folded(self):
        """A copy for inference, its norms folded into the convolutions: the same logits, faster."""
        return fold_norms(self)

    def crop_logits(self, crops, flip=False, scales=(1.0,)):
        """Crops (B,3,H,W) as `forward` takes them -> fusion logits (B,C,H,W), averaged over the scales and, if `flip`,
        over the images and their mirror images."""
        total = 0
        for scale in scales:
            images = crops if scale == 1 else resize(crops, [int(side * scale) for side in crops.shape[2:]])
            logits = self(images, heads=('fusion',))['fusion'].float()
            if flip:
                mirrored = self(images.flip(3), heads=('fusion',))['fusion'].float().flip(3)
                logits = (logits + mirrored[:, flip_order(self.num_classes, self.flip_pairs)]) / 2
            total = total + resize(logits, crops.shape[2:])
        return total / len(scales)

    @torch.inference_mode()
    def predict(self, photos, batch_size=8, logits=False, **options):
        """RGB Pillow images or uint8 arrays (H,W,3) of any sizes -> list of label maps, uint8 (H,W), or with `logits`
        of float32 (C,H,W), both at the photo's size. options: flip, scales of `crop_logits`."""
        training, device, results = self.training, self.conv1.weight.device, []
        self.eval()
        for start in range(0, len(photos), batch_size):
            arrays = [as_array(photo) for photo in photos[start:start + batch_size]]
            matrices = [crop_matrix(array.shape[:2], self.size) for array in arrays]
            crops = torch.stack([crop(array, m, self.size, device) for array, m in zip(arrays, matrices)])
            crops = crops.to(self.conv1.weight.dtype)
            for array, m, scores in zip(arrays, matrices, self.crop_logits(crops, **options)):
                back = warp if logits else label_map
                results.append(back(scores, invert(m), array.shape[:2]).cpu().numpy())
        self.train(training)
        return results

    @classmethod
    def from_pretrained(cls, path, labels=None, device='cpu'):
        """A model in eval mode from a checkpoint of the released code: both generations of the single-person files,
        the multi-person files and what its training writes. labels: see `choose_labels`; give 'cihp' for the
        multi-person files. Depth, width and number of classes are read off the weights."""
        state = read_checkpoint(path)                     # files of our own format would be told apart here
        weights, plain_norms = released_weights(state)
        if missing := [k for k in ('conv1.weight', 'fushion.3.weight') if getattr(weights.get(k), 'ndim', 0) != 4]:
            raise ValueError(f'{path} is not a checkpoint of SCHP: it has no {" and no ".join(missing)}')
        try:
            chosen = choose_labels(len(weights['fushion.3.weight']), labels)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
        blocks = [len({k.split('.')[1] for k in weights if k.startswith(f'layer{i}.')}) for i in (1, 2, 3, 4)]
        with torch.device('meta'):
            model = cls(*chosen, blocks=blocks, width=len(weights['conv1.weight']))
        load_strictly(model, weights, path)
        if plain_norms:
            convert_plain_norms(model)
        return model.to(device).eval()


# ---------------------------------------------------------------------------------------------------------------
# Released checkpoints


def released_weights(state):
    """The dictionary of a file -> weights by our names, and whether their norms are plain BatchNorm.

    Two generations share the file names. Files of 2019 have plain BatchNorm with its counters, and outside the
    backbone a norm is a module `bn` within another; files since 2020 have InPlaceABN."""
    state = state.get('state_dict', state)
    state = {str(k).removeprefix('module.'): v for k, v in state.items()}
    plain = any(k.endswith('.num_batches_tracked') for k in state)
    return {k.replace('.bn.', '.') if plain else k: v for k, v in state.items()
            if not (plain and k.endswith('.num_batches_tracked'))}, plain


def load_imagenet(model, path):
    """ImageNet weights into the backbone: resnet101-imagenet.pth of MIT CSAIL (sceneparsing.csail.mit.edu), whose stem
    of three 3x3 convolutions torchvision's ResNet does not have. Its scales are read as |w| + eps, as in training."""
    heads = {k: v for k, v in model.state_dict().items() if not k.startswith(('conv', 'bn', 'layer'))}
    weights = {k: v for k, v in read_checkpoint(path).items()
               if not k.startswith('fc.') and not k.endswith('.num_batches_tracked')}
    load_strictly(model, {**heads, **weights}, path)


# ---------------------------------------------------------------------------------------------------------------
# Losses


def schp_loss(out, labels, soft=None, cycle=0, recipe='paper'):
    """Terms of the loss and their sum 'total'. For parsing and fusion: 0.5 Lovasz + 0.5 cross-entropy; plus the edges'.

    out: `forward`'s dict with all heads; labels (B,H,W) integers, 255 = unknown. From cycle 1 on, `soft` holds the
    averaged model's fusion and edge logits, and a KL divergence towards corrected labels replaces cross-entropy.

    recipe 'paper': corrected labels are mixtures of probabilities, the divergence is a mean over pixels, and unknown
    pixels are in no term. 'released': as the released code computes it. It mixes logits with one-hot labels before
    the softmax, takes the mean over pixels and classes, and its one-hot helper writes 0 over the label 255: unknown
    pixels are background from cycle 1 on, beginning after the parsing head's Lovasz term; the edges' cross-entropy
    counts them as "no edge". The consistency term of the released code is always 0 and left out here."""
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
            terms[f'kl_{head}'] = 0.5 * kl_divergence(logits, target, labels, released)
    logits = resize(out['edge'].float(), edge.shape[1:])
    if soft is None:    # the released weights, pos/total of "no edge" and neg/total of "edge", make both count alike
        loss = cross_entropy(logits, edge)
        terms['ce_edge'] = (masked_mean(loss, edge == 0) + masked_mean(loss, edge == 1)) / 2
    else:
        terms['kl_edge'] = kl_divergence(logits, soft_target(soft['edge'], edge, cycle, released), edge, released)
    return {**terms, 'total': sum(terms.values())}


def lovasz_softmax(logits, labels):
    """Lovasz-Softmax (Berman, Triki and Blaschko, CVPR 2018): the mean over the classes c present in the batch of
    sum_i m_(i) [J(m_(1..i)) - J(m_(1..i-1))], errors m = |1(y = c) - p_c| in descending order, J the Jaccard loss of
    the pixels up to i being wrong. logits (B,C,H,W), labels (B,H,W)."""
    known = labels != IGNORE
    probabilities, labels = logits.softmax(1).movedim(1, -1)[known], labels[known]            # (P,C), (P,)
    losses = []
    for c in labels.unique():
        foreground = (labels == c).float()
        errors, order = (foreground - probabilities[:, c]).abs().sort(descending=True)
        foreground = foreground[order]
        intersection = foreground.sum() - foreground.cumsum(0)
        union = foreground.sum() + (1 - foreground).cumsum(0)
        jaccard = 1 - intersection / union
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(losses).mean() if losses else logits.sum() * 0


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


def kl_divergence(logits, target, labels, released=False):
    """KL(target || softmax(logits)), a mean over the pixels whose label is known; released: over pixels and classes."""
    divergence = F.kl_div(logits.log_softmax(1), target, reduction='none')
    return divergence.mean() if released else masked_mean(divergence.sum(1), labels != IGNORE)


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


# ---------------------------------------------------------------------------------------------------------------
# Schedule and cycles


def learning_rate(epoch, rate=7e-3, warmup=10, start=100, cycle=10):
    """The rate of epoch 0, 1, ..: linear warm-up from rate/100, a cosine down to it until `start`, then cosines of
    `cycle` epochs that begin at rate/2."""
    low = rate / 100
    if epoch < warmup:
        return low + epoch * (rate - low) / warmup
    if epoch < start:
        return low + (rate - low) * (1 + math.cos(math.pi * (epoch - warmup) / (start - warmup))) / 2
    return low + (rate / 2 - low) * (1 + math.cos(math.pi * ((epoch - start) % cycle) / cycle)) / 2


@torch.no_grad()
def average(averaged, model, cycle):
    """w_hat = m/(m+1) w_hat + 1/(m+1) w with m = cycle, of parameters only: call `reestimate_norms` afterwards."""
    for mean, parameter in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, 1 / (cycle + 1))


@torch.no_grad()
def reestimate_norms(model, batches):
    """The statistics of all norms anew: means over `batches` (images, (B,3,H,W)) weighted by B, in training mode of the
    norms alone. Statistics of the networks that were averaged do not fit the averaged weights."""
    norms = [m for m in model.modules() if isinstance(m, (InPlaceABN, nn.BatchNorm2d))]
    training, device, seen = model.training, next(model.parameters()).device, 0
    model.eval()
    for norm in norms:
        norm.train()
    for images in batches:
        seen += len(images)
        for norm in norms:                                # the first batch has momentum 1: it replaces the old values
            norm.momentum = len(images) / seen
        model(images.to(device), heads=('fusion',))
    for norm in norms:
        norm.momentum = MOMENTUM
    model.train(training)
    if not seen:
        raise ValueError('the statistics of norms need at least one batch of images')


# ---------------------------------------------------------------------------------------------------------------
# Photos


def crop(array, matrix, size, device='cpu'):
    """RGB uint8 (H,W,3) -> the network's input (3,*size): warped, BGR, normalized; black outside the photo."""
    image = torch.tensor(array, device=device).permute(2, 0, 1).float()
    image = warp(image, matrix, size).flip(0) / 255
    return (image - image.new_tensor(MEAN)[:, None, None]) / image.new_tensor(STD)[:, None, None]
