"""What EOP-Net and POPNet share beside their heads: prototypes of an episode, files, users' photos
and test episodes."""
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data import path_of, to_photo
from oneshot.backbone import read_weights
from oneshot.config import Config
from oneshot.data import normalize, reduce_photo
from oneshot.episodes import IGNORE, Fold
from oneshot.heads import FineHeads
from oneshot.prototypes import (class_masks, cosine, episode_labels, mean_prototypes,
                                smoothed_prototypes, static_prototypes)
from oneshot.stages import fold_of
from util.checkpoints import (FORMAT, check_settings, load_strictly, name_command, read_checkpoint,
                              reading, write_checkpoint)
from util.results import Parsing, as_one_person
from util.tensors import resize_map

LONG_SIDE = 1024      # of users' photos, where the config has none


class Example(NamedTuple):
    """What a network has learned from supports."""
    ids: list[int]             # of the classes
    rows: list[int]            # the channel of each class in the logits
    people: Tensor | None      # (1,1,C), prototype of people, where the network looks for them
    fine: Tensor               # (1,K-1,C), prototypes of the classes


class ExampleNetwork(FineHeads):
    """A network that parses by example. A subclass defines `encode` and `forward`; one that looks
    for people first also `people_prototype` and `coarse_logits`.

    What `encode` returns is called features here. The fine heads use `fine_feature` of it.
    """
    system = ''           # in a Config
    name = ''
    sign = ''             # an entry that only its files have
    head = 'npm'          # the name of the head that looks at cosines alone; it gives the answer

    def __init__(self, config: Config):
        super().__init__(config)
        # Smoothed prototypes of earlier episodes. No gradient moves them.
        self.prototype = nn.Parameter(torch.zeros(config.num_labels, config.channels),
                                      requires_grad=False)

    @property
    def device(self):
        return self.scaler.device

    @property
    def backbone(self):
        """The part that the setting `backbone_lr` is about."""
        return self.xception_features

    # ---- the network ----------------------------------------------------------------------------

    def encode(self, images: Tensor):
        """Images (B,3,H,W) as of `oneshot.data.normalize` -> features at a quarter of the size."""
        raise NotImplementedError

    def fine_feature(self, features) -> Tensor:
        """features -> what the fine heads see (B,C,h,w)."""
        return features

    def people_prototype(self, features, labels: Tensor) -> Tensor | None:
        """features and labels (B,H,W) -> static prototype of people (B,1,C)."""
        return None

    def coarse_logits(self, features, people: Tensor | None) -> Tensor | None:
        """features and the prototype of people -> logits (B,2,h,w) of background and people."""
        return None

    def fine_logits(self, feature: Tensor, fine: Tensor, names) -> dict[str, Tensor]:
        """Fine feature (B,C,h,w), prototypes of the classes (B,K-1,C) -> logits (B,K,h,w) of the
        heads named.

        With the mode ucs only classes that a support of the batch has take part: the mean of the
        background is over them, and the logits of all others are 0.
        """
        cosines = cosine(feature, fine)
        present = fine.detach().any(2).any(0)                                  # (K-1,)
        shown = present
        if self.config.mode == 'fixed' or not present.any():
            shown = torch.ones_like(present)
        out = {}
        for name in names:
            if name == 'agm':
                logits = self.agm_head(feature, cosines[:, shown], present[shown])
            else:
                logits = self.npm_head(cosines[:, shown])
            if not shown.all():
                channels = F.pad(shown, (1, 0), value=True)
                every = logits.new_zeros(len(logits), len(channels), *logits.shape[2:])
                every[:, channels] = logits
                logits = every
            out[name] = logits
        return out

    def episode_prototypes(self, feature: Tensor, support_labels: Tensor, classes,
                           epoch: int | None) -> Tensor:
        """Fine feature of the support (B,C,h,w) and its labels (B,H,W) -> prototypes to use
        (B,K-1,C), 1-way (B,1,C): smoothed after the warm-up. Training stores them."""
        one_way = self.config.one_way
        num_labels = 2 if one_way else self.config.num_labels
        labels = episode_labels(support_labels, classes)
        masks = class_masks(labels, num_labels, feature.shape[2:])
        static = static_prototypes(feature, masks)[:, 1:]
        rows = torch.arange(1, num_labels).expand(len(labels), -1)
        if one_way:
            rows = classes.view(-1, 1)
        warm_up = epoch is not None and epoch <= self.config.warm_up
        return smoothed_prototypes(self.prototype, static, rows, warm_up, self.training)

    def check_classes(self, classes):
        """The `classes` of forward in one form. ValueError where 1-way has none."""
        if self.config.one_way:
            if not torch.is_tensor(classes):
                raise ValueError('1-way parsing needs classes, a tensor with the class of each '
                                 'image')
            return classes
        return classes if classes is None else tuple(int(c) for c in classes)

    # ---- files ----------------------------------------------------------------------------------

    def save(self, path, **more):
        """Writes weights, config and class names to one file, atomically; `more` is stored beside
        them."""
        fold = fold_of(self.config)
        names = [fold.names.get(i, '') for i in range(self.config.num_labels)]
        write_checkpoint(path, 'oneshot', self.config, self.state_dict(), class_names=names, **more)

    @classmethod
    def from_pretrained(cls, path, device='cpu') -> 'ExampleNetwork':
        """The model, in eval mode, of a file of `save` or of a released state dict, whose way,
        labels and sizes are read off it. FileNotFoundError; ValueError for any other file."""
        state = read_checkpoint(path)
        command = name_command(state, 'oneshot')
        if command:
            raise ValueError(f'{path} {command}')
        with reading(path):
            if 'format' in state:
                if state['format'] != FORMAT:
                    raise ValueError(f'{path} has the format {state["format"]!r}, which this '
                                     'version does not know; give a file of oneshot train or of '
                                     'the authors')
                check_settings(state['config'], Config)
                config = Config(**state['config'])
                if config.system != cls.system:
                    raise ValueError(f'{path} is of --system {config.system}, not {cls.system}')
                weights = state['model']
            else:
                weights = cls.rename(read_weights(path))
                config = cls.released_config(weights, path)
            # No time for initial weights, and no memory, whatever sizes the file claims.
            with torch.device('meta'):
                model = cls(config)
            load_strictly(model, weights, path)
            return model.to(device).eval()

    @classmethod
    def rename(cls, weights: dict) -> dict:
        """A released state dict with the names of this class."""
        return weights

    @classmethod
    def released_config(cls, weights: dict, path) -> Config:
        """The Config of a released state dict. ValueError where it is none of this network."""
        if not {'prototype', cls.sign, 'xception_features.conv1.weight'} <= weights.keys():
            raise ValueError(f'{path} is no checkpoint of {cls.name}; a DeepLab file starts a '
                             'training instead, with --pretrained')
        prototype = weights['prototype']
        if prototype.ndim != 2:
            raise ValueError(f'{path} does not fit: its prototypes have the shape '
                             f'{tuple(prototype.shape)}')
        rows, channels = prototype.shape
        blocks = {key.split('.')[1] for key in weights if key.startswith('xception_features.block')}
        return Config(data='LIP' if rows == 20 else 'ATR',
                      way='1way' if 'npm_class.weight' in weights else 'kway',
                      num_labels=rows,
                      channels=channels,
                      stem=len(weights['xception_features.conv1.weight']),
                      middle=len(blocks) - 4,
                      high_level='aspp1.bn.weight' in weights)

    # ---- photos ---------------------------------------------------------------------------------

    def predict(self, query, supports, masks, *, stored: bool = False,
                long_side: int = LONG_SIDE,
                class_names: Sequence[str] | None = None) -> Parsing:
        """Parses a photo into the classes that the label maps of one or several supports name.

        query, supports: photos, see `data.to_photo`, of any size; they are reduced to a longer side
        of `long_side` pixels at most. Several supports are averaged. masks: their label maps (H,W),
        0 background, 255 ignore. They should label whole people, because EOP-Net's coarse head
        learns from all labels together what people look like. stored: the ids are those of the
        training set, and base classes use the stored prototypes; else ids are free and only the
        supports count. class_names: by id, the background first; by default those of the training
        set with `stored`, else the ids.

        Returns one person, or none, because EOP-Net and POPNet do not separate people; `.labels` is
        the label map, uint8 (H,W) of the query's size. The model is left in eval mode. ValueError
        where photos and masks do not fit each other or the model.
        """
        supports, masks = check_supports(supports, masks)
        photo = to_photo(query)
        example = self.learn(supports, masks, stored, long_side)
        found = self.people(self.outputs(self.prepare(photo, long_side)), photo, example)
        if class_names is None:
            names = fold_of(self.config).names if stored else {i: str(i) for i in example.ids}
            class_names = list_names(names)
        return replace(found, class_names=class_names, photo=photo, path=path_of(query))

    @torch.inference_mode()
    def learn(self, supports: list[Image.Image], masks: list[np.ndarray], stored: bool = False,
              long_side: int | None = None) -> Example:
        """What Pillow photos with label maps teach, as `predict` takes them."""
        self.eval()
        ids, rows = label_rows(masks, self.config.num_labels - 1, stored)
        people = []
        fine = []
        long_side = long_side or self.config.long_side or LONG_SIDE
        for photo, mask in zip(supports, masks):
            of_people, of_classes = self.support_prototypes(photo, rows[mask], long_side)
            people.append(of_people)
            fine.append(of_classes)
        people = None if people[0] is None else mean_prototypes(people)
        # Free ids are no ids of the training set: then no class has a stored prototype.
        all_rows = torch.arange(1, self.config.num_labels)[None]
        fine = smoothed_prototypes(self.prototype, mean_prototypes(fine), all_rows, not stored,
                                   False)
        # A class may be too small to have a pixel at a quarter of the size.
        ids = [i for i in ids if fine[0, rows[i] - 1].any()]
        return Example(ids, rows[ids].tolist(), people, fine)

    def learned(self, example: Example) -> list[int]:
        """The ids of the classes with a prototype."""
        return example.ids

    def prepare(self, photo: Image.Image, long_side: int | None = None) -> Tensor:
        """A user's photo -> the network's input (1,3,H,W)."""
        return self.to_input(photo, long_side or self.config.long_side or LONG_SIDE)

    def to_input(self, photo: Image.Image, long_side: int) -> Tensor:
        """A Pillow photo, reduced to `long_side` (0 = as it is), as a batch of one on the model's
        device."""
        photo = reduce_photo(photo, long_side or max(photo.size))
        return torch.from_numpy(normalize(np.asarray(photo))).to(self.device)[None]

    @torch.inference_mode()
    def outputs(self, image: Tensor):
        """`encode` in eval mode, on the model's device."""
        return self.eval().encode(image.to(self.device))

    def support_prototypes(self, photo: Image.Image, rows: np.ndarray,
                           long_side: int) -> tuple[Tensor | None, Tensor]:
        """A photo and its mask of rows (H,W) -> static prototypes of people (1,1,C) and classes
        (1,K-1,C). ValueError where they differ in size."""
        if rows.shape != photo.size[::-1]:
            raise ValueError(f'a support photo has {photo.size[::-1]} pixels, but its mask '
                             f'{rows.shape}')
        labels = torch.from_numpy(rows).to(self.device)[None]
        features = self.encode(self.to_input(photo, long_side))
        feature = self.fine_feature(features)
        masks = class_masks(labels, self.config.num_labels, feature.shape[2:])
        return self.people_prototype(features, labels), static_prototypes(feature, masks)[:, 1:]

    @torch.inference_mode()
    def label_map(self, features, size: tuple[int, int],
                  example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Features of a query -> label map uint8 of this size (H,W), and the probability of people
        (H,W)."""
        cosines = cosine(self.fine_feature(features), example.fine)
        scores = resize_map(self.class_scores(cosines, example.rows), size)    # (1,1+n,H,W)
        found = scores.argmax(1)
        coarse = self.coarse_logits(features, example.people)
        if coarse is None:
            people = 1 - scores[0].softmax(0)[0]
        else:
            coarse = resize_map(coarse, size)
            found = found * coarse.argmax(1)
            people = coarse[0].softmax(0)[1]
        ids = np.array([0, *example.ids], np.uint8)
        return ids[found[0].cpu().numpy()], people.cpu().numpy()

    def class_scores(self, cosines: Tensor, rows: list[int]) -> Tensor:
        """Cosines (1,K-1,h,w) -> NPM logits (1,1+n,h,w) of background and the classes of `rows`;
        1-way: their leads over the background."""
        if not self.config.one_way:
            if self.config.mode == 'ucs':
                return self.npm_head(cosines[:, [row - 1 for row in rows]])
            return self.npm_head(cosines)[:, [0, *rows]]
        logits = self.npm_head(cosines.transpose(0, 1))                        # (K-1,2,h,w)
        lead = (logits[:, 1] - logits[:, 0])[[row - 1 for row in rows]]        # (n,h,w)
        return torch.cat([torch.zeros_like(logits[:1, 0]), lead])[None]

    def people(self, features, photo: Image.Image, example: Example) -> Parsing:
        """Features of a photo -> its people: all as one, because they are not separated.
        The score is the mean probability of people in its pixels."""
        return as_one_person(*self.label_map(features, photo.size[::-1], example))

    # ---- test episodes, see oneshot/models.py ---------------------------------------------------

    def encode_query(self, photo: np.ndarray):
        """A query (H,W,3) -> its features."""
        return self.outputs(self.to_input(to_photo(photo), self.config.long_side))

    @torch.inference_mode()
    def encode_support(self, photo: np.ndarray, labels: np.ndarray,
                       fold: Fold) -> tuple[Tensor | None, Tensor]:
        """A support (H,W,3) and its labels (H,W) -> static prototypes of people and classes."""
        self.eval()
        people, fine = self.support_prototypes(to_photo(photo), labels, self.config.long_side)
        # Ids of no fold are people's pixels, but no classes.
        dropped = [c - 1 for c in range(1, self.config.num_labels) if c not in fold.all]
        fine[:, dropped] = 0
        return people, fine

    @torch.inference_mode()
    def predict_episode(self, query, support: tuple[Tensor | None, Tensor], c: int | None,
                        size: tuple[int, int], heads) -> dict[str, np.ndarray]:
        """What both give -> {head: label map (H,W)}; c: the class of 1-way."""
        people, fine = support
        rows = torch.arange(1, self.config.num_labels)[None]
        if self.config.one_way:
            fine = fine[:, c - 1:c]
            rows = rows[:, c - 1:c]
        # Base classes have a stored prototype; novel ones have the support's alone.
        fine = smoothed_prototypes(self.prototype, fine, rows, False, False)
        logits = self.fine_logits(self.fine_feature(query), fine, heads)
        shown = fine[0].any(1)
        if self.config.mode == 'fixed':
            # All absent classes have the logits of the first of them: the others are not enlarged.
            # With ucs none of them may win.
            shown |= (~shown).cumsum(0) == 1
        shown = F.pad(shown, (1, 0), value=True).nonzero()[:, 0].cpu()
        coarse = self.coarse_logits(query, people)
        screen = 1 if coarse is None else most_likely(coarse, size)
        maps = {}
        for head in heads:
            classes = shown[most_likely(logits[head][:, shown], size)]
            maps[head] = (classes * screen).to(torch.uint8).numpy()
        return maps


def check_supports(supports, masks) -> tuple[list[Image.Image], list[np.ndarray]]:
    """One or several support photos and their label maps -> lists of Pillow photos and arrays.
    ValueError where their numbers differ."""
    if not isinstance(supports, (list, tuple)):
        supports = [supports]
        masks = [masks]
    if len(supports) != len(masks) or not masks:
        raise ValueError(f'there are {len(supports)} support photos and {len(masks)} masks; '
                         'give one mask for each')
    return [to_photo(support) for support in supports], [np.asarray(mask) for mask in masks]


def list_names(names: dict[int, str]) -> list[str]:
    """{id: name} -> names by id, the background first; '' for ids without one."""
    return ['background'] + [names.get(i, '') for i in range(1, max(names, default=0) + 1)]


def most_likely(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (1,N,h,w) -> the channel of the largest at this size (H,W), on the CPU. In the memory
    format channels_last enlarging and comparing are faster."""
    logits = resize_map(logits.contiguous(memory_format=torch.channels_last), size)
    return logits.max(1)[1][0].cpu()


def label_rows(masks: list[np.ndarray], most: int,
               stored: bool) -> tuple[list[int], np.ndarray]:
    """The ids that uint8 label maps name, and a table (256) from id to row of the prototypes,
    255 -> 255.

    The model has `most` classes. With `stored` rows are the ids; else the ids in their order have
    the rows 1, 2, .. ValueError where the masks are no label maps, or have no or too many classes.
    """
    for mask in masks:
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f'a mask has the form {mask.shape} {mask.dtype}; give label maps '
                             '(H,W) of uint8')
    present = np.unique(np.concatenate([np.unique(mask) for mask in masks]))
    ids = [int(i) for i in present if 0 < i < IGNORE]
    if not ids:
        raise ValueError('no mask has a class; label pixels of the support photo with ids from 1')
    if (max(ids) if stored else len(ids)) > most:
        raise ValueError(f'the masks name the ids {ids}; this model has {most} classes')
    rows = np.zeros(256, np.uint8)
    rows[ids] = ids if stored else range(1, len(ids) + 1)
    rows[IGNORE] = IGNORE
    return ids, rows
