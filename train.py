"""Trains UniParser.

    python train.py                                     # drawn people, CPU, under three minutes
    python train.py --data MHP --root data/LV-MHP-v2    # the paper's recipe
    python train.py --data CIHP --root data/CIHP --recipe released
    torchrun --nproc-per-node 8 train.py --data MHP --root data/LV-MHP-v2 --epochs 36
    python train.py --resume runs/MHP                   # continues exactly where the run stopped

Every setting of `util.config.Config` is a flag. A run writes runs/NAME/: config.json, log.jsonl,
last.pt, best.pt and val/*.png; its last line is its metrics.

`Trainer` is the loop. It trains any `Task`: a model, its data and its loss. UniParser's task stands
at the end.
"""
import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import data
from evaluate import ParsingMetrics
from losses import make_loss
from uniparser import PRESETS, Config, UniParser, get_config
from util.checkpoints import FORMAT, PATHS, load_strictly, read_checkpoint, reading
from util.cli import (CommandParser, add_settings, add_shared, describe, flag, given_settings,
                      start)
from util.datasets import DATASETS, DRAWN, Mixed, open_dataset
from util.files import explain as explain_error, is_exhausted, write_png
from util.person_counts import CountMetrics
from util.pictures import compare_labels
from util.run import (Run, add_run_flags, catching_signals, is_of_a_run, memory,
                      thread_advice)
from util.workers import open_loader, read_batches, workers_of

LOG_SECONDS = 10                    # between two lines of the log, at least
SAVE_SECONDS = 600                  # between two last.pt within an epoch, at least
PICTURES = 8                        # of the validation
SPIKE = 10_000                      # total loss; an untrained network has about 10
STOPPED = 'stopped before training began'
NO_PARTS = ('note: the people of these photos have no parts, so a network that does not know the '
            'classes yet cannot learn them; give --pretrained weights/uniparser_ccp.pt or --parts')

# What last.pt holds.
STATE = ('format', 'config', 'model', 'optimizer', 'scaler', 'root', 'paths', 'world', 'amp',
         'best', 'epoch', 'position')
# Settings of COCO's photos.
OF_COCO = 'licenses', 'parts', 'pseudo'
# What --resume may change.
RESUMABLE = 'epochs', 'milestones', 'workers', 'val_every', 'val_images'


# --------------------------------------------------------------------------------------------------
# What is trained


class Task:
    """A model, its data and its loss, as `Trainer` needs them. A subclass defines `loss` and
    `validate`.

    config: has epochs, batch_size, accumulate, clip, val_every and data. The default optimizer and
        rate also need lr, backbone_lr, weight_decay, optimizer, schedule, warmup and milestones.
    model: `save(path, **more)` writes a checkpoint, see util/checkpoints.py. The default optimizer
        needs its `backbone`.
    loader: of `make_loader`. For an exact resume all randomness depends on (seed, epoch, index)
        alone, or is in `state`.
    root: folder of the data set, which last.pt keeps for --resume.
    """
    # Metrics in the log and in the last line. The first one is the score, see `score`.
    reported = ('mIoU',)

    def __init__(self, config: Any, model: nn.Module, loader: DataLoader, root: str | None = None):
        self.config = config
        self.model = model
        self.loader = loader
        self.root = root

    def loss(self, net: nn.Module, batch: dict, run: Run) -> dict:
        """Forward and loss of a batch -> scalar terms, with `total`. net: the model, or DDP around
        it."""
        raise NotImplementedError

    def validate(self, run: Run) -> dict | None:
        """-> metrics; None where a signal ended the validation early."""
        raise NotImplementedError

    def score(self, metrics: dict) -> float:
        """Of the metrics of a validation: the model with the highest score is best.pt."""
        return metrics[self.reported[0]]

    def result(self) -> nn.Module:
        """The model that is validated and kept in best.pt."""
        return self.model

    def optimizer(self) -> torch.optim.Optimizer:
        """Each of its groups has a `factor` of the rate."""
        return make_optimizer(self.model, self.config)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        return learning_rate(step, steps_per_epoch, self.config)

    def start_epoch(self, epoch: int, optimizer: torch.optim.Optimizer):
        """Called before the first step of an epoch, also of a resumed one. May change the groups'
        factors."""

    def end_epoch(self, epoch: int, run: Run):
        """Called after the last step of an epoch, before the validation."""

    def state(self) -> dict:
        """More that last.pt must hold: tensors and numbers."""
        return {}

    def load_state(self, state: dict):
        """Continues from the content of last.pt."""


