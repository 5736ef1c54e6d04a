#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model of a view with transformers: python transformers_load.py MNT/nf4/llama"""
import argparse
import collections


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model's directory in a view")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …")
    args = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, device_map={"": args.device})
    kinds = collections.Counter(type(m).__name__ for m in model.modules()
                                if "Linear" in type(m).__name__)
    print("modules:", dict(kinds))
    print(f"memory: {model.get_memory_footprint() / 1e6:.1f} MB")
    ids = torch.arange(1, 9, device=model.device)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    print("logits:", tuple(logits.shape), "finite:", bool(logits.isfinite().all()))


if __name__ == "__main__":
    main()
