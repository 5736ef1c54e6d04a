#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model by its name: python hub_cache.py MNT/nf4/hub org/name

The store has a hub cache (hub/models--org--name/…); a view of it is a hub cache, too, and
read-only: what is not in it cannot be downloaded into it."""
import argparse
import os


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", help="a hub cache's directory in a view")
    parser.add_argument("name", help="as from_pretrained() takes it: org/name")
    args = parser.parse_args()

    # Before the import: the libraries look once.
    os.environ.update(HF_HUB_CACHE=args.cache, HF_HUB_OFFLINE="1")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.name)
    config = model.config.quantization_config
    print("quantized by:", config.quant_method.value)


if __name__ == "__main__":
    main()
