"""Numbers of semantic segmentation. Needs no torch."""
import numpy as np


def confusion_matrix(prediction: np.ndarray, truth: np.ndarray, num_classes: int,
                     ignore: int = 255) -> np.ndarray:
    """Two label maps (H, W) -> pixels (num_classes, num_classes), int64, rows the truth.

    Pixels whose truth is `ignore` are left out. The matrix of several images is the sum of theirs.
    ValueError where the shapes differ, or a label is none of the classes."""
    if prediction.shape != truth.shape:
        raise ValueError(f'the prediction has shape {prediction.shape}, '
                         f'the ground truth {truth.shape}')
    known = truth != ignore
    truth = truth[known].astype(np.int64)
    prediction = prediction[known].astype(np.int64)
    for name, labels in (('prediction', prediction), ('ground truth', truth)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f'the {name} has labels {labels.min()} to {labels.max()}, '
                             f'not 0 to {num_classes - 1}')
    pairs = np.bincount(truth * num_classes + prediction, minlength=num_classes ** 2)
    return pairs.reshape(num_classes, num_classes)
