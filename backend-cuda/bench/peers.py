#!/usr/bin/env python3
"""What the same device reaches with other people's kernels, for the table of run.sh.

    peers.py                        every peer that runs here, 8192 x 8192 weights
    peers.py --small --device cpu   the same code on small shapes, without a GPU where PyTorch has a CPU form of
                                    it: shows that it runs and gives right answers; its times mean nothing
    peers.py --no-torch             cuBLAS and a copy through the driver alone, as where PyTorch is not installed
    peers.py --compile-triton       compiles the Triton kernels for Hopper; needs Triton alone
    peers.py --self-test            what needs no peer: formats, checks, rows

One JSON object a line: cuBLAS bf16 and fp8 (through PyTorch; bf16 by ctypes without it), Triton's dot_scaled
on MXFP4 operands, Triton's dequantization to bf16 followed by cuBLAS, a copy. Every answer is compared with
numpy's on sampled rows and columns before it is timed; times are between two events of the device. A peer
that does not run here prints a row with the reason. Not yet run on hardware.
"""

import argparse
import ctypes
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


def sample(rows, count=4):
    """Some indices, both ends among them."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).astype(int))


def check(got, a, b, relative, what):
    """Compares outputs `got` (sampled rows x sampled columns) with a @ b.T of the sampled rows of both: floating
    point adds in some order, so the error is bounded by a share of the sum of the terms' sizes."""
    a, b, got = (np.asarray(x, dtype=np.float64) for x in (a, b, got))
    expected, size = a @ b.T, np.abs(a) @ np.abs(b).T
    if got.shape != expected.shape:
        raise ValueError(f"{what}: an answer of shape {got.shape}, expected {expected.shape}")
    wrong = ~(np.abs(got - expected) <= relative * size + 1e-30)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{what}: {int(wrong.sum())} of {wrong.size} wrong, {at} is {got[at]}, expected {expected[at]}")
    return int(got.size)


