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

schp/ace2p.py has the network's blocks, util/labels.py the label sets, schp/crowd.py the extension to several people.
Modules and parameters have the names of the released code (github.com/GoGoDuck912/Self-Correction-Human-Parsing),
"fushion" included, so its checkpoints load as they are. The paper's text leaves details open; constants are the
released code's. Images are BGR: `predict` takes RGB photos and turns the channels itself.
"""
import copy
import math
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from schp.segformer import SegFormer
from train import PICTURES, STOPPED, Task, make_loader, run_command, start_run, train_task
from schp import evaluation as single_evaluation
from schp import preparation
from schp import fuse
from schp import finetuning
from schp import extract
from schp.ace2p import (Bottleneck, ContextEncoding, Decoder, EdgeBranch, bare_norm, conv, convert_plain_norms,
                        convolve_stack, load_imagenet, released_weights, resize, unit)
from util.checkpoints import FORMAT, check_settings, load_strictly, name_command, read_checkpoint, reading
from util.cli import CommandParser, filled
from util.labels import LABEL_SETS, LabelSet, choose_labels
from schp.mit_weights import load_mit
from schp.norms import MOMENTUM, InPlaceABN
from schp.parser import Parser
from util.run import Run, add_run_flags, add_settings, find_device, given_settings
from schp.config import CHOICES, RANGES, SCHPConfig, preset
from schp.semantic import compare_image, semantic_metrics
from util.workers import read_batches
from schp.data import DATASETS, Samples, open_sets

IGNORE = 255                                              # label of pixels that are left out of the losses
HEADS = ('parsing', 'fusion', 'edge')


# ---------------------------------------------------------------------------------------------------------------
# Network


class SCHP(Parser):
    """A-CE2P. labels, size, flip_pairs: see `Parser`. blocks and width are the paper's ResNet-101; (1, 1,
    1, 1) and 8 train in seconds on a CPU."""
    sign = 'fushion.3.weight'                             # an entry of its released checkpoints, and of no others

    def __init__(self, labels, size=(473, 473), flip_pairs=(), blocks=(3, 4, 23, 3), width=64):
        super().__init__(labels, size, flip_pairs)
        self.blocks, self.width = tuple(blocks), width
        self.config = SCHPConfig(size=self.size, blocks=self.blocks, width=width)
        self.conv1, self.bn1 = conv(3, width, 3, 2), bare_norm(width)
        self.conv2, self.bn2 = conv(width, width, 3), bare_norm(width)
        self.conv3, self.bn3 = conv(width, 2 * width, 3), bare_norm(2 * width)
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
                       fusion=lambda: self.fushion[1:](convolve_stack(self.fushion[0], [feature, *edge_features])))
        return {head: compute[head]() for head in heads}

    @staticmethod
    def sizes(weights):
        """dict of blocks and width of a released checkpoint, from its weights."""
        blocks = (len({k.split('.')[1] for k in weights if k.startswith(f'layer{i}.')}) for i in (1, 2, 3, 4))
        return dict(blocks=tuple(blocks), width=len(weights['conv1.weight']))

    @classmethod
    def from_pretrained(cls, path, labels=None, device='cpu'):
        """A model in eval mode from our own file, or from one of the released code: both generations of the
        single-person files, the multi-person files, what its training writes, and the files of ViWear's fork, which
        give a `SegFormer`. labels: see `choose_labels`; give
        'cihp' for the multi-person files. Depth, width and number of classes are read off the weights."""
        state = read_checkpoint(path)
        if command := name_command(state, 'schp'):
            raise ValueError(f'{path} {command}')
        with reading(path):
            own = state.get('format') == FORMAT
            model, weights, plain_norms = (from_own_file if own else from_released_file)(state, labels, path)
            load_strictly(model, weights, path)
        if plain_norms:
            convert_plain_norms(model)
        return model.to(device).eval()


NETWORKS = {'ace2p': SCHP, 'segformer': SegFormer}
LOADERS = {'ace2p': load_imagenet, 'segformer': load_mit}             # of ImageNet weights


def build(config, labels):
    """An untrained network of a config for a LabelSet, whose size the config replaces."""
    model = NETWORKS[config.network](labels.names, config.size, labels.flip_pairs, config.blocks, config.width)
    model.config = config
    return model


def from_own_file(state, labels, path):
    check_settings(state['config'], SCHPConfig)
    config = SCHPConfig(**state['config'])
    own = LabelSet([*map(str, state['class_names'])], config.size, state['flip_pairs'])
    if labels is not None:
        own = choose_labels(len(own.names), labels, path)
    with torch.device('meta'):                                # takes no memory, whatever sizes the file claims
        return build(config, own), state['model'], False


def from_released_file(state, labels, path):
    weights, plain_norms = released_weights(state)
    network = next((name for name, n in NETWORKS.items() if getattr(weights.get(n.sign), 'ndim', 0) == 4), None)
    if not network:
        raise ValueError(f'{path} is not a checkpoint of SCHP: it has no {SCHP.sign}')
    chosen = choose_labels(len(weights[NETWORKS[network].sign]), labels, path)
    config = SCHPConfig(size=tuple(chosen.size), network=network, **NETWORKS[network].sizes(weights))
    with torch.device('meta'):
        return build(config, chosen), weights, plain_norms


# ---------------------------------------------------------------------------------------------------------------
# Losses


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
# Training


class SCHPTask(Task):
    """The cycles of self-correction around `train.Trainer`. From the first average on, the averaged model is the one
    that is validated and kept."""
    reported = 'mIoU', 'pixel_accuracy', 'mean_accuracy'

    def __init__(self, config, model, loader, val_set, root=None):
        super().__init__(config, model, loader, root)
        self.val_set, self.cycle = val_set, 0
        self.averaged = copy.deepcopy(model).requires_grad_(False).train(config.recipe == 'released')

    def result(self):
        return self.averaged if self.cycle else self.model

    def optimizer(self):
        if self.config.network == 'segformer':
            return finetuning.make_optimizer(self.model, self.config.phase, self.config.weight_decay)
        return torch.optim.SGD([dict(params=list(self.model.parameters()), factor=1.0)], lr=1.0, momentum=0.9,
                               weight_decay=self.config.weight_decay)

    def learning_rate(self, step, steps_per_epoch):
        c = self.config
        return learning_rate(step // steps_per_epoch, c.lr, c.warmup, c.cycle_start, c.cycle_epochs)

    def start_epoch(self, epoch, optimizer):
        if self.config.network == 'segformer' and self.config.recipe == 'released':
            finetuning.set_factors(optimizer, self.learning_rate(epoch, 1), self.config.lr,
                                   epoch >= self.config.cycle_start)

    def loss(self, net, batch, run):
        """The released recipe leaves the averaged model in training mode, with dropout and statistics that drift."""
        images = batch['images'].to(run.device, non_blocking=True, memory_format=torch.channels_last)
        cycle, soft = self.cycle if self.config.correct_labels else 0, None
        with run.autocast():
            out = net(images)
            if cycle:
                with torch.no_grad():
                    soft = self.averaged(images, heads=('fusion', 'edge'))
        labels = batch['labels'].to(run.device, non_blocking=True)
        return schp_loss(out, labels, soft, cycle, self.config.recipe, self.config.network == 'segformer')

    def end_epoch(self, epoch, run):
        """At the end of a cycle: averages the models, re-estimates the norms, and keeps cycle_N.pt."""
        c, passed = self.config, epoch + 1 - self.config.cycle_start
        if c.cycle_start >= c.epochs or passed < 0 or passed % c.cycle_epochs:
            return
        average(self.averaged, self.model, self.cycle)
        self.loader.batch_sampler.set_epoch(epoch)
        reestimate_norms(self.averaged, (batch['images'] for batch in read_batches(self.loader)))
        run.average(self.averaged.buffers())                  # every process has seen its own share
        self.cycle += 1
        run.log(f'cycle {self.cycle}: {self.cycle} models averaged', cycle=self.cycle, epoch=epoch + 1)
        if run.first:
            self.averaged.save(run.folder / f'cycle_{self.cycle}.pt', cycle=self.cycle)

    def validate(self, run):
        """Metrics of the validation photos and pictures of the first ones; each process takes its share."""
        dataset, matrix = self.val_set, 0
        for i in range(run.rank, min(len(dataset), self.config.val_images or len(dataset)), run.world):
            if run.seen and run.world == 1:
                return None
            picture = run.folder / 'val' / f'{i:02d}_{dataset.ids[i]}.png' if i < PICTURES else None
            matrix = matrix + compare_image(dataset, i, self.parse, picture)
        return semantic_metrics(sum(run.gather(matrix)))

    def parse(self, name, image, size):
        return self.result().predict([image], centers='float')[0]

    def state(self):
        """Beside the averaged model the generators of random numbers, which dropout uses."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8)
        return dict(averaged=self.averaged.state_dict(), cycle=self.cycle, random=torch.get_rng_state(), cuda=cuda)

    def load_state(self, state):
        load_strictly(self.averaged, state['averaged'], 'last.pt')
        self.cycle = state['cycle']
        torch.set_rng_state(state['random'])
        if torch.cuda.is_available() and len(state['cuda']):
            torch.cuda.set_rng_state(state['cuda'])


