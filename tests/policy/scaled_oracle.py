# SPDX-License-Identifier: Apache-2.0
"""Parts and configs of the views of TorchAO, fp8 and compressed-tensors, written down a
second time from docs/FORMATS.md (section 8), without looking at the C code."""
VIEWS = ("ao-int8wo", "ao-int8dq", "ao-float8wo", "ao-float8wo-e5m2", "ao-float8dq-row",
         "fp8", "ct-fp8", "ct-w8a8", "ct-w8a16", "ct-w4a16")
GROUPED = ("ao-int8wo", "ao-float8wo", "ct-w8a16", "ct-w4a16")


def split(view):
    """(codec, group) of a view's name."""
    codec, _, group = view.partition("+group=")
    if group:
        return codec, int(group)
    return codec, 128 if codec in ("fp8", "ct-w8a16", "ct-w4a16") else 0


def is_scaled(view):
    return split(view)[0] in VIEWS


def fits(view, shape):
    codec, group = split(view)
    rows, cols = shape
    return not group or (cols % group == 0 and (codec != "fp8" or rows % group == 0))


def parts(view, name, shape, dtype):
    """(name, dtype, shape) of each part."""
    codec, group = split(view)
    rows, cols = shape
    stem = name.removesuffix("weight")
    per_row = cols // group if group else 1
    if codec.startswith("ao-int8"):
        return [(stem + "_weight_qdata", "I8", [rows, cols]),
                (stem + "_weight_scale", "F32", [rows, per_row]),
                (stem + "_weight_zero_point", "I8", [rows, per_row])]
    if codec.startswith("ao-float8"):
        return [(stem + "_weight_qdata", "F8_E5M2" if codec.endswith("e5m2") else "F8_E4M3",
                 [rows, cols]), (stem + "_weight_scale", "F32", [rows, per_row])]
    if codec == "fp8":
        return [(name, "F8_E4M3", [rows, cols]),
                (stem + "weight_scale_inv", "F32", [rows // group, cols // group])]
    scale = (stem + "weight_scale", dtype, [rows, per_row])
    if codec in ("ct-fp8", "ct-w8a8"):
        return [(name, "F8_E4M3" if codec == "ct-fp8" else "I8", [rows, cols]), scale]
    packed = 4 if codec == "ct-w8a16" else 8
    return [(stem + "weight_packed", "I32", [rows, cols // packed]), scale,
            (stem + "weight_shape", "I64", [2])]


# ---- quantization_config ----

ROW = {"_data": {"dim": -1}, "_type": "PerRow", "_version": 1}


def torch_dtype(name):
    return {"_data": name, "_type": "torch.dtype"}


def torchao_type(codec, group):
    granularity = ROW if not group else \
        {"_data": {"group_size": group}, "_type": "PerGroup", "_version": 1}
    e4m3 = torch_dtype("float8_e4m3fn")
    if codec == "ao-int8wo":
        return "Int8WeightOnlyConfig", {"granularity": granularity, "group_size": None}
    if codec == "ao-int8dq":
        return "Int8DynamicActivationInt8WeightConfig", {
            "act_mapping_type": {"_data": "SYMMETRIC", "_type": "MappingType"},
            "granularity": ROW, "reduce_range": False, "weight_only_decode": False}
    if codec == "ao-float8dq-row":
        mm = {"emulate": False, "pad_inner_dim": False, "use_fast_accum": True}
        return "Float8DynamicActivationFloat8WeightConfig", {
            "activation_dtype": e4m3, "weight_dtype": e4m3, "granularity": [ROW, ROW],
            "activation_value_lb": None, "activation_value_ub": None, "alg_id": 0,
            "kernel_preference": {"_data": "AUTO", "_type": "KernelPreference"},
            "mm_config": {"_data": mm, "_type": "Float8MMConfig", "_version": 1},
            "packing_format": {"_data": "PLAIN", "_type": "Float8PackingFormat"}}
    dtype = torch_dtype("float8_e5m2") if codec.endswith("e5m2") else e4m3
    return "Float8WeightOnlyConfig", {"granularity": granularity, "weight_dtype": dtype}


def torchao_config(view, skip, diffusers):
    name, data = torchao_type(*split(view))
    default = {"_type": name, "_version": 2, "_data": {**data, "set_inductor_config": True}}
    more = {} if diffusers else {"include_input_output_embeddings": False,
                                 "untie_embedding_weights": False}
    return {"quant_method": "torchao", "modules_to_not_convert": skip or None,
            "quant_type": {"default": default}, **more}


def ct_args(bits, kind, strategy, dynamic=False, group=None):
    return {"num_bits": bits, "type": kind, "symmetric": True, "group_size": group,
            "strategy": strategy, "block_structure": None, "dynamic": dynamic,
            "actorder": None, "observer": None if dynamic else "minmax",
            "observer_kwargs": {}}


def ct_config(view, skip):
    codec, group = split(view)
    kind = "float" if codec == "ct-fp8" else "int"
    if codec in ("ct-fp8", "ct-w8a8"):
        form = "float-quantized" if kind == "float" else "int-quantized"
        weights, acts = ct_args(8, kind, "channel"), ct_args(8, kind, "token", True)
    else:
        form, acts = "pack-quantized", None
        weights = ct_args(4 if "w4" in codec else 8, "int", "group", group=group)
    return {"quant_method": "compressed-tensors", "format": form, "ignore": skip,
            "quantization_status": "compressed", "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "config_groups": {"group_0": {
                "targets": ["Linear"], "weights": weights, "input_activations": acts,
                "output_activations": None}}}


def config(view, skip, diffusers):
    codec, group = split(view)
    if codec.startswith("ao-"):
        return torchao_config(view, skip, diffusers)
    if codec.startswith("ct-"):
        return ct_config(view, skip)
    return {"quant_method": "fp8", "activation_scheme": "dynamic",
            "weight_block_size": [group, group], "modules_to_not_convert": skip}
