#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text with vLLM: python vllm_generate.py MNT/nf4/llama --prompt "Once upon a time"

Since 0.28 bitsandbytes is a plugin of vLLM's own. It takes quantized checkpoints on one GPU
(tensor parallel 1). Served: vllm serve MNT/nf4/llama --load-format bitsandbytes"""
import argparse


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model's directory in a view")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()

    from vllm import LLM, SamplingParams

    llm = LLM(model=args.model, load_format="bitsandbytes", quantization="bitsandbytes",
              tensor_parallel_size=1)
    for output in llm.generate([args.prompt], SamplingParams(max_tokens=args.tokens)):
        print(output.outputs[0].text)


if __name__ == "__main__":
    main()
