"""The training of SCHP: cycles of model aggregation and label refinement around `train.Trainer`.

The command is `train`, at the end. `learning_rate`, `average` and `reestimate_norms` are the
schedule of SCHP; `parameter_groups` and `set_factors` those of its SegFormer variant.
"""
import argparse
import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.nn as nn
from torch.utils.data import DataLoader

from schp.config import SCHPConfig, preset
from schp.data import Reduced, Samples, open_sets
from schp.evaluation import compare_image, semantic_metrics
from schp.layers import MOMENTUM, InPlaceABN
from schp.losses import schp_loss
from schp.network import SCHP, build, load_imagenet
from schp.single_person import SinglePersonNetwork
from train import PICTURES, Start, Task, make_loader, start_run, train_task
from util.checkpoints import load_strictly, read_checkpoint
from util.cli import given_settings
from util.datasets import Photos
from util.labels import LabelSet
from util.run import Run
from util.workers import read_batches


# ---- schedule and cycles -----------------------------------------------------------------------


def learning_rate(epoch: int, rate: float = 7e-3, warmup: int = 10, start: int = 100,
                  cycle: int = 10) -> float:
    """The rate of epoch 0, 1, ..: a linear warm-up from rate / 100, a cosine down to it until
    `start`, then cosines of `cycle` epochs that begin at rate / 2."""
    low = rate / 100
    if epoch < warmup:
        return low + epoch * (rate - low) / warmup
    if epoch < start:
        passed = (epoch - warmup) / (start - warmup)
        return low + (rate - low) * (1 + math.cos(math.pi * passed)) / 2
    passed = (epoch - start) % cycle / cycle
    return low + (rate / 2 - low) * (1 + math.cos(math.pi * passed)) / 2


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, cycle: int):
    """Model aggregation at the end of cycle m: w_hat = m/(m+1) w_hat + 1/(m+1) w, in place.

    Parameters only: call `reestimate_norms` afterwards."""
    for mean, parameter in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, 1 / (cycle + 1))


@torch.no_grad()
def reestimate_norms(model: nn.Module, batches: Iterable[torch.Tensor]):
    """Replaces the statistics of all norms by means over `batches` of images (B, 3, H, W), weighted
    by B. Statistics of the networks that were averaged do not fit the averaged weights."""
    norms = [m for m in model.modules() if isinstance(m, (InPlaceABN, nn.BatchNorm2d))]
    device = next(model.parameters()).device
    training = model.training
    # The norms alone are in training mode: no dropout.
    model.eval()
    for norm in norms:
        norm.train()

    seen = 0
    for images in batches:
        seen += len(images)
        # The momentum of a running mean; the first batch has 1, which replaces the old values.
        for norm in norms:
            norm.momentum = len(images) / seen
        model(images.to(device), heads=('fusion',))

    for norm in norms:
        norm.momentum = MOMENTUM
    model.train(training)
    if not seen:
        raise ValueError('the statistics of norms need at least one batch of images')


# ---- optimizers of the SegFormer variant -------------------------------------------------------


# Parts of the network in each phase of ViWear's fork: (starts of names, factor of the rate).
#   0   adamw_custom       everything; the heads at ten times the rate
#   1   segce2p_phase_1    the heads alone; the backbone is frozen
#   2   segce2p_phase_2    everything; each stage of the backbone at 0.7 times the rate of the next
HEAD_PARTS = [(('head.',), 10.0), (('edge.',), 10.0), (('fusion.',), 10.0)]
STAGE_PARTS = [((f'backbone.patch_embed{s}.', f'backbone.block{s}.', f'backbone.norm{s}.'),
                0.7 ** (4 - s)) for s in (1, 2, 3, 4)]
PARTS = {0: [(('backbone.',), 1.0), (('head.', 'edge.', 'fusion.'), 10.0)],
         1: HEAD_PARTS,
         2: [*STAGE_PARTS, *HEAD_PARTS]}


def decays(name: str, parameter: nn.Parameter, phase: int) -> bool:
    """Whether a parameter gets weight decay. name: that inside its part. Phases 1 and 2 go by this
    name alone, so the scales of InPlaceABN and of the norm behind each stage do get it, as in the
    fork."""
    if phase == 0:
        return parameter.ndim > 1
    return not (name.endswith('bias') or 'norm' in name or 'bn' in name)