def learning_rate(step: int, steps_per_epoch: int, config: Config) -> float:
    """Rate of a step (0-based) for the whole batch.

    It rises linearly in the warm-up. Then it is divided by 10 at each milestone, or falls to zero
    as half a cosine.
    """
    rate = config.lr * config.batch_size
    epoch = step / steps_per_epoch
    if config.schedule == 'cosine':
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs)))
    else:
        # Secs. 4.1 and 6.2: 12 epochs with milestones 9 and 11, 36 with 27 and 33.
        milestones = config.milestones or (config.epochs * 3 // 4, config.epochs * 11 // 12)
        rate *= 0.1 ** sum(epoch >= milestone for milestone in milestones)
    return rate * min(1.0, (step + 1) / max(1, config.warmup))


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """SGD or AdamW in two groups, the backbone and the rest. The rate of a group is its `factor`
    times the schedule's."""
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    ids = {id(p) for p in backbone}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups = [dict(params=backbone, factor=config.backbone_lr), dict(params=rest, factor=1.0)]
    if config.optimizer == 'adamw':
        return torch.optim.AdamW(groups, lr=1.0, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=config.weight_decay)


# --------------------------------------------------------------------------------------------------
# One step


class Diverged(RuntimeError):
    """A loss that is not finite or above SPIKE."""


def train_step(net: nn.Module, loss: Callable, batches: list[dict],
               optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, rate: float,
               clip: float) -> dict:
    """One update after forward and backward of `batches`, the passes of the step.

    loss: loss(net, batch) -> dict of terms. clip: largest norm of the gradients; 0 = any.
    Returns the mean of each term, and grad_norm, as tensors on the device: reading them would make
    the host wait.
    """
    for group in optimizer.param_groups:
        group['lr'] = rate * group['factor']
    optimizer.zero_grad(set_to_none=True)

    means = {}
    for k, batch in enumerate(batches):
        # DDP exchanges the gradients once per step, in the last pass.
        if hasattr(net, 'require_backward_grad_sync'):
            net.require_backward_grad_sync = k == len(batches) - 1
        losses = loss(net, batch)
        scaler.scale(losses['total'] / len(batches)).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0) + value.detach() / len(batches)

    # Clipping as in the released code; unscaled first, so that the norm is the true one.
    scaler.unscale_(optimizer)
    means['grad_norm'] = nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return means


