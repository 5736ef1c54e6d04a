#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs check: what it says, and the status that a script gets."""
import json
import os

import qfmount
import qfstore as S


def check(*args):
    return qfmount.run("check", *args)


def check_json(*args):
    rc, out, err = check("--json", *args)
    return rc, json.loads(out), err


class Check(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.model = f"{self.store}/org/model"
        S.write_llama(self.model)

    def test_default(self):
        rc, found, err = check_json(self.model)
        self.assertEqual((rc, err, found["good"], found["impossible"]),
                         (0, "", True, []))
        (model, ) = found["models"]
        self.assertEqual(model["path"], self.model)
        self.assertEqual([v["view"] for v in model["views"]],
                         ["nf4", "int8", "dq", "fp4"])
        for view in model["views"]:
            self.assertEqual(view["quantized_tensors"], 7)
            loads = {k: v["loads"] for k, v in view["loaders"].items()}
            self.assertEqual(loads["transformers"], "yes")
            self.assertEqual(loads["diffusers"], "no")
            for loader in view["loaders"].values():
                self.assertTrue(all(c["source"] and c["text"] for c in loader["claims"]))

    def test_text(self):
        rc, out, err = check("--view", "nf4+skip=q_proj:nothing", self.model)
        self.assertEqual((rc, err), (0, ""))
        self.assertIn("nf4+skip=nothing:q_proj (the name of nf4+skip=q_proj:nothing): "
                      "6 tensors quantized\n", out)
        self.assertIn("'nothing' of skip matches no module", out)
        self.assertNotIn("'q_proj' of", out)
        self.assertRegex(out, r"\n    transformers +yes +from_pretrained")

    def test_impossible(self):
        cases = {"nf4+blocksize=100": "'blocksize' must be a power of two from 64",
                 "int8+blocksize=64": "int8 has no setting 'blocksize'",
                 "q4": "no view is called 'q4'"}
        for view, says in cases.items():
            rc, out, _ = check("--view", view, "--view", "dq", self.model)
            self.assertEqual(rc, 3)
            self.assertIn(f"impossible: ", out)
            self.assertIn(says, out)
            self.assertIn("  dq: 7 tensors", out)
            rc, found, _ = check_json("--view", view, self.model)
            self.assertEqual((rc, found["good"], found["impossible"][0]["asked"]),
                             (3, False, view))
            self.assertIn(says, found["impossible"][0]["reason"])

    def test_passes_through(self):
        S.write_llama(f"{self.store}/done", config={"quantization_config": {
            "quant_method": "gptq", "bits": 4}})
        rc, found, _ = check_json("--view", "nf4", self.store)
        self.assertEqual((rc, found["good"]), (3, False))
        done, good = found["models"]
        self.assertIn("already quantized", done["reason"])
        self.assertEqual([v["good"] for v in done["views"] + good["views"]],
                         [False, True])
        # A pattern with a slip of the pen: nothing is left to quantize.
        rc, out, _ = check("--view", "nf4+only=mpl", self.model)
        self.assertEqual(rc, 3)
        self.assertIn("no tensor of it can be quantized", out)
        self.assertIn("'mpl' of only matches no module", out)

    def test_loader(self):
        for loader, want in (("transformers", 0), ("safetensors", 0), ("peft", 0),
                             ("accelerate", 0), ("vllm", 3), ("diffusers", 3)):
            self.assertEqual(check("--loader", loader, self.model)[0], want, loader)
        rc, out, _ = check("--loader", "vllm", "--tensor-parallel", "2", self.model)
        self.assertEqual(rc, 3)
        self.assertRegex(out, r"vllm +no +it refuses .* tensor parallel > 1")
        self.assertEqual(check("--tensor-parallel", "2", self.model)[0], 0)

    def test_overrides(self):
        S.write_json(f"{self.model}/quantfs.json", {"skip": ["k_proj", "oops"]})
        policy = os.path.join(self.dir, "policy.json")
        S.write_json(policy, {"only": ["self_attn"]})
        rc, found, _ = check_json("--view", "nf4", "--policy", policy, self.model)
        (view, ) = found["models"][0]["views"]
        self.assertEqual((rc, view["quantized_tensors"]), (0, 3))
        self.assertEqual(view["unmatched"], [{"setting": "skip", "pattern": "oops"}])
        S.write_json(policy, {"only": 1})
        rc, _, err = check("--policy", policy, self.model)
        self.assertEqual(rc, 2)
        self.assertIn("policy.json: 'only' must be a list", err)

    def test_odd_names(self):
        """Text has nothing that a terminal takes for a command; JSON is UTF-8 whatever a
        path holds, and Python has the path back from it."""
        path = os.fsdecode(os.fsencode(self.store) + b"/m\xff\xc3\xa9")
        S.write_llama(path)
        S.write_json(f"{path}/quantfs.json", {"skip": ["no\x1b[2J"]})
        rc, found, _ = check_json("--view", "nf4", path)
        self.assertEqual((rc, found["models"][0]["path"]), (0, path))
        (view, ) = found["models"][0]["views"]
        self.assertEqual(view["unmatched"], [{"setting": "skip", "pattern": "no\x1b[2J"}])
        os.rename(path, f"{self.store}/m")
        rc, out, _ = check("--view", "nf4", f"{self.store}/m")
        self.assertEqual(rc, 0)
        self.assertIn("'no?[2J' of skip matches no module", out)

    def test_errors(self):
        os.makedirs(f"{self.store}/empty")
        S.write(f"{self.store}/bare/model.safetensors", b"x")
        for args, code, says in (
                ((), 1, "PATH is missing"), (("--loader", "x", self.model), 1, "'x'"),
                (("--tensor-parallel", "0", self.model), 1, "'0'"),
                (("--oops", self.model), 1, "--oops"),
                (("--view", "nf4") * 33 + (self.model, ), 1, "more than 32"),
                ((f"{self.store}/absent", ), 2, "No such file"),
                ((f"{self.store}/empty", ), 2, "no model"),
                ((f"{self.store}/bare", ), 2, "without a config.json")):
            rc, _, err = check(*args)
            self.assertEqual(rc, code, args)
            self.assertIn(says, err)
        rc, out, _ = check("--help")
        self.assertEqual(rc, 0)
        self.assertIn("exit codes", out)

    def test_in_a_mount(self):
        with qfmount.Mount(self.store, views="nf4:int8") as m:
            rc, found, _ = check_json(m.path("nf4+skip=b:a/org/model/config.json"))
            self.assertEqual(rc, 0)
            (model, ) = found["models"]
            self.assertEqual(model["path"], self.model)
            (view, ) = model["views"]
            self.assertEqual((view["asked"], view["view"]),
                             ("nf4+skip=b:a", "nf4+skip=a:b"))
            # The views of the mount, from its top.
            _, found, _ = check_json(m.mnt)
            self.assertEqual([v["view"] for v in found["models"][0]["views"]],
                             ["nf4", "int8"])
            # What is not there, and why.
            for name, says in (("nf4+blocksize=100", "'blocksize' must be"),
                               ("nf4+colour=red", "no setting 'colour'"),
                               ("dq", "no view of dq (-o views=nf4:int8)"),
                               ("nonsense", "no view is called 'nonsense'")):
                path = m.path(name, "org/model")
                self.assertFalse(os.path.exists(path))
                rc, out, _ = check(path)
                self.assertEqual(rc, 3)
                self.assertIn(says, out)
            self.assertEqual(check(m.path("nf4/org/absent"))[0], 2)
            self.assertEqual(check(m.path("nf4+blocksize=100/org/absent"))[0], 2)


if __name__ == "__main__":
    qfmount.main()
