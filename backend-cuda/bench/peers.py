#!/usr/bin/env python3
"""What the same device reaches with other people's kernels, for the table of run.sh.

One JSON object a line: cuBLAS bf16 and fp8 (through PyTorch), Triton's dot_scaled on MXFP4 operands,
Triton's dequantization to bf16 followed by cuBLAS, a copy. A peer that does not run here prints a row
with the reason. Not yet run on hardware.
"""

import json
import sys
import time


def emit(row, **values):
    print(json.dumps({"row": row, **values}), flush=True)


try:
    import torch
except ImportError as error:
    emit("peers", error=f"PyTorch is not installed: {error}")
    sys.exit("peers.py: PyTorch is not installed")
if not torch.cuda.is_available():
    emit("peers", error="PyTorch sees no CUDA device")
    sys.exit("peers.py: PyTorch sees no CUDA device")


def seconds(call, budget=0.1):
    """Of one call: the best of five batches, as in benches/gpu.rs."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    calls = max(5, min(2000, int(budget / max(time.perf_counter() - start, 1e-6))))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def product(row, m, n, k, call, **more):
    try:
        t = seconds(call)
        emit(row, m=m, n=n, k=k, seconds=t, tops=2 * m * n * k / t / 1e12, **more)
    except Exception as error:  # a peer that does not run is a row of the table
        emit(row, m=m, n=n, k=k, error=f"{type(error).__name__}: {error}"[:300])


def copy():
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    emit("torch copy", bytes_per_second=2 * x.numel() / seconds(lambda: y.copy_(x)))


def cublas(m, n, k):
    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    product(f"cublas bf16 m{m}", m, n, k, lambda: a @ b.t())
    one = torch.ones((), device="cuda")
    fa, fb = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    rows = max(m, 16)  # the fp8 kernels ask for a multiple of 16
    fa = fa if m == rows else fa.repeat(rows, 1)[:rows].contiguous()
    product(
        f"cublas fp8 m{m}", rows, n, k,
        lambda: torch._scaled_mm(fa, fb.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16),
    )


def triton_peers():
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        emit("triton", error=f"Triton is not installed: {error}")
        return

    @triton.jit
    def scaled(a, sa, b, sb, c, m, n, k: tl.constexpr, bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr):
        # A (m, k/2) and B (n, k/2) packed along k; scales (rows, k/32), e8m0 bytes.
        rows = tl.program_id(0) * bm + tl.arange(0, bm)
        cols = tl.program_id(1) * bn + tl.arange(0, bn)
        packed = tl.arange(0, bk // 2)
        groups = tl.arange(0, bk // 32)
        acc = tl.zeros((bm, bn), dtype=tl.float32)
        for start in range(0, k, bk):
            av = tl.load(a + rows[:, None] * (k // 2) + start // 2 + packed[None, :])
            bv = tl.load(b + cols[None, :] * (k // 2) + start // 2 + packed[:, None])
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

    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table = torch.tensor(values + [-v for v in values], device="cuda", dtype=torch.float32)
    for m, n, k in [(8192, 8192, 8192), (16, 8192, 8192)]:
        def packed(rows):
            codes = torch.randint(0, 256, (rows, k // 2), device="cuda", dtype=torch.uint8)
            return codes, torch.randint(120, 128, (rows, k // 32), device="cuda", dtype=torch.uint8)

        (a, sa), (b, sb) = packed(m), packed(n)
        c = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        best = None
        for bm, bn, bk, warps in [(128, 128, 128, 8), (128, 128, 64, 8), (64, 128, 128, 4), (16, 128, 128, 4)]:
            if m % bm:
                continue
            try:
                def call():
                    scaled[(m // bm, n // bn)](a, sa, b, sb, c, m, n, k, bm, bn, bk, num_warps=warps)
                t = seconds(call)
                if best is None or t < best[0]:
                    best = (t, f"{bm}x{bn}x{bk}, {warps} warps")
            except Exception as error:
                last = f"{type(error).__name__}: {error}"[:300]
        name = f"triton dot_scaled m{m}"
        if best:
            emit(name, m=m, n=n, k=k, seconds=best[0], tops=2 * m * n * k / best[0] / 1e12, tile=best[1])
        else:
            emit(name, m=m, n=n, k=k, error=last)
        fa = torch.empty(m, k, device="cuda", dtype=torch.bfloat16)
        fb = torch.empty(n, k, device="cuda", dtype=torch.bfloat16)

        def both():
            dequantize[(m, k // 1024)](a, sa, table, fa, k, 1024)
            dequantize[(n, k // 1024)](b, sb, table, fb, k, 1024)
            return fa @ fb.t()

        product(f"triton dequantize + cublas m{m}", m, n, k, both)


def main():
    emit("torch", version=torch.__version__, device=torch.cuda.get_device_name(0))
    copy()
    for m in (8192, 16, 4, 1):
        cublas(m, 8192, 8192)
    triton_peers()


main()
