// Uses the installed package as a program does.
import assert from "node:assert/strict";
import { bytesSource, fileSource, hasSimd, load } from "exact-fp4";

const [path] = process.argv.slice(2);
const fp4 = await load();
assert.equal(fp4.isa, hasSimd() ? "wasm-simd128" : "portable");
assert.equal(await load(), fp4);

const x = Float32Array.from({ length: 2 * 32 }, (_, i) => Math.sin(i));
const q = fp4.quantize(x, 2, 32, { format: "nvfp4", rule: "search" });
const y = fp4.matmul(q, q);
assert.equal(y[1], y[2]);

const source = fileSource(path);
const checkpoint = fp4.open([source]);
const { layers, tensors } = checkpoint.inspect();
assert.ok(tensors.length > 0);
checkpoint.free();
source.close();
assert.throws(() => fp4.open([bytesSource("a.safetensors", new Uint8Array(9))]), Error);
console.log(`installed: ${fp4.isa}, ${tensors.length} tensors, ${layers.length} layers`);
