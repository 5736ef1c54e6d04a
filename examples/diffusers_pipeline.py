#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A picture with a pipeline of a view: python diffusers_pipeline.py MNT/nf4/flux -o x.png

diffusers loads quantized components on a machine with a GPU only."""
import argparse


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", help="a pipeline's directory in a view")
    parser.add_argument("-o", "--output", default="out.png")
    parser.add_argument("--prompt", default="a lighthouse at night")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=512, help="of each side, in pixels")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", help="the model's (bfloat16)")
    args = parser.parse_args()

    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(args.pipeline,
                                             torch_dtype=getattr(torch, args.dtype))
    pipe.to(args.device)
    for name, part in pipe.components.items():
        if getattr(part, "is_quantized", False):
            print("quantized:", name)
    image = pipe(args.prompt, num_inference_steps=args.steps, height=args.size,
                 width=args.size).images[0]
    image.save(args.output)
    print("saved:", args.output)


if __name__ == "__main__":
    main()
