// What is bundled: a program that takes nothing but `load`, whose reader of files is set by a
// module that it names nothing of.
import assert from "node:assert/strict";
import { load } from "exact-fp4";

const fp4 = await load();
const q = fp4.quantize(Float32Array.of(...Array(32).fill(0.5)), 1, 32, { format: "mxfp4", rule: "floor" });
assert.deepEqual([...fp4.matmul(q, q)], [8]);
console.log(`bundled: ${fp4.isa}`);