def packed(rng, rows, k):
    return (
        rng.integers(0, 256, (rows, k // 2), dtype=np.uint8),
        rng.integers(120, 128, (rows, k // GROUP), dtype=np.uint8),
    )


def product(row, m, n, k, call, answer, clock, relative, **more):
    """A row of the table: `answer()` gives (sampled outputs, sampled rows of A, of B)."""
    try:
        call()
        checked = check(*answer(), relative, row)
        t = clock(call)
        emit(row, m=m, n=n, k=k, seconds=t, tops=2 * m * n * k / t / 1e12, answers=checked, **more)
        return t
    except Exception as error:  # a peer that does not run is a row of the table
        emit(row, m=m, n=n, k=k, error=reason(error))
        return None


def best_of_five(batch, budget=0.1):
    """Seconds of one call; `batch(calls)` gives those of `calls` of them."""
    batch(3)
    calls = max(5, min(2000, int(budget / max(batch(1), 1e-6))))
    return min(batch(calls) / calls for _ in range(5))


# ---- PyTorch


class Torch:
    def __init__(self, device, small):
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        self.torch, self.device, self.small = torch, device, small
        name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
        emit("torch", version=torch.__version__, device=name)

    def clock(self, call):
        torch = self.torch

        def batch(calls):
            if self.device != "cuda":
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                return time.perf_counter() - start
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(calls):
                call()
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / 1e3

        return batch(1) if self.small else best_of_five(batch)

    def f64(self, x):
        return x.to(self.torch.float64).cpu().numpy()

    def to_device(self, x):
        return self.torch.from_numpy(x).to(self.device)

    def copy(self):
        torch = self.torch
        x = torch.empty(1 << (20 if self.small else 30), dtype=torch.uint8, device=self.device)
        y = torch.empty_like(x)
        emit("torch copy", bytes_per_second=2 * x.numel() / self.clock(lambda: y.copy_(x)))

    def cublas(self, m, n, k):
        torch = self.torch
        a = torch.randn(m, k, device=self.device, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=self.device, dtype=torch.bfloat16)
        out = {}

        def plain():
            out["y"] = a @ b.t()

        def answer(left, right, rows=m):
            i, j = sample(rows), sample(n)
            return self.f64(out["y"])[np.ix_(i, j)], self.f64(left)[i], self.f64(right)[j]

        product(f"cublas bf16 m{m}", m, n, k, plain, lambda: answer(a, b), self.clock, 2**-7)
        one = torch.ones((), device=self.device)
        rows = max(m, 16)  # the fp8 kernels ask for a multiple of 16
        fa = a.to(torch.float8_e4m3fn)
        fa = fa if m == rows else fa.repeat(-(-rows // m), 1)[:rows].contiguous()
        fb = b.to(torch.float8_e4m3fn)

        def fp8():
            out["y"] = torch._scaled_mm(fa, fb.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

        product(f"cublas fp8 m{m}", rows, n, k, fp8, lambda: answer(fa, fb, rows), self.clock, 2**-6)

    def triton(self, m, n, k, rng):
        try:
            scaled, dequantize = triton_kernels()
        except Exception as error:
            emit(f"triton m{m}", error=reason(error))
            return
        torch = self.torch
        (a, sa), (b, sb) = packed(rng, m, k), packed(rng, n, k)
        i, j = sample(m), sample(n)
        right = unpack(a[i], sa[i]), unpack(b[j], sb[j])
        da, dsa, db, dsb = (self.to_device(x) for x in (a, sa, b, sb))
        c = torch.empty(m, n, device=self.device, dtype=torch.bfloat16)

        def answer():
            return (self.f64(c)[np.ix_(i, j)], *right)

        best, last = None, f"no tile divides {m} x {n}"
        for bm, bn, bk, warps in [(128, 128, 128, 8), (128, 128, 64, 8), (64, 128, 128, 4), (16, 128, 128, 4)]:
            if m % bm or n % bn or k % bk:
                continue
            try:
                def call(bm=bm, bn=bn, bk=bk, warps=warps):
                    scaled[(m // bm, n // bn)](da, dsa, db, dsb, c, m, n, k, bm, bn, bk, num_warps=warps)

                call()
                checked = check(*answer(), 2**-7, "dot_scaled")
                t = self.clock(call)
                if best is None or t < best[0]:
                    best = (t, f"{bm}x{bn}x{bk}, {warps} warps", checked)
            except Exception as error:
                last = reason(error)
        name = f"triton dot_scaled m{m}"
        if best:
            tops = 2 * m * n * k / best[0] / 1e12
            emit(name, m=m, n=n, k=k, seconds=best[0], tops=tops, tile=best[1], answers=best[2])
        else:
            emit(name, m=m, n=n, k=k, error=last)

        table = self.to_device(VALUES.astype(np.float32))
        fa, fb = (torch.empty(rows, k, device=self.device, dtype=torch.bfloat16) for rows in (m, n))
        span = min(k, 1024)

        def both():
            dequantize[(m, k // span)](da, dsa, table, fa, k, span)
            dequantize[(n, k // span)](db, dsb, table, fb, k, span)
            torch.matmul(fa, fb.t(), out=c)

        product(f"triton dequantize + cublas m{m}", m, n, k, both, answer, self.clock, 2**-7)


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
    """Compiles both kernels for compute capability 9.0, as the peers launch them."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    scaled, dequantize = triton_kernels()
    bytes_of = dict.fromkeys(["a", "sa", "b", "sb"], "*u8")
    for kernel, signature, constants in [
        (scaled, {**bytes_of, "c": "*bf16", "m": "i32", "n": "i32"}, {"k": 8192, "bm": 128, "bn": 128, "bk": 128}),
        (dequantize, {"codes": "*u8", "scales": "*u8", "table": "*fp32", "out": "*bf16"}, {"k": 8192, "block": 1024}),
    ]:
        signature = {**signature, **dict.fromkeys(constants, "constexpr")}
        made = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        print(f"{kernel.__name__}: {len(made.asm['cubin'])} bytes of machine code")


# ---- cuBLAS and the driver without PyTorch


class Driver:
    """The driver's calls that a copy and a product need."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.name = name.value.decode()

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
        return address

    def download(self, address, shape, dtype):
        x = np.empty(shape, dtype)
        self.call("cuMemcpyDtoH_v2", x.ctypes.data_as(ctypes.c_void_p), address, ctypes.c_size_t(x.nbytes))
        return x

    def free(self, *addresses):
        for address in addresses:
            self.call("cuMemFree_v2", address)

    def clock(self, call):
        first, last = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (first, last):
            self.call("cuEventCreate", ctypes.byref(event), 0)

        def batch(calls):
            self.call("cuEventRecord", first, None)
            for _ in range(calls):
                call()
            self.call("cuEventRecord", last, None)
            self.call("cuEventSynchronize", last)
            milliseconds = ctypes.c_float()
            self.call("cuEventElapsedTime", ctypes.byref(milliseconds), first, last)
            return milliseconds.value / 1e3

        try:
            return best_of_five(batch, 0.1 if self.name != "emulated" else 0)
        finally:
            for event in (first, last):
                self.call("cuEventDestroy_v2", event)

    def copy(self, size):
        x, y = self.alloc(size), self.alloc(size)
        t = self.clock(lambda: self.call("cuMemcpyDtoDAsync_v2", y, x, ctypes.c_size_t(size), None))
        emit("torch copy", bytes_per_second=2 * size / t)
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
    da, db, dc = driver.upload(a), driver.upload(b), driver.alloc(2 * m * n)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    bf16, compute_32f, default_algorithm, plain, transposed = 14, 68, -1, 0, 1

    def call():
        # C^T = B A^T, column-major: rows of A and of B are columns of k values.
        code = cublas.cublasGemmEx(
            handle, transposed, plain, n, m, k, ctypes.byref(one), db, bf16, k, da, bf16, k,
            ctypes.byref(zero), dc, bf16, n, compute_32f, default_algorithm,
        )  # fmt: skip
        if code:
            raise RuntimeError(f"cublasGemmEx answers {code}")

    def answer():
        i, j = sample(m), sample(n)
        c = from_bf16(driver.download(dc, (m, n), np.uint16))
        return c[np.ix_(i, j)], from_bf16(a[i]), from_bf16(b[j])

    product(f"cublas bf16 m{m}", m, n, k, call, answer, driver.clock, 2**-7, by="ctypes")
    driver.free(da, db, dc)


def without_torch(shapes, small):
    driver = Driver()
    emit("driver", device=driver.name)
    driver.copy(1 << (20 if small else 30))
    cublas, handle = load_cublas(), ctypes.c_void_p()
    if cublas.cublasCreate_v2(ctypes.byref(handle)):
        raise RuntimeError("cublasCreate_v2 fails")
    rng = np.random.default_rng(1)
    for m, n, k in shapes:
        cublas_bf16(driver, cublas, handle, m, n, k, rng)
    cublas.cublasDestroy_v2(handle)


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
    assert list(sample(1)) == [0] and list(sample(8192)) == [0, 2730, 5460, 8191]

    a, b = values, unpack(*packed(rng, 5, 64))
    right = a @ b.T
    assert check(right, a, b, 2**-7, "right") == 15
    moved = right.copy()
    moved[1, 2] += 0.1 * (np.abs(a) @ np.abs(b).T)[1, 2]
    for wrong in (moved, right.T, np.full_like(right, np.nan)):
        try:
            check(wrong, a, b, 2**-7, "wrong")
        except ValueError:
            continue
        raise AssertionError("a wrong answer passed")

    calls = []
    t = best_of_five(lambda n: calls.append(n) or n * 0.001)
    assert abs(t - 0.001) < 1e-9 and calls == [3, 1] + [100] * 5, (t, calls)
    clock = lambda call: best_of_five(lambda n: n * 0.001)  # noqa: E731
    assert product("right", 3, 5, 64, lambda: None, lambda: (right, a, b), clock, 2**-7) == t
    assert product("wrong", 3, 5, 64, lambda: None, lambda: (moved, a, b), clock, 2**-7) is None
    assert product("broken", 3, 5, 64, lambda: 1 / 0, lambda: None, clock, 2**-7) is None
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
    shapes = [(m, size, size) for m in (size, 16, 4, 1)]
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
