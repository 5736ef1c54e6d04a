# SPDX-License-Identifier: Apache-2.0
"""bnbrule.py: which tensors a bitsandbytes view quantizes, from the safetensors header and config.json alone.

plan(tensors, config) -> Plan(quant=set of names, skip=list for llm_int8_skip_modules, dtype=D, cast={name: dtype})
No torch, no regular expressions on the hot path: view/policy*.c is this in C. The table is view/arch_table.json.
"""
import json, os, re
from collections import namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
FLOATS = ("F32", "F16", "BF16")
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ST = {v: k for k, v in TORCH.items()}
Plan = namedtuple("Plan", "quant skip dtype cast why conv1d")

# output heads whose weight is usually tied (so absent from the file) or kept by the default load; suffix-matched by transformers >= 5
HEADS = ["lm_head", "predictions.decoder", "lm_head.decoder", "lm_head.out_proj", "embed_out", "generator_lm_head", "vocab_projector",
         "pred_layer.proj", "lm_loss", "mlm_score.decoder", "output_projection", "score", "text_projection"]
# Linear modules that another class of the same model type has and this checkpoint may lack: a pre-quantized load cannot initialize
# a missing 4/8-bit weight (NotImplementedError "normal_kernel_cpu"), so name them in the skip list whenever they are absent
OPTIONAL = ["classifier", "pooler.dense", "qa_outputs", "seq_relationship", "predictions.transform.dense", "lm_head.dense",
            "classifier.dense", "classifier.out_proj", "score", "pre_classifier", "vocab_transform"]
EMB_EXACT = {"wte", "wpe", "shared", "embed", "embeds", "embd", "emb", "embedding", "embeddings", "relative_attention_bias",
             "tok_embeddings", "embed_in"}
EMB_SUFFIX = ("_embedding", "_embeddings", "_embed", "_embeds", "_emb", "_embd", "_embeds_layer")
EMB_PREFIX = ("embed_",)
EMB_INFIX = ("embed_tokens", "_embeddings_", "embed_positions", "HashBucketCodepointEmbedder")
ROUTERS = {"gate", "router"}


def is_embedding_name(path):
    comp = path.split(".")
    l = comp[-1]
    if l.isdigit() and len(comp) > 1:            # ModuleList of embeddings: embed_tokens.0, xpath_tag_sub_embeddings.3
        l = comp[-2]
    return (l in EMB_EXACT or l.endswith(EMB_SUFFIX) or l.startswith(EMB_PREFIX) or any(x in l for x in EMB_INFIX))


def in_experts(path):
    c = path.split(".")
    return any(c[i] == "experts" and i + 1 < len(c) and c[i + 1].isdigit() for i in range(len(c)))


def is_head(path):
    return any(path == h or path.endswith("." + h) for h in HEADS)


def glob(pat, path):
    """table patterns: dot-separated, '*' = one component, leading '**.' = any prefix; matches a whole path or a dotted suffix."""
    p, c = pat.split("."), path.split(".")
    if p[0] == "**":
        p = p[1:]
        if len(p) > len(c):
            return False
        c = c[len(c) - len(p):]
    return len(p) == len(c) and all(a == "*" or a == b for a, b in zip(p, c))


# the pre-quantized load of these rebuilds modules the checkpoint does not have (Llama4TextExperts -> one Linear per expert):
# serve them unquantized, without quantization_config
UNSUPPORTED = {"llama4", "llama4_text"}

_T = None


def table():
    global _T
    if _T is None:
        _T = json.load(open(os.path.join(HERE, "..", "..", "view", "arch_table.json")))
    return _T


def nested(config, own):
    """rows of the models inside a composite one (a GPT-2 decoder in a vision-encoder-decoder): they count where they keep a weight."""
    rows = []
    for v in config.values():
        if isinstance(v, dict):
            mt = v.get("model_type")
            row = table()["transformers"].get(mt) if isinstance(mt, str) else None
            for r in ([row] if row else []) + nested(v, own):
                if r is not own and not any(r is x for x in rows): rows.append(r)
    return rows


def skip_v5(path, s):
    """transformers >= 5 should_convert_module: regex from the start up to a module boundary, or plain suffix."""
    if path.endswith(s):
        return True
    if not any(ch in s for ch in "\\*+?[](){}|^$"):
        return path.startswith(s) and (len(path) == len(s) or path[len(s)] == ".") or _dot(path, s)
    return re.match(rf"(?:{s})(?:(?<=\.)|(?=\.|$))", path) is not None


def _dot(path, s):                                   # an unescaped '.' in the pattern matches any character
    return re.match(rf"(?:{s})(?:(?<=\.)|(?=\.|$))", path) is not None


def skip_v4(path, s):
    """transformers 4.x, diffusers, PEFT: child name equal, or key + '.' a substring of the path, or path equal."""
    return path.rsplit(".", 1)[-1] == s or (s + ".") in path or path == s


def skip_vllm(path, s):
    """vLLM is_layer_skipped_bnb: a whole component, or a dotted prefix."""
    return s in path.split(".") or path == s or path.startswith(s + ".")


LOADERS = (skip_v5, skip_v4, skip_vllm)


def matches_skip(path, skips):
    return any(f(path, s) for s in skips for f in LOADERS)


def matched_by_all(path, skips, loaders=LOADERS):
    return all(any(f(path, s) for s in skips) for f in loaders)