def check_finite(losses: dict, batches: list[dict], scaler: torch.amp.GradScaler) -> dict:
    """Loss terms as numbers.

    Diverged, with the terms and the images, where one is not finite or the total is a spike. A
    float16 gradient may overflow: then the scaler skips the step.
    """
    values = {name: float(value) for name, value in losses.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if scaler.is_enabled() and 'grad_norm' in bad:
        bad.remove('grad_norm')
    if not bad and values['total'] <= SPIKE:
        return values
    if bad:
        wrong = f'{", ".join(bad)} is not finite'
    else:
        wrong = f'the total is above {SPIKE:,}; lower --lr'
    images = ', '.join(str(info['id']) for batch in batches for info in batch['infos'])
    raise Diverged(f'{wrong}; all terms: {values}; images: {images}')


# --------------------------------------------------------------------------------------------------
# The loop


class Trainer:
    """Trains a task to its last epoch, see `fit`.

    state: the content of last.pt, with which it continues exactly: weights, optimizer, gradient
    scaler, the task's own state, the epoch, and `position`, the number of its finished steps.
    """

    def __init__(self, task: Task, run: Run, state: dict | None = None):
        self.task = task
        self.run = run
        self.config = task.config
        self.optimizer = task.optimizer()
        # float16 alone needs it.
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp == torch.float16)
        self.steps = task.loader.batch_sampler.total() // self.config.accumulate
        self.epoch = 0
        self.position = 0
        self.saved = time.monotonic()
        if state:
            self.load(state)
        self.net = task.model
        if run.world > 1:
            devices = [run.device.index] if run.device.type == 'cuda' else None
            self.net = nn.parallel.DistributedDataParallel(task.model, devices)

    def fit(self) -> dict:
        """-> the metrics of the last validation; {} where a signal ended the run."""
        result = {}
        self.began = time.monotonic()
        self.inherited = self.finished_steps()
        with catching_signals() as seen, workers_of(self.task.loader):
            self.run.seen = seen
            while self.epoch < self.config.epochs:
                if not self.train_epoch():
                    return self.stop()
                if self.validates_now():
                    # A run that is stopped in its validation resumes with it.
                    self.save()
                    result = self.validate()
                    if result is None:
                        return self.stop()
                self.epoch += 1
                self.position = 0
                self.save()
        if result:
            self.run.log(f'{self.run.folder}: {self.summary(result)}')
        else:
            self.run.log(f'{self.run.folder}: complete; continue with a larger --epochs')
        return result

    def stop(self) -> dict:
        self.run.log(f'stopped; continue with --resume {self.run.folder}')
        return {}

    def validates_now(self) -> bool:
        finished = self.epoch + 1
        return finished % self.config.val_every == 0 or finished == self.config.epochs

    def train_epoch(self) -> bool:
        """The steps of an epoch, from `position` on. False where a signal ended it; then it is
        saved."""
        task = self.task
        if self.position == self.steps:
            # The run was stopped in the validation of this epoch.
            return True
        passes = self.config.accumulate
        task.loader.batch_sampler.set_epoch(self.epoch, start=self.position * passes)
        self.net.train()
        task.start_epoch(self.epoch, self.optimizer)
        batches_of_epoch = read_batches(task.loader)
        unchecked = None
        self.shown = time.monotonic()
        self.shown_position = self.position
        steps = tqdm(range(self.position, self.steps), initial=self.position, total=self.steps,
                     desc=f'epoch {self.epoch + 1}', leave=False,
                     disable=not self.run.first or None)
        for step in steps:
            # Forward and backward of each pass, then one update.
            batches = [next(batches_of_epoch) for _ in range(passes)]
            rate = task.learning_rate(self.epoch * self.steps + step, self.steps)
            losses = train_step(self.net, self.loss, batches, self.optimizer, self.scaler, rate,
                                self.config.clip)
            self.position = step + 1
            steps.set_postfix_str(f'ends in {self.time_left()}', refresh=False)

            # The terms are checked one step late, so that the host does not wait for the device.
            if unchecked:
                check_finite(*unchecked)
            unchecked = losses, batches, self.scaler

            # A stop in the last step waits for the end of the epoch.
            last = self.position == self.steps
            stop = not last and self.run.told_to_stop(step)
            save = stop or (not last and time.monotonic() - self.saved > SAVE_SECONDS)
            if last or save or time.monotonic() - self.shown > LOG_SECONDS:
                self.log(check_finite(*unchecked), rate)
            if save:
                self.save()
            if stop:
                return False
        task.end_epoch(self.epoch, self.run)
        return True

    def finished_steps(self) -> int:
        return self.epoch * self.steps + self.position

    def time_left(self) -> str:
        """From now to the end of the run, as 1:23:45, at the mean speed since `fit` began."""
        finished = self.finished_steps()
        seconds_per_step = (time.monotonic() - self.began) / (finished - self.inherited)
        left = self.config.epochs * self.steps - finished
        return tqdm.format_interval(seconds_per_step * left)

    def loss(self, net, batch):
        return self.task.loss(net, batch, self.run)

    def validate(self) -> dict | None:
        """Logs and returns the task's metrics; None after a signal. Writes best.pt if they are the
        best so far."""
        task = self.task
        result = task.validate(self.run)
        if result is None:
            return None
        epoch = self.epoch + 1
        record = {name: result[name] for name in task.reported}
        self.run.log(f'epoch {epoch}: {self.summary(result)}', epoch=epoch, **record)
        score = task.score(result)
        if score > self.run.best:
            self.run.best = score
            if self.run.first:
                task.result().save(self.run.folder / 'best.pt')
        return result

    def summary(self, result: dict) -> str:
        return ' '.join(f'{name} {result[name]:.3f}' for name in self.task.reported)

    def log(self, losses: dict, rate: float):
        """A line about the last step. The speed is that since the last line."""
        now = time.monotonic()
        images = (self.position - self.shown_position) * self.config.batch_size
        speed = images / (now - self.shown)
        self.shown = now
        self.shown_position = self.position
        epoch = self.epoch + 1
        used = memory(self.run.device)
        terms = ' '.join(f'{name} {value:.4f}' for name, value in losses.items())
        self.run.log(f'epoch {epoch} iter {self.position}/{self.steps} | {terms} | lr {rate:.2e} | '
                     f'{speed:.1f} images/s | {used:.1f} GB | ends in {self.time_left()}',
                     epoch=epoch, iter=self.position, lr=rate, images_per_second=speed, memory=used,
                     **losses)

    def save(self):
        """last.pt: the weights and all that --resume needs, see STATE."""
        self.saved = time.monotonic()
        run = self.run
        if not run.first:
            return
        paths = {name: getattr(self.config, name) for name in PATHS if hasattr(self.config, name)}
        self.task.model.save(
            run.folder / 'last.pt',
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            root=self.task.root,
            paths=paths,
            world=run.world,
            amp=str(run.amp),
            best=run.best,
            epoch=self.epoch,
            position=self.position,
            **self.task.state())

    def load(self, state: dict):
        """Continues from the content of last.pt."""
        path = self.run.folder / 'last.pt'
        load_strictly(self.task.model, state['model'], path)
        with reading(path):
            self.optimizer.load_state_dict(state['optimizer'])
            self.scaler.load_state_dict(state['scaler'])
            self.task.load_state(state)
        self.epoch = state['epoch']
        self.position = state['position']
        self.run.best = state['best']


