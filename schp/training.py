"""The cycles of self-correction, their rates, and the training."""
import copy
import math
from dataclasses import replace

import torch
import torch.nn as nn

from data import read_batches
from schp.config import SCHPConfig, preset
from schp.data import Samples, open_sets
from schp.evaluation import compare_image, semantic_metrics
from schp.layers import MOMENTUM, InPlaceABN
from schp.losses import schp_loss
from schp.network import LOADERS, SCHP, build
from train import PICTURES, Task, check_run, make_loader, read_resumed, train_task
from util.checkpoints import load_strictly, read_checkpoint
from util.labels import LabelSet
from util.run import Run, given_settings


HEADS = tuple(((name,), 10.0) for name in ('head.', 'edge.', 'fusion.'))
STAGES = tuple((tuple(f'backbone.{name}{s}.' for name in ('patch_embed', 'block', 'norm')), 0.7 ** (4 - s))
               for s in (1, 2, 3, 4))
PHASES = (                                                # (starts of names, factor of the rate) of each part
    ((('backbone.',), 1.0), (('head.', 'edge.', 'fusion.'), 10.0)),
    HEADS,
    (*STAGES, *HEADS))


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


def decays(name, parameter, phase):
    """Whether a parameter, by its name inside its part, gets weight decay. Phases 1 and 2 go by that name alone, so the
    scales of InPlaceABN and of the norm behind each stage do get it, as in the released code."""
    if phase == 0:
        return parameter.ndim > 1
    return not (name.endswith('bias') or 'norm' in name or 'bn' in name)


def parameter_groups(model, phase, weight_decay):
    """Groups for AdamW: of each part of the phase, first the parameters that decay, then the others. `factor` is what
    the trainer multiplies the schedule's rate by; `share` is its value before `set_factors`."""
    groups = []
    for starts, share in PHASES[phase]:
        part = [(decays(name.removeprefix(start), p, phase), p) for name, p in model.named_parameters()
                for start in starts if name.startswith(start)]
        for decay in (True, False):
            groups.append(dict(params=[p for d, p in part if d == decay], factor=share, share=share,
                               weight_decay=weight_decay if decay else 0.0))
    return groups


def make_optimizer(model, phase, weight_decay):
    """AdamW over the groups of the phase. Parameters in no group are frozen, and so is `conv_seg`, which no forward
    uses: with several processes, DDP waits for the gradients of all others."""
    groups = parameter_groups(model, phase, weight_decay)
    model.requires_grad_(False)
    for parameter in (p for group in groups for p in group['params']):
        parameter.requires_grad_(True)
    model.head.conv_seg.requires_grad_(False)
    return torch.optim.AdamW(groups, lr=1.0)


def set_factors(optimizer, rate, lr, cycling):
    """The factors of the groups in the released code, where the schedule gives `rate` to a group of share 1, base lr.

    There, all groups come from and go down to lr / 100, and in the cycles each gets the rate of share 1: the heads fall
    to a twentieth of their rate and early stages rise above their own. Ours keeps the shares all the time."""
    low = lr / 100
    for group in optimizer.param_groups:
        own = low + (group['share'] * lr - low) * (rate - low) / (lr - low)
        group['factor'] = 1.0 if cycling else own / rate


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
            return make_optimizer(self.model, self.config.phase, self.config.weight_decay)
        return torch.optim.SGD([dict(params=list(self.model.parameters()), factor=1.0)], lr=1.0, momentum=0.9,
                               weight_decay=self.config.weight_decay)

    def learning_rate(self, step, steps_per_epoch):
        c = self.config
        return learning_rate(step // steps_per_epoch, c.lr, c.warmup, c.cycle_start, c.cycle_epochs)

    def start_epoch(self, epoch, optimizer):
        if self.config.network == 'segformer' and self.config.recipe == 'released':
            set_factors(optimizer, self.learning_rate(epoch, 1), self.config.lr,
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


def prepare_task(args, run):
    """Arguments -> the task, the run's folder (None: not chosen yet), and the state to continue from or None."""
    if args.resume:
        config, folder, state, root = read_resumed(args, SCHPConfig, 'schp')
    else:
        name = args.data or 'LIP'
        changes = dict(given_settings(args, SCHPConfig), recipe=args.recipe or 'paper', data=name)
        changes = {**preset(name, changes.get('network'), changes.get('phase', 0)), **changes}
        config, folder, state, root = replace(SCHPConfig(), **changes), args.out, None, args.root
    check_run(config, run, args, state)
    if config.batch_size // run.world // config.accumulate < 2:
        raise ValueError('a pass needs two images at least, because the norms of one have no variance; choose a larger '
                         '--batch-size or a smaller --accumulate')
    torch.manual_seed(config.seed)
    train_set, val_set = open_sets(config, root, args.skip_bad)
    loader = make_loader(Samples(train_set, config), config, run)
    model = build(config, LabelSet(train_set.class_names, config.size, train_set.flip_pairs))
    if config.pretrained and not state:
        LOADERS[config.network](model, config.pretrained)
    task = SCHPTask(config, model.to(run.device), loader, val_set, root)
    if args.weights and not state:
        start_from(task, args.weights, args.reset_cycle)
    return task, folder, state


def train(args):
    run = Run(args.device, args.amp)
    task, folder, state = prepare_task(args, run)
    counts = f'{len(task.loader.dataset)} training and {len(task.val_set)} validation images'
    return train_task(task, run, folder, state, counts)
