#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""view/policy against its reference in Python, on random models.

    test_policy_diff.py POLICY_DUMP [COUNT [SEED]]

Every architecture of the table, and COUNT models of random kind. Needs Python alone.
"""
import random
import sys

import driver
import models


def all_architectures(rng):
    for family in ("transformers", "diffusers"):
        for name in sorted(models.bnbrule.table()[family]):
            tensors, config = models.random_model(rng, family, name)
            yield driver.request(tensors, config)


def all_classes(rng):
    """Every row of every class, with the names that its patterns are about."""
    for name, entry in sorted(models.bnbrule.table()["transformers"].items()):
        for cls in models.classes_of(entry):
            tensors = models.random_tensors(rng, models.words_of(entry), 12)
            config = {"model_type": name, "architectures": [cls],
                      "dtype": rng.choice(["float16", "bfloat16", "float32"])}
            yield driver.request(tensors, config)


def random_models(rng, count):
    for _ in range(count):
        tensors, config = models.random_model(rng)
        more = {}
        if rng.random() < 0.2:
            more["dtype"] = rng.choice(models.DTYPES)
        yield driver.request(tensors, config, rng.choice(["nf4", "fp4", "dq", "int8"]),
                             **more)


def check_sample(requests, answers):
    """That the random models reach every rule: else equal answers say little."""
    seen = {row[1] for a in answers if not a["reason"] for row in a["tensors"]}
    passed = sum(1 for a in answers if a["reason"])
    conv1d = sum(row[3] for a in answers if not a["reason"] for row in a["tensors"])
    missing = {*driver.REASONS, "quantized", "not weight"}
    missing -= seen
    if missing or passed == 0 or conv1d == 0:
        print(f"sample too small: reasons {missing} unseen, {passed} passed through, "
              f"{conv1d} conv1d")
        return 1
    return 0


def main():
    program = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1500
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    rng = random.Random(seed)
    bad = 0
    everything = []
    for what, requests in (("every architecture", list(all_architectures(rng))),
                           ("every class", list(all_classes(rng))),
                           ("random models", list(random_models(rng, count)))):
        answers = driver.ask(program, requests)
        bad += driver.report(what, requests, answers, driver.compare_plan)
        everything += zip(requests, answers)
    bad += check_sample(*zip(*everything))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
