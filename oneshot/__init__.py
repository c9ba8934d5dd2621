"""One-shot human parsing with EOP-Net (He et al., TPAMI 2023, arXiv:2105.01241): a photo in the classes of an example.

A support photo and its label map name the classes. The query photo is parsed into exactly these, also into novel ones,
which no training label ever named. Two ways: k-way parses all classes at once, 1-way one class against the rest.

    python -m oneshot parse query.jpg more/ --support photo.jpg --support-mask mask.png --weights F --out results/
    python -m oneshot train --data CCP --root clothing-co-parsing --fold 1 --way k
    python -m oneshot evaluate --data CCP --root clothing-co-parsing --fold 1 --way k --weights F

    paper                              here               shape          what
    feature of both photos             mid_level          (B,C,h,w)      Xception and a decoder, h = H/4, w = W/4
    coarse and fine feature            features           (B,C,h,w)      f1 finds people, f2 parses them
    static prototypes                  static_prototypes  (B,R,C)        the support's mean feature of every class
    momentum-updated prototypes        smoothed           (B,R,C)        mixed with those of earlier episodes
    coarse (foreground) parsing        coarse_head        (B,2,h,w)      people against background
    NPM, nearest prototype             npm_head           (B,K,h,w)      from the cosine to each prototype
    AGM, attention guidance            agm_head           (B,K,h,w)      convolutions of the feature where it is alike
    training losses and contrast       oneshot_loss       dict           AGM leads at first, NPM at the end

K counts the background and the labels that the benchmark merges into others: 18 for ATR-OS, 20 for LIP-OS and CIHP-OS.
Labels (B,H,W) hold 0 background, 1..K-1 parts, 255 ignore. Every part is a person's pixel, also one of a class that the
episode leaves out; `classes` says which classes it keeps. Modules have the names of the released state dicts, because
released files are loaded as they are. POPNet, the predecessor (arXiv:2012.11810), is not built: it was released without
weights, training script or schedule, and EOP-Net supersedes it.
"""
import argparse
import os
import sys
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from train import STOPPED, Task, make_loader, run_command, start_run, train_task
from util.checkpoints import (FORMAT, check_settings, load_strictly, name_command, read_checkpoint, reading,
                              write_checkpoint)
from util.cli import Between, CommandParser, filled
from oneshot.episodes import FOLDS, IGNORE, read_episodes, write_episodes
from util.files import find_photos, write_json
from oneshot.data import NAMES, EpisodePairs, EpisodeSamples, open_photos
from oneshot.parse import ExampleParser, check_learned, read_names, read_supports
from oneshot.scores import count_pixels, scores, table
from oneshot.by_uniparser import UniParserByExample
from oneshot.use import ByExample
from util.photos import check_failures, name_jobs, share_of_process
from oneshot.prototypes import class_masks, cosine, episode_labels, foreground, query_target, static_prototypes
from util.run import (Run, add_run_flags, add_settings, check_ranges, find_device, given_settings,
                      sum_over_processes)
from oneshot.xception import Atrous, DeepLab, pass_norm, read_weights, upsample

ALPHA = 0.001                                # of this episode's prototype in a smoothed one
TEMPERATURE = 0.1                            # of the contrast
CHOICES = dict(data=NAMES, way=('kway', '1way'), recipe=('paper', 'released'), optimizer=('sgd', 'adamw'))
RANGES = dict(fold=(1, 2), num_labels=(2, 255), stem=(4, 512), middle=(0, 100), channels=(16, 4096), size=(32, 4096),
              long_side=(0, 10000), warm_up=(-1, 10 ** 6), batch_size=(1, 10 ** 6), accumulate=(1, 10 ** 6),
              epochs=(1, 10 ** 6), lr=(0, 1e6), backbone_lr=(0, 1e6), weight_decay=(0, 1e6), clip=(0, 1e9),
              val_every=(1, 10 ** 6), val_images=(0, 10 ** 9), workers=(0, 1000), seed=(0, 2 ** 63 - 1))


