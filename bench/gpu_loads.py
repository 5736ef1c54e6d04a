#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""from_pretrained of an 8B model, to the GPU, by every road: on the fly, through a view
for the first and the second time (encoding on the GPU and on the CPU), from a plain
pre-quantized copy, and from a bare FUSE server of the finished files.

    gpu_loads.py STORE OUT [--seconds N] [--rounds N] [--codecs nf4,dq,int8]
                 [--only warm,cold] [--cpu] [--device cuda:0] [--fresh-process]

STORE is what gpu_model.py wrote. Roads take turns within a round. Each load is a process
of its own, forked from one that has the libraries imported; it warms up with a tiny
model, and from_pretrained alone is timed, to the end of all copies. OUT gets loads.jsonl
(a line a load, at once), loads.json and loads.txt. --cpu: dry run without a GPU.

Wants QUANTFS_BIN, and QF_BARE_FUSE for the bare server's program."""
import argparse
import ctypes
import glob
import hashlib
import importlib
import json
import multiprocessing
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                  HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error",
                  PYTORCH_NVML_BASED_CUDA_CHECK="1", BITSANDBYTES_NOWELCOME="1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir,
                                "tests", "mount"))
import qfmount  # noqa: E402

LOAD_LIMIT_S = 90
SEAL_LIMIT_S = 45


# ---- one load, in a child ----

def quantization(codec):
    import torch
    from transformers import BitsAndBytesConfig
    if codec == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                              bnb_4bit_use_double_quant=codec == "dq",
                              bnb_4bit_compute_dtype=torch.bfloat16)


def load_model(path, codec, on_the_fly, device):
    import torch
    from transformers import AutoModelForCausalLM
    more = {"quantization_config": quantization(codec)} if on_the_fly else {}
    begin = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16,
                                                 device_map={"": device}, **more)
    if device != "cpu":
        torch.cuda.synchronize()
    return model, time.monotonic() - begin


def proc_status(key, pid="self"):
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
            for line in f:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def one_load(spec):
    import torch
    import bitsandbytes  # noqa: F401  not before the fork: it asks the driver
    device = spec["device"]
    load_model(spec["warm_up"], spec["codec"], spec["on_the_fly"], device)
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, seconds = load_model(spec["path"], spec["codec"], spec["on_the_fly"], device)
    result = {"seconds": round(seconds, 3), "loader_rss_peak": proc_status("VmHWM"),
              "loader_rss_anon": proc_status("RssAnon")}
    if device != "cpu":
        free, total = torch.cuda.mem_get_info()
        result.update(gpu_allocated_peak=torch.cuda.max_memory_allocated(),
                      gpu_reserved_peak=torch.cuda.max_memory_reserved(),
                      gpu_device_after=total - free)
    digest = hashlib.sha256()
    quantized = 0
    for name, module in model.named_modules():
        if type(module).__name__ not in ("Linear4bit", "Linear8bitLt"):
            continue
        quantized += 1
        if name.endswith("layers.1.self_attn.q_proj"):
            codes = module.weight.data.detach().cpu().contiguous()
            digest.update(codes.view(torch.uint8).numpy().tobytes())
    result.update(quantized=quantized, digest=digest.hexdigest()[:16])
    return result


def child_main(spec):
    try:
        import transformers
        transformers.utils.logging.disable_progress_bar()
        result = one_load(spec)
    except BaseException as e:
        traceback.print_exc()
        result = {"error": f"{type(e).__name__}: {e}"[:400]}
    return json.dumps(result).encode()


