"""Answers the NVFP4 matmul files of `fp4-conformance vectors export` in numpy, with exact integers.

usage: python3 answer.py VECTORS ANSWERS
"""
import json, pathlib, struct, sys
import numpy as np

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int64)  # doubled
BYTE = np.arange(256)
EXP, MAN = BYTE >> 3 & 15, BYTE & 7
E4M3 = np.where(EXP > 0, (8 + MAN) << np.maximum(EXP - 1, 0), MAN) * np.where(BYTE & 128, -1, 1)  # units of 2^-9

def read(path):
    data = path.read_bytes()
    size, = struct.unpack("<Q", data[:8])
    types = {"U8": np.uint8, "F32": np.float32}
    head = json.loads(data[8:8 + size])
    return {name: np.frombuffer(data[8 + size:][slice(*t["data_offsets"])], types[t["dtype"]]).reshape(t["shape"])
            for name, t in head.items() if name != "__metadata__"}

def write(path, tensors):
    head, at = {}, 0
    for name, t in tensors.items():
        head[name] = {"dtype": "F32", "shape": t.shape, "data_offsets": [at, at := at + t.nbytes]}
    head = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(t.tobytes() for t in tensors.values()))

def operand(codes, scales):
    """Elements times scales, in units of 2^-10, and the rows with a NaN scale."""
    values = E2M1[np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), 2 * codes.shape[1])]
    return values * np.repeat(E4M3[scales], 16, axis=1), ((scales & 127) == 127).any(1)

source, target = map(pathlib.Path, sys.argv[1:])
target.mkdir(exist_ok=True)
for manifest in sorted(source.glob("matmul_nvfp4_f32_*.json")):
    tensors, answers = read(manifest.with_suffix(".safetensors")), {}
    for number, case in json.loads(manifest.read_text())["cases"].items():
        (a, nan_a), (b, nan_b) = (operand(tensors[f"{number}.{x}_codes"], tensors[f"{number}.{x}_scales"]) for x in "ab")
        total = (a @ b.T).astype(np.float32) * np.float32(2.0 ** -20)  # exact int64, then one rounding
        total[nan_a[:, None] | nan_b[None, :]] = np.nan
        with np.errstate(all="ignore"):
            y = total * np.uint32(case["request"]["alpha_bits"]).view(np.float32)
        y[np.isnan(y)] = np.uint32(0x7FC00000).view(np.float32)  # every NaN is canonical
        answers[f"{number}.y"] = np.ascontiguousarray(y)
    write(target / f"{manifest.stem}.safetensors", answers)