def start_from(task, path, reset_cycle):
    """Begins with the weights of another run: model and averaged model. Its cycle goes on, unless it is reset."""
    state = read_checkpoint(path)
    model = task.model
    other = SCHP.from_pretrained(path, LabelSet(model.labels, model.size, model.flip_pairs))
    for model in model, task.averaged:
        load_strictly(model, other.state_dict(), path)
    task.cycle = 0 if reset_cycle else int(state.get('cycle', state.get('cycle_n', 0)))


def fresh_config(args):
    """The settings of a new run."""
    name = args.data or 'LIP'
    changes = dict(given_settings(args, SCHPConfig), recipe=args.recipe or 'paper', data=name)
    presets = preset(name, changes.get('network'), changes.get('phase', 0))
    return replace(SCHPConfig(), **{**presets, **changes})


def make_task(begin, run, args):
    """begin: a `Start`. -> SCHPTask."""
    config = begin.config
    if config.batch_size // run.world // config.accumulate < 2:
        raise ValueError('a pass needs two images at least, because the norms of one have no variance; choose a larger '
                         '--batch-size or a smaller --accumulate')
    train_set, val_set = open_sets(config, begin.root, args.skip_bad)
    loader = make_loader(Samples(train_set, config), config, run)
    model = build(config, LabelSet(train_set.class_names, config.size, train_set.flip_pairs))
    if config.pretrained and not begin.state:
        LOADERS[config.network](model, config.pretrained)
    task = SCHPTask(config, model.to(run.device), loader, val_set, begin.root)
    if args.weights and not begin.state:
        start_from(task, args.weights, args.reset_cycle)
    return task


