"""SCHP: Self-Correction for Human Parsing (Li, Xu, Wei and Yang, TPAMI 2020, arXiv:1910.09777).

One photo of a person goes in, the class of every pixel comes out. The network is A-CE2P: an edge
branch helps the parsing branch, and the last layers fuse both. Training goes through cycles: the
weights of each cycle's network are averaged, and the averaged network corrects the labels of the
next cycle.

    paper                here               shape                what
    ResNet-101           layer1 .. layer4   c1 (B, 256, h, w),   h = H/4, w = W/4; c2 has stride 8,
                                            c2, c3, c4           c3 and c4 16 (layer4 is dilated)
    context encoding     context_encoding   (B, 512, H/16, ..)   pyramid pooling (PSP) of c4
    parsing branch       decoder            (B, 256, h, w)       feature; conv4: 'parsing' logits
    edge branch          edge               3 x (B, 256, ..)     features of c1, c2, c3; itself:
                                                                 'edge' logits (B, 2, h, w)
    fusion               fushion            (B, C, h, w)         'fusion' logits, for inference
    losses               schp_loss          scalars              Lovasz, cross-entropy, divergence
    model aggregation    average            parameters           w_hat = m/(m+1) w_hat + 1/(m+1) w,
                                                                 then `reestimate_norms`
    label refinement     soft_target        (B, C, H, W)         y_hat = m/(m+1) y_hat + 1/(m+1) y

In this order it reads best: layers.py and network.py (A-CE2P and its released files), losses.py,
training.py (schedule and cycles), single_person.py and crops.py (from photos to label maps and
back). Then data.py and config.py; segformer.py, the variant with another backbone; crowd.py, the
extension to several people; and the commands, one file each.

Modules and parameters have the names of the released code
(github.com/GoGoDuck912/Self-Correction-Human-Parsing), "fushion" included, so its checkpoints load
as they are. The paper leaves details open; constants are the released code's. Networks take BGR
images: `predict` takes RGB photos and turns the channels itself.
"""
from schp.config import SCHPConfig
from schp.layers import HEADS
from schp.losses import schp_loss
from schp.network import NETWORKS, SCHP, build, load_model
from schp.segformer import SegFormer
from schp.single_person import SinglePersonNetwork
from schp.training import SCHPTask, average, learning_rate, reestimate_norms

__all__ = ['HEADS', 'NETWORKS', 'SCHP', 'SCHPConfig', 'SCHPTask', 'SegFormer',
           'SinglePersonNetwork', 'average', 'build', 'learning_rate', 'load_model',
           'reestimate_norms', 'schp_loss']
