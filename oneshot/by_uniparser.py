"""UniParser as the feature of one-shot parsing: prototypes of a support stand in for K_cate.

UniParser's category space is cosine: a pixel belongs to the class whose kernel, a row of K_cate,
has the largest cosine with its feature F_cate (Eq. 3). The mean F_cate over a support's pixels of a
class is such a kernel, too. So UniParser parses into the classes of the support, and separates
people as always. Nothing is trained.
"""
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data import input_geometry, network_input, path_of, to_photo
from oneshot.episodes import IGNORE, Fold
from oneshot.network import check_supports, list_names
from oneshot.prototypes import class_masks, mean_prototypes, static_prototypes
from uniparser import UniParser, decode
from util.masks import flatten_people
from util.results import Parsing

ROWS = 256            # prototypes are indexed by label


class UniParserByExample:
    """The methods of `oneshot.EOPNet` that photos and test episodes need, for a UniParser. The
    UniParser is folded. ValueError where its kernels cannot be replaced."""
    head = 'npm'          # the name of its answer in tables

    def __init__(self, model: UniParser, name: str = 'this model'):
        config = model.config
        if config.space != 'cosine' or config.fusion != 'index':
            raise ValueError(f'{name} has the space {config.space} and the fusion {config.fusion}; '
                             'one-shot parsing needs cosine and index, where prototypes can stand '
                             'in for K_cate')
        self.model = model.fold()
        self.device = model.device
        # What no class of the support is like is background.
        config = replace(config, whole=False, theta_side=0.0)
        # A mixture's posterior would be 1 everywhere for the only class of a support.
        if config.assign == 'mixture':
            config = replace(config, assign='correlation', theta_paint=0.0, theta_part=0.3,
                             theta_score=0.0)
        self.config = config

    @classmethod
    def from_pretrained(cls, path, device='cpu') -> 'UniParserByExample':
        return cls(UniParser.from_pretrained(path, device), path)

    # ---- photos ---------------------------------------------------------------------------------

    def predict(self, query, supports, masks, *,
                class_names: Sequence[str] | None = None) -> Parsing:
        """The people of a photo, in the classes that the label maps of one or several supports
        name. The arguments are those of `ExampleNetwork.predict`."""
        supports, masks = check_supports(supports, masks)
        photo = to_photo(query)
        example = self.learn(supports, masks)
        found = self.people(self.outputs(self.prepare(photo)), photo, example)
        names = class_names or list_names({i: str(i) for i in self.learned(example)})
        return replace(found, class_names=names, photo=photo, path=path_of(query))

    def prepare(self, photo: Image.Image) -> Tensor:
        """A Pillow photo -> the network's input."""
        return network_input(photo, self.config)

    def outputs(self, image: Tensor) -> dict:
        return self.model.outputs(image)

    def prototypes(self, photo: Image.Image, labels: np.ndarray) -> Tensor:
        """A photo and its labels (H,W) -> mean F_cate of each label (256,C) float32; zeros where
        it has no pixel at a quarter of the network's size."""
        geometry = input_geometry(photo, self.config)
        h, w = geometry.size
        padded = geometry.padded
        canvas = np.full(padded, IGNORE, np.uint8)
        canvas[:h, :w] = np.asarray(Image.fromarray(labels).resize((w, h), Image.NEAREST))
        features = self.outputs(self.prepare(photo))['f_cate']                 # (1,C,h,w)
        canvas = torch.from_numpy(canvas).to(self.device)[None]
        masks = class_masks(canvas, ROWS, features.shape[2:])
        means = static_prototypes(features, masks)[0]
        means[[0, IGNORE]] = 0
        return means

    def learn(self, supports: list[Image.Image], masks: list[np.ndarray]) -> Tensor:
        """Prototypes (256,C) of Pillow photos and label maps (H,W), averaged over the supports that
        have the class."""
        return mean_prototypes([self.prototypes(photo, mask)
                                for photo, mask in zip(supports, masks)])

    def learned(self, prototypes: Tensor) -> list[int]:
        """The ids of the classes with a prototype."""
        return prototypes.any(1).nonzero()[:, 0].tolist()

    def people(self, out: dict, photo: Image.Image, prototypes: Tensor) -> Parsing:
        """Outputs of a photo (its size is enough) and prototypes -> people, in the support's
        labels."""
        ids = self.learned(prototypes)
        if not ids:
            # A kernel of zeros is like no pixel.
            ids = [1]
            prototypes = prototypes.new_zeros(2, prototypes.shape[1])
        kernels = F.normalize(prototypes[ids], dim=1)
        found = decode({**out, 'k_cate': kernels}, 0, photo, self.config)
        labels = np.array([0, *ids], np.uint8)
        return replace(found, parsing=labels[found.parsing]).visible()

    # ---- test episodes, see oneshot/models.py ---------------------------------------------------

    def encode_query(self, photo: np.ndarray) -> dict:
        """A query (H,W,3) -> the network's outputs."""
        return self.outputs(self.prepare(to_photo(photo)))

    def encode_support(self, photo: np.ndarray, labels: np.ndarray, fold: Fold) -> Tensor:
        """A support (H,W,3) and its labels (H,W) -> prototypes (256,C) of the fold's classes."""
        prototypes = self.prototypes(to_photo(photo), labels)
        prototypes[[c for c in range(ROWS) if c not in fold.all]] = 0
        return prototypes

    def predict_episode(self, query: dict, support: Tensor, c: int | None,
                        size: tuple[int, int], heads) -> dict[str, np.ndarray]:
        """What both give -> {head: label map (H,W)}; c: the class of 1-way."""
        if c is not None:
            # The class is label 1, and alone.
            alone = torch.zeros_like(support)
            alone[1] = support[c]
            support = alone
        # The size of the photo is enough.
        photo = Image.new('L', size[::-1])
        people = self.people(query, photo, support)
        parsing = flatten_people(people.parsing)[0]
        return {head: parsing for head in heads}
