#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model of a view spread by accelerate: python accelerate_device_map.py MNT/nf4/llama

The map is made from the sizes of the quantized tensors. accelerate's own
load_and_quantize_model() takes no quantized checkpoint, of nobody; this is its road."""
import argparse


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model's directory in a view")
    parser.add_argument("--gpu-memory", default="8GiB", help="of each GPU (8GiB)")
    parser.add_argument("--cpu-memory", default="16GiB", help="of the CPU (16GiB)")
    args = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    limits = {i: args.gpu_memory for i in range(torch.cuda.device_count())}
    limits["cpu"] = args.cpu_memory
    model = AutoModelForCausalLM.from_pretrained(args.model, device_map="auto",
                                                 max_memory=limits)
    # With one device there is none.
    print("device map:", getattr(model, "hf_device_map", {"": str(model.device)}))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 9, device=model.device)[None]).logits
    print("logits:", tuple(logits.shape), "finite:", bool(logits.isfinite().all()))


if __name__ == "__main__":
    main()
