#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""llama.cpp (llama-cpp-python, a source package: building it takes long, so it is not
among the requirements) loads GGUF views, generates the tokens that it generates of a
file which the gguf package wrote, and computes logits like those of transformers.

    QUANTFS_BIN=build/ci/cli/quantfs .venv/bin/python tests/loaders/llama_cpp_views.py"""
import os
import shutil
import sys
import tempfile

import run

sys.path.insert(0, os.path.join(os.path.dirname(run.HERE), "mount"))
import gguf_views as G  # noqa: E402
import qfmount  # noqa: E402

TEXT = "The lazy dog shows weights, \u00fcber 42."


def generate(path, ids):
    """(greedy tokens, logits of the prompt)."""
    import numpy as np
    from llama_cpp import Llama
    model = Llama(model_path=path, n_ctx=96, n_threads=1, logits_all=True, verbose=False)
    model.eval(ids)
    logits = np.array(model.scores[:len(ids)], dtype=np.float64)
    out = []
    for token in model.generate(ids, temp=0.0, top_k=1):
        out.append(token)
        if len(out) == 24:
            return out, logits


def copy_by_package(path, copy):
    """Tensors and pairs written anew by the package's writer."""
    import gguf
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(copy, G.field(reader, "general.architecture"))
    for key, f in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, f.contents(), f.types[0],
                                 sub_type=f.types[1] if len(f.types) > 1 else None)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(path, source, file_type, work):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    ids = AutoTokenizer.from_pretrained(source)(TEXT).input_ids
    tokens, logits = generate(path, ids)
    copy = os.path.join(work, "copy.gguf")
    copy_by_package(path, copy)
    if generate(copy, ids)[0] != tokens:
        return "other tokens than of the package's file"
    plain = G.quantize_like(
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), file_type)
    with torch.no_grad():
        want = plain(torch.tensor([ids])).logits[0].double()
    got = torch.from_numpy(logits)
    cosine = float((got * want).sum(1).div(got.norm(dim=1) * want.norm(dim=1)).min())
    return None if cosine > 0.99 else f"cosine {cosine:.5f} with transformers"


def check_tokens(path, source):
    from llama_cpp import Llama
    from transformers import AutoTokenizer
    model = Llama(model_path=path, vocab_only=True, verbose=False)
    want = AutoTokenizer.from_pretrained(source)(TEXT).input_ids
    got = model.tokenize(TEXT.encode(), add_bos=False, special=False)
    return None if got == want else f"{got}, not {want}"


def main():
    reason = qfmount.why_not()
    try:
        import llama_cpp
        import models  # noqa: F401
        assert llama_cpp.Llama
    except ImportError as e:
        reason = reason or str(e)
    if reason:
        print(f"skip all: {reason}")
        return 77
    report, work = run.Report(), tempfile.mkdtemp(prefix="quantfs-llama-")
    try:
        store = os.path.join(work, "store")
        for name, make in G.LLMS.items():
            make(os.path.join(store, name))
        with qfmount.Mount(store, cache=os.path.join(work, "cache")) as m:
            for name in G.LLMS:
                for kind in ("F16", "Q8_0", "Q4_0"):
                    path = m.path(f"gguf-{kind.lower()}", name, f"{name}-{kind}.gguf")
                    report.run(f"llama.cpp:{kind}:{name}", check, path,
                               os.path.join(store, name), kind, work)
                report.run(f"tokens:{name}", check_tokens, path, os.path.join(store, name))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
