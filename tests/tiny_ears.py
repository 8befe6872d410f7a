"""Tiny speech encoders of every family, with random weights."""

import torch
import transformers
from conftest import TINY
from tiny_hubert import TEACHER

from cif_lobes.nets.pretrained import load_encoder

_WAVE = {k: v for k, v in TEACHER.items() if k != "model_type"}
_WHISPER = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 80,
    "vocab_size": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
# Configurations by what tells them apart.
FAMILIES = {
    "hubert": TEACHER,
    "wav2vec2": {**_WAVE, "model_type": "wav2vec2"},
    "wav2vec2-large": {
        **_WAVE,
        "model_type": "wav2vec2",
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    },
    "wavlm": {
        **_WAVE,
        "model_type": "wavlm",
        "num_buckets": 16,
        "max_bucket_distance": 20,
    },
    "data2vec": {
        **{k: v for k, v in _WAVE.items() if k != "num_conv_pos_embeddings"},
        "model_type": "data2vec-audio",
        "num_conv_pos_embeddings": 3,
        "conv_pos_kernel_size": 5,
    },
    "whisper": _WHISPER,
}


def make_folder(family, folder):
    """A model of a family as the hub has it; its folder as str."""
    settings = dict(FAMILIES[family])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModel.from_config(config)
    # Of random weights, biases are zero: real ones are not, and fill what was padded.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.add_(0.1)
    model.save_pretrained(folder)
    return str(folder)


def make_encoder(family, folder, **options):
    """The same as `SpeechEncoder`."""
    return load_encoder(make_folder(family, folder), **options)


def ears_arguments(yaml, corpus, folder, ears, **changes):
    """Command line of a yaml with pretrained ears, tiny, on the tone corpus."""
    train_csv, valid_csv = corpus
    left_out = ("n_mels", "conv_channels", "pool_after")
    settings = {
        **{k: v for k, v in TINY.items() if k not in left_out},
        "skip_prep": True,
        "train_csv": train_csv,
        "valid_csv": valid_csv,
        "test_csv": f"[{valid_csv}]",
        "output_folder": folder / "run",
        "manifest_folder": folder / "manifests",
        "ears": ears,
        "ears_folder": folder / "kept",
        "ears_cache": "null",
        "ears_width": 32,
        "ears_layers": "[2, 3]",
        "ears_stack": 1,
        "device": "cpu",
        **changes,
    }
    return [str(yaml), *(p for k, v in settings.items() for p in (f"--{k}", str(v)))]
