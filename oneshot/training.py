"""Training of one-shot parsing: episodes of base classes through `train.Trainer`."""
from dataclasses import replace

import torch

from oneshot.config import Config
from oneshot.data import EpisodePairs, EpisodeSamples, open_photos
from oneshot.eopnet import EOPNet
from oneshot.evaluation import count_pixels, scores
from oneshot.losses import oneshot_loss
from train import Task, check_run, make_loader, read_resumed, train_task
from util.run import Run, given_settings


def learning_rate(epoch, epochs=50, lr=1e-3):
    """The released schedule: at the epochs 9, 19, .. a new SGD, without momentum so far, whose rate decays by power."""
    start = (epoch + 1) // 10 * 10 - 1
    return lr if start < 0 else lr * (1 - start / epochs) ** 0.9


class OneShotTask(Task):
    """Episodes of base classes. A validation is over test episodes, and best.pt is chosen by the base classes."""
    reported = 'base', 'novel', 'human'

    def __init__(self, config, model, loader, test_photos, root=None):
        super().__init__(config, model, loader, root)
        self.photos, episodes = test_photos, test_photos.test_episodes()
        self.episodes = episodes[::max(1, len(episodes) // (config.val_images or len(episodes)))]

    def loss(self, net, batch, run):
        query, support = (batch[name].to(run.device, non_blocking=True, memory_format=torch.channels_last)
                          for name in ('query', 'support'))
        labels = [batch[name].to(run.device, non_blocking=True) for name in ('query_labels', 'support_labels')]
        classes = batch['classes'].to(run.device) if self.config.way == '1way' else self.photos.fold.base
        with run.autocast():
            out = net(query, support, labels[1], classes, batch['epoch'])
        return oneshot_loss(out, *labels, batch['epoch'], self.config.epochs)

    def validate(self, run):
        counts = count_pixels(self.model, self.photos, self.episodes, self.config.way, stopped=lambda: run.seen)
        return counts and scores(counts['npm'], self.photos.fold)

    def optimizer(self):
        self.sgd = super().optimizer()
        return self.sgd

    def learning_rate(self, step, steps_per_epoch):
        """Poly: falls with the power 0.9 to zero; the released recipe in steps of ten epochs."""
        config = self.config
        if config.recipe == 'released':
            return learning_rate(step // steps_per_epoch, config.epochs, config.lr)
        return config.lr * (1 - step / (steps_per_epoch * config.epochs)) ** 0.9

    def end_epoch(self, epoch, run):
        if self.config.recipe == 'released' and (epoch + 2) % 10 == 0:
            self.sgd.state.clear()                            # the released code makes a new SGD


def prepare_task(args, run):
    """Arguments -> the task, the run's folder (None: not chosen yet), and the state to continue from or None."""
    if run.world > 1:
        raise ValueError('the prototypes of earlier episodes belong to one process; start it without torchrun')
    if args.resume:
        config, folder, state, root = read_resumed(args, Config, 'oneshot')
    else:
        changes = dict(given_settings(args, Config), data=args.data or 'ATR', recipe=args.recipe or 'paper')
        config, folder, state, root = Config(**changes), args.out, None, args.root
    check_run(config, run, args, state)
    torch.manual_seed(config.seed)
    photos, test_photos = (open_photos(config.data, root, split, config.fold) for split in ('train', 'test'))
    config = replace(config, num_labels=photos.fold.num_labels)
    pairs = EpisodePairs(photos, config)
    pairs.skip_bad = args.skip_bad
    loader, model = make_loader(EpisodeSamples(pairs, config), config, run), EOPNet(config)
    if config.pretrained and not state:
        copied = model.load_backbone(config.pretrained)
        print(f'{config.pretrained}: {len(copied)} of {len(model.state_dict())} entries start from it')
    return OneShotTask(config, model, loader, test_photos, root), folder, state


def train(args):
    run = Run(args.device, args.amp)
    task, folder, state = prepare_task(args, run)
    counts = f'{len(task.loader.dataset)} training and {len(task.episodes)} test episodes'
    return train_task(task, run, folder, state, counts)