@dataclass(frozen=True)
class Config:
    data: str = 'ATR'                        # ATR | LIP | CIHP | CCP
    fold: int = 1                            # 1 | 2
    way: str = 'kway'                        # kway | 1way
    recipe: str = 'paper'                    # released: pairs drawn once, the rate falls at every tenth epoch
    num_labels: int = 18                     # K
    stem: int = 32                           # channels of the first convolution; the backbone's others in proportion
    middle: int = 16                         # blocks of the backbone's middle flow
    channels: int = 256                      # of the decoder and the heads
    high_level: bool = True                  # keep the modules of feature level 'high': in released files, never run
    pretrained: str = ''                     # deeplab_v3plus_v3.pth or another EOP-Net to start from
    long_side: int = 0                       # photos are reduced to it; 0 = as they are, as released
    size: int = 512                          # of training's crops
    warm_up: int = 25                        # up to this epoch (0-based) fine prototypes are static
    batch_size: int = 2                      # episodes per step, over all processes
    accumulate: int = 1                      # passes per step, each with a share of its episodes
    epochs: int = 50
    optimizer: str = 'sgd'                   # sgd | adamw
    lr: float = 1e-3
    backbone_lr: float = 1.0                 # factor on the backbone's rate
    weight_decay: float = 5e-4
    clip: float = 0.0                        # largest gradient norm; 0 = any, as released
    val_every: int = 10                      # epochs
    val_images: int = 0                      # test episodes of a validation; 0 = all
    workers: int = 4
    seed: int = 0

    def __post_init__(self):
        check_ranges(self, RANGES, CHOICES)


# ---------------------------------------------------------------------------------------------------------------
# The network


