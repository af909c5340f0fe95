"""A weight to FP4, activations in three encodings, a layer saved, loaded and run.

python quantize_and_run.py
"""

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

import exact_fp4 as fp4

rng = np.random.default_rng(0)
weight = rng.normal(size=(256, 512)).astype(np.float32)
x = rng.normal(size=(4, 3, 512)).astype(np.float32)
dense = x @ weight.T

# By hand: quantize both operands, multiply.
packed_weight = fp4.quantize(weight, fp4.Spec.for_weight("nvfp4", fp4.amax(weight)))
packed_x = fp4.quantize(x, "nvfp4")
y = fp4.matmul(packed_x, packed_weight)
print(f"backends: {', '.join(fp4.backends())}; {fp4.threads()} threads")
print(
    f"the weight: {weight.nbytes} bytes, packed "
    f"{packed_weight.codes.nbytes + packed_weight.scales.nbytes}"
)

# The same as a layer: with the scale rule that `quantize` has, where by itself it would look for
# the scales of least error. A row's bits do not depend on its batch.
layer = fp4.Layer.from_dense(weight, "nvfp4", scale_rule="nearest")
assert np.array_equal(layer(x), y)
assert np.array_equal(layer(x[2, 1]), y[2, 1])

for form in ("mxfp4", "nvfp4"):
    for encoding in ("fp4", "mxint8"):
        other = fp4.Layer.from_dense(weight, form, activation_encoding=encoding)
        error = np.linalg.norm(other(x) - dense) / np.linalg.norm(dense)
        print(f"{form} weight, activations in {encoding}: error {error:.4f}")

# Saved, loaded and run: the same bits; bfloat16 in, bfloat16 out.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "layer.safetensors"
    layer.save(path, "model.proj")
    checkpoint = fp4.open(path)
    print(checkpoint.layers())
    loaded = checkpoint.layer("model.proj")
assert np.array_equal(loaded(x), y)
assert loaded(x.astype(ml_dtypes.bfloat16)).dtype == ml_dtypes.bfloat16
print("loaded: the same bits")
