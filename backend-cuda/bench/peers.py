#!/usr/bin/env python3
"""What the same device reaches with other people's kernels, for the table of run.sh.

    peers.py                        every peer that runs here, 8192 x 8192 weights
    peers.py --small --device cpu   the same code on small shapes, without a GPU where PyTorch has a CPU form of
                                    it: shows that it runs and gives right answers; its times mean nothing
    peers.py --no-torch             cuBLAS and a copy through the driver alone, as where PyTorch is not installed
    peers.py --compile-triton       compiles the Triton kernels for Hopper; needs Triton alone
    peers.py --self-test            what needs no peer: formats, checks, rows

One JSON object a line: cuBLAS bf16 and fp8, without and with fast accumulation (through PyTorch; bf16 by ctypes
without it), Triton's dot_scaled on MXFP4 operands, Triton's dequantization to bf16 followed by cuBLAS, a copy.

A product is timed as benches/gpu.rs times ours: the calls are captured in a CUDA graph and replayed, so that
what the host takes for a launch does not count, and with few rows of A they take the weight in turn from
several copies, so that it does not stay in the L2 cache. Times are between two events of the device. Every
answer is compared with numpy's on sampled rows and columns twice: after ordinary calls, and, the outputs
overwritten in between, after the timed replays. A peer that does not run here prints a row with the reason.
Not yet run on hardware.
"""

import argparse
import contextlib
import ctypes
import functools
import glob
import importlib.util
import json
import os
import pathlib
import sys
import time

import numpy as np

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
GROUP = 32
# Copies of the weight that calls with few rows of A take in turn, and calls in a graph: as in
# benches/gpu.rs.
COPIES, SMALL_COPIES = 8, 2
GRAPH_CALLS = 8
# Of the sum of the terms' sizes: for bf16 operands, whose products are exact, sums in f32 of which
# parts may be rounded to bf16 in between; for fp8, whose accumulators are narrower.
BF16, FP8 = 2**-12, 2**-10


def emit(row, **values):
    print(json.dumps({"row": row, **values}), flush=True)


def reason(error):
    return f"{type(error).__name__}: {error}"[:300]


# ---- what is right


def unpack(codes, scales):
    """Values of packed MXFP4 rows, as f64."""
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(codes.shape[0], -1)
    return VALUES[nibbles] * np.exp2(scales.astype(np.float64) - 127).repeat(GROUP, axis=1)


def to_bf16(x):
    """The bits of f32 values rounded to bf16."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def sample(m, n):
    """Some rows and columns, both ends among them: 64 outputs at least, where there are as many."""
    rows = np.unique(np.linspace(0, m - 1, min(m, 8)).astype(int))
    columns = np.unique(np.linspace(0, n - 1, min(n, -(-64 // len(rows)))).astype(int))
    return rows, columns


def check(got, a, b, share, what):
    """Compares outputs `got` (sampled rows x sampled columns, bf16) with a @ b.T of the sampled rows of both: one
    rounding to bf16 is at most 2^-9 of the output, twice that is allowed; the floating-point sum before it, in some
    order, is off by at most `share` of the sum of the terms' sizes."""
    a, b, got = (np.asarray(x, dtype=np.float64) for x in (a, b, got))
    expected, size = a @ b.T, np.abs(a) @ np.abs(b).T
    if got.shape != expected.shape:
        raise ValueError(f"{what}: an answer of shape {got.shape}, expected {expected.shape}")
    wrong = ~(np.abs(got - expected) <= 2**-8 * np.abs(expected) + share * size)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{what}: {int(wrong.sum())} of {wrong.size} wrong, {at} is {got[at]}, expected {expected[at]}")
    return int(got.size)