# --------------------------------------------------------------------------------------------------
# The command, for any system


@dataclass(frozen=True)
class Start:
    """Where a run begins."""
    config: Any                     # of the class that `start_run` was given
    folder: str | Path | None       # of the run; None: a free name under runs/ is chosen later
    state: dict | None              # of last.pt, from which a run continues; None: a new run
    root: str | None                # folder of the data set


def start_run(args: argparse.Namespace, run: Run, config_class: type, system: str,
              fresh: Callable) -> Start:
    """Decides between a new run and one to continue, checks that it can run, and seeds torch.

    args: with the flags of `add_run_flags` and of the settings of config_class. system: its name in
    checkpoints, uniparser, schp or oneshot. fresh: fresh(args) -> the config of a new run.
    ValueError or FileNotFoundError names the wrong flag.
    """
    if args.resume:
        begin = resume(args, config_class, system)
    else:
        begin = Start(fresh(args), args.out, None, args.root)
    check_run(begin, run, args)
    torch.manual_seed(begin.config.seed)
    return begin


def resume(args: argparse.Namespace, config_class: type, system: str) -> Start:
    """Reads the run of --resume. Only the settings in RESUMABLE may change."""
    path = os.path.join(args.resume, 'last.pt')
    if not os.path.exists(path):
        raise FileNotFoundError(f'{path} does not exist; --resume takes the folder of a run, which '
                                'holds this file')
    state = read_checkpoint(path)
    changes = given_settings(args, config_class)
    fixed = [name for name in ('data', 'recipe', 'out') if getattr(args, name, None)]
    fixed += [name for name in changes if name not in RESUMABLE]
    if fixed:
        raise ValueError('--resume goes on with the settings of the run: '
                         f'{flag(fixed[0])} cannot change')
    if (any(key not in state for key in STATE) or state['format'] != FORMAT
            or state.get('system', system) != system):
        raise ValueError(f'{path} holds no training state to resume from; give the folder of a run '
                         'of this version')
    with reading(path):
        config = config_class(**{**state['config'], **state['paths'], **changes})
    return Start(config, Path(args.resume), state, args.root or state['root'])


