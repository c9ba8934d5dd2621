"""UniParser as the feature of one-shot parsing: prototypes of a support stand in the place of K_cate.

UniParser's category space is cosine: a pixel belongs to the class whose kernel, a row of K_cate, its feature F_cate has
the largest cosine with (Eq. 3). The mean F_cate over a support's pixels of a class is such a kernel, too. So it parses
into the classes of the support, and separates people as always. Nothing is trained.
"""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data import input_size, network_input
from uniparser import UniParser, decode
from oneshot.data import as_photo
from oneshot.episodes import IGNORE
from util.masks import flatten_people
from oneshot.prototypes import class_masks, static_prototypes

ROWS = 256                                            # prototypes are indexed by label


class UniParserByExample:
    """The methods of `oneshot.EOPNet` that tests and photos need, for a UniParser."""
    most = IGNORE - 1                                 # classes

    def __init__(self, model, name='this model'):
        if model.config.space != 'cosine' or model.config.fusion != 'index':
            raise ValueError(f'{name} has the space {model.config.space} and the fusion {model.config.fusion}; '
                             'one-shot parsing needs cosine and index, where prototypes can stand in for K_cate')
        self.model, self.config, self.device = model.fold(), model.config, model.device
        if self.config.assign == 'mixture':           # of a support's only class, the posterior is 1 everywhere
            self.config = replace(self.config, assign='correlation', theta_paint=0.0, theta_part=0.3, theta_score=0.0)

    @classmethod
    def from_pretrained(cls, path, device='cpu'):
        return cls(UniParser.from_pretrained(path, device), path)

    def prepare(self, photo):
        """Pillow photo -> network input."""
        return network_input(photo, self.config)

    def outputs(self, image):
        return self.model.outputs(image)

    def prototypes(self, photo, labels):
        """A Pillow photo and its labels (H,W) -> mean F_cate of each label (256,C) float32; zeros where it has no pixel
        at a quarter of the network's size."""
        padded, (h, w) = input_size(photo, self.config)
        canvas = np.full(padded, IGNORE, np.uint8)
        canvas[:h, :w] = np.asarray(Image.fromarray(labels).resize((w, h), Image.NEAREST))
        features = self.outputs(self.prepare(photo))['f_cate']
        masks = class_masks(torch.from_numpy(canvas).to(self.device)[None], ROWS, features.shape[2:])
        means = static_prototypes(features, masks)[0]
        means[[0, IGNORE]] = 0
        return means

    def learn(self, supports, masks):
        """Prototypes (256,C) of Pillow photos and label maps (H,W), averaged over the supports that have the class."""
        means = torch.stack([self.prototypes(photo, mask) for photo, mask in zip(supports, masks)])
        return means.sum(0) / means.any(2).sum(0).clamp(min=1)[:, None]

    def learned(self, prototypes):
        """The ids of the classes with a prototype."""
        return prototypes.any(1).nonzero()[:, 0].tolist()

    def people(self, out, photo, prototypes):
        """Outputs of a photo (its size is enough) and prototypes -> Parsing in the support's labels."""
        ids = self.learned(prototypes)
        if not ids:
            prototypes, ids = prototypes.new_zeros(2, prototypes.shape[1]), [1]
        found = decode({**out, 'k_cate': F.normalize(prototypes[ids], dim=1)}, 0, photo, self.config)
        return found._replace(parsing=np.array([0, *ids], np.uint8)[found.parsing]).visible()

    # test episodes, see oneshot/scores.py

    def look(self, photo):
        return self.outputs(self.prepare(as_photo(photo)))

    def study(self, photo, labels, fold):
        prototypes = self.prototypes(as_photo(photo), labels)
        prototypes[[c for c in range(ROWS) if c not in fold.all]] = 0
        return prototypes

    def find(self, seen, taught, c, size, heads):
        if c is not None:                             # 1-way: the class is label 1, and alone
            taught = torch.zeros_like(taught).index_copy(0, torch.tensor([1], device=taught.device), taught[c:c + 1])
        people = self.people(seen, SimpleNamespace(width=size[1], height=size[0]), taught)
        parsing = flatten_people(people.parsing)[0]
        return {head: parsing for head in heads}
