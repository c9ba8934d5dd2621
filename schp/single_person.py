"""What the networks for photos of one person share: the way from photos to label maps and back."""
from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from data import list_photos, path_of, to_photo
from schp.crops import crop, crop_matrix, invert, label_map, warp
from schp.layers import HEADS, fold_norms
from util.checkpoints import write_checkpoint
from util.labels import check_flip_pairs, flip_order, voc_palette
from util.results import Parsing, as_one_person
from util.tensors import resize_map


class SinglePersonNetwork(nn.Module):
    """Base of SCHP's networks.

    class_names: names of the classes, the background first
    size: (height, width) of the crops
    flip_pairs: ids of classes that swap when an image is mirrored
    config: an SCHPConfig, which `save` writes
    """

    def __init__(self, class_names: Sequence[str], size: tuple, flip_pairs: Sequence[tuple] = ()):
        super().__init__()
        self.class_names = tuple(class_names)
        self.size = tuple(size)
        check_flip_pairs(flip_pairs, len(self.class_names))
        self.flip_pairs = tuple(tuple(pair) for pair in flip_pairs)
        self.num_classes = len(self.class_names)
        self.config = None
        self.folded = False

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, images: torch.Tensor, heads: Sequence[str] = HEADS) -> dict:
        """images (B, 3, H, W), BGR, normalized by MEAN and STD of schp/crops.py -> dict of logits:
        'parsing' and 'fusion' (B, C, h, w), 'edge' (B, 2, h, w), with h = ceil(H / 4) and
        w = ceil(W / 4). Only the heads asked for are computed. Inference uses 'fusion'."""
        raise NotImplementedError

    def save(self, path: str | PathLike, **more):
        """Writes weights, config, class names and flip pairs to one file, under a temporary name
        that is renamed at the end. `more` is stored beside them."""
        if self.folded:
            raise ValueError('a folded model cannot be saved; save it before fold()')
        write_checkpoint(path, 'schp', self.config, self.state_dict(), class_names=self.class_names,
                         flip_pairs=self.flip_pairs, **more)

    def fold(self) -> 'SinglePersonNetwork':
        """Fixes the weights for inference, in place: norms go into the convolutions before them.
        The same logits, faster; not for training. Returns the network."""
        if self.folded:
            return self
        self.folded = True
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        fold_norms(self)
        return self

    def crop_logits(self, crops: torch.Tensor, flip: bool = False,
                    scales: Sequence[float] = (1.0,)) -> torch.Tensor:
        """Crops (B, 3, H, W), as `forward` takes them -> fusion logits (B, C, H, W), float32.

        scales: average over the crops resized by these factors. flip: average over the crops and
        their mirror images."""
        size = crops.shape[2:]
        total = 0
        for scale in scales:
            images = crops
            if scale != 1:
                images = resize_map(crops, [max(1, int(side * scale)) for side in size])
            logits = self(images, heads=('fusion',))['fusion'].float()
            if flip:
                mirrored = self(images.flip(3), heads=('fusion',))['fusion'].float().flip(3)
                order = flip_order(self.num_classes, self.flip_pairs)
                logits = (logits + mirrored[:, order]) / 2
            total = total + resize_map(logits, size)
        return total / len(scales)

    def predict(self, photos, *, batch_size: int = 8, **options) -> list[Parsing]:
        """One photo or a list of photos, as `data.to_photo` takes each -> list of Parsing
        (util/results.py), each with one person, or none, and the score 1: people are not separated.
        `.labels` is the label map, uint8 (H, W).

        options: centers of `predict_maps`, flip and scales of `crop_logits`. ValueError for what is
        no photo; FileNotFoundError."""
        given = list_photos(photos)
        photos = [to_photo(photo) for photo in given]
        maps = self.predict_maps(photos, batch_size, **options)
        return [as_one_person(labels, class_names=self.class_names, photo=photo,
                              path=path_of(source), colors=voc_palette())
                for labels, photo, source in zip(maps, photos, given)]

    @torch.inference_mode()
    def predict_maps(self, photos: Sequence[Image.Image | np.ndarray], batch_size: int = 8,
                     logits: bool = False, centers: str | None = None,
                     **options) -> list[np.ndarray]:
        """Photos of any sizes (see `data.to_photo`) -> list of label maps, uint8 (H, W), or with
        `logits` of float32 (C, H, W), both of the size of the photo.

        centers: None as in the released extractor, which warps the logits back to the photo. 'int'
        or 'float' as in the released evaluation: it warps the label map of the crop back, by the
        nearest pixel. 'int' truncates the centers of the crops, as for the published numbers.

        options: flip and scales of `crop_logits`. ValueError for what is no photo."""
        if centers not in (None, 'int', 'float'):
            raise ValueError(f'centers is {centers!r}; it can be None, int or float')
        training = self.training
        dtype = next(self.parameters()).dtype
        results = []
        self.eval()
        try:
            for start in range(0, len(photos), batch_size):
                results += self.predict_batch(photos[start:start + batch_size], dtype, logits,
                                              centers, options)
        finally:
            self.train(training)
        return results

    def predict_batch(self, photos: Sequence, dtype: torch.dtype, logits: bool,
                      centers: str | None, options: dict) -> list[np.ndarray]:
        """`predict_maps` of the photos of a batch, in eval mode."""
        arrays = [np.asarray(to_photo(photo)) for photo in photos]
        matrices = [crop_matrix(array.shape[:2], self.size, integer_center=centers == 'int')
                    for array in arrays]
        crops = torch.stack([crop(array, matrix, self.size, self.device)
                             for array, matrix in zip(arrays, matrices)])
        crops = crops.to(dtype, memory_format=torch.channels_last)
        scores = self.crop_logits(crops, **options)
        results = []
        for array, matrix, score in zip(arrays, matrices, scores):
            result = back_to_photo(score, invert(matrix), array.shape[:2], logits, centers)
            results.append(result.cpu().numpy())
        return results


def back_to_photo(scores: torch.Tensor, matrix: np.ndarray, size: tuple, logits: bool,
                  centers: str | None) -> torch.Tensor:
    """Logits (C, h, w) of a crop, the matrix from the crop to its photo, the size of the photo ->
    what `predict_maps` returns for it."""
    if centers:
        labels = scores.argmax(0)[None].float()
        return warp(labels, matrix, size, 'nearest')[0].to(torch.uint8)
    if logits:
        return warp(scores, matrix, size)
    return label_map(scores, matrix, size)
