"""Trains UniParser.

    python train.py                                          # drawn people, CPU, under three minutes
    python train.py --data MHP --root data/LV-MHP-v2         # the paper's recipe
    python train.py --data CIHP --root data/CIHP --recipe released
    torchrun --nproc-per-node 8 train.py --data MHP --root data/LV-MHP-v2 --backbone resnet101 --epochs 36
    python train.py --resume runs/MHP                        # continues exactly where the run stopped

Every setting of `uniparser.Config` is a flag. A run writes runs/NAME/: config.json, log.jsonl, last.pt, best.pt and
val/*.png; its last line is its metrics.

`Trainer` is the loop, for any `Task`: a model, its data and its loss. UniParser's task is at the end.
"""
import preflight
preflight.require('data', 'evaluate', 'losses', 'uniparser', 'util')

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

import data
from evaluate import ParsingMetrics
from losses import uniparser_loss
from uniparser import CHOICES, PRESETS, RANGES, Config, UniParser, get_config
from util.checkpoints import FORMAT, PATHS, load_strictly, read_checkpoint, reading
from util.datasets import DATASETS, DRAWN, Mixed, open_dataset
from util.files import explain as explain_error, is_exhausted, write_png
from util.pictures import compare_labels
from util.run import (Run, add_run_flags, add_settings, catching_signals, describe, given_settings, memory,
                      thread_advice)

LOG_SECONDS, SAVE_SECONDS, PICTURES = 10, 600, 8
STATE = 'format', 'config', 'model', 'optimizer', 'scaler', 'root', 'paths', 'world', 'amp', 'best', 'epoch', 'position'
SPIKE = 10_000                                       # total loss; an untrained network has about 10
STOPPED = 'stopped before training began'
RESUMABLE = 'epochs', 'milestones', 'workers', 'val_every', 'val_images'      # what --resume may change


# ---------------------------------------------------------------------------------------------------------------
# What is trained


class Task:
    """A model, its data and its loss, as `Trainer` needs them.

    config: epochs, batch_size, accumulate, clip, val_every, data; and, for the default optimizer and rate, lr,
    backbone_lr, weight_decay, optimizer, schedule, warmup, milestones.
    model: `save(path, **more)` writes a file of ours (util/checkpoints.py); `backbone` for the default optimizer.
    loader: `data.loader`. Randomness must depend on (seed, epoch, index) alone, or be in `state`, for an exact resume.
    The groups of the optimizer have a `factor` of the rate. A total loss above SPIKE stops the run.
    """
    reported = ('mIoU',)                             # metrics in the log and the last line; the first one picks best.pt

    def __init__(self, config, model, loader, root=None):
        self.config, self.model, self.loader, self.root = config, model, loader, root

    def loss(self, net, batch, run):
        """Forward and loss of a batch -> dict of scalar terms with `total`. net: the model, or DDP around it."""
        raise NotImplementedError

    def validate(self, run):
        """-> dict of metrics, or None if a signal ended it early."""
        raise NotImplementedError

    def result(self):
        """The model that is validated and kept in best.pt."""
        return self.model

    def optimizer(self):
        return make_optimizer(self.model, self.config)

    def learning_rate(self, step, steps_per_epoch):
        return learning_rate(step, steps_per_epoch, self.config)

    def start_epoch(self, epoch, optimizer):
        """Called before the first step of an epoch, also of a resumed one: may change the groups' factors."""

    def end_epoch(self, epoch, run):
        """Called after the last step of an epoch, before the validation."""

    def state(self):
        """More that last.pt must hold: a dict of tensors and numbers."""
        return {}

    def load_state(self, state):
        """Continues from the content of last.pt."""