def check_run(begin: Start, run: Run, args: argparse.Namespace):
    """ValueError where the processes cannot share the batches or continue the run, or where --out
    holds another run."""
    config = begin.config
    weights = Path(args.out).glob('*.pt') if args.out else []
    if any(map(is_of_a_run, weights)):
        can_resume = os.path.exists(os.path.join(args.out, 'last.pt'))
        go_on = f'go on with --resume {args.out} or ' if can_resume else ''
        raise ValueError(f'{args.out} holds a run already; {go_on}choose another --out')
    passes = run.world * config.accumulate
    if config.batch_size % passes:
        raise ValueError(f'--batch-size {config.batch_size} cannot be shared by {run.world} '
                         f'processes with --accumulate {config.accumulate}; choose a multiple of '
                         f'{passes}')
    if begin.state is None:
        return
    world = begin.state['world']
    if world != run.world:
        raise ValueError(f'{args.resume} was trained by {world} processes; continue with the same '
                         'number')
    if begin.state['amp'] != str(run.amp):
        wanted = '--no-amp' if begin.state['amp'] == 'None' else '--amp'
        raise ValueError(f'{args.resume} was trained with {wanted}; add this flag')


def make_loader(samples, config, run: Run) -> DataLoader:
    """The loader of a run's training samples, see util/workers.py. ValueError where there are too
    few for one step."""
    batch_size = config.batch_size // run.world // config.accumulate
    loader = open_loader(samples, config, batch_size, run.rank, run.world, run.device)
    if loader.batch_sampler.total() < config.accumulate:
        raise ValueError(f'{len(samples)} training images are too few for --batch-size '
                         f'{config.batch_size} with --accumulate {config.accumulate}')
    return loader


def train_task(task: Task, run: Run, folder: str | Path | None, state: dict | None,
               images: str) -> dict:
    """Opens the run's folder, logs what is trained, and trains -> metrics, see `Trainer.fit`.

    folder, state: those of `Start`. images: a text about the numbers of images, for the log.
    """
    task.model.to(run.device, memory_format=torch.channels_last)
    run.open(folder, task.config.data)
    run.write_config(task.config)
    weights = sum(p.numel() for p in task.model.parameters())
    run.log(f'{run.folder}: {images}, {run.world} x {run.device}, {weights:,} parameters')
    run.log(f'settings: {describe(task.config)}')
    advice = thread_advice(run.device)
    if advice:
        run.log(advice)
    return Trainer(task, run, state).fit()


def explain(error: BaseException, stopped: str = STOPPED) -> str | None:
    """A sentence about a user's or a machine's error; None for a bug. stopped: the sentence about
    Ctrl-C."""
    if isinstance(error, (OSError, ValueError, Diverged, ModuleNotFoundError)):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return stopped
    if isinstance(error, torch.OutOfMemoryError):
        reason = str(error).split('.')[0]
        return f'{reason}; use a larger --accumulate, which needs less memory'
    if is_exhausted(error):
        return f'{explain_error(error)}, or use a larger --accumulate, which needs less memory'
    if isinstance(error, dist.DistError) or '/gloo/' in str(error):
        return ('another process of this run has ended or cannot be reached; see its message; '
                'continue with --resume')
    return None


def run_command(function: Callable, *arguments, stopped: str = STOPPED):
    """function(*arguments) of a command. A user's mistake is one sentence and exit code 2; Ctrl-C
    is the sentence `stopped` and exit code 130."""
    try:
        return function(*arguments)
    except (Exception, KeyboardInterrupt) as error:
        sentence = explain(error, stopped)
        if not sentence:
            raise
        if isinstance(error, KeyboardInterrupt):
            print(sentence, file=sys.stderr)
            sys.exit(130)
        # On a line of its own, also where a progress bar is drawn.
        tqdm.write(f'error: {sentence}', file=sys.stderr)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# --------------------------------------------------------------------------------------------------
# UniParser