class EOPNet(DeepLab, ByExample):
    """model(query, support, support_labels) -> dict of logits; see `forward`. Config fields are keyword arguments."""

    def __init__(self, config=Config(), **changes):
        config = replace(config, **changes)
        c, rows = config.channels, config.num_labels
        super().__init__(config.stem, config.middle, c, config.high_level)
        self.config = config
        self.scaler = nn.Parameter(torch.tensor(10.0))
        self.prototype = nn.Parameter(torch.zeros(rows, c), requires_grad=False)
        self.s1_prototype = nn.Parameter(torch.zeros(2, c), requires_grad=False)
        self.s1_trans, self.s2_trans = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.add_heads(c)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def add_heads(self, c):
        def pair():                                           # without a ReLU between them, as released
            return nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1))
        self.s1_conv1, self.s1_conv2, self.s1_semantic = pair(), Atrous(c, c), nn.Conv2d(c, 2, 1)
        self.decoder2, self.decoder3, self.agm_class = pair(), Atrous(c, c), nn.Conv2d(c, 2, 1)
        if self.config.way == '1way':
            self.npm_class = nn.Conv2d(1, 2, 1)
        else:
            self.npm_class_fg, self.npm_class_bg = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
            self.npm_bg_fusion, self.agm_bg_fusion = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def features(self, images):
        """Images (B,3,H,W) -> coarse feature f1 and fine feature f2, (B,C,h,w) each."""
        x = self.mid_level(images)
        return self.s1_trans(x), self.s2_trans(x)

    def smoothed(self, stored, static, rows, warm_up):
        """Static prototypes (B,R,C) mixed with the rows (B,R) of `stored`, of earlier episodes -> (B,R,C).

        A class that the support lacks stays zero. One without a stored prototype, such as a novel one, has its static
        one, and so has every class during the warm-up. In training the result is stored, image after image.
        """
        used = []
        for own, row in zip(static, rows):
            before, present = stored[row], own.detach().any(1, keepdim=True)
            mixed = torch.where(before.any(1, keepdim=True), (1 - ALPHA) * before + ALPHA * own, own)
            used.append(own if warm_up else torch.where(present, mixed, own))
            if self.training:
                with torch.no_grad():
                    stored[row] = torch.where(present, used[-1], before)
        return torch.stack(used)

    def coarse_head(self, f1, prototype):
        """f1 (B,C,h,w), the people's prototype (B,1,C) -> logits (B,2,h,w) of background and people."""
        x = cosine(f1, prototype) * f1 + f1
        return self.s1_semantic(self.s1_conv2(self.s1_conv1(x)))

    def npm_head(self, cosines):
        """Cosines (B,K-1,h,w) to the prototypes -> logits (B,K,h,w); 1-way: (B,1,h,w) -> (B,2,h,w)."""
        if self.config.way == '1way':
            return self.scaler * self.npm_class(cosines)
        flat = cosines.flatten(0, 1)[:, None]
        people, rest = (conv(x).view_as(cosines) for conv, x in
                        ((self.npm_class_fg, flat), (self.npm_class_bg, 1 - flat)))
        return self.scaler * torch.cat([self.npm_bg_fusion(rest.mean(1, keepdim=True)), people], 1)

    def agm_head(self, f2, cosines, present):
        """Like npm_head, from f2 (B,C,h,w) too. present (K-1): the classes that any support of the batch has.

        The released code runs its convolutions once a class. Here the present classes go through them together, and the
        absent ones, whose cosines are 0, share one pass; statistics of BatchNorm are those of the loop.
        """
        if self.config.way == '1way':
            return self.agm_tower((f2 * cosines)[:, None], [0])[:, 0]
        passes = [cosines[:, present]] + [torch.zeros_like(cosines[:, :1])] * (not present.all())
        of_class = torch.where(present, present.cumsum(0) - 1, present.sum()).tolist()
        together = len(of_class) if self.training or f2.is_cuda else 1            # one stays in a CPU's cache
        x = torch.cat([self.agm_tower(f2[:, None] * (1 + part)[:, :, None], of_class)
                       for part in torch.cat(passes, 1).split(together, 1)], 1)[:, of_class]
        return torch.cat([self.agm_bg_fusion(x[:, :, 1].mean(1, keepdim=True)), x[:, :, 0]], 1)

    def agm_tower(self, x, of_class):
        """x (B,P,C,h,w) -> logits (B,P,2,h,w) of P passes; of_class: the pass of each class, in the loop's order."""
        batch, conv = x.shape[:2], self.decoder3.atrous_convolution
        x = self.decoder2(x.flatten(0, 1))
        x = F.relu(pass_norm(conv.depthwise_bn, conv.depthwise(x), batch, of_class))
        x = F.relu(pass_norm(conv.pointwise_bn, conv.pointwise(x), batch, of_class))
        return self.agm_class(x).unflatten(0, batch)

    def forward(self, query, support, support_labels, classes=None, epoch=None):
        """Images (B,3,H,W) as of `normalize`, support_labels (B,H,W) -> dict of logits at the query's size.

        agm, npm: (B,K,H,W), 1-way (B,2,H,W); coarse: (B,2,H,W). classes: k-way, the ids to keep (None = all); 1-way, a
        tensor (B,) of each image's class. epoch: None = after the warm-up. The dict also holds `classes` and, for the
        contrast of k-way training, `f2`: the fine features of query and support.
        """
        one = self.config.way == '1way'
        if one and not torch.is_tensor(classes):
            raise ValueError('1-way parsing needs classes, a tensor with the class of each image')
        classes = classes if one or classes is None else tuple(int(c) for c in classes)
        (f1, f2), (s1, s2) = self.features(query), self.features(support)
        labels, num = episode_labels(support_labels, classes), 2 if one else self.config.num_labels
        static = static_prototypes(s2, class_masks(labels, num, s2.shape[2:]))[:, 1:]
        people = static_prototypes(s1.detach(), class_masks(foreground(support_labels), 2, s1.shape[2:]))
        rows = classes.view(-1, 1) if one else torch.arange(1, num).expand(len(labels), -1)
        # the released code passes `epoch` as the coarse warm-up flag, so only epoch 0 smooths
        people = self.smoothed(self.s1_prototype, people, torch.arange(2).expand(len(labels), -1), epoch != 0)
        fine = self.smoothed(self.prototype, static, rows, epoch is not None and epoch <= self.config.warm_up)
        out = {name: upsample(x, query.shape[2:]) for name, x in self.heads(f1, f2, people[:, 1:], fine).items()}
        return dict(out, classes=classes, **({'f2': (f2, s2)} if self.training and not one else {}))

    def heads(self, f1, f2, people, fine, names=('agm', 'npm')):
        """Features (B,C,h,w), prototypes of people (B,1,C) and classes (B,R,C) -> dict of logits (B,..,h,w): those
        named, and coarse."""
        cosines, present = cosine(f2, fine), fine.detach().any(2).any(0)
        out = dict(npm=self.npm_head(cosines)) if 'npm' in names else {}
        if 'agm' in names:
            out['agm'] = self.agm_head(f2, cosines, present)
        return dict(out, coarse=self.coarse_head(f1, people))

    @property
    def device(self):
        return self.scaler.device

    @property
    def backbone(self):
        return self.xception_features

    def save(self, path, **more):
        """Writes weights, config and class names to one file, atomically; `more` is stored beside them."""
        fold = FOLDS[self.config.data.lower(), self.config.fold]
        names = [fold.names.get(i, '') for i in range(self.config.num_labels)]
        write_checkpoint(path, 'oneshot', self.config, self.state_dict(), class_names=names, **more)

    @classmethod
    def from_pretrained(cls, path, device='cpu'):
        """The model in a file of `save` or in a released state dict, whose way, labels and sizes are read off it."""
        state = read_checkpoint(path)
        if command := name_command(state, 'oneshot'):
            raise ValueError(f'{path} {command}')
        with reading(path):
            if 'format' in state:
                if state['format'] != FORMAT:
                    raise ValueError(f'{path} has the format {state["format"]!r}, which this version does not know; '
                                     'give a file of oneshot train or of the authors')
                check_settings(state['config'], Config)
                config, weights = Config(**state['config']), state['model']
            else:
                weights = read_weights(path)
                config = released_config(weights, path)
            with torch.device('meta'):                        # no time for initial weights
                model = cls(config)
            load_strictly(model, weights, path)
            return model.to(device).eval()