def fork_load(spec):
    """The child's (pid, descriptor of its answer)."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        answer = child_main(spec)
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    return pid, reader


def spawn_load(spec):
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--one",
                                json.dumps(spec), str(writer)], pass_fds=[writer])
    os.close(writer)
    return process.pid, reader


def await_answer(pid, reader, limit):
    end, data = time.monotonic() + limit, b""
    while True:
        left = end - time.monotonic()
        ready = select.select([reader], [], [], max(left, 0))[0]
        if not ready:
            os.kill(pid, signal.SIGKILL)
            data = json.dumps({"error": f"killed after {limit:.0f} s"}).encode()
            break
        piece = os.read(reader, 65536)
        if not piece:
            break
        data += piece
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    return json.loads(data) if data else {"error": f"died: status {status}"}


# ---- what is watched meanwhile ----

class Watch:
    """Peaks of the card's memory in use and of a daemon's anonymous memory, sampled in a
    process of its own."""

    def __init__(self, device):
        self.card = multiprocessing.Value(ctypes.c_longlong, 0)
        self.daemon = multiprocessing.Value(ctypes.c_longlong, 0)
        self.pid = multiprocessing.Value(ctypes.c_longlong, 0)
        self.process = multiprocessing.get_context("fork").Process(
            target=self._sample, args=(device,), daemon=True)
        self.process.start()

    def _sample(self, device):
        handle = nvml = None
        try:
            import pynvml as nvml
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByIndex(int(device.split(":")[1]))
        except Exception:
            handle = None
        while os.getppid() != 1:
            if handle is not None:
                used = nvml.nvmlDeviceGetMemoryInfo(handle).used
                self.card.value = max(self.card.value, used)
            if self.pid.value:
                anon = proc_status("RssAnon", self.pid.value)
                self.daemon.value = max(self.daemon.value, anon)
            time.sleep(0.02)

    def begin(self, pid):
        self.pid.value = pid or 0
        self.card.value = self.daemon.value = 0

    def end(self):
        return {"gpu_device_peak": self.card.value,
                "daemon_rss_anon_peak": self.daemon.value}


class Bare:
    """The bare FUSE server of a directory."""

    def __init__(self, program, directory, mnt):
        os.makedirs(mnt, exist_ok=True)
        self.mnt = mnt
        self.process = subprocess.Popen([program, directory, mnt],
                                        stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not qfmount.mounted(mnt):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the bare server does not come up")
            time.sleep(0.01)
        time.sleep(0.1)  # until read-ahead is set

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        qfmount.detach(self.mnt)


# ---- the bench ----

class Bench:
    def __init__(self, args):
        self.args = args
        self.store = os.path.abspath(args.store)
        self.work = os.path.join(os.path.dirname(self.store), "loads")
        self.out = args.out
        self.deadline = time.monotonic() + args.seconds
        self.results = []
        self.fresh = args.fresh_process
        self.bare_program = os.environ.get("QF_BARE_FUSE")
        os.makedirs(self.out, exist_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)
        os.makedirs(self.work)
        self.watch = Watch(args.device)
        self.log = open(f"{self.out}/loads.jsonl", "w", encoding="utf-8")

    def left(self):
        return self.deadline - time.monotonic()

    def say(self, **fields):
        self.log.write(json.dumps(fields) + "\n")
        self.log.flush()
        print("loads", *(f"{k}={v}" for k, v in fields.items() if v not in (None, "")))
        sys.stdout.flush()

    def load(self, codec, road, path, warm_up, on_the_fly=False, mount=None):
        """One load; its result is kept whatever happens."""
        if self.left() < 5:
            return
        spec = {"codec": codec, "path": path, "warm_up": warm_up,
                "on_the_fly": on_the_fly, "device": self.args.device}
        pid = mount.process.pid if mount is not None else None
        self.watch.begin(pid)
        start = spawn_load if self.fresh else fork_load
        result = await_answer(*start(spec), min(LOAD_LIMIT_S, self.left() + 10))
        if "error" in result and not self.results and not self.fresh:
            self.say(note="forked processes do not work: fresh ones from now on",
                     why=result["error"])
            self.fresh = True
            result = await_answer(*spawn_load(spec), LOAD_LIMIT_S)
        result.update(self.watch.end())
        if pid is not None:
            result["daemon_rss_peak"] = proc_status("VmHWM", pid)
        result.update(codec=codec, road=road)
        self.results.append(result)
        self.say(**result)

    def mount(self, name, codec, device, keep_cache=False):
        cache = os.path.join(self.work, f"cache-{name}")
        if not keep_cache:
            shutil.rmtree(cache, ignore_errors=True)
        return qfmount.Mount(self.store, cache=cache, views=codec, device=device,
                             cache_size=self.args.cache_size)

    def drop_mount(self, mount, cache_too=True):
        try:
            mount.close()
        except Exception as e:
            self.say(note=f"unmounting: {e}"[:300])
        if cache_too:
            shutil.rmtree(mount.cache, ignore_errors=True)

    def first_load(self, codec, road, device, name="first"):
        mount = self.mount(name, codec, device)
        try:
            mount.__enter__()
            self.load(codec, road, mount.path(codec, "big"), self.tiny(codec),
                      mount=mount)
            status = mount.status()
            self.say(note=f"{codec} {road}", **{k: status.get(k) for k in (
                "chunks_encoded", "device_chunks", "device_fallback_chunks",
                "device_failures", "source_bytes_read", "memory_peak",
                "cache_puts_dropped")})
        finally:
            mount.kill()  # its cache is thrown away: no need to write it out
            self.drop_mount(mount)

    def tiny(self, codec):
        path = os.path.join(self.work, f"tiny-{codec}")
        return path if os.path.isdir(path) else os.path.join(self.store, "tiny")

    def await_seals(self, mount, shards):
        """Until all shards are sealed, if this mount seals; says how it ended."""
        begin = time.monotonic()
        status = mount.status()
        while (status.get("passthrough") == "on" and
               status.get("shards_sealed", 0) < shards and
               time.monotonic() - begin < min(SEAL_LIMIT_S, self.left() - 60)):
            time.sleep(0.1)
            status = mount.status()
        self.say(note="after the first load", waited=round(time.monotonic() - begin, 1),
                 **{k: status.get(k) for k in ("passthrough", "shards_sealed",
                                               "cache_bytes", "cache_puts_dropped")})
        return "sealed" if (status.get("passthrough") == "on" and
                            status.get("shards_sealed", 0) >= shards) else "cached"

    def roads(self, codec, second, copy, sealed):
        """What takes turns, in the order of a round."""
        big = os.path.join(self.store, "big")
        tiny = self.tiny(codec)
        bare_mnt = os.path.join(self.work, "bare")

        def bare():
            if not self.bare_program:
                return
            server = Bare(self.bare_program, copy, bare_mnt)
            try:
                self.load(codec, "bare FUSE, first", bare_mnt, tiny)
                self.load(codec, "bare FUSE, second", bare_mnt, tiny)
            finally:
                server.close()

        yield lambda: self.first_load(codec, "view first, GPU", self.args.encode_device)
        yield bare
        yield lambda: self.load(codec, "on the fly", big, os.path.join(self.store, "tiny"),
                                on_the_fly=True)
        yield lambda: self.load(codec, "copy", copy, tiny)
        yield lambda: self.load(codec, f"view second, {sealed}",
                                second.path(codec, "big"), tiny, mount=second)
        yield lambda: self.first_load(codec, "view first, CPU", "cpu")

    def guarded(self, call):
        try:
            call()
        except Exception as e:
            traceback.print_exc()
            self.say(note=f"failed: {type(e).__name__}: {e}"[:400])

    def warm(self, codec, end):
        """All roads of one codec, until `end` at most."""
        shards = len(glob.glob(os.path.join(self.store, "big", "*.safetensors")))
        second = self.mount("second", codec, "cpu")
        copy = os.path.join(self.work, f"copy-{codec}")
        try:
            second.__enter__()
            shutil.copytree(second.path(codec, "tiny"),
                            os.path.join(self.work, f"tiny-{codec}"), dirs_exist_ok=True)
            self.load(codec, "view first, CPU (not counted)",
                      second.path(codec, "big"), self.tiny(codec), mount=second)
            sealed = self.await_seals(second, shards)
            begin = time.monotonic()
            subprocess.run(["cp", "-r", second.path(codec, "big"), copy], check=True,
                           timeout=120)
            self.say(note=f"{codec} copied", seconds=round(time.monotonic() - begin, 1))
            self.drop_mount(second, cache_too=False)  # as after a restart
            second = self.mount("second", codec, "cpu", keep_cache=True)
            second.__enter__()
            for _ in range(self.args.rounds):
                for road in self.roads(codec, second, copy, sealed):
                    if time.monotonic() > end or self.left() < 8:
                        return
                    self.guarded(road)
        finally:
            self.drop_mount(second)
            shutil.rmtree(copy, ignore_errors=True)

    def cold(self, codec):
        """From the disk: nothing of the source is in the page cache."""
        files = sorted(glob.glob(os.path.join(self.store, "big", "*.safetensors")))

        def drop():
            if self.args.cpu:
                return  # a dry run, maybe beside others
            os.sync()
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
                f.write("3")

        def dd(streams):
            drop()
            begin = time.monotonic()
            groups = [files] if streams == 1 else [[f] for f in files]
            jobs = [subprocess.Popen(["sh", "-c", 'for f; do dd if="$f" of=/dev/null '
                                      'bs=16M status=none; done', "dd", *g])
                    for g in groups]
            for job in jobs:
                job.wait()
            result = {"codec": codec, "road": f"cold: dd, {len(jobs)} at a time",
                      "seconds": round(time.monotonic() - begin, 3)}
            self.results.append(result)
            self.say(**result)

        def view(road, device):
            drop()
            self.first_load(codec, road, device, "cold")

        def fly():
            drop()
            self.load(codec, "cold: on the fly", os.path.join(self.store, "big"),
                      os.path.join(self.store, "tiny"), on_the_fly=True)

        steps = [lambda: dd(1),
                 lambda: view("cold: view first, GPU", self.args.encode_device),
                 lambda: view("cold: view first, CPU", "cpu"), lambda: dd(len(files)),
                 fly]
        for step in steps:
            if self.left() < 15:
                return
            self.guarded(step)

    # ---- the end ----

    def summary(self):
        cells = {}
        for r in self.results:
            if "error" not in r:
                cells.setdefault((r["codec"], r["road"]), []).append(r)

        def median(codec, road):
            runs = cells.get((codec, road))
            return statistics.median(r["seconds"] for r in runs) if runs else None

        lines = [f"{'codec':5} {'road':32} {'runs':>4} {'seconds':>8} {'min':>7} "
                 f"{'max':>7} {'GPU alloc':>9} {'GPU card':>8} {'loader':>7} "
                 f"{'daemon':>7} {'anon':>6}  codes"]
        table = []
        for (codec, road), runs in cells.items():
            def peak(key, runs=runs):
                return max((r.get(key, 0) for r in runs), default=0)
            seconds = [r["seconds"] for r in runs]
            row = {"codec": codec, "road": road, "runs": len(runs),
                   "seconds": statistics.median(seconds), "min": min(seconds),
                   "max": max(seconds),
                   **{k: peak(k) for k in ("gpu_allocated_peak", "gpu_device_peak",
                                           "loader_rss_peak", "daemon_rss_peak",
                                           "daemon_rss_anon_peak")},
                   "digests": sorted({r.get("digest", "") for r in runs})}
            table.append(row)
            lines.append(
                f"{codec:5} {road:32} {row['runs']:4} {row['seconds']:8.2f} "
                f"{row['min']:7.2f} {row['max']:7.2f} "
                f"{row['gpu_allocated_peak'] / 1e9:9.2f} "
                f"{row['gpu_device_peak'] / 1e9:8.2f} "
                f"{row['loader_rss_peak'] / 1e9:7.2f} {row['daemon_rss_peak'] / 1e9:7.2f} "
                f"{row['daemon_rss_anon_peak'] / 1e9:6.2f}  {' '.join(row['digests'])}")
        lines.append("(GB; loader, daemon: peak resident, with mapped files; anon: "
                     "without)")
        ratios = []

        def ratio(codec, road, other, bound):
            a, b = median(codec, road), median(codec, other)
            if a is None or b is None:
                return
            ratios.append({"codec": codec, "road": road, "to": other,
                           "ratio": round(a / b, 3), "bound": bound,
                           "ok": a / b <= bound})
            lines.append(f"{codec:5} {road} / {other}: {a / b:.2f} (wanted: at most "
                         f"{bound}){'' if a / b <= bound else '  MISSED'}")

        for codec in dict.fromkeys(c for c, _ in cells):
            for how in ("GPU", "CPU"):
                ratio(codec, f"view first, {how}", "bare FUSE, first", 1.15)
                ratio(codec, f"view first, {how}", "on the fly",
                      0.45 if codec == "int8" else 0.85)
                ratio(codec, f"cold: view first, {how}", "cold: dd, 1 at a time", 1.1)
            for how in ("sealed", "cached"):
                ratio(codec, f"view second, {how}", "copy", 1.1)
        failed = [r for r in self.results if "error" in r]
        lines += [f"failed: {r['codec']} {r['road']}: {r['error']}" for r in failed]
        with open(f"{self.out}/loads.json", "w", encoding="utf-8") as f:
            json.dump({"loads": table, "ratios": ratios, "failed": failed}, f, indent=1)
        with open(f"{self.out}/loads.txt", "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
        print("\n".join(lines))
        return len(failed)

    def run(self):
        codecs = self.args.codecs.split(",")
        cold_s = 70 if "cold" in self.args.only else 0
        shares = {"nf4": 1.0, "dq": 0.8, "int8": 1.3}
        try:
            if "warm" in self.args.only:
                for i, codec in enumerate(codecs):
                    rest = sum(shares[c] for c in codecs[i:])
                    room = (self.left() - cold_s - 5) * shares[codec] / rest
                    self.guarded(lambda c=codec, r=room: self.warm(
                        c, time.monotonic() + r))
            if cold_s:
                self.guarded(lambda: self.cold(codecs[0]))
        finally:
            self.watch.process.terminate()
            failed = self.summary()
            shutil.rmtree(self.work, ignore_errors=True)
        return 1 if failed else 0


def import_libraries():
    """What every child needs, without touching the driver."""
    import torch  # noqa: F401
    import transformers  # noqa: F401
    import transformers.integrations  # noqa: F401
    import transformers.modeling_utils  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    import transformers.quantizers.auto  # noqa: F401
    import accelerate  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401
    for name in ("torch._inductor.lowering", "torch._inductor.compile_fx"):
        try:  # what bitsandbytes would import
            importlib.import_module(name)
        except Exception as e:
            print(f"loads note={name}: {e}")
    transformers.utils.logging.disable_progress_bar()


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "--one":
        os.write(int(sys.argv[3]), child_main(json.loads(sys.argv[2])))
        return 0
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("store")
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codecs", default="nf4,dq,int8")
    parser.add_argument("--only", default="warm,cold")
    parser.add_argument("--cache-size", default="24G")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--fresh-process", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    args.encode_device = args.device
    if args.cpu:
        args.device, args.encode_device = "cpu", "auto"
    begin = time.monotonic()
    if not args.fresh_process:
        import_libraries()
    bench = Bench(args)
    bench.say(note="libraries imported", seconds=round(time.monotonic() - begin, 1))
    return bench.run()


if __name__ == "__main__":
    sys.exit(main())
