# SPDX-License-Identifier: Apache-2.0
"""bnbquant.py: numpy reproduction of bitsandbytes 0.50.2 weight quantizers (no torch).

backend="cpu"  : bit-identical to bitsandbytes on CPU (x86-64): default/ops.py quantize_4bit, int8_vectorwise_quant,
                 csrc/cpu_ops.cpp quantize_cpu (nested absmax), at::mean (single thread).
backend="cuda" : THE DEFINITION. The arithmetic of csrc/kernels.cu, but with IEEE reciprocal/division (bitsandbytes is built with
                 --use_fast_math, i.e. MUFU.RCP and ftz; see the report).
Inputs are fp32 arrays (fp16/bf16 widen exactly) plus the name of the dtype they came from.
"""
import json
import numpy as np

f4 = np.float32
BS, NBS = 64, 256

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0], f4)
FP4 = (np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], f4) / f4(12)).astype(f4)
FP4[8] = f4(0.0)   # the literal is -0 (an int in a list with floats): torch stores +0.0
QUANT_MAP = {"nf4": NF4, "fp4": FP4}

# CUDA decision trees (kernels.cu dQuantizeNF4 / dQuantizeFP4): index = number of thresholds strictly below x
NF4_CUDA_T = np.array([0xbf591cd9, 0xbf1c5270, 0xbeeb8480, 0xbeadea76, 0xbe703cec, 0xbe0d38bc, 0xbd3a7871, 0x3d22faff, 0x3df64863, 0x3e5067e0, 0x3e9582d4, 0x3ec753f9, 0x3f006d03, 0x3f248daf, 0x3f5c89d9], np.uint32).view(f4)   # as a C compiler reads the decimals of kernels.cu
FP4_CUDA_T = np.array([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333], f4)
FP4_CUDA_CODE = np.array([0, 1, 6, 7, 4, 5, 2, 3], np.uint8)  # magnitude order -> 3-bit code


def _cpu_bounds(qt):
    """torch: midpoints of the sorted code and the argsort order (FP4 has two zeros: 0b0000 first, then 0b1000)."""
    c = QUANT_MAP[qt]
    order = np.argsort(c, kind="stable")
    s = c[order]
    return ((s[:-1] + s[1:]) / f4(2)).astype(f4), order.astype(np.uint8)


def bucketize(x, bounds):
    """torch.bucketize(right=False): number of bounds < x; NaN -> len(bounds)."""
    return np.searchsorted(bounds, x, side="left")


def quantize_4bit(w, qt="nf4", backend="cpu"):
    """w: fp32 ndarray (any shape) -> packed uint8 [(n+1)//2], absmax fp32 [ceil(n/64)]. High nibble = even element."""
    a = np.ascontiguousarray(w, f4).reshape(-1)
    n = a.size
    full = n - n % BS
    with np.errstate(all="ignore"):
        if backend == "cpu":
            blk = a[:full].reshape(-1, BS)
            am = _absmax_nan(blk)
            scaled = _clip1((blk * (f4(1) / _clampmin(am))[:, None])).reshape(-1)
            if n != full:
                t = _clampmin(_absmax_nan(a[full:].reshape(1, -1)))      # clamped value is also what is STORED
                am = np.concatenate([am, t])
                scaled = np.concatenate([scaled, _clip1(a[full:] / t[0])])  # division, not reciprocal multiply
            if scaled.size % 2:
                scaled = np.concatenate([scaled, np.zeros(1, f4)])
            bounds, order = _cpu_bounds(qt)
            q = order[bucketize(scaled, bounds)] if qt != "nf4" else bucketize(scaled, bounds).astype(np.uint8)
        else:
            pad = (-n) % BS
            b = np.concatenate([a, np.zeros(pad, f4)]).reshape(-1, BS)
            am = np.fmax.reduce(np.abs(b), axis=1)                       # fmaxf drops NaN
            x = (b * (f4(1) / am)[:, None]).reshape(-1)
            if qt == "nf4":
                q = np.where(np.isnan(x), 0, np.searchsorted(NF4_CUDA_T, x, side="left")).astype(np.uint8)
            else:
                m = np.searchsorted(FP4_CUDA_T, np.abs(x), side="left")
                q = np.where(np.isnan(x), 0, FP4_CUDA_CODE[np.minimum(m, 7)] + np.where(x < 0, 8, 0)).astype(np.uint8)
            q.reshape(-1, BS)[am == 0] = 7 if qt == "nf4" else 0      # an all-zero block is zeros (CUDA: NaN -> code 0, see FORMATS)
            q = q[: n + (n & 1)]
    return ((q[0::2] << 4) | q[1::2]).astype(np.uint8), am.astype(f4)