def plan(tensors, config, table_on=True, vae=False):
    """tensors: {name: (st_dtype, shape)} over ALL shards; config: dict of config.json. None: serve the directory unquantized.
    vae: as if all modules of an autoencoder were forced."""
    if config.get("model_type") in UNSUPPORTED or config.get("quantization_config"):
        return None
    diff = "_class_name" in config
    if diff and not vae and any(w in config["_class_name"] for w in ("Autoencoder", "VAE", "Vae", "VQModel")):
        return None                                   # left alone unless its modules are forced
    mt = config.get("_class_name") if diff else config.get("model_type", "")
    arch = mt if diff else (config.get("architectures") or [""])[0]
    tab = (table()["diffusers" if diff else "transformers"].get(mt, {}) if table_on else {})
    never = tab.get("never", [])
    force = tab.get("linear", [])
    fp32 = tab.get("fp32", {}).get(arch, tab.get("fp32", {}).get("*", []))
    heads = tab.get("heads", {}).get(arch, [])
    inner = [] if diff or not table_on else nested(config, tab)
    fp32 = list(fp32) + [f for row in inner for cls in row.get("fp32", {}).values() for f in cls]
    own_conv1d = tab.get("conv1d", [])
    why, quant, plain = {}, set(), []
    for name, (dt, shape) in tensors.items():
        if len(shape) != 2 or dt not in FLOATS or not name.endswith(".weight"):
            continue
        path = name[:-7]
        r = None
        if any(glob(g, path) for g in never): r = "table"
        elif any(glob(g, path) for row in inner for g in row.get("never", [])): r = "table"
        elif path.rsplit(".", 1)[-1] not in own_conv1d and any(path.rsplit(".", 1)[-1] in row.get("conv1d", []) for row in inner): r = "table"
        elif any(glob(g, path) for g in heads) or (not diff and is_head(path)): r = "head"
        elif any(_fp32_hit(f, path, diff) for f in fp32): r = "fp32"
        elif any(c.endswith("weight") for c in path.split(".")): r = "name"   # transformers 5 then misreads "..._weight.weight.absmax"
        elif any(glob(g, path) for g in force): r = None
        elif in_experts(path): r = "experts"
        elif path.rsplit(".", 1)[-1] in ROUTERS or path.endswith(".router.layer"): r = "router"
        elif is_embedding_name(path) and not diff: r = "embedding"
        elif not diff and path.endswith("out_proj") and (path[:-8] + "in_proj_weight") in tensors: r = "mha"
        if r is None:
            quant.add(name)
        else:
            why[name] = r
            plain.append((path, r))
    if tab.get("none"):
        for n in quant: why[n] = "table"
        plain += [(n[:-7], "table") for n in sorted(quant)]
        quant = set()
    # ---- skip list: short, and closed under every loader's matching
    skip = [] if diff else [h for h in HEADS]
    skip += tab.get("skip", []) + tab.get("tied", {}).get(arch, []) + [h.removeprefix("**.") for h in heads if "*" not in h.removeprefix("**.")]
    opt = [] if diff else list(dict.fromkeys(OPTIONAL + tab.get("opt", [])))
    have = {n[:-7] for n in tensors if n.endswith(".weight")}
    opt = [x for x in opt if x not in skip and not any(p == x or p.endswith("." + x) for p in have)]
    skip += opt
    for path, r in sorted(plain):
        if r == "experts":
            if ".experts" not in skip: skip += [".experts", r".*\.experts"]
        elif r == "fp32":                            # both loaders append these patterns themselves; name them for the others
            f = next(f for f in fp32 if _fp32_hit(f, path, diff))
            if not diff and f not in skip: skip.append(f)
        elif not matched_by_all(path, skip, (skip_v5, skip_v4)):
            skip.append(path)
    changed = True
    while changed:                                   # closure: no entry may hit a tensor that IS quantized, under any loader
        changed = False
        for n in sorted(quant):
            hit = [s for s in skip if matches_skip(n[:-7], [s])]
            if not hit: continue
            changed = True
            if all((h in HEADS or h in opt) and not any(p == h or p.endswith("." + h) for p, _ in plain) for h in hit):
                skip = [s for s in skip if s not in hit]     # a purely defensive entry: drop it
            else:
                quant.discard(n); why[n] = "closure"         # else leave that tensor plain, for every loader
                if not matched_by_all(n[:-7], skip, (skip_v5, skip_v4)): skip.append(n[:-7])
    # ---- dtype: what the model computes in; weights are rounded to it BEFORE quantization (that is what from_pretrained does)
    D = config.get("dtype") or config.get("torch_dtype")
    if isinstance(D, str): D = ST.get(D.replace("torch.", ""))
    if D is None:
        D = next((dt for n, (dt, s) in sorted(tensors.items()) if dt in FLOATS), "F32")
    cast = {}
    strict = tab.get("fp32s", {}).get(arch, tab.get("fp32s", {}).get("*", []))
    strict = list(strict) + [f for row in inner for cls in row.get("fp32s", {}).values() for f in cls]
    for name, (dt, shape) in tensors.items():
        if dt not in FLOATS or not name.endswith("weight") or name in quant:
            continue                                  # the loader itself casts everything that is not "...weight"
        if diff:
            continue                                  # diffusers casts every float parameter to torch_dtype on load
        want = D
        if (D == "F16" and any(f in name for f in fp32)) or (D != "F32" and any(f in name for f in strict)):
            want = "F32"
        if dt != want:
            cast[name] = want
    conv = {n for n in quant if n[:-7].rsplit(".", 1)[-1] in tab.get("conv1d", [])}
    return Plan(quant, skip, D, cast, why, conv)


def _fp32_hit(f, path, diff):
    """_keep_in_fp32_modules is appended to the skip list by both loaders, with their own matching."""
    return skip_v4(path, f) if diff else (skip_v5(path, f) or skip_v4(path, f))
