#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text with SGLang: python sglang_generate.py MNT/nf4/llama --prompt "Once upon a time"

Served: python -m sglang.launch_server --model-path MNT/nf4/llama --load-format bitsandbytes"""
import argparse


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model's directory in a view")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()

    import sglang

    engine = sglang.Engine(model_path=args.model, load_format="bitsandbytes")
    try:
        print(engine.generate(args.prompt, {"max_new_tokens": args.tokens})["text"])
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
