"""ImageNet weights of a Mix Transformer, in the keys of the original files or in those of the Hugging Face hub."""
import re

import torch

from util.checkpoints import load_strictly, read_checkpoint, reading

STAGES = {'patch_embeddings': 'patch_embed', 'block': 'block', 'layer_norm': 'norm'}       # hub: 0..3, original: 1..4
MODULES = (('.attention.self.query.', '.attn.q.'), ('.attention.self.key.', '.attn.k.'),
           ('.attention.self.value.', '.attn.v.'), ('.attention.self.sr.', '.attn.sr.'),
           ('.attention.self.layer_norm.', '.attn.norm.'), ('.attention.output.dense.', '.attn.proj.'),
           ('.layer_norm_1.', '.norm1.'), ('.layer_norm_2.', '.norm2.'), ('.mlp.dense1.', '.mlp.fc1.'),
           ('.mlp.dense2.', '.mlp.fc2.'), ('.layer_norm.', '.norm.'))
CLASSIFIERS = 'head.', 'classifier.'


def from_hub(weights):
    """Weights of the hub's `segformer.encoder` in the original keys. The original has keys and values in one layer."""
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r'^(patch_embeddings|block|layer_norm)\.(\d)\b', lambda m: STAGES[m[1]] + str(int(m[2]) + 1), key)
        for hub, original in MODULES:
            key = key.replace(hub, original)
        renamed[key] = value
    for key in [key for key in renamed if '.attn.k.' in key]:
        value = renamed.pop(key.replace('.attn.k.', '.attn.v.'), None)
        if value is not None:
            renamed[key.replace('.attn.k.', '.attn.kv.')] = torch.cat([renamed.pop(key), value])
    return renamed


def read_mit(path):
    """Backbone weights by their original names (patch_embed1.proj.weight, ..), without the ImageNet classifier."""
    state = read_checkpoint(path)
    with reading(path):
        prefix = re.compile(r'^(module\.)?(segformer\.encoder\.|encoder\.|backbone\.)?')
        weights = {prefix.sub('', key): value for key, value in state.get('state_dict', state).items()}
        weights = {key: value for key, value in weights.items() if not key.startswith(CLASSIFIERS)}
        return from_hub(weights) if any(key.startswith('patch_embeddings.') for key in weights) else weights


def load_mit(model, path):
    """Puts ImageNet weights into the backbone of a `SegFormer`, strictly: mit_b4.pth, or pytorch_model.bin of the hub's
    nvidia/mit-b4. They were trained on RGB, and the fork feeds BGR all the same. NVIDIA's license of these weights
    is non-commercial. ValueError or OSError with one sentence for any other file."""
    with reading(path):
        load_strictly(model.backbone, read_mit(path), path)