def released_config(weights, path):
    """The Config of a released state dict."""
    if not {'prototype', 's2_trans.weight', 'xception_features.conv1.weight'} <= weights.keys():
        raise ValueError(f'{path} is no checkpoint of EOP-Net; a DeepLab file starts a training instead, with '
                         '--pretrained')
    if weights['prototype'].ndim != 2:
        raise ValueError(f'{path} does not fit: its prototypes have the shape {tuple(weights["prototype"].shape)}')
    blocks = {key.split('.')[1] for key in weights if key.startswith('xception_features.block')}
    rows, channels = weights['prototype'].shape
    return Config(data='LIP' if rows == 20 else 'ATR', way='1way' if 'npm_class.weight' in weights else 'kway',
                  num_labels=rows, channels=channels, stem=len(weights['xception_features.conv1.weight']),
                  middle=len(blocks) - 4, high_level='aspp1.bn.weight' in weights)


def screened(out, head='npm'):
    """out of `EOPNet.forward` -> the head's labels (B,H,W), background where the coarse head sees no people."""
    return out[head].argmax(1) * out['coarse'].argmax(1)


# ---------------------------------------------------------------------------------------------------------------
# Losses and schedule


def oneshot_loss(out, query_labels, support_labels, epoch, epochs):
    """out of `EOPNet.forward`, labels (B,H,W) as given to it -> dict of scalars: agm, npm, coarse, contrast, total.

    AGM fades out over the epochs and NPM fades in. Query classes that the support lacks count as background. The
    contrast is 0 for 1-way and outside training mode.
    """
    target = query_target(query_labels, support_labels, out['classes'], out['npm'].shape[1])
    terms = {name: F.cross_entropy(out[name].float(), target, ignore_index=IGNORE) for name in ('agm', 'npm')}
    terms['coarse'] = F.cross_entropy(out['coarse'].float(), foreground(query_labels).long(), ignore_index=IGNORE)
    terms['contrast'] = torch.zeros_like(terms['coarse'])
    if 'f2' in out:
        sides = [contrast_prototypes(f2, labels, out['classes'], out['npm'].shape[1])
                 for f2, labels in zip(out['f2'], (query_labels, support_labels))]
        terms['contrast'] = contrast_loss(*sides)
    beta = epoch / epochs
    total = (1 - beta) * terms['agm'] + beta * terms['npm'] + terms['coarse'] + terms['contrast']
    return dict(terms, total=total)


