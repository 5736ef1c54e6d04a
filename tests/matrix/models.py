# SPDX-License-Identifier: Apache-2.0
"""The models of the matrix: for each architecture one tiny config whose sizes are odd
wherever the architecture allows (so that numel is no multiple of 2, 64 or 16384), and
inputs for one forward pass. Weights are seeded random numbers, none of them left as the
constructor makes it: a tensor that is loaded into the wrong place, or not at all, shows."""
import dataclasses
import json
import os
import typing

import torch
import transformers as T

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
VOCAB = 131
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
# [149, 117] has 17433 elements: more than one nested block, with an odd tail.
DECODER = dict(vocab_size=VOCAB, hidden_size=117, intermediate_size=149,
               num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
               head_dim=10, max_position_embeddings=64, tie_word_embeddings=False, **IDS)
# The same where the size of a head must divide the hidden size and be even.
EVEN_HEADS = {**{k: v for k, v in DECODER.items() if k != "head_dim"}, "hidden_size": 78}
ENCODER = dict(vocab_size=VOCAB, hidden_size=117, intermediate_size=149,
               num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=64,
               type_vocab_size=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
VISION = dict(hidden_size=117, intermediate_size=149, num_hidden_layers=2,
              num_attention_heads=3, image_size=30, patch_size=15)
# torch's grouped product wants rows of a multiple of 16 bytes, which odd sizes have not.
EXPERTS = {"experts_implementation": "eager"}


@dataclasses.dataclass
class Model:
    """cls: what loads it; config: called once, gives the config; inputs(model, dtype)."""
    cls: type
    config: typing.Callable
    inputs: typing.Callable
    shard: str = "5GB"  # max_shard_size
    note: str = ""
    library: str = "transformers"
    options: dict = dataclasses.field(default_factory=dict)  # of from_pretrained
    stored: str = ""  # the dtype of the file, where it is not that of config.json

    def write(self, path, dtype):
        self.build(self.stored or dtype).save_pretrained(path, max_shard_size=self.shard)
        if self.stored:  # and as transformers 4 wrote it
            name = os.path.join(path, "config.json")
            with open(name, encoding="utf-8") as f:
                config = json.load(f)
            del config["dtype"]
            config["torch_dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
            with open(name, "w", encoding="utf-8") as f:
                json.dump(config, f, indent=2)

    def build(self, dtype):
        model = self.cls(self.config())
        randomize(model)
        return model.to(DTYPES[dtype])

    def load(self, path, dtype, **more):
        """(model, loading info), as a user loads. The dtype is said only when a
        quantization is asked for: else config.json says it."""
        if "quantization_config" in more or more.pop("plain", False):
            more["dtype"] = DTYPES[dtype]
        model, info = self.cls.from_pretrained(path, output_loading_info=True,
                                               **self.options, **more)
        return model.eval(), info


@torch.no_grad()
def randomize(model, seed=20):
    """Matrices: normal. Vectors: some noise on top of what they are, as norms need."""
    gen = torch.Generator().manual_seed(seed)
    for _, param in sorted(model.named_parameters()):
        noise = torch.randn(param.shape, generator=gen) * 0.06
        param.copy_(noise if param.dim() > 1 else param + noise)


def tokens(model, dtype):
    return {"input_ids": torch.arange(2 * 9).reshape(2, 9) * 7 % (VOCAB - 9) + 5}


def seq2seq(model, dtype):
    return {**tokens(model, dtype), "decoder_input_ids": torch.tensor([[2, 7, 30, 11]] * 2)}


def pixels(model, dtype, size=30, batch=1):
    wave = torch.linspace(-1, 1, batch * 3 * size * size).reshape(batch, 3, size, size)
    return {"pixel_values": torch.sin(wave * 37).to(DTYPES[dtype])}


def text_and_pixels(model, dtype):
    return {**tokens(model, dtype), **pixels(model, dtype)}


def image_tokens(model, dtype, token, count):
    ids = torch.tensor([[1, 9] + [token] * count + [17, 40, 77]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def llava(model, dtype):
    return {**image_tokens(model, dtype, VOCAB - 1, 4), **pixels(model, dtype)}


def gemma3(model, dtype):
    ids = image_tokens(model, dtype, VOCAB - 1, 4)
    return {**ids, **pixels(model, dtype),
            "token_type_ids": (ids["input_ids"] == VOCAB - 1).long()}


def qwen2_vl(model, dtype):
    ids = image_tokens(model, dtype, VOCAB - 1, 4)
    patches = torch.sin(torch.arange(16 * 3 * 2 * 7 * 7) * 0.37).reshape(16, -1)
    return {**ids, "pixel_values": patches.to(DTYPES[dtype]),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": (ids["input_ids"] == VOCAB - 1).int()}


def whisper(model, dtype):
    mel = torch.sin(torch.arange(8 * 30) * 0.3).reshape(1, 8, 30).to(DTYPES[dtype])
    return {"input_features": mel, "decoder_input_ids": torch.tensor([[1, 5, 9]])}


def text_config(cls, **more):
    return cls(**{**DECODER, **more}).to_dict()


def llava_config():
    return T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(**VISION, projection_dim=21).to_dict(),
        text_config=text_config(T.LlamaConfig), image_token_index=VOCAB - 1,
        image_seq_length=4, tie_word_embeddings=False)


def gemma3_config():
    return T.Gemma3Config(
        text_config=text_config(T.Gemma3TextConfig, query_pre_attn_scalar=10,
                                tie_word_embeddings=True),
        vision_config=T.SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        mm_tokens_per_image=4, image_token_index=VOCAB - 1, boi_token_index=VOCAB - 2,
        eoi_token_index=VOCAB - 3)


def qwen2_vl_config():
    text = {**DECODER, "hidden_size": 78, "num_attention_heads": 3, "head_dim": 26}
    return T.Qwen2VLConfig(
        text_config={**text, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 5, 5]}},
        vision_config=dict(depth=2, embed_dim=36, hidden_size=78, num_heads=3, mlp_ratio=3,
                           patch_size=7, in_channels=3, spatial_merge_size=2),
        image_token_id=VOCAB - 1, video_token_id=VOCAB - 2, vision_start_token_id=VOCAB - 3,
        vision_end_token_id=VOCAB - 4, tie_word_embeddings=False)


def clip_config():
    return T.CLIPConfig(
        text_config=dict(vocab_size=VOCAB, hidden_size=39, intermediate_size=149,
                         num_hidden_layers=2, num_attention_heads=3, projection_dim=21,
                         max_position_embeddings=64, **IDS),
        vision_config=dict(**VISION, projection_dim=21), projection_dim=21)


def siglip_config():
    return T.SiglipConfig(
        text_config=dict(vocab_size=VOCAB, hidden_size=117, intermediate_size=149,
                         num_hidden_layers=2, num_attention_heads=3, projection_size=117,
                         max_position_embeddings=64, **IDS),
        vision_config=VISION)


def deepseek_config():
    return T.DeepseekV3Config(**{
        **{k: v for k, v in DECODER.items() if k != "head_dim"}, "num_key_value_heads": 3,
        "moe_intermediate_size": 45, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "n_shared_experts": 1, "q_lora_rank": 31, "kv_lora_rank": 23,
        "qk_rope_head_dim": 10, "qk_nope_head_dim": 11, "v_head_dim": 13})


def whisper_config():
    return T.WhisperConfig(
        vocab_size=VOCAB, d_model=42, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=149,
        decoder_ffn_dim=151, num_mel_bins=8, max_source_positions=15,
        max_target_positions=20, decoder_start_token_id=1, **IDS)


def bart_config():
    return T.BartConfig(
        vocab_size=VOCAB, d_model=117, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=149,
        decoder_ffn_dim=151, max_position_embeddings=64, decoder_start_token_id=2,
        forced_eos_token_id=2, **IDS)


def t5_config(**more):
    return T.T5Config(vocab_size=VOCAB, d_model=117, d_kv=10, d_ff=149, num_layers=2,
                      num_heads=3, decoder_start_token_id=0, pad_token_id=0,
                      eos_token_id=2, **more)


def decoder(cls, config, base=None, shard="5GB", note="", **more):
    options = more.pop("options", {})
    return Model(cls, lambda: config(**{**(base or DECODER), **more}), tokens, shard, note,
                 options=options)


def encoder(cls, config, note="", **more):
    return Model(cls, lambda: config(**{**ENCODER, **more}), tokens, "5GB", note)


MODELS = {
    "llama": decoder(T.LlamaForCausalLM, T.LlamaConfig, shard="200KB", note="sharded"),
    "llama-tied": decoder(T.LlamaForCausalLM, T.LlamaConfig, note="tied head",
                          tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "qwen3": decoder(T.Qwen3ForCausalLM, T.Qwen3Config, shard="200KB", note="sharded",
                     tie_word_embeddings=True),
    "mistral": decoder(T.MistralForCausalLM, T.MistralConfig, sliding_window=5),
    "gemma3-text": decoder(T.Gemma3ForCausalLM, T.Gemma3TextConfig, note="tied head",
                           query_pre_attn_scalar=10, tie_word_embeddings=True),
    "gemma3": Model(T.Gemma3ForConditionalGeneration, gemma3_config, gemma3,
                    note="vision and text"),
    "phi3": decoder(T.Phi3ForCausalLM, T.Phi3Config, EVEN_HEADS),
    "gpt2": Model(T.GPT2LMHeadModel, lambda: T.GPT2Config(
        vocab_size=VOCAB, n_embd=117, n_inner=149, n_layer=2, n_head=3, n_positions=64,
        **IDS), tokens, note="Conv1D, tied head"),
    "gpt-neox": Model(T.GPTNeoXForCausalLM, lambda: T.GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=78, intermediate_size=149, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=64, **IDS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                         "partial_rotary_factor": 1.0}), tokens),
    "opt": Model(T.OPTForCausalLM, lambda: T.OPTConfig(
        vocab_size=VOCAB, hidden_size=117, ffn_dim=149, num_hidden_layers=2,
        num_attention_heads=3, word_embed_proj_dim=61, do_layer_norm_before=False,
        max_position_embeddings=64, **IDS), tokens, "150KB", "sharded, projected embedding"),
    "bloom": Model(T.BloomForCausalLM, lambda: T.BloomConfig(
        vocab_size=VOCAB, hidden_size=117, n_layer=2, n_head=3, **IDS), tokens),
    "falcon": Model(T.FalconForCausalLM, lambda: T.FalconConfig(
        vocab_size=VOCAB, hidden_size=78, ffn_hidden_size=149, num_hidden_layers=2,
        num_attention_heads=3, num_kv_heads=1, new_decoder_architecture=True, alibi=False,
        max_position_embeddings=64, **IDS), tokens),
    "bert": encoder(T.BertModel, T.BertConfig),
    "bert-mlm": encoder(T.BertForMaskedLM, T.BertConfig),
    "bert-cls": encoder(T.BertForSequenceClassification, T.BertConfig, num_labels=5),
    "roberta": encoder(T.RobertaForMaskedLM, T.RobertaConfig),
    "deberta-v2": encoder(T.DebertaV2ForMaskedLM, T.DebertaV2Config,
                          relative_attention=True, pos_att_type=["p2c", "c2p"],
                          position_buckets=7, norm_rel_ebd="layer_norm", share_att_key=True,
                          position_biased_input=False),
    "t5": Model(T.T5ForConditionalGeneration, t5_config, seq2seq),
    "t5-gated": Model(T.T5ForConditionalGeneration, lambda: t5_config(
        feed_forward_proj="gated-gelu", tie_word_embeddings=False), seq2seq,
        note="untied head"),
    "bart": Model(T.BartForConditionalGeneration, bart_config, seq2seq),
    "whisper": Model(T.WhisperForConditionalGeneration, whisper_config, whisper),
    "vit": Model(T.ViTForImageClassification, lambda: T.ViTConfig(**VISION, num_labels=5),
                 pixels),
    "clip": Model(T.CLIPModel, clip_config, text_and_pixels),
    "siglip": Model(T.SiglipModel, siglip_config, text_and_pixels),
    "llava": Model(T.LlavaForConditionalGeneration, llava_config, llava, "300KB", "sharded"),
    "qwen2-vl": Model(T.Qwen2VLForConditionalGeneration, qwen2_vl_config, qwen2_vl),
    "mixtral": decoder(T.MixtralForCausalLM, T.MixtralConfig, shard="300KB",
                       note="sharded", num_local_experts=4, num_experts_per_tok=2,
                       hidden_size=112, intermediate_size=144),
    "qwen3-moe": decoder(T.Qwen3MoeForCausalLM, T.Qwen3MoeConfig, num_experts=4,
                         num_experts_per_tok=2, moe_intermediate_size=45,
                         mlp_only_layers=[0], options=EXPERTS),
    "deepseek-v3": Model(T.DeepseekV3ForCausalLM, deepseek_config, tokens,
                         options=EXPERTS),
    "mamba": Model(T.MambaForCausalLM, lambda: T.MambaConfig(
        vocab_size=VOCAB, hidden_size=61, state_size=5, num_hidden_layers=2, conv_kernel=3,
        time_step_rank=7, **IDS), tokens),
}
# Files in fp32 of a model that says another dtype: cast before it is quantized.
for _name in ("llama-tied", "t5", "bert-mlm"):
    MODELS[_name + "-f32"] = dataclasses.replace(MODELS[_name], stored="fp32",
                                                 note="stored as fp32, torch_dtype")