def learning_rate(step, steps_per_epoch, config):
    """Rate of the given step (0-based) for the whole batch: linear warm-up, then steps (divided by 10 at each
    milestone) or a half cosine to zero."""
    rate, epoch = config.lr * config.batch_size, step / steps_per_epoch
    if config.schedule == 'cosine':
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs)))
    else:
        milestones = config.milestones or (config.epochs * 3 // 4, config.epochs * 11 // 12)
        rate *= 0.1 ** sum(epoch >= m for m in milestones)
    return rate * min(1.0, (step + 1) / max(1, config.warmup))


def make_optimizer(model, config):
    """SGD or AdamW; the rate of a group is its `factor` times the schedule's."""
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    ids = {id(p) for p in backbone}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups = [dict(params=backbone, factor=config.backbone_lr), dict(params=rest, factor=1.0)]
    if config.optimizer == 'adamw':
        return torch.optim.AdamW(groups, lr=1.0, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=config.weight_decay)


# ---------------------------------------------------------------------------------------------------------------
# One step


class Diverged(RuntimeError):
    """A loss that is not finite or above SPIKE."""


def train_step(net, loss, batches, optimizer, scaler, rate, clip):
    """Forward and backward of `batches` (the passes of one step), one update. loss(net, batch) -> dict of terms.
    Returns the mean of each term, on the device: reading them would make the host wait."""
    for group in optimizer.param_groups:
        group['lr'] = rate * group['factor']
    optimizer.zero_grad(set_to_none=True)
    total = {}
    for k, batch in enumerate(batches):
        if hasattr(net, 'require_backward_grad_sync'):                       # DDP: exchange gradients once per step
            net.require_backward_grad_sync = k == len(batches) - 1
        losses = loss(net, batch)
        scaler.scale(losses['total'] / len(batches)).backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach() / len(batches)
    scaler.unscale_(optimizer)
    total['grad_norm'] = torch.nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return total


def check_finite(losses, batches, scaler):
    """Loss terms as numbers. Diverged, with the terms and the images, where one is not finite or the total is a spike;
    but a float16 gradient may overflow: then the scaler skips the step."""
    values = {k: float(v) for k, v in losses.items()}
    bad = [k for k, v in values.items() if not math.isfinite(v) and not (k == 'grad_norm' and scaler.is_enabled())]
    if bad or values['total'] > SPIKE:
        wrong = f'{", ".join(bad)} is not finite' if bad else f'the total is above {SPIKE:,}; lower --lr'
        names = ', '.join(str(info['id']) for batch in batches for info in batch['infos'])
        raise Diverged(f'{wrong}; all terms: {values}; images: {names}')
    return values


# ---------------------------------------------------------------------------------------------------------------
# The loop


class Trainer:
    """Trains a task to its last epoch: `fit`. state: the content of last.pt, with which it continues exactly: weights,
    optimizer, gradient scaler, the task's own state, the epoch, and `position`, the number of its finished steps."""

    def __init__(self, task, run, state=None):
        self.task, self.run, self.config = task, run, task.config
        self.optimizer = task.optimizer()
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp == torch.float16)
        self.epoch, self.position, self.saved = 0, 0, time.time()
        if state:
            load_strictly(task.model, state['model'], run.folder / 'last.pt')
            with reading(run.folder / 'last.pt'):
                self.optimizer.load_state_dict(state['optimizer'])
                self.scaler.load_state_dict(state['scaler'])
                task.load_state(state)
            self.epoch, self.position, run.best = state['epoch'], state['position'], state['best']
        self.net = task.model
        if run.world > 1:
            devices = [run.device.index] if run.device.type == 'cuda' else None
            self.net = torch.nn.parallel.DistributedDataParallel(task.model, devices)
        self.steps = task.loader.batch_sampler.total() // self.config.accumulate

    def fit(self):
        """-> the metrics of the last validation; {} where a signal ended the run."""
        result = {}
        with catching_signals() as self.run.seen, data.workers_of(self.task.loader):
            for self.epoch in range(self.epoch, self.config.epochs):
                stopped = not self.train_epoch()
                if not stopped and self.is_validated():
                    self.save(self.epoch, self.steps)            # a run stopped now resumes with the validation
                    result = self.validate()
                    stopped = result is None
                if stopped:
                    self.run.log(f'stopped; continue with --resume {self.run.folder}')
                    return {}
                self.position = 0
                self.save(self.epoch + 1, 0)
        self.run.log(f'{self.run.folder}: '
                     + (self.summary(result) if result else 'complete; continue with a larger --epochs'))
        return result

    def is_validated(self):
        return (self.epoch + 1) % self.config.val_every == 0 or self.epoch + 1 == self.config.epochs

    def train_epoch(self):
        """The steps of an epoch, from `position` on. False where a signal ended it; then it is saved."""
        task, accumulate, finished = self.task, self.config.accumulate, self.position == self.steps
        task.loader.batch_sampler.set_epoch(self.epoch, start=self.position * accumulate)
        self.net.train()
        task.start_epoch(self.epoch, self.optimizer)
        iterator, pending = data.read_batches(task.loader), None
        self.shown = time.time(), self.position
        for self.position in tqdm(range(self.position, self.steps), initial=self.position, total=self.steps,
                                  desc=f'epoch {self.epoch + 1}', leave=False, disable=not self.run.first or None):
            batches = [next(iterator) for _ in range(accumulate)]
            rate = task.learning_rate(self.epoch * self.steps + self.position, self.steps)
            losses = train_step(self.net, self.loss, batches, self.optimizer, self.scaler, rate, self.config.clip)
            if pending:                              # one step late, so that the host does not wait for the device
                check_finite(*pending)
            pending = losses, batches, self.scaler
            last = self.position == self.steps - 1       # a stop waits for the end of the epoch
            stop = not last and self.run.told_to_stop(self.position)
            save = stop or (not last and time.time() - self.saved > SAVE_SECONDS)
            if last or save or time.time() - self.shown[0] > LOG_SECONDS:
                self.log(check_finite(*pending), rate)
            if save:
                self.save(self.epoch, self.position + 1)
            if stop:
                return False
        if not finished:                             # else the run was stopped in the validation
            task.end_epoch(self.epoch, self.run)
        return True

    def loss(self, net, batch):
        return self.task.loss(net, batch, self.run)

    def validate(self):
        """Logs and returns the task's metrics, and writes best.pt if they are the best so far. None after a signal."""
        result, task = self.task.validate(self.run), self.task
        if result is None:
            return None
        self.run.log(f'epoch {self.epoch + 1}: {self.summary(result)}', epoch=self.epoch + 1,
                     **{k: result[k] for k in task.reported})
        if result[task.reported[0]] > self.run.best:
            self.run.best = result[task.reported[0]]
            if self.run.first:
                task.result().save(self.run.folder / 'best.pt')
        return result

    def summary(self, result):
        return ' '.join(f'{name} {result[name]:.3f}' for name in self.task.reported)

    def log(self, losses, rate):
        speed = (self.position + 1 - self.shown[1]) * self.config.batch_size / (time.time() - self.shown[0])
        self.shown = time.time(), self.position + 1
        self.run.log(f'epoch {self.epoch + 1} iter {self.position + 1}/{self.steps} | '
                     + ' '.join(f'{k} {v:.4f}' for k, v in losses.items())
                     + f' | lr {rate:.2e} | {speed:.1f} images/s | {memory(self.run.device):.1f} GB',
                     epoch=self.epoch + 1, iter=self.position + 1, lr=rate, images_per_second=speed,
                     memory=memory(self.run.device), **losses)

    def save(self, epoch, position):
        """last.pt: the weights and all that `--resume` needs."""
        self.saved, task, run = time.time(), self.task, self.run
        if run.first:
            paths = {name: getattr(self.config, name) for name in PATHS if hasattr(self.config, name)}
            task.model.save(run.folder / 'last.pt', optimizer=self.optimizer.state_dict(), root=task.root, paths=paths,
                            scaler=self.scaler.state_dict(), world=run.world, amp=str(run.amp), best=run.best,
                            epoch=epoch, position=position, **task.state())