def contrast_prototypes(f2, labels, classes, num_labels):
    """Static prototypes (B,K,C) of all labels; that of the background leaves out the classes not in `classes`."""
    masks = class_masks(episode_labels(labels, classes), num_labels, f2.shape[2:])
    masks[:, :1] = class_masks(foreground(labels), 1, f2.shape[2:])
    return static_prototypes(f2, masks)


def contrast_loss(query, support):
    """Prototypes (B,K,C) of both: each of the query's is to be nearest to the support's of the same label -> scalar."""
    there, known = query.detach().any(2), support.detach().any(2)
    scores = torch.einsum('bic,bjc->bij', F.normalize(query, dim=2), F.normalize(support, dim=2)) / TEMPERATURE
    scores = scores.masked_fill(~known[:, None], -1e4)        # finite: no NaN where nothing is known
    losses = torch.where(there & known, -scores.log_softmax(2).diagonal(dim1=1, dim2=2), 0)
    return (losses.sum(1) / there.sum(1).clamp(min=1)).mean()


def learning_rate(epoch, epochs=50, lr=1e-3):
    """The released schedule: at the epochs 9, 19, .. a new SGD, without momentum so far, whose rate decays by power."""
    start = (epoch + 1) // 10 * 10 - 1
    return lr if start < 0 else lr * (1 - start / epochs) ** 0.9


# ---------------------------------------------------------------------------------------------------------------
# Training


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


def fresh_config(args):
    """The settings of a new run."""
    return Config(**{**given_settings(args, Config), 'data': args.data or 'ATR', 'recipe': args.recipe or 'paper'})


def make_task(begin, run, skip_bad):
    """begin: a `Start`. -> OneShotTask."""
    config = begin.config
    photos, test_photos = (open_photos(config.data, begin.root, split, config.fold) for split in ('train', 'test'))
    config = replace(config, num_labels=photos.fold.num_labels)
    pairs = EpisodePairs(photos, config)
    pairs.skip_bad = skip_bad
    loader, model = make_loader(EpisodeSamples(pairs, config), config, run), EOPNet(config)
    if config.pretrained and not begin.state:
        copied = model.load_backbone(config.pretrained)
        print(f'{config.pretrained}: {len(copied)} of {len(model.state_dict())} entries start from it')
    return OneShotTask(config, model, loader, test_photos, begin.root)


def train(args):
    run = Run(args.device, args.amp)
    if run.world > 1:
        raise ValueError('the prototypes of earlier episodes belong to one process; start it without torchrun')
    begin = start_run(args, run, Config, 'oneshot', fresh_config)
    task = make_task(begin, run, args.skip_bad)
    counts = f'{len(task.loader.dataset)} training and {len(task.episodes)} test episodes'
    return train_task(task, run, begin.folder, begin.state, counts)


# ---------------------------------------------------------------------------------------------------------------
# Evaluation and photos


def load_model(path, device):
    """An EOPNet or, from a file of UniParser, a UniParserByExample."""
    state, device = read_checkpoint(path), find_device(device)
    if name_command(state, 'oneshot') and not name_command(state, 'uniparser'):
        return UniParserByExample.from_pretrained(path, device)
    return EOPNet.from_pretrained(path, device)


def check_way(model, args, photos):
    """ValueError where an EOPNet cannot parse the episodes of the arguments."""
    if not isinstance(model, EOPNet):
        if args.agm:
            raise ValueError('--agm: UniParser has no AGM head; leave it out')
    elif model.config.way != args.way:
        raise ValueError(f'{args.weights} is of --way {model.config.way}, not {args.way}')
    elif model.config.num_labels != photos.fold.num_labels:
        raise ValueError(f'{args.weights} has {model.config.num_labels} labels, but {args.data}-OS has '
                         f'{photos.fold.num_labels}; give weights of that set')


