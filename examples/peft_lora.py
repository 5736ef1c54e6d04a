#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""QLoRA on a model of a view: python peft_lora.py MNT/nf4/llama --output adapter

Trains a LoRA adapter on token ids that are made up; put your data where they are."""
import argparse


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model's directory in a view")
    parser.add_argument("--output", help="where the adapter is saved")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …")
    args = parser.parse_args()

    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, device_map={"": args.device})
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad),
                                  lr=1e-3)
    ids = torch.randint(0, model.config.vocab_size, (2, 16), device=args.device)
    for step in range(args.steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.4f}")
    if args.output:
        model.save_pretrained(args.output)
        print("adapter:", args.output)


if __name__ == "__main__":
    main()
