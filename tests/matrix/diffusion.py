# SPDX-License-Identifier: Apache-2.0
"""The diffusers models of the matrix. diffusers refuses bitsandbytes where there is no
GPU, by two functions and nothing else: on such a machine these two are replaced."""
import diffusers as D
import torch
from diffusers.quantizers.bitsandbytes import bnb_quantizer

import models
from models import DTYPES


def allow_cpu():
    if torch.cuda.is_available():
        return
    for cls in (bnb_quantizer.BnB4BitDiffusersQuantizer,
                bnb_quantizer.BnB8BitDiffusersQuantizer):
        cls.validate_environment = lambda self, *args, **kwargs: None
        cls.update_device_map = lambda self, device_map: device_map or {"": "cpu"}


class Model(models.Model):
    def build(self, dtype):
        torch.manual_seed(3)  # what is no parameter
        model = self.cls(**self.config())
        models.randomize(model)
        return model.to(DTYPES[dtype])

    def load(self, path, dtype, **more):
        more.pop("plain", None)
        model, info = self.cls.from_pretrained(
            path, output_loading_info=True, torch_dtype=DTYPES[dtype], **more)
        return model.eval(), info


def wave(dtype, *shape):
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count) * 0.37).reshape(shape).to(DTYPES[dtype])


def flux(model, dtype):
    return {"hidden_states": wave(dtype, 1, 4, 5), "timestep": torch.tensor([0.3]),
            "encoder_hidden_states": wave(dtype, 1, 3, 33),
            "pooled_projections": wave(dtype, 1, 31), "guidance": torch.tensor([2.5]),
            "img_ids": torch.ones(4, 3), "txt_ids": torch.zeros(3, 3)}


def sd3(model, dtype):
    return {"hidden_states": wave(dtype, 1, 5, 6, 6), "timestep": torch.tensor([3]),
            "encoder_hidden_states": wave(dtype, 1, 3, 33),
            "pooled_projections": wave(dtype, 1, 31)}


def pixart(model, dtype):
    return {"hidden_states": wave(dtype, 1, 5, 6, 6), "timestep": torch.tensor([3]),
            "encoder_hidden_states": wave(dtype, 1, 3, 33),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def wan(model, dtype):
    return {"hidden_states": wave(dtype, 1, 5, 2, 6, 6), "timestep": torch.tensor([3]),
            "encoder_hidden_states": wave(dtype, 1, 3, 33)}


def unet(model, dtype):
    return {"sample": wave(dtype, 1, 4, 8, 8), "timestep": 3,
            "encoder_hidden_states": wave(dtype, 1, 3, 33)}


def unet_xl(model, dtype):
    return {**unet(model, dtype), "added_cond_kwargs": {
        "text_embeds": wave(dtype, 1, 31), "time_ids": torch.arange(6.0)[None]}}


def unet_config(**more):
    return dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(21, 42),
                layers_per_block=1, norm_num_groups=7, cross_attention_dim=33,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                **{"attention_head_dim": 3, **more})


def unet_sd():
    return unet_config()


def unet_sdxl():
    return unet_config(addition_embed_type="text_time", addition_time_embed_dim=8,
                       projection_class_embeddings_input_dim=79, use_linear_projection=True,
                       transformer_layers_per_block=(1, 2), attention_head_dim=(3, 6))


def model(cls, config, inputs, shard="5GB", note=""):
    return Model(cls, config, inputs, shard, note, "diffusers")


MODELS = {
    "flux": model(D.FluxTransformer2DModel, lambda: dict(
        patch_size=1, in_channels=5, num_layers=2, num_single_layers=2,
        attention_head_dim=10, num_attention_heads=3, joint_attention_dim=33,
        pooled_projection_dim=31, guidance_embeds=True, axes_dims_rope=(2, 4, 4)),
        flux, "200KB", "sharded"),
    "sd3": model(D.SD3Transformer2DModel, lambda: dict(
        sample_size=6, patch_size=1, in_channels=5, num_layers=2, attention_head_dim=20,
        num_attention_heads=3, joint_attention_dim=33, caption_projection_dim=60,
        pooled_projection_dim=31, out_channels=5, pos_embed_max_size=8), sd3),
    "pixart": model(D.PixArtTransformer2DModel, lambda: dict(
        num_attention_heads=3, attention_head_dim=20, in_channels=5, out_channels=10,
        num_layers=2, cross_attention_dim=60, sample_size=6, patch_size=1,
        caption_channels=33, use_additional_conditions=False), pixart),
    "wan": model(D.WanTransformer3DModel, lambda: dict(
        patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=14, in_channels=5,
        out_channels=5, text_dim=33, freq_dim=30, ffn_dim=149, num_layers=2), wan),
    "unet-sd": model(D.UNet2DConditionModel, unet_sd, unet),
    "unet-sdxl": model(D.UNet2DConditionModel, unet_sdxl, unet_xl),
}
