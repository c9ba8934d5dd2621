"""One-shot human parsing with EOP-Net (He et al., TPAMI 2023, arXiv:2105.01241) and its predecessor
POPNet (AAAI 2021, arXiv:2012.11810).

A support photo and its label map name the classes. A query photo is parsed into exactly these, also
into novel ones, which no training label ever named. Two ways: k-way parses all classes at once,
1-way one class against the rest.

    python -m oneshot parse query.jpg more/ --support photo.jpg --support-mask mask.png \\
        --weights F --out results/
    python -m oneshot train --data CCP --root clothing-co-parsing --fold 1 --way k
    python -m oneshot train --system popnet --stage all --data CCP --root clothing-co-parsing
    python -m oneshot evaluate --data CCP --root clothing-co-parsing --fold 1 --way k --weights F

    paper                         here                 shape      what
    feature of both photos        mid_level            (B,C,h,w)  Xception and a decoder, h = H/4
    coarse and fine feature       encode               (B,C,h,w)  f1 finds people, f2 parses them
    static prototypes             static_prototypes    (B,R,C)    the mean feature of each class
    momentum-updated prototypes   smoothed_prototypes  (B,R,C)    mixed with those stored before
    coarse (foreground) parsing   coarse_head          (B,2,h,w)  people against background
    NPM, nearest prototype        npm_head             (B,K,h,w)  of the cosine to each prototype
    AGM, attention guidance       agm_head             (B,K,h,w)  convolutions of the feature where
                                                                  it is like the prototype
    training losses, contrast     oneshot_loss         dict       AGM leads at first, NPM at the end

    POPNet: feature of a stage    high_level           (B,C,h,w)  Xception, pyramid, decoder
    knowledge infusion            POPNet.encode        (B,C,h,w)  with the feature of the stage
                                                                  before
    nearest centroid, NCM         npm_head             (B,K,h,w)  the same formula as NPM
    training losses               popnet_loss          dict       without coarse and contrast

K counts the background and the labels that the benchmark merges into others: 18 for ATR-OS, 20 for
LIP-OS and CIHP-OS. Labels (B,H,W) hold 0 background, 1..K-1 parts, 255 ignore. Every part is a
person's pixel, also one of a class that the episode leaves out; `classes` names those it keeps.
Modules have the names of the released state dicts, because released files are loaded as they are.

Read the files in this order:

    episodes, data              folds of classes, lists of episodes; data sets and training samples
    stages                      POPNet's labels: people, parents, classes
    backbone, prototypes,       what the networks share
    heads, network
    eopnet, popnet              the networks: `forward` is the paper's figure
    losses, training            what training minimizes, and how
    models, evaluation, parse   what any model offers, test episodes, users' photos
    by_uniparser                UniParser in the place of EOP-Net
"""
from oneshot.by_uniparser import UniParserByExample
from oneshot.config import Config
from oneshot.eopnet import EOPNet
from oneshot.losses import oneshot_loss, popnet_loss
from oneshot.models import load_model
from oneshot.popnet import POPNet

__all__ = ['Config', 'EOPNet', 'POPNet', 'UniParserByExample', 'load_model', 'oneshot_loss',
           'popnet_loss']