# ---------------------------------------------------------------------------------------------------------------
# The command, for any system


def read_resumed(args, config_class, system):
    """--resume's run -> config, folder, content of last.pt, root of the data."""
    path = os.path.join(args.resume, 'last.pt')
    if not os.path.exists(path):
        raise FileNotFoundError(f'{path} does not exist; --resume takes the folder of a run, which holds this file')
    state, changes = read_checkpoint(path), given_settings(args, config_class)
    fixed = [k for k in ('data', 'recipe', 'out') if getattr(args, k, None)]
    fixed += [k for k in changes if k not in RESUMABLE]
    if fixed:
        flag = fixed[0].replace('_', '-')
        raise ValueError(f'--resume goes on with the settings of the run: --{flag} cannot change')
    if any(key not in state for key in STATE) or state['format'] != FORMAT or state.get('system', system) != system:
        raise ValueError(f'{path} holds no training state to resume from; give the folder of a run of this version')
    with reading(path):
        config = replace(config_class(**{**state['config'], **state['paths']}), **changes)
    return config, Path(args.resume), state, args.root or state['root']


def check_run(config, run, args, state):
    """ValueError where the processes cannot share the batches or continue the run, or --out holds another run."""
    if args.out and os.path.exists(os.path.join(args.out, 'last.pt')):
        raise ValueError(f'{args.out} holds a run already; go on with --resume {args.out} or choose another --out')
    if config.batch_size % (run.world * config.accumulate):
        raise ValueError(f'--batch-size {config.batch_size} cannot be shared by {run.world} processes with '
                         f'--accumulate {config.accumulate}; choose a multiple of {run.world * config.accumulate}')
    if state and state['world'] != run.world:
        raise ValueError(f'{args.resume} was trained by {state["world"]} processes; continue with the same number')
    if state and state['amp'] != str(run.amp):
        raise ValueError(f'{args.resume} was trained with --{"no-" * (state["amp"] == "None")}amp; add this flag')


