#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""view/synth: config.json of a view against what docs/FORMATS.md section 6 says.

    test_synth_diff.py POLICY_DUMP [COUNT [SEED]]
"""
import copy
import json
import random
import sys

import driver
import models
import scaled_oracle

TORCH = driver.bnbrule.TORCH


def quantization_config(req, answer):
    view = req["view"]
    if scaled_oracle.is_scaled(view):
        return scaled_oracle.config(view, answer["skip"], "_class_name" in req["config"])
    four = view != "int8"
    compute = TORCH[req.get("compute", answer["dtype"])]
    storage = TORCH.get(req.get("storage", "U8"), "uint8")
    return {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": compute if four else "float32",
        "bnb_4bit_quant_storage": storage if four else "uint8",
        "bnb_4bit_quant_type": "nf4" if view in ("nf4", "dq") else "fp4",
        "bnb_4bit_use_double_quant": view == "dq",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": answer["skip"],
        "llm_int8_threshold": req.get("threshold", 6.0),
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }


def expected_config(req, answer):
    config = copy.deepcopy(req["config"])
    members = {"quantization_config": quantization_config(req, answer)}
    targets = [config]
    if "_class_name" not in config:
        members["dtype"] = TORCH[answer["dtype"]]
        targets += [v for k, v in config.items() if isinstance(v, dict)
                    and "model_type" in v and k != "quantization_config"]
    for target in targets:
        target.update(members)
        if "dtype" in members:
            target.pop("torch_dtype", None)
    return config


def compare_synth(req, answer):
    if answer["reason"]:
        return []
    if answer["rc"] != 0:
        return [f"C failed: {answer['error']}"]
    out = []
    want = expected_config(req, answer)
    if json.loads(answer["config_text"]) != want:
        out.append(f"config: C {answer['config_text']}, expected {want}")
    one_line = json.dumps(quantization_config(req, answer), ensure_ascii=False,
                          sort_keys=True)
    if f'"quantization_config": {one_line}' not in answer["config_text"]:
        out.append(f"spelling: expected {one_line} in {answer['config_text']}")
    return out


def sub_config(rng):
    sub = {"model_type": rng.choice(["clip_text_model", "llama", ""]), "hidden_size": 64}
    if rng.random() < 0.5:
        sub[rng.choice(["dtype", "torch_dtype"])] = "float32"
    if rng.random() < 0.2:
        del sub["model_type"]
    if rng.random() < 0.2:
        sub["inner_config"] = {"model_type": "untouched"}
    return sub


def requests(rng, count):
    for _ in range(count):
        tensors, config = models.random_model(rng)
        config["eps"] = 1.0
        for name in ("text_config", "vision_config", "tränsformer_config"):
            if rng.random() < 0.4:
                config[name] = sub_config(rng)
        items = list(config.items())
        rng.shuffle(items)
        config = dict(items)
        text = json.dumps(config, indent=rng.choice([2, 4, None]),
                          ensure_ascii=rng.random() < 0.5)
        more = {"config_text": text}
        if rng.random() < 0.3:
            more["storage"] = rng.choice(["BF16", "F16", "F32"])
        if rng.random() < 0.3:
            more["compute"] = rng.choice(models.DTYPES)
        if rng.random() < 0.3:
            more["threshold"] = rng.choice([0.0, 6.5, 100.0, 0.1, 1 / 3])
        view = rng.choice(["nf4", "fp4", "dq", "int8"])
        if rng.random() < 0.5:
            view = rng.choice(scaled_oracle.VIEWS + ("ao-int8wo+group=32",
                                                     "ct-w4a16+group=64"))
        yield driver.request(tensors, config, view, **more)


def main():
    program = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 3)
    asked = list(requests(rng, count))
    answers = driver.ask(program, asked)
    bad = driver.report("configs", asked, answers, compare_synth)
    bad += all(a["reason"] for a in answers)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