def train(args):
    run = Run(args.device, args.amp)
    begin = start_run(args, run, SCHPConfig, 'schp', fresh_config)
    task = make_task(begin, run, args)
    counts = f'{len(task.loader.dataset)} training and {len(task.val_set)} validation images'
    return train_task(task, run, begin.folder, begin.state, counts)


# ---------------------------------------------------------------------------------------------------------------
# Commands


USES = ((extract.extract, extract.add_flags, 'the classes of every pixel of photos of one person'),
        (single_evaluation.evaluate, single_evaluation.add_flags, 'mIoU, pixel accuracy and mean accuracy of a split'),
        (fuse.fuse, fuse.add_flags, 'the parts of several people, from two networks and person masks'))


def load_model(args, path=None):
    """The model of --weights, folded, on the device."""
    if not (path or args.weights):
        raise ValueError('--weights is missing: a file of the released code or of schp train')
    model = SCHP.from_pretrained(path or args.weights, args.labels, find_device(args.device))
    return model.folded().to(memory_format=torch.channels_last)


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(required=True, metavar='extract | evaluate | fuse | train | prepare')
    command = commands.add_parser('train', help='train a network through the cycles of self-correction')
    command.set_defaults(function=train)
    command.add_argument('--data', choices=list(DATASETS), help='default: LIP')
    command.add_argument('--recipe', choices=CHOICES['recipe'], help='default: paper')
    command.add_argument('--weights', type=filled, help='begin with the weights and the cycle of this file')
    command.add_argument('--reset-cycle', action='store_true', help='with --weights: begin with cycle 0')
    add_run_flags(command)
    add_settings(command, SCHPConfig, RANGES, CHOICES, skip=('data', 'recipe'))
    command = commands.add_parser('prepare', help='write a set with merged labels, in the layout of LIP')
    command.set_defaults(function=preparation.command)
    preparation.add_flags(command)
    for function, add_flags, text in USES:
        command = commands.add_parser(function.__name__, help=text)
        command.set_defaults(function=partial(function, load_model=load_model))
        add_flags(command)
        command.add_argument('--weights', type=filled, help='a file of the released code or of schp train')
        command.add_argument('--labels', choices=list(LABEL_SETS),
                             help='20 classes: lip (default) or cihp; 9: merged (default) or merged-sep')
        command.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    run_command(args.function, args, stopped=STOPPED if args.function is train else 'stopped')