def _absmax_nan(b):
    return np.max(np.abs(b), axis=1) if b.shape[0] else np.zeros(0, f4)   # NaN propagates like torch.max


def _clampmin(x):
    return np.where(np.isnan(x), x, np.maximum(x, f4(1e-38))).astype(f4)


def _clip1(x):
    return np.where(np.isnan(x), x, np.minimum(np.maximum(x, f4(-1)), f4(1))).astype(f4)


# ------------------------------------------------------------------ dynamic 8-bit map (nested_quant_map)

def linspace32(a, b, n):
    """torch.linspace(float32) on CPU: step in fp32; first half start+i*step, second half end-(n-1-i)*step."""
    step = (f4(b) - f4(a)) / f4(n - 1)
    i = np.arange(n)
    with np.errstate(all="ignore"):
        lo = _fma(i.astype(f4), step, f4(a))
        hi = _fma(-(n - 1 - i).astype(f4), step, f4(b))
    return np.where(i < n // 2, lo, hi).astype(f4)


def _fma(x, y, z):
    return (x.astype(np.float64) * np.float64(y) + np.float64(z)).astype(f4)


def dynamic_map():
    """create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8) -> 256 fp32 (sorted)."""
    data = []
    for i in range(7):
        b = linspace32(0.1, 1.0, 2 ** i + 1)
        means = ((b[:-1] + b[1:]) / f4(2)).astype(f4)
        s = 10 ** (-6 + i)                         # python float (or int 1), applied to an fp32 tensor: fp32 product
        data += (f4(s) * means).astype(f4).tolist()
        data += (f4(-s) * means).astype(f4).tolist()
    data += [0.0, 1.0]
    return np.sort(np.array(data, np.float64)).astype(f4)


DYN = dynamic_map()


def _cpu_lut():
    """cpu_ops.cpp build_quantize_lut: 65536 bins over [-1,1]."""
    mid = (f4(0.5) * (DYN[:-1] + DYN[1:])).astype(f4)
    i = np.arange(65536)
    val = (f4(-1) + (f4(2) * i.astype(f4)) / f4(65535)).astype(f4)
    return np.searchsorted(mid, val, side="left").astype(np.uint8)     # number of midpoints < val


_LUT = None


def quantize_blockwise8(x, backend="cpu"):
    """fp32 [n] -> uint8 [n], absmax fp32 [ceil(n/256)] with the dynamic map, blocksize 256."""
    global _LUT
    n = x.size
    pad = (-n) % NBS
    b = np.concatenate([x.astype(f4), np.zeros(pad, f4)]).reshape(-1, NBS)
    with np.errstate(all="ignore"):
        am = np.fmax.reduce(np.abs(b), axis=1).astype(f4)
        if backend == "cpu":
            if _LUT is None:
                _LUT = _cpu_lut()
            inv = np.where(am == 0, f4(0), f4(1) / am).astype(f4)
            v = _clip1((b * inv[:, None]).astype(f4))
            idx = _fma((v + f4(1)) * f4(0.5), f4(65535), f4(0.5))            # gcc contracts to fma
            idx = np.where(np.isnan(idx), 0, idx).astype(np.int64) & 0xFFFF
            q = _LUT[idx]
            q[am == 0] = 0                                                  # an all-zero block is code 0
        else:
            q = _dquantize_cuda((b * (f4(1) / am)[:, None]).astype(f4).reshape(-1)).reshape(b.shape)
    return q.reshape(-1)[:n], am


def _dquantize_cuda(x):
    """kernels.cu dQuantize<0>: binary search over the code, then nearest of the two neighbours."""
    c = DYN
    pivot = np.full(x.shape, 127); up = np.full(x.shape, 255); lo = np.zeros(x.shape, int)
    lower = np.full(x.shape, f4(-1)); upper = np.full(x.shape, f4(1))
    val = c[pivot]
    i = 64
    while i > 0:
        gt = x > val
        lo = np.where(gt, pivot, lo); lower = np.where(gt, val, lower)
        up = np.where(gt, up, pivot); upper = np.where(gt, upper, val)
        pivot = np.where(gt, pivot + i, pivot - i)
        val = c[pivot]
        i >>= 1
    upper = np.where(up == 255, c[255], upper)
    lower = np.where(lo == 0, c[0], lower)
    gt = x > val
    m1 = ((upper + val) * f4(0.5)).astype(f4)
    m2 = ((lower + val) * f4(0.5)).astype(f4)
    return np.where(gt, np.where(x > m1, up, pivot), np.where(x < m2, lo, pivot)).astype(np.uint8)


# ------------------------------------------------------------------ at::mean on CPU, one thread

def torch_sum_f32(x, vec=8):
    """aten SumKernel.cpp cascade_sum, contiguous fp32, one chunk: 8 lanes x 4 accumulators, 4 cascade levels.
    Same on AVX2, AVX512 and scalar x86 builds (the kernel is not built for AVX512; scalar Vectorized<float> is 8 wide)."""
    n = x.size
    if n < vec:                                        # scalar_inner_sum: same scheme with one lane
        vec = 1
    nv = n // vec
    rows = x[: nv * vec].reshape(nv, vec)
    ilp = 4
    sz = nv // ilp
    part = _multi_row(rows[: sz * ilp].reshape(sz, ilp, vec))   # [ilp, vec]
    for r in rows[sz * ilp:]:
        part[0] = part[0] + r
    for k in range(1, ilp):
        part[0] = part[0] + part[k]
    fin = f4(0)
    for t in x[nv * vec:]:
        fin = f4(fin + t)
    for t in part[0]:
        fin = f4(fin + t)
    return fin


def _multi_row(a):
    size = a.shape[0]
    lg = int(size - 1).bit_length() if size > 0 else 0    # CeilLog2
    p = max(4, lg // 4)
    step, mask = 1 << p, (1 << p) - 1
    acc = [np.zeros(a.shape[1:], f4) for _ in range(4)]
    i = 0
    while i + step <= size:
        for _ in range(step):
            acc[0] = acc[0] + a[i]; i += 1
        for j in range(1, 4):
            acc[j] = acc[j] + acc[j - 1]
            acc[j - 1] = np.zeros_like(acc[0])
            if i & (mask << (j * p)):
                break
    while i < size:
        acc[0] = acc[0] + a[i]; i += 1
    for j in range(1, 4):
        acc[0] = acc[0] + acc[j]
    return acc[0].copy()


def mean_f32(x, how="torch"):
    """how: torch  = at::mean on CPU with ONE thread (or fewer than 32768 values, where threads do not matter)
            torchN = the same with N threads (at::parallel_reduce two-pass; N = torch.get_num_threads())
            f64    = fp64 accumulation, rounded once (what we propose as canonical: order-independent in practice)."""
    n = x.size
    if how == "f64":
        return f4(x.astype(np.float64).sum() / n)
    nt = int(how[5:] or 1)
    if nt > 1 and n >= 32768:
        c = -(-n // min(nt, -(-n // 32768)))
        parts = np.array([torch_sum_f32(x[i:i + c]) for i in range(0, n, c)] + [f4(0)] * nt, f4)[:nt]
        return f4(torch_sum_f32(parts) / f4(n))
    return f4(torch_sum_f32(x) / f4(n))


def double_quant(absmax, backend="cpu", mean="torch"):
    off = mean_f32(absmax, mean)
    q, am2 = quantize_blockwise8((absmax - off).astype(f4), backend)
    return q, am2, off


# ------------------------------------------------------------------ LLM.int8()

def quantize_int8(w):
    """w: fp32 view of a [rows, cols] weight. Weights are first rounded to fp16 (Int8Params._quantize).
    -> int8 [rows, cols], SCB fp32 [rows] (= fp16 row absmax, threshold 0: no outliers in weights)."""
    with np.errstate(all="ignore"):
        a = w.astype(np.float16).astype(f4)
        scb = np.max(np.abs(a), axis=1).astype(f4)
        x = np.rint(a * ((f4(1) / scb) * f4(127))[:, None])   # torch: 127.0 / t == t.reciprocal() * 127.0
        q = np.where(np.isfinite(x), x, 0).astype(np.int64)             # 0*inf = NaN -> 0
    return q.astype(np.int8), scb


def quant_state_json(qt, dtype, shape, nested_offset=None, nested_dtype="float32"):
    d = {"quant_type": qt, "blocksize": BS, "dtype": dtype, "shape": [int(s) for s in shape]}
    if nested_offset is not None:
        d.update({"nested_blocksize": NBS, "nested_dtype": nested_dtype, "nested_offset": float(nested_offset)})
    return json.dumps(d).encode()
