# SPDX-License-Identifier: Apache-2.0
"""get_tensor and a clone of every tensor of a file: prints {"seconds": …}. Run by
part_reads.py with an interpreter that has safetensors and torch."""
import json
import sys
import time

try:
    import torch  # noqa: F401
    from safetensors import safe_open
except ImportError as e:
    print(e)
    sys.exit(77)


def main():
    begin = time.perf_counter()
    with safe_open(sys.argv[1], framework="pt") as f:
        for name in f.keys():
            f.get_tensor(name).clone()
    print(json.dumps({"seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
