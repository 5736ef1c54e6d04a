# SPDX-License-Identifier: Apache-2.0
"""Random models: names put together from the names that real modules have."""
from driver import bnbrule

ROOTS = ["", "model", "transformer", "encoder", "decoder", "base_model.model", "bert",
         "model.language_model", "model.vision_tower.vision_model", "text_model",
         "gpt_neox", "audio_tower", "vision_model", "model.decoder", "llm", "tränsformer",
         "模型"]
BLOCKS = ["layers.{n}", "h.{n}", "block.{n}", "blocks.{n}", "layer.{n}",
          "transformer_blocks.{n}", "down_blocks.{n}.attentions.{n}", "encoder.layer.{n}",
          "layers.{n}.mlp.experts.{n}", "layers.{n}.block_sparse_moe.experts.{n}",
          "experts", "mid_block", "single_transformer_blocks.{n}", "stages.{n}.layers.{n}"]
INNER = ["self_attn", "attn", "attention.self", "attention.output", "mlp", "ff.net.{n}",
         "feed_forward", "cross_attn", "mlp.router", "intermediate", "mixer", "moe",
         "shared_expert", "norm1", "time_embedder", "text_model", "lm_head", "score"]
LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj",
          "down_proj", "query", "key", "value", "dense", "fc1", "fc2", "c_attn", "c_proj",
          "c_fc", "to_q", "to_out.0", "proj", "linear", "linear_1", "wi", "wo", "gate",
          "router", "router.layer", "query_key_value", "norm", "ln_1", "LayerNorm",
          "embed_tokens.0", "position_embeddings", "tok_emb", "embed_q", "conv1",
          "shape_weight", "weight", "gate_weight.proj", "in_proj", "experts", "classifier",
          "scorer", "xscore", "lm_heads", "HashBucketCodepointEmbedder_3", "word_embeddings_table",
          "embedding.7", "7", "emb_0", "embeds.12"]
LEAVES += bnbrule.HEADS + bnbrule.OPTIONAL + sorted(bnbrule.EMB_EXACT)
ODD = ["a+b", "x(y", "q[0]", "up$", "k|v", "new\nline", "back\\slash", "sp ace", "ü", "\U0001f600"]
DTYPES = ["BF16", "F16", "F32"]
CONFIG_DTYPES = ["bfloat16", "float16", "float32", "torch.bfloat16", "torch.float16",
                 "auto", "", None, "float64", "float8_e4m3fn"]


def flatten(entry, key):
    value = entry.get(key, [])
    lists = value.values() if isinstance(value, dict) else [value]
    return [item for items in lists for item in items]


def words_of(entry):
    """Module names that the architecture's own patterns are about."""
    words = []
    for key in ("never", "heads", "opt", "tied", "fp32", "fp32s", "conv1d"):
        words += [w.removeprefix("**.") for w in flatten(entry, key) if w]
    return words


def fill(rng, pattern):
    pattern = pattern.replace(".*", "." + rng.choice(["0", "3", "11", "fc", "a.b"]))
    while "{n}" in pattern:
        pattern = pattern.replace("{n}", str(rng.randrange(12)), 1)
    return pattern


def module_name(rng, words):
    parts = [rng.choice(ROOTS)]
    if rng.random() < 0.7:
        parts.append(rng.choice(BLOCKS))
    if rng.random() < 0.6:
        parts.append(rng.choice(INNER))
    pool = words if words and rng.random() < 0.5 else LEAVES
    parts.append(rng.choice(ODD) if rng.random() < 0.004 else rng.choice(pool))
    name = ".".join(fill(rng, p) for p in parts if p)
    if rng.random() < 0.08:  # near misses
        name = rng.choice([name + "_1", name + ".1", "x" + name, name + ".proj", name[1:]])
    return name


def tensor_entry(rng, name, main):
    dtype = main if rng.random() < 0.8 else rng.choice(DTYPES)
    roll = rng.random()
    rows, cols = rng.choice([1, 2, 3, 8, 17, 64]), rng.choice([1, 4, 8, 33, 64])
    if roll < 0.8:
        return name + ".weight", (dtype, [rows, cols])
    if roll < 0.86:
        return name + ".bias", (dtype, [rows])
    if roll < 0.92:
        return name + rng.choice([".weight", "_weight"]), (dtype, [rows])
    if roll < 0.95:
        return name + ".weight", (dtype, [rows, cols, 3, 3])
    if roll < 0.97:
        return name + "_weight", (dtype, [3 * rows, cols])
    return name + rng.choice([".inv_freq", ".position_ids"]), ("I64", [rows, cols])


def random_tensors(rng, words, count):
    main = rng.choice(DTYPES)
    tensors = {}
    while len(tensors) < count:
        name = module_name(rng, words)
        key, value = tensor_entry(rng, name, main)
        tensors[key] = value
        if name.endswith("out_proj") and rng.random() < 0.4:
            tensors[name[:-8] + "in_proj_weight"] = (main, [12, 4])
    return tensors


def classes_of(entry):
    names = {c for key in ("fp32", "fp32s", "heads", "tied") for c in entry.get(key, {})}
    return sorted(names - {"*"})


def nested_config(rng, depth=0):
    kinds = ["gpt2", "t5", "clvp_decoder", "deepseek_v4", "unknown", "openai-gpt"]
    kinds += rng.sample(sorted(bnbrule.table()["transformers"]), 3)
    config = {"model_type": rng.choice(kinds), "hidden_size": 64}
    if depth < 2 and rng.random() < 0.3:
        config["inner_config"] = nested_config(rng, depth + 1)
    return config


def config_for(rng, family, name, entry):
    if family == "diffusers":
        config = {"_class_name": name, "_diffusers_version": "0.42.1"}
    else:
        classes = classes_of(entry) + ["SomeForCausalLM"]
        config = {"model_type": name, "architectures": [rng.choice(classes)]}
        if rng.random() < 0.1:
            config["architectures"] = rng.choice([None, []])
    for name in ("text_config", "vision_config"):
        if rng.random() < 0.2:
            config[name] = nested_config(rng)
    if rng.random() < 0.7:
        key = rng.choice(["dtype", "torch_dtype"])
        config[key] = rng.choice(CONFIG_DTYPES)
    if rng.random() < 0.2:
        config["torch_dtype"] = rng.choice(CONFIG_DTYPES)
    if rng.random() < 0.05:
        config["quantization_config"] = rng.choice([{}, None, {"quant_method": "gptq"}])
    return config


def random_model(rng, family=None, name=None):
    """(tensors, config)"""
    table = bnbrule.table()
    if family is None:
        family = "diffusers" if rng.random() < 0.2 else "transformers"
        known = sorted(table[family])
        name = rng.choice(known) if rng.random() < 0.7 else rng.choice(
            ["llama", "bert", "nobody_knows", "llama4", "mistral", "FluxTransformer2DModel"])
    entry = table[family].get(name, {})
    words = words_of(entry)
    return (random_tensors(rng, words, rng.choice([3, 10, 30, 60])),
            config_for(rng, family, name, entry))