def parameter_groups(model: SinglePersonNetwork, phase: int, weight_decay: float) -> list[dict]:
    """Groups for AdamW: of each part of the phase, first the parameters that decay, then the rest.

    `factor` multiplies the rate of the schedule; `share` is its value before `set_factors`."""
    groups = []
    for starts, share in PARTS[phase]:
        decaying = []
        others = []
        for name, parameter in model.named_parameters():
            for start in starts:
                if name.startswith(start):
                    decay = decays(name.removeprefix(start), parameter, phase)
                    (decaying if decay else others).append(parameter)
        groups.append(dict(params=decaying, factor=share, share=share, weight_decay=weight_decay))
        groups.append(dict(params=others, factor=share, share=share, weight_decay=0.0))
    return groups


def make_optimizer(model: SinglePersonNetwork, phase: int,
                   weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the groups of the phase. Parameters in no group are frozen. So is `conv_seg`,
    which no forward uses: with several processes, DDP waits for the gradients of all others."""
    groups = parameter_groups(model, phase, weight_decay)
    model.requires_grad_(False)
    for group in groups:
        for parameter in group['params']:
            parameter.requires_grad_(True)
    model.head.conv_seg.requires_grad_(False)
    return torch.optim.AdamW(groups, lr=1.0)


def set_factors(optimizer: torch.optim.Optimizer, rate: float, lr: float, cycling: bool):
    """The factors of the groups in the fork, where the schedule gives `rate` to a group of share 1
    and base rate `lr`.

    There, all groups come from and go down to lr / 100. In the cycles each gets the rate of share
    1: the heads fall to a twentieth of their rate, and early stages rise above their own. Recipe
    'paper' keeps the shares all the time."""
    low = lr / 100
    for group in optimizer.param_groups:
        own = low + (group['share'] * lr - low) * (rate - low) / (lr - low)
        group['factor'] = 1.0 if cycling else own / rate


# ---- the task ----------------------------------------------------------------------------------


class SCHPTask(Task):
    """SCHP for `train.Trainer`. From the first average on, the averaged model is the one that is
    validated and kept."""

    reported = 'mIoU', 'pixel_accuracy', 'mean_accuracy'

    def __init__(self, config: SCHPConfig, model: SinglePersonNetwork, loader: DataLoader,
                 val_set: Photos | Reduced, root: str | None = None):
        super().__init__(config, model, loader, root)
        self.val_set = val_set
        self.cycle = 0
        # The released code leaves it in training mode: with dropout, and statistics that drift.
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.averaged.train(config.recipe == 'released')

    def result(self) -> SinglePersonNetwork:
        return self.averaged if self.cycle else self.model

    def optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        if c.network == 'segformer':
            return make_optimizer(self.model, c.phase, c.weight_decay)
        group = dict(params=list(self.model.parameters()), factor=1.0)
        return torch.optim.SGD([group], lr=1.0, momentum=0.9, weight_decay=c.weight_decay)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        c = self.config
        return learning_rate(step // steps_per_epoch, c.lr, c.warmup, c.cycle_start, c.cycle_epochs)

    def start_epoch(self, epoch: int, optimizer: torch.optim.Optimizer):
        c = self.config
        if c.network == 'segformer' and c.recipe == 'released':
            set_factors(optimizer, self.learning_rate(epoch, 1), c.lr, epoch >= c.cycle_start)

    def loss(self, net: nn.Module, batch: dict, run: Run) -> dict:
        c = self.config
        images = batch['images'].to(run.device, non_blocking=True,
                                    memory_format=torch.channels_last)
        cycle = self.cycle if c.correct_labels else 0
        soft = None
        with run.autocast():
            out = net(images)
            if cycle:
                with torch.no_grad():
                    soft = self.averaged(images, heads=('fusion', 'edge'))
        labels = batch['labels'].to(run.device, non_blocking=True)
        return schp_loss(out, labels, soft, cycle, c.recipe, batchmean=c.network == 'segformer')

    def end_epoch(self, epoch: int, run: Run):
        """At the end of a cycle: averages the models, re-estimates the norms, keeps cycle_N.pt."""
        c = self.config
        passed = epoch + 1 - c.cycle_start
        if c.cycle_start >= c.epochs or passed < 0 or passed % c.cycle_epochs:
            return
        average(self.averaged, self.model, self.cycle)
        self.loader.batch_sampler.set_epoch(epoch)
        reestimate_norms(self.averaged, (batch['images'] for batch in read_batches(self.loader)))
        # Every process has seen its own share of the images.
        run.average(self.averaged.buffers())
        self.cycle += 1
        run.log(f'cycle {self.cycle}: {self.cycle} models averaged', cycle=self.cycle,
                epoch=epoch + 1)
        if run.first:
            self.averaged.save(run.folder / f'cycle_{self.cycle}.pt', cycle=self.cycle)

    def validate(self, run: Run) -> dict | None:
        """Metrics of the validation photos, with pictures of the first ones. Each process takes its
        share; a lone process stops at a signal."""
        dataset = self.val_set
        count = min(len(dataset), self.config.val_images or len(dataset))
        matrix = np.zeros((len(dataset.class_names),) * 2, np.int64)
        for i in range(run.rank, count, run.world):
            if run.seen and run.world == 1:
                return None
            picture = None
            if i < PICTURES:
                picture = run.folder / 'val' / f'{i:02d}_{dataset.ids[i]}.png'
            matrix += compare_image(dataset, i, self.predict, picture)
        return semantic_metrics(sum(run.gather(matrix)))

    def predict(self, name: str, image: np.ndarray, size: tuple) -> np.ndarray:
        """`Predict` of schp/evaluation.py."""
        return self.result().predict_maps([image], centers='float')[0]

    def state(self) -> dict:
        """Beside the averaged model the generators of random numbers, which dropout uses."""
        cuda = torch.empty(0, dtype=torch.uint8)
        if torch.cuda.is_available():
            cuda = torch.cuda.get_rng_state()
        return dict(averaged=self.averaged.state_dict(), cycle=self.cycle,
                    random=torch.get_rng_state(), cuda=cuda)

    def load_state(self, state: dict):
        load_strictly(self.averaged, state['averaged'], 'last.pt')
        self.cycle = state['cycle']
        torch.set_rng_state(state['random'])
        if torch.cuda.is_available() and len(state['cuda']):
            torch.cuda.set_rng_state(state['cuda'])


# ---- the command -------------------------------------------------------------------------------


def start_from(task: SCHPTask, path: str, reset_cycle: bool):
    """Begins with the weights of another run, in the model and in the averaged model. Its cycle
    goes on, unless it is reset."""
    state = read_checkpoint(path)
    own = task.model
    other = SCHP.from_pretrained(path, LabelSet(own.class_names, own.size, own.flip_pairs))
    load_strictly(task.model, other.state_dict(), path)
    load_strictly(task.averaged, other.state_dict(), path)
    # Files of the released training call it cycle_n.
    task.cycle = 0 if reset_cycle else int(state.get('cycle', state.get('cycle_n', 0)))


def fresh_config(args: argparse.Namespace) -> SCHPConfig:
    """The config of a new run: the preset of its data and network, then the flags."""
    name = args.data or 'LIP'
    changes = given_settings(args, SCHPConfig)
    changes.update(recipe=args.recipe or 'paper', data=name)
    settings = preset(name, changes.get('network'), changes.get('phase', 0))
    return replace(SCHPConfig(), **{**settings, **changes})


def make_task(begin: Start, run: Run, args: argparse.Namespace) -> SCHPTask:
    """The task of a run, new or resumed. ValueError where a pass has a single image."""
    config = begin.config
    if config.batch_size // run.world // config.accumulate < 2:
        raise ValueError('a pass needs two images at least, because the norms of one have no '
                         'variance; choose a larger --batch-size or a smaller --accumulate')
    if config.phase == 1 and not (args.weights or config.pretrained or begin.state):
        raise ValueError('--phase 1 trains the heads on a backbone that stays as it is; give one '
                         'with --weights or --pretrained')
    train_set, val_set = open_sets(config, begin.root, args.skip_bad)
    loader = make_loader(Samples(train_set, config), config, run)
    model = build(config, LabelSet(train_set.class_names, config.size, train_set.flip_pairs))
    # A resumed run has its own weights.
    if config.pretrained and not begin.state:
        load_imagenet(model, config.pretrained)
    task = SCHPTask(config, model.to(run.device), loader, val_set, begin.root)
    if args.weights and not begin.state:
        start_from(task, args.weights, args.reset_cycle)
    return task


def train(args: argparse.Namespace) -> dict:
    """`python -m schp train` -> the metrics of the last validation; {} where a signal ended it."""
    run = Run(args.device, args.amp)
    begin = start_run(args, run, SCHPConfig, 'schp', fresh_config)
    task = make_task(begin, run, args)
    counts = f'{len(task.loader.dataset)} training and {len(task.val_set)} validation images'
    return train_task(task, run, begin.folder, begin.state, counts)