def packed(rng, rows, k):
    return (
        rng.integers(0, 256, (rows, k // 2), dtype=np.uint8),
        rng.integers(120, 128, (rows, k // GROUP), dtype=np.uint8),
    )


def measure(device, calls, answer, spoil, share, what):
    """Seconds of one call, how many outputs were compared, and how many calls are in a graph. `calls` has one call for
    each copy of the weight; `answer()` gives (sampled outputs, sampled rows of A, of B); `spoil()` overwrites the outputs,
    so that what is checked at the end is what the timed replays wrote."""
    for call in calls:
        call()
    checked = check(*answer(), share, what)
    if not device.small:
        calls = [calls[i % len(calls)] for i in range(max(GRAPH_CALLS, len(calls)))]
    with device.recorded(calls) as replay:
        spoil()
        if device.small:
            seconds = device.elapsed(replay, 1)
        else:
            seconds = best_of_five(lambda times: device.elapsed(replay, times))
        checked += check(*answer(), share, f"{what}, replayed")
    return seconds / len(calls), checked, len(calls)


def product(row, m, n, k, device, calls, answer, spoil, share, **more):
    """A row of the table: see `measure`."""
    try:
        seconds, checked, in_graph = measure(device, calls, answer, spoil, share, row)
        tops = 2 * m * n * k / seconds / 1e12
        emit(row, m=m, n=n, k=k, seconds=seconds, tops=tops, answers=checked, calls=in_graph, weights=len(calls), **more)
        return seconds
    except Exception as error:  # a peer that does not run is a row of the table
        emit(row, m=m, n=n, k=k, error=reason(error))
        return None


def copies_of_weight(m, small):
    """How many copies of the weight the calls take in turn: as in benches/gpu.rs."""
    if m > 128:
        return 1
    return SMALL_COPIES if small else COPIES


def best_of_five(batch, budget=0.1):
    """The least seconds of one of something; `batch(times)` gives those of `times` of them."""
    once = batch(3) / 3
    times = max(5, min(2000, int(budget / max(once, 1e-9))))
    return min(batch(times) / times for _ in range(5))


# ---- PyTorch


class Torch:
    def __init__(self, device, small):
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        self.torch, self.device, self.small = torch, device, small
        name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
        emit("torch", version=torch.__version__, device=name)

    @contextlib.contextmanager
    def recorded(self, calls):
        """What runs all the calls: a graph's replay; on the CPU, which has none, the calls."""
        torch = self.torch
        if self.device != "cuda":
            yield lambda: [call() for call in calls]
            return
        # Libraries set themselves up for the stream at its first calls, which a capture would not
        # allow.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for call in calls:
                call()
        yield graph.replay
        torch.cuda.synchronize()

    def elapsed(self, run, times):
        """Seconds of `times` runs."""
        torch = self.torch
        if self.device != "cuda":
            start = time.perf_counter()
            for _ in range(times):
                run()
            return time.perf_counter() - start
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(times):
            run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def f64(self, x):
        return x.to(self.torch.float64).cpu().numpy()

    def to_device(self, x):
        return self.torch.from_numpy(x).to(self.device)

    def copy(self):
        torch = self.torch
        x = torch.empty(1 << (20 if self.small else 30), dtype=torch.uint8, device=self.device)
        y = torch.empty_like(x)
        seconds = best_of_five(lambda times: self.elapsed(lambda: y.copy_(x), times), 0 if self.small else 0.1)
        emit("torch copy", bytes_per_second=2 * x.numel() / seconds)

    def cublas(self, m, n, k):
        torch = self.torch
        copies = copies_of_weight(m, self.small)
        a = torch.randn(m, k, device=self.device, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=self.device, dtype=torch.bfloat16)
        out = {}

        def answer(left, right, rows):
            i, j = sample(rows, n)
            return self.f64(out["y"])[np.ix_(i, j)], self.f64(left)[i], self.f64(right)[j]

        def spoil():
            out["y"].fill_(float("nan"))

        def plain(weight):
            out["y"] = a @ weight.t()

        calls = [functools.partial(plain, b.clone()) for _ in range(copies)]
        product(f"cublas bf16 m{m}", m, n, k, self, calls, lambda: answer(a, b, m), spoil, BF16)
        del calls
        one = torch.ones((), device=self.device)
        rows = -(-m // 16) * 16  # the fp8 kernels ask for a multiple of 16
        fa = a.to(torch.float8_e4m3fn)
        fa = fa if m == rows else fa.repeat(-(-rows // m), 1)[:rows].contiguous()
        fb = b.to(torch.float8_e4m3fn)

        def fp8(fast, weight):
            kind = {"out_dtype": torch.bfloat16, "use_fast_accum": fast}
            out["y"] = torch._scaled_mm(fa, weight.t(), scale_a=one, scale_b=one, **kind)

        for name, fast in [("fp8", False), ("fp8 fast", True)]:
            calls = [functools.partial(fp8, fast, fb.clone()) for _ in range(copies)]
            product(f"cublas {name} m{m}", rows, n, k, self, calls, lambda: answer(fa, fb, rows), spoil, FP8)

    def triton(self, m, n, k, rng):
        try:
            scaled, dequantize = triton_kernels()
        except Exception as error:
            emit(f"triton m{m}", error=reason(error))
            return
        torch = self.torch
        (a, sa), (b, sb) = packed(rng, m, k), packed(rng, n, k)
        i, j = sample(m, n)
        right = unpack(a[i], sa[i]), unpack(b[j], sb[j])
        da, dsa = self.to_device(a), self.to_device(sa)
        weights = [(self.to_device(b), self.to_device(sb)) for _ in range(copies_of_weight(m, self.small))]
        c = torch.empty(m, n, device=self.device, dtype=torch.bfloat16)

        def answer():
            return (self.f64(c)[np.ix_(i, j)], *right)

        def spoil():
            c.fill_(float("nan"))

        best, last = None, f"no tile divides {m} x {n}"
        for bm, bn, bk, warps, stages in TILES:
            if m % bm or n % bn or k % bk or (bm == 16) != (m <= 16):
                continue
            try:
                def call(db, dsb, bm=bm, bn=bn, bk=bk, warps=warps, stages=stages):
                    grid = (m // bm, n // bn)
                    scaled[grid](da, dsa, db, dsb, c, m, n, k, bm, bn, bk, num_warps=warps, num_stages=stages)

                calls = [functools.partial(call, *weight) for weight in weights]
                t, checked, in_graph = measure(self, calls, answer, spoil, BF16, "dot_scaled")
                if best is None or t < best["seconds"]:
                    tile = f"{bm}x{bn}x{bk}, {warps} warps, {stages} stages"
                    best = {"seconds": t, "tile": tile, "answers": checked, "calls": in_graph, "weights": len(calls)}
            except Exception as error:
                last = reason(error)
        name = f"triton dot_scaled m{m}"
        if best:
            emit(name, m=m, n=n, k=k, tops=2 * m * n * k / best["seconds"] / 1e12, **best)
        else:
            emit(name, m=m, n=n, k=k, error=last)

        table = self.to_device(VALUES.astype(np.float32))
        fa, fb = (torch.empty(rows, k, device=self.device, dtype=torch.bfloat16) for rows in (m, n))
        span = min(k, 1024)

        def both(db, dsb):
            dequantize[(m, k // span)](da, dsa, table, fa, k, span)
            dequantize[(n, k // span)](db, dsb, table, fb, k, span)
            torch.matmul(fa, fb.t(), out=c)

        calls = [functools.partial(both, *weight) for weight in weights]
        product(f"triton dequantize + cublas m{m}", m, n, k, self, calls, answer, spoil, BF16)


# What is tried of dot_scaled: rows, columns and K of a tile, warps, stages of the pipeline. Those
# of 16 rows are for products of 16 rows, the others for larger ones. K is not split.
TILES = [
    (bm, bn, bk, warps, stages)
    for bm, bn, bk, warps in [
        (128, 128, 128, 8),
        (128, 128, 64, 8),
        (64, 128, 128, 4),
        (16, 128, 128, 4),
        (16, 64, 128, 4),
        (16, 32, 128, 4),
        (16, 32, 256, 4),
    ]
    for stages in (3, 4)
]


def triton_kernels():
    """The two kernels; raises where Triton is not installed."""
    import triton
    import triton.language as tl

    @triton.jit
    def scaled(a, sa, b, sb, c, m, n, k: tl.constexpr, bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr):
        # A (m, k/2) and B (n, k/2) packed along k; scales (rows, k/32), e8m0 bytes.
        rows = tl.program_id(0) * bm + tl.arange(0, bm)
        cols = tl.program_id(1) * bn + tl.arange(0, bn)
        halves = tl.arange(0, bk // 2)
        groups = tl.arange(0, bk // 32)
        acc = tl.zeros((bm, bn), dtype=tl.float32)
        for start in range(0, k, bk):
            av = tl.load(a + rows[:, None] * (k // 2) + start // 2 + halves[None, :])
            bv = tl.load(b + cols[None, :] * (k // 2) + start // 2 + halves[:, None])
            asc = tl.load(sa + rows[:, None] * (k // 32) + start // 32 + groups[None, :])
            bsc = tl.load(sb + cols[:, None] * (k // 32) + start // 32 + groups[None, :])
            acc = tl.dot_scaled(av, asc, "e2m1", bv, bsc, "e2m1", acc)
        tl.store(c + rows[:, None] * n + cols[None, :], acc.to(tl.bfloat16))

    @triton.jit
    def dequantize(codes, scales, table, out, k: tl.constexpr, block: tl.constexpr):
        row = tl.program_id(0)
        at = tl.program_id(1) * block + tl.arange(0, block)
        byte = tl.load(codes + row.to(tl.int64) * (k // 2) + at // 2)
        code = (byte >> ((at % 2) * 4)) & 15
        scale = tl.load(scales + row.to(tl.int64) * (k // 32) + at // 32).to(tl.float32)
        value = tl.load(table + code.to(tl.int32)) * tl.exp2(scale - 127.0)
        tl.store(out + row.to(tl.int64) * k + at, value.to(tl.bfloat16))

    return scaled, dequantize


def compile_triton():
    """Compiles both kernels for compute capability 9.0 in every form that the peers launch."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    scaled, dequantize = triton_kernels()
    bytes_of = dict.fromkeys(["a", "sa", "b", "sb"], "*u8")
    signature = {**bytes_of, "c": "*bf16", "m": "i32", "n": "i32"}
    work = [
        (scaled, signature, {"k": 8192, "bm": bm, "bn": bn, "bk": bk}, {"num_warps": warps, "num_stages": stages})
        for bm, bn, bk, warps, stages in TILES
    ]
    signature = {"codes": "*u8", "scales": "*u8", "table": "*fp32", "out": "*bf16"}
    work.append((dequantize, signature, {"k": 8192, "block": 1024}, {}))
    for kernel, signature, constants, options in work:
        # Pointers of tensors are multiples of 16, as are m and n: the launcher tells the compiler,
        # and so does this.
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(signature))}
        signature = {**signature, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(kernel, signature, constants, aligned)
        made = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        print(f"{kernel.__name__} {constants} {options}: {len(made.asm['cubin'])} bytes of machine code, "
              f"{made.metadata.shared} of shared memory")


# ---- cuBLAS and the driver without PyTorch


class Driver:
    """The driver's calls that a copy and a product need."""

    def __init__(self, small):
        self.small = small
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.name = name.value.decode()
        # One of its own: the default stream cannot be captured.
        self.stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(self.stream), ctypes.c_uint(1))

    def call(self, function, *arguments):
        code = getattr(self.cuda, function)(*arguments)
        if code:
            raise RuntimeError(f"{function} answers {code}")

    def alloc(self, size):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def upload(self, x):
        x = np.ascontiguousarray(x)
        address = self.alloc(x.nbytes)
        self.call("cuMemcpyHtoD_v2", address, x.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(x.nbytes))
        # The copy may return before it has ended, and `stream` waits for nothing.
        self.call("cuCtxSynchronize")
        return address

    def download(self, address, shape, dtype):
        self.call("cuStreamSynchronize", self.stream)
        x = np.empty(shape, dtype)
        self.call("cuMemcpyDtoH_v2", x.ctypes.data_as(ctypes.c_void_p), address, ctypes.c_size_t(x.nbytes))
        return x

    def free(self, *addresses):
        for address in addresses:
            self.call("cuMemFree_v2", address)

    def fill(self, address, byte, size):
        self.call("cuMemsetD8_v2", address, ctypes.c_ubyte(byte), ctypes.c_size_t(size))
        self.call("cuCtxSynchronize")

    @contextlib.contextmanager
    def recorded(self, calls):
        """What runs all the calls: a graph's replay. They have run before, and queue on `stream`."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        thread_local = 1
        self.call("cuStreamBeginCapture_v2", self.stream, thread_local)
        try:
            for call in calls:
                call()
        finally:
            self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        try:
            yield lambda: self.call("cuGraphLaunch", executable, self.stream)
            self.call("cuStreamSynchronize", self.stream)
        finally:
            self.call("cuGraphExecDestroy", executable)
            self.call("cuGraphDestroy", graph)

    def elapsed(self, run, times):
        """Seconds of `times` runs."""
        first, last = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (first, last):
            self.call("cuEventCreate", ctypes.byref(event), 0)
        try:
            self.call("cuStreamSynchronize", self.stream)
            self.call("cuEventRecord", first, self.stream)
            for _ in range(times):
                run()
            self.call("cuEventRecord", last, self.stream)
            self.call("cuEventSynchronize", last)
            milliseconds = ctypes.c_float()
            self.call("cuEventElapsedTime", ctypes.byref(milliseconds), first, last)
            return milliseconds.value / 1e3
        finally:
            for event in (first, last):
                self.call("cuEventDestroy_v2", event)

    def copy(self, size):
        x, y = self.alloc(size), self.alloc(size)

        def run():
            self.call("cuMemcpyDtoDAsync_v2", y, x, ctypes.c_size_t(size), self.stream)

        seconds = best_of_five(lambda times: self.elapsed(run, times), 0 if self.small else 0.1)
        emit("torch copy", bytes_per_second=2 * size / seconds)
        self.free(x, y)


def load_cublas():
    """The library: $FP4_CUBLAS, the pip wheel's (nvidia-cublas), or the system's."""
    candidates = [os.environ["FP4_CUBLAS"]] if "FP4_CUBLAS" in os.environ else []
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations if spec else None) or []:
        for library in sorted(glob.glob(str(pathlib.Path(root) / "*" / "lib" / "libcublas.so.1?"))):
            # It needs its other half, which the loader would not find beside it.
            for half in glob.glob(str(pathlib.Path(library).parent / "libcublasLt.so.1?")):
                ctypes.CDLL(half, mode=ctypes.RTLD_GLOBAL)
            candidates.append(library)
    for candidate in candidates + ["libcublas.so.13", "libcublas.so.12"]:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise RuntimeError("no cuBLAS: pip install nvidia-cublas, or name the library in FP4_CUBLAS")


def cublas_bf16(driver, cublas, handle, m, n, k, rng):
    a, b = (to_bf16(rng.standard_normal((rows, k), dtype=np.float32)) for rows in (m, n))
    da, dc = driver.upload(a), driver.alloc(2 * m * n)
    weights = [driver.upload(b) for _ in range(copies_of_weight(m, driver.small))]
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    bf16, compute_32f, default_algorithm, plain, transposed = 14, 68, -1, 0, 1

    def call(db):
        # C^T = B A^T, column-major: rows of A and of B are columns of k values.
        code = cublas.cublasGemmEx(
            handle, transposed, plain, n, m, k, ctypes.byref(one), db, bf16, k, da, bf16, k,
            ctypes.byref(zero), dc, bf16, n, compute_32f, default_algorithm,
        )  # fmt: skip
        if code:
            raise RuntimeError(f"cublasGemmEx answers {code}")

    def answer():
        i, j = sample(m, n)
        c = from_bf16(driver.download(dc, (m, n), np.uint16))
        return c[np.ix_(i, j)], from_bf16(a[i]), from_bf16(b[j])

    def spoil():
        driver.fill(dc, 0xFF, 2 * m * n)  # NaN

    calls = [functools.partial(call, weight) for weight in weights]
    product(f"cublas bf16 m{m}", m, n, k, driver, calls, answer, spoil, BF16, by="ctypes")
    driver.free(da, dc, *weights)


def without_torch(shapes, small):
    driver = Driver(small)
    emit("driver", device=driver.name)
    driver.copy(1 << (20 if small else 30))
    cublas, handle = load_cublas(), ctypes.c_void_p()
    # In a capture cuBLAS may not allocate: it is given what it recommends for Hopper, after the
    # stream, which would take it away again.
    size = 32 << 20
    workspace = driver.alloc(size)
    for function, arguments in [
        ("cublasCreate_v2", (ctypes.byref(handle),)),
        ("cublasSetStream_v2", (handle, driver.stream)),
        ("cublasSetWorkspace_v2", (handle, workspace, ctypes.c_size_t(size))),
    ]:
        if code := getattr(cublas, function)(*arguments):
            raise RuntimeError(f"{function} answers {code}")
    rng = np.random.default_rng(1)
    for m, n, k in shapes:
        cublas_bf16(driver, cublas, handle, m, n, k, rng)
    cublas.cublasDestroy_v2(handle)
    driver.free(workspace)


# ---- self-test


def self_test():
    rng = np.random.default_rng(0)
    codes, scales = packed(rng, 3, 64)
    values = unpack(codes, scales)
    # One by one, from the definition: the low nibble comes first.
    for r in range(3):
        for i in range(64):
            code = int(codes[r, i // 2]) >> (4 * (i % 2)) & 15
            magnitude = [0, 0.5, 1, 1.5, 2, 3, 4, 6][code & 7]
            expected = (-magnitude if code & 8 else magnitude) * 2.0 ** (int(scales[r, i // 32]) - 127)
            assert values[r, i] == expected, (r, i)
    for value, bits in [(1.0, 0x3F80), (-2.5, 0xC020), (1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82)]:
        assert int(to_bf16(np.array([value]))[0]) == bits, value
    assert float(from_bf16(np.array([0xC020], np.uint16))[0]) == -2.5
    for m, n in [(1, 8192), (4, 8192), (16, 8192), (8192, 8192), (3, 5)]:
        i, j = sample(m, n)
        assert i[0] == j[0] == 0 and i[-1] == m - 1 and j[-1] == n - 1, (m, n)
        assert len(i) * len(j) >= min(64, m * n), (m, n)

    a, b = values, unpack(*packed(rng, 5, 64))
    size = np.abs(a) @ np.abs(b).T
    right = a @ b.T
    rounded = from_bf16(to_bf16(right)).astype(np.float64)
    for share in (BF16, FP8):
        assert check(right, a, b, share, "right") == check(rounded, a, b, share, "rounded") == 15
        # Just inside of what is allowed at one output, and just outside; one group that is left
        # out.
        allowed = 2**-8 * np.abs(right[1, 2]) + share * size[1, 2]
        near, far = right.copy(), right.copy()
        near[1, 2] += 0.99 * allowed
        far[1, 2] += 1.01 * allowed
        assert check(near, a, b, share, "near") == 15
        without = a[:, :GROUP] @ b[:, :GROUP].T
        for wrong in (far, without, right.T, np.full_like(right, np.nan)):
            try:
                check(wrong, a, b, share, "wrong")
            except ValueError:
                continue
            raise AssertionError("a wrong answer passed")
    # Of 256 groups one missing is seen.
    long_a, long_b = (unpack(*packed(rng, rows, 8192)) for rows in (8, 8))
    without = long_a[:, GROUP:] @ long_b[:, GROUP:].T
    try:
        check(without, long_a, long_b, BF16, "one group of 256 left out")
        raise AssertionError("a product without one group passed")
    except ValueError:
        pass

    times = []
    t = best_of_five(lambda n: times.append(n) or n * 0.001)
    assert abs(t - 0.001) < 1e-9 and times == [3] + [100] * 5, (t, times)

    class Graphs:
        """A device whose calls take a millisecond each; a replay does `do`."""

        small = False

        def __init__(self, do=lambda call: call()):
            self.do, self.recordings = do, []

        @contextlib.contextmanager
        def recorded(self, calls):
            self.recordings.append(len(calls))
            yield lambda: [self.do(call) for call in calls]

        def elapsed(self, run, times):
            run()
            return times * self.recordings[-1] * 0.001

    state, used = {}, []

    def call(weight, value=right):
        used.append(weight)
        state["y"] = value.copy()

    def spoil():
        state["y"][:] = np.nan

    def row(name, device, calls):
        return product(name, 3, 5, 64, device, calls, lambda: (state["y"], a, b), spoil, BF16)

    weights = [functools.partial(call, weight) for weight in range(3)]
    graphs = Graphs()
    assert abs(row("right", graphs, weights) - 0.001) < 1e-9
    assert graphs.recordings == [8] and used[:11] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1], used
    # A graph that writes nothing, one that writes something else, a wrong call, one that raises.
    assert row("empty graph", Graphs(lambda call: None), weights) is None
    assert row("wrong graph", Graphs(lambda call: call(value=far)), weights) is None
    assert row("wrong", Graphs(), [functools.partial(call, 0, far)]) is None
    assert row("broken", Graphs(), [lambda: 1 / 0]) is None
    assert [copies_of_weight(m, False) for m in (1, 4, 16, 17, 128, 8192)] == [8, 8, 8, 8, 8, 1]
    print("peers.py: self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--compile-triton", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    if arguments.compile_triton:
        return compile_triton()
    size = 256 if arguments.small else 8192
    shapes = [(m, size, size) for m in (size, 16, 4, 1, 17, 32, 64, 128)]
    if not arguments.no_torch:
        try:
            torch = Torch(arguments.device, arguments.small)
        except Exception as error:
            emit("torch", error=reason(error))
        else:
            torch.copy()
            for shape in shapes:
                torch.cublas(*shape)
            rng = np.random.default_rng(2)
            for shape in shapes[:2]:
                torch.triton(*shape, rng)
            return None
    if arguments.device == "cpu":
        sys.exit("peers.py: --device cpu needs PyTorch")
    try:
        return without_torch(shapes, arguments.small)
    except Exception as error:
        emit("cublas", error=reason(error))
        sys.exit(f"peers.py: {reason(error)}")


if __name__ == "__main__":
    main()
