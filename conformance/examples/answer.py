"""Answers the NVFP4 matmul files of `fp4-conformance vectors export` in numpy, with exact integers.

usage: python3 answer.py VECTORS ANSWERS
"""
import json, pathlib, struct, sys
import numpy as np

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # doubled
EXP, MAN, SIGN = np.arange(256) >> 3 & 15, np.arange(256) & 7, 1 - (np.arange(256) >> 6 & 2)
E4M3 = np.where(EXP > 0, (8 + MAN) << np.maximum(EXP - 1, 0), MAN) * SIGN  # units of 2^-9
TYPES = {"U8": np.uint8, "F32": np.float32}

def read(path):
    data = path.read_bytes()
    body = 8 + struct.unpack("<Q", data[:8])[0]
    return {name: np.frombuffer(data[body:][slice(*t["data_offsets"])], TYPES[t["dtype"]]).reshape(t["shape"])
            for name, t in json.loads(data[8:body]).items() if name != "__metadata__"}

def write(path, tensors):
    ends = np.cumsum([t.nbytes for t in tensors.values()]).tolist()
    head = json.dumps({name: {"dtype": "F32", "shape": t.shape, "data_offsets": [end - t.nbytes, end]}
                       for (name, t), end in zip(tensors.items(), ends)}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(t.tobytes() for t in tensors.values()))

def operand(codes, scales):  # elements times scales in units of 2^-10, and the rows with a NaN scale
    values = E2M1[np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), 2 * codes.shape[1])]
    return values * np.repeat(E4M3[scales], 16, axis=1), ((scales & 127) == 127).any(1)

source, target = map(pathlib.Path, sys.argv[1:])
target.mkdir(exist_ok=True)
np.seterr(all="ignore")
for path in sorted(source.glob("matmul_nvfp4_f32_*.json")):
    tensors, answers = read(path.with_suffix(".safetensors")), {}
    for number, case in json.loads(path.read_text())["cases"].items():
        (a, nan_a), (b, nan_b) = (operand(tensors[f"{number}.{x}_codes"], tensors[f"{number}.{x}_scales"]) for x in "ab")
        # Exact in int64, then one rounding.
        s32 = (a @ b.T).astype(np.float32) * np.float32(2.0 ** -20)
        y = np.where(nan_a[:, None] | nan_b, np.float32(np.nan), s32) * np.uint32(case["request"]["alpha_bits"]).view("f4")
        # With the canonical NaN.
        answers[f"{number}.y"] = np.where(np.isnan(y), np.uint32(0x7FC00000).view("f4"), y)
    write(target / f"{path.stem}.safetensors", answers)