def evaluate(args):
    model, photos = load_model(args.weights, args.device), open_photos(args.data, args.root, 'test', args.fold)
    check_way(model, args, photos)
    known = args.list and os.path.exists(args.list)
    episodes = photos.check_episodes(read_episodes(args.list), args.list) if known else photos.test_episodes()
    if args.list and not known:
        write_episodes(args.list, episodes)
    counts = count_pixels(model, photos, episodes, args.way, ('npm', 'agm')[:1 + args.agm])
    results = {head: scores(pixels, photos.fold) for head, pixels in counts.items()}
    print(f'{args.data}-OS, fold {args.fold}, {args.way}: {len(episodes)} test episodes, {args.weights}')
    print(table(results, photos.fold))
    if args.json:
        write_json(args.json, dict(data=args.data, fold=args.fold, way=args.way, weights=str(args.weights),
                                   episodes=len(episodes), **results))


def parse(args):
    supports, masks, classes = read_supports(args.support, args.support_mask)
    names, model = read_names(args.names, classes), load_model(args.weights, args.device)
    if args.stored and not isinstance(model, EOPNet):
        raise ValueError('--stored: UniParser has no stored prototypes; leave it out')
    stored = dict(stored=True) if args.stored else {}
    example = model.learn(supports, masks, **stored)
    check_learned(model.learned(example), {i: names[i] for i in classes})
    parser = ExampleParser(model, args, example, names)
    check_failures(sum_over_processes(parser.run(share_of_process(name_jobs(find_photos(args.photos))))))


def add_model_flags(command):
    command.add_argument('--weights', type=filled, required=True,
                         help='a file of oneshot train, of the authors, or of UniParser')
    command.add_argument('--device', default='auto', help='auto, cpu, cuda or mps')


def add_way(command, default):
    command.add_argument('--way', choices=CHOICES['way'], default=default, help='or k and 1; default: kway',
                         type=lambda text: text if text.endswith('way') else text + 'way')


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('train', help='train on ATR-OS, LIP-OS, CIHP-OS or CCP-OS')
    command.add_argument('--data', choices=NAMES, help='default: ATR')
    command.add_argument('--recipe', choices=CHOICES['recipe'], help='default: paper')
    add_run_flags(command)
    add_settings(command, Config, RANGES, CHOICES, skip=('data', 'recipe', 'num_labels', 'way'))
    add_way(command, argparse.SUPPRESS)
    command = commands.add_parser('evaluate', help='score the test episodes of a data set')
    command.add_argument('--data', choices=NAMES, default='ATR')
    command.add_argument('--root', help='folder of the data set')
    command.add_argument('--fold', type=Between(1, 2), default=1)
    add_way(command, 'kway')
    command.add_argument('--agm', action='store_true', help='score the AGM head, too')
    command.add_argument('--list', metavar='FILE', help='test episodes: read from it, or written if it does not exist')
    command.add_argument('--json', metavar='FILE', help='also write the scores to it')
    add_model_flags(command)
    command = commands.add_parser('parse', help='parse photos into the classes of an example')
    command.add_argument('photos', nargs='+', help='files, folders (searched through) and globs')
    command.add_argument('--support', nargs='+', required=True, help='the example: one or several photos')
    command.add_argument('--support-mask', nargs='*', default=[], help='their masks, PNG: ids or colors')
    command.add_argument('--names', help='of the classes: a,b,c or a JSON file')
    command.add_argument('--stored', action='store_true', help="mask ids are the training set's: use its prototypes")
    command.add_argument('--out', default='results', help='folder for the results (default: results)')
    command.add_argument('--cutouts', action='store_true', help='also write each person and part as an RGBA picture')
    add_model_flags(command)
    command.set_defaults(only=None, maps=False)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    stopped = STOPPED if args.command == 'train' else 'stopped'
    run_command(dict(train=train, evaluate=evaluate, parse=parse)[args.command], args, stopped=stopped)