class UniParserTask(Task):
    reported = 'AP50', 'APvol', 'PCP50', 'mIoU'

    def __init__(self, config: Config, model: UniParser, loader: DataLoader, val_set,
                 root: str | None = None):
        super().__init__(config, model, loader, root)
        self.val_set = val_set
        self.criterion = make_loss(config, model.fusion)

    def loss(self, net, batch, run):
        images = batch['images'].to(run.device, non_blocking=True,
                                    memory_format=torch.channels_last)
        parsings = [parsing.to(run.device, non_blocking=True) for parsing in batch['parsings']]
        ignores = batch['ignores'].to(run.device, non_blocking=True)
        with run.autocast():
            out = net(images)
        return self.criterion(out, parsings, ignores)

    def validate(self, run):
        """The metrics on the validation set, with pictures of the first images. Each process takes
        its share; a lone process stops at a signal."""
        dataset = self.val_set
        count = min(len(dataset), self.config.val_images or len(dataset))
        metrics = self.new_metrics()
        indices = range(run.rank, count, run.world)
        for i in tqdm(indices, desc='validation', leave=False, disable=not run.first or None):
            if run.seen and run.world == 1:
                return None
            try:
                image, parsing, ignore = dataset.read(i)
            except (OSError, ValueError) as error:
                if not dataset.skip_bad:
                    raise
                tqdm.write(f'skipped: {error}', file=sys.stderr)
                continue
            found, truth = self.compared(i, self.model.predict(image)[0], parsing, ignore)
            metrics.add(i, found, truth)
            if run.folder and i < PICTURES:
                path = run.folder / 'val' / f'{i:02d}_{dataset.ids[i]}.png'
                picture = compare_labels(image, (parsing, found.parsing), dataset.class_names)
                write_png(path, picture)
        # The metrics are of all images, whichever process parsed them.
        for part in run.gather(metrics):
            metrics.merge(part)
        return metrics.result()

    def new_metrics(self):
        """AP^p, PCP and mIoU of no image so far."""
        return ParsingMetrics(self.config.num_classes)

    def compared(self, i, found, parsing, ignore):
        """The prediction and the truth of validation image i, as the metrics take them."""
        return found.labeled(), self.val_set.truth(i, parsing, ignore)


class PeopleTask(UniParserTask):
    """UniParser where the people of the validation set have no parts. For AP^p, any label inside
    such a person is right, so util/person_counts.py counts instead.

    best.pt is the model with most keypoints right, which falls with missed people and with wrong
    labels; where the people have no keypoints, it is the one that finds most people.
    """
    reported = 'keypoints_right', 'found', 'false_per_180', 'side_right'

    def new_metrics(self):
        return CountMetrics()

    def compared(self, i, found, parsing, ignore):
        return found, self.val_set.persons(i)

    def score(self, metrics):
        right = metrics['keypoints_right']
        return metrics['found'] if math.isnan(right) else right


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add_shared(parser, 'data', 'synthetic', choices=list(DATASETS))
    add_shared(parser, 'recipe', 'paper')
    add_run_flags(parser)
    add_settings(parser, Config, skip=('data', 'recipe', 'num_classes', 'pretrained_stages'))
    return parser.parse_args(argv)


def preset_of(name: str | None, recipe: str | None, coco: str | None = None) -> str:
    """The preset of a data set. One without a preset of its own has MHP's, and its own classes.
    coco: CCP with photos of COCO beside its scenes has a preset of its own, `photos`."""
    if name == 'CCP' and coco:
        name = 'photos'
    name = (name or 'synthetic').lower()
    if name not in PRESETS:
        name = 'mhp'
    if recipe != 'released':
        return name
    if f'{name}_released' not in PRESETS:
        raise ValueError(f'--recipe released has no settings for {name}; choose --data MHP or CIHP')
    return f'{name}_released'


def fresh_config(args: argparse.Namespace) -> Config:
    """The settings of a new run: the preset for --data and --recipe, then the flags."""
    name = args.data or 'synthetic'
    changes = given_settings(args, Config)
    refuse_idle(changes, name)
    changes['data'] = name
    changes['num_classes'] = len(DATASETS[name].class_names) - 1
    return get_config(preset_of(args.data, args.recipe, changes.get('coco')), **changes)