def make_loader(samples, config, run):
    """The loader of a run's training samples; ValueError where there are too few for one step."""
    loader = data.loader(samples, config, config.batch_size // run.world // config.accumulate, run.rank, run.world,
                         run.device)
    if loader.batch_sampler.total() < config.accumulate:
        raise ValueError(f'{len(samples)} training images are too few for --batch-size {config.batch_size} with '
                         f'--accumulate {config.accumulate}')
    return loader


def train_task(task, run, folder, state, images):
    """Opens the run's folder, logs what is trained, and trains. images: a text about the numbers of images."""
    task.model.to(run.device, memory_format=torch.channels_last)
    run.open(folder, task.config.data)
    run.write_config(task.config)
    run.log(f'{run.folder}: {images}, {run.world} x {run.device}, '
            f'{sum(p.numel() for p in task.model.parameters()):,} parameters')
    run.log(f'settings: {describe(task.config)}')
    if advice := thread_advice(run.device):
        run.log(advice)
    return Trainer(task, run, state).fit()


def explain(error, stopped=STOPPED):
    """A sentence about a user's or a machine's error; None for a bug. stopped: the sentence about Ctrl-C."""
    if isinstance(error, (OSError, ValueError, Diverged, ModuleNotFoundError)):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return stopped
    if isinstance(error, torch.OutOfMemoryError):
        return f'{str(error).split(".")[0]}; use a larger --accumulate, which needs less memory'
    if is_exhausted(error):
        return f'{explain_error(error)}, or use a larger --accumulate, which needs less memory'
    if isinstance(error, dist.DistError) or '/gloo/' in str(error):
        return 'another process of this run has ended or cannot be reached; see its message; continue with --resume'


