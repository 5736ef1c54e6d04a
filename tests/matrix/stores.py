# SPDX-License-Identifier: Apache-2.0
"""The store of the ecosystem tests: models of the matrix, a hub cache, a pipeline."""
import json
import os

import diffusers as D
import torch
import transformers as T

import diffusion
import models

REPO = "org/tiny-llama"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_hub(hub, model):
    """A hub cache with one model: snapshots are links into blobs, as the hub makes it."""
    repo = os.path.join(hub, "models--" + REPO.replace("/", "--"))
    blobs, snapshot = os.path.join(repo, "blobs"), os.path.join(repo, "snapshots", COMMIT)
    os.makedirs(blobs)
    os.makedirs(snapshot)
    os.makedirs(os.path.join(repo, "refs"))
    with open(os.path.join(repo, "refs", "main"), "w", encoding="utf-8") as f:
        f.write(COMMIT)
    for i, name in enumerate(sorted(os.listdir(model))):
        blob = f"{i:064x}"
        os.rename(os.path.join(model, name), os.path.join(blobs, blob))
        os.symlink(f"../../blobs/{blob}", os.path.join(snapshot, name))
    os.rmdir(model)
    os.makedirs(os.path.join(hub, ".locks"))


def write_tokenizer(path):
    """A CLIP tokenizer of single letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    os.makedirs(path)
    with open(os.path.join(path, "vocab.json"), "w", encoding="utf-8") as f:
        json.dump({w: i for i, w in enumerate(words)}, f)
    with open(os.path.join(path, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n")
    T.CLIPTokenizer(os.path.join(path, "vocab.json"), os.path.join(path, "merges.txt"),
                    model_max_length=16, pad_token="<|endoftext|>").save_pretrained(path)


def write_pipeline(path, dtype):
    """A whole Stable Diffusion pipeline folder."""
    torch.manual_seed(4)
    text = T.CLIPTextModel(T.CLIPTextConfig(
        vocab_size=models.VOCAB, hidden_size=33, intermediate_size=149, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=16, **models.IDS))
    unet = D.UNet2DConditionModel(**diffusion.unet_sd())
    vae = D.AutoencoderKL(block_out_channels=(12, 24), norm_num_groups=4, latent_channels=4,
                          down_block_types=["DownEncoderBlock2D"] * 2,
                          up_block_types=["UpDecoderBlock2D"] * 2)
    for part in (text, unet, vae):
        models.randomize(part)
    write_tokenizer(path + "-tokenizer")
    pipe = D.StableDiffusionPipeline(
        vae=vae, text_encoder=text, unet=unet, safety_checker=None, feature_extractor=None,
        tokenizer=T.CLIPTokenizer.from_pretrained(path + "-tokenizer"),
        scheduler=D.DDIMScheduler(clip_sample=False), requires_safety_checker=False)
    pipe.to(models.DTYPES[dtype]).save_pretrained(path)


def write_bin(path, dtype):
    """The weights of "llama" as accelerate takes them: a pickle, which passes through."""
    os.makedirs(path)
    model = models.MODELS["llama"].build(dtype)
    torch.save(model.state_dict(), os.path.join(path, "pytorch_model.bin"))
    model.config.save_pretrained(path)


def write(store):
    write_bin(os.path.join(store, "llama-bin"), "bf16")
    for name in ("llama", "gpt2", "bert", "bert-mlm", "clip", "t5", "vit", "bart"):
        models.MODELS[name].write(os.path.join(store, name), "bf16")
    models.MODELS["llama"].write(os.path.join(store, "llama-fp32"), "fp32")
    models.MODELS["falcon"].write(os.path.join(store, "falcon"), "fp32")
    models.MODELS["qwen3"].write(os.path.join(store, "new"), "bf16")
    write_hub(os.path.join(store, "hub"), os.path.join(store, "new"))
    write_pipeline(os.path.join(store, "pipeline"), "fp32")