def refuse_idle(given: dict, name: str):
    """ValueError where a setting of COCO's photos is given, but none of them are read. given:
    {setting: value}; name: of the data set."""
    if given.get('coco'):
        return
    if 'coco_share' in given:
        raise ValueError('--coco-share is for --coco; give that, too, or leave this out')
    idle = [setting for setting in OF_COCO if setting in given]
    if idle and name != 'COCO':
        raise ValueError(f'{flag(idle[0])} is for photos of COCO; give --data COCO, or --data CCP '
                         'with --coco')


def count_images(config: Config) -> tuple[int, int]:
    """Training images per epoch: of the data set (0: its default), and of COCO beside CCP."""
    if not config.coco:
        return config.samples, 0
    if config.data != 'CCP' or not config.samples:
        raise ValueError('--coco adds photos to the scenes of --data CCP; give that, and --samples')
    coco = round(config.coco_share * config.samples)
    return max(1, config.samples - coco), coco


def open_sets(config: Config, root: str | None, skip_bad: bool) -> tuple:
    """Training and validation set of a config. skip_bad: unreadable images are left out and
    named."""
    # Scenes are drawn or composed anew for each epoch.
    settings = []
    if config.data == 'CCP' or config.data in DRAWN:
        settings += ['long_side', 'samples']
    if config.data == 'CCP':
        settings += ['backgrounds', 'people', 'tagged', 'rare', 'things']
    if config.data == 'COCO':
        settings += ['samples', *OF_COCO]
    options = {name: getattr(config, name) for name in settings}
    samples, windows = count_images(config)
    if 'samples' in options:
        options['samples'] = samples
    train_set = open_dataset(config.data, root, 'train', **options)
    if windows:
        # --coco: windows of its photos follow the scenes of CCP.
        options = {name: getattr(config, name) for name in OF_COCO}
        others = open_dataset('COCO', config.coco, 'fit', samples=windows, **options)
        train_set = Mixed([train_set, others])
    # Photos of other licenses may be missing.
    options = dict(licenses=config.licenses) if config.data == 'COCO' else {}
    val_set = open_dataset(config.data, root, 'val', **options)
    train_set.skip_bad = skip_bad
    val_set.skip_bad = skip_bad
    return train_set, val_set


def describe_start(config: Config, whole: bool) -> str:
    """What --pretrained has loaded. whole: the file is a whole UniParser."""
    if whole:
        return f'training goes on from all weights of {config.pretrained}'
    if config.pretrained_stages < 4:
        return (f'{config.pretrained} ends at stage {config.pretrained_stages} of the backbone; '
                'the rest starts from scratch')
    return f'the backbone starts from {config.pretrained}, the rest from scratch'


def make_task(begin: Start, run: Run, skip_bad: bool) -> UniParserTask:
    """The task of a new or resumed run. skip_bad: as in `open_sets`."""
    train_set, val_set = open_sets(begin.config, begin.root, skip_bad)
    # A file of parts brings its own classes.
    config = replace(begin.config, num_classes=len(train_set.class_names) - 1)
    loader = make_loader(data.Samples(train_set, config), config, run)
    model = UniParser(config, train_set.class_names, train_set.flip_pairs)
    # Whether all weights come from a file.
    whole = begin.state is not None
    if config.pretrained and not begin.state:
        whole = model.load_pretrained()
        if run.first:
            print(describe_start(model.config, whole))
    if run.first and not whole and not train_set.has_parts:
        print(NO_PARTS)
    # Loading has noted the pretrained stages in the model's config.
    task = UniParserTask if val_set.has_parts else PeopleTask
    return task(model.config, model, loader, val_set, begin.root)


def train(args: argparse.Namespace) -> dict:
    """Trains as the flags say -> metrics, see `Trainer.fit`."""
    run = Run(args.device, args.amp)
    begin = start_run(args, run, Config, 'uniparser', fresh_config)
    task = make_task(begin, run, args.skip_bad)
    images = f'{len(task.loader.dataset)} training and {len(task.val_set)} validation images'
    return train_task(task, run, begin.folder, begin.state, images)


def main(argv: list[str] | None = None):
    run_command(lambda: train(parse_arguments(argv)))


if __name__ == '__main__':
    start(main)