def run_command(function, *arguments, stopped=STOPPED):
    """function(*arguments) of a command; a user's mistake is one sentence and exit code 2, Ctrl-C the sentence
    `stopped` and 130."""
    try:
        return function(*arguments)
    except (Exception, KeyboardInterrupt) as error:
        sentence = explain(error, stopped)
        if not sentence:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        print(sentence if stopped else f'error: {sentence}', file=sys.stderr)
        sys.exit(130 if stopped else 2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------------------
# UniParser


class UniParserTask(Task):
    reported = 'AP50', 'APvol', 'PCP50', 'mIoU'

    def __init__(self, config, model, loader, val_set, root=None):
        super().__init__(config, model, loader, root)
        self.val_set = val_set

    def loss(self, net, batch, run):
        images = batch['images'].to(run.device, non_blocking=True, memory_format=torch.channels_last)
        parsings = [p.to(run.device, non_blocking=True) for p in batch['parsings']]
        ignores = batch['ignores'].to(run.device, non_blocking=True)
        with run.autocast():
            out = net(images)
        return uniparser_loss(out, parsings, ignores, self.config, self.model.fusion)

    def validate(self, run):
        """AP^p, PCP and mIoU on the validation set, with pictures of the first images. Each process takes its share; a
        lone process stops at a signal."""
        dataset, config = self.val_set, self.config
        count, metrics = min(len(dataset), config.val_images or len(dataset)), ParsingMetrics(config.num_classes)
        for i in tqdm(range(run.rank, count, run.world), desc='validation', leave=False, disable=not run.first or None):
            if run.seen and run.world == 1:
                return None
            try:
                image, parsing, ignore = dataset.read(i)
            except (OSError, ValueError) as error:
                if not dataset.skip_bad:
                    raise
                tqdm.write(f'skipped: {error}', file=sys.stderr)
                continue
            found = self.model.predict(image)[0].labelled()
            metrics.add(i, found, dataset.truth(i, parsing, ignore))
            if run.folder and i < PICTURES:
                path = run.folder / 'val' / f'{i:02d}_{dataset.ids[i]}.png'
                write_png(path, compare_labels(image, (parsing, found.parsing), dataset.class_names))
        for part in run.gather(metrics):
            metrics.merge(part)
        return metrics.result()


def parse_arguments(argv=None):
    parser = preflight.CommandParser(__doc__)
    parser.add_argument('--data', choices=list(DATASETS), help='default: synthetic')
    parser.add_argument('--recipe', choices=CHOICES['recipe'], help='default: paper')
    add_run_flags(parser)
    add_settings(parser, Config, RANGES, CHOICES, skip=('data', 'recipe', 'num_classes', 'pretrained_stages'))
    return parser.parse_args(argv)


def preset_of(name, recipe):
    """The preset of a data set. One without a preset of its own has MHP's, and its own classes."""
    name = (name or 'synthetic').lower()
    if recipe != 'released':
        return name if name in PRESETS else 'mhp'
    if name in PRESETS and f'{name}_released' not in PRESETS:
        raise ValueError(f'--recipe released has no settings for {name}; choose --data MHP or CIHP')
    return f'{name}_released' if name in PRESETS else 'mhp_released'


def count_images(config):
    """Numbers of training images per epoch: of the data set (0 = its default), and of COCO's photos beside CCP."""
    if not config.coco:
        return config.samples, 0
    if config.data != 'CCP' or not config.samples:
        raise ValueError('--coco adds photos to the scenes of --data CCP; give that, and --samples')
    coco = round(config.coco_share * config.samples)
    return max(1, config.samples - coco), coco


def open_sets(config, root, skip_bad):
    """Training and validation set of a config."""
    samples, coco = count_images(config)
    drawn = dict(long_side=config.long_side, samples=samples) if config.data in ('CCP', *DRAWN) else {}
    options = dict(licenses=config.licenses, parts=config.parts)
    if config.data == 'COCO':
        drawn = dict(options, samples=samples)
    if config.data == 'CCP':
        drawn.update(backgrounds=config.backgrounds, people=config.people, tagged=config.tagged, rare=config.rare,
                     things=config.things)
    train_set = open_dataset(config.data, root, 'train', **drawn)
    if coco:
        others = open_dataset('COCO', config.coco, 'fit', samples=coco, **options)
        train_set = Mixed([train_set, others])
    val_set = open_dataset(config.data, root, 'val')
    train_set.skip_bad = val_set.skip_bad = skip_bad
    return train_set, val_set


def prepare_task(args, run):
    """Arguments -> the task, the run's folder (None: not chosen yet), and the state to continue from or None."""
    if args.resume:
        config, folder, state, root = read_resumed(args, Config, 'uniparser')
    else:
        name, changes = args.data or 'synthetic', given_settings(args, Config)
        changes.update(data=name, num_classes=len(DATASETS[name].class_names) - 1)
        config = get_config(preset_of(args.data, args.recipe), **changes)
        folder, state, root = args.out, None, args.root
    check_run(config, run, args, state)
    torch.manual_seed(config.seed)
    train_set, val_set = open_sets(config, root, args.skip_bad)
    loader = make_loader(data.Samples(train_set, config), config, run)
    model = UniParser(config, train_set.class_names, train_set.flip_pairs)
    if config.pretrained and not state:
        model.load_pretrained()
        if model.config.pretrained_stages < 4 and run.first:
            print(f'{config.pretrained} ends at stage {model.config.pretrained_stages}; the rest starts from scratch')
    return UniParserTask(model.config, model, loader, val_set, root), folder, state


def train(args):
    run = Run(args.device, args.amp)
    task, folder, state = prepare_task(args, run)
    counts = f'{len(task.loader.dataset)} training and {len(task.val_set)} validation images'
    return train_task(task, run, folder, state, counts)


def main(argv=None):
    run_command(lambda: train(parse_arguments(argv)))


if __name__ == '__main__':
    preflight.start(main)
