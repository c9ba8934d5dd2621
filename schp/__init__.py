"""SCHP: Self-Correction for Human Parsing (Li, Xu, Wei and Yang, TPAMI 2020, arXiv:1910.09777).

One photo of a person goes in, the class of every pixel comes out. The network is A-CE2P: an edge branch helps the
parsing branch, and a last layer fuses both. Training then goes through cycles: the weights of each cycle's network are
averaged, and the averaged network corrects the labels of the next cycle.

    paper                  here                shape              what
    ResNet-101             conv1 .. layer4     c1 (B,256,h,w),    h = H/4, w = W/4; c2 has stride 8,
                                               c2, c3, c4         c3 and c4 stride 16 (layer4 is dilated)
    context encoding       context_encoding    (B,512,H/16,W/16)  pyramid pooling (PSP) of c4
    parsing branch         decoder             (B,256,h,w)        feature; its conv4 gives 'parsing' logits (B,C,h,w)
    edge branch            edge                3 x (B,256,..)     features of c1, c2, c3; 'edge' logits (B,2,h,w)
    fusion                 fushion             (B,C,h,w)          'fusion' logits, those that inference uses
    model aggregation      average             cycle m: w_hat = m/(m+1) w_hat + 1/(m+1) w, then `reestimate_norms`
    label refinement       soft_target         cycle m: y_hat = m/(m+1) y_hat + 1/(m+1) y

schp/ace2p.py has the network's blocks, util/labels.py the label sets, schp/crowd.py the extension to several people.
Modules and parameters have the names of the released code (github.com/GoGoDuck912/Self-Correction-Human-Parsing),
"fushion" included, so its checkpoints load as they are. The paper's text leaves details open; constants are the
released code's. Images are BGR: `predict` takes RGB photos and turns the channels itself.
"""
from schp.config import SCHPConfig
from schp.losses import schp_loss
from schp.network import HEADS, NETWORKS, SCHP, build, load_model
from schp.segformer import SegFormer
from schp.training import SCHPTask, average, learning_rate, reestimate_norms
