"""What the networks for photos of one person share: from photos to label maps, and from maps back to photos."""
import torch
import torch.nn as nn

from schp.layers import fold_norms, resize
from util.checkpoints import write_checkpoint
from util.labels import flip_order
from schp.crops import as_array, crop, crop_matrix, invert, label_map, warp


class Parser(nn.Module):
    """Base of a network whose forward(images, heads) takes images (B,3,H,W), BGR, normalized by `warp.MEAN` and STD,
    and returns a dict of logits at a quarter of their size; 'fusion' (B,C,h,w) are those of inference.

    config: an SCHPConfig; labels: class names, the background first; size: (H, W) of the crops; flip_pairs: ids that
    swap when the image is mirrored."""

    def __init__(self, labels, size, flip_pairs=()):
        super().__init__()
        self.labels, self.size, self.flip_pairs = tuple(labels), tuple(size), tuple(map(tuple, flip_pairs))
        self.num_classes = len(self.labels)

    @property
    def device(self):
        return next(self.parameters()).device

    def save(self, path, **more):
        """Writes weights, config, class names and flip pairs to one file, atomically; `more` is stored beside them."""
        write_checkpoint(path, 'schp', self.config, self.state_dict(), class_names=self.labels,
                         flip_pairs=self.flip_pairs, **more)

    def folded(self):
        """A copy for inference, its norms folded into the convolutions: the same logits, faster."""
        return fold_norms(self)

    def crop_logits(self, crops, flip=False, scales=(1.0,)):
        """Crops (B,3,H,W) as `forward` takes them -> fusion logits (B,C,H,W), averaged over the scales and, if `flip`,
        over the images and their mirror images."""
        total = 0
        for scale in scales:
            images = crops if scale == 1 else resize(crops, [max(1, int(side * scale)) for side in crops.shape[2:]])
            logits = self(images, heads=('fusion',))['fusion'].float()
            if flip:
                mirrored = self(images.flip(3), heads=('fusion',))['fusion'].float().flip(3)
                logits = (logits + mirrored[:, flip_order(self.num_classes, self.flip_pairs)]) / 2
            total = total + resize(logits, crops.shape[2:])
        return total / len(scales)

    @torch.inference_mode()
    def predict(self, photos, batch_size=8, logits=False, centers=None, **options):
        """RGB Pillow images or uint8 arrays (H,W,3) of any sizes -> list of label maps, uint8 (H,W), or with `logits`
        of float32 (C,H,W), both at the photo's size. options: flip, scales of `crop_logits`.

        centers: None, as the released extractor: logits are warped back. 'int' or 'float', as the released evaluation:
        the crop's label map is warped back, by the nearest pixel; 'int' truncates the center of the crop, which
        published numbers did."""
        training, results = self.training, []
        self.eval()
        for start in range(0, len(photos), batch_size):
            arrays = [as_array(photo) for photo in photos[start:start + batch_size]]
            matrices = [crop_matrix(array.shape[:2], self.size, integer_center=centers == 'int') for array in arrays]
            crops = torch.stack([crop(array, m, self.size, self.device) for array, m in zip(arrays, matrices)])
            crops = crops.to(next(self.parameters()).dtype, memory_format=torch.channels_last)
            for array, m, scores in zip(arrays, matrices, self.crop_logits(crops, **options)):
                results.append(to_photo(scores, invert(m), array.shape[:2], logits, centers).cpu().numpy())
        self.train(training)
        return results


def to_photo(scores, matrix, size, logits, centers):
    """Logits (C,h,w) of a crop -> what `Parser.predict` returns for its photo of this size (H, W)."""
    if centers:
        return warp(scores.argmax(0)[None].float(), matrix, size, 'nearest')[0].to(torch.uint8)
    return (warp if logits else label_map)(scores, matrix, size)
