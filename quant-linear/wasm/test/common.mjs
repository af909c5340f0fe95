// What the tests share: both builds, the repository's files, bits.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));

/** The built package; FP4_WASM_DIST is another folder that build.mjs made. */
const dist = process.env.FP4_WASM_DIST ?? join(here, "../dist");

export const module = await import(pathToFileURL(join(dist, "node.js")).href);

/** The two builds, by name. */
export const builds = {
  simd: await module.load({ simd: true }),
  scalar: await module.load({ simd: false }),
};

const root = join(here, "../../..");
export const vectors = join(root, "conformance/vectors");
export const checkpoints = join(root, "quant-linear/tests/vectors");
export const fixtures = join(root, "quant-linear/cli/fixtures");

/** A file in memory. */
export const inMemory = (path, name = basename(path)) =>
  module.bytesSource(name, new Uint8Array(readFileSync(path)));

/** A safetensors file by itself: what the library reads is not judged by the library. */
export function tensors(path) {
  const file = readFileSync(path);
  const header = Number(file.readBigUInt64LE(0));
  const entries = JSON.parse(file.toString("utf8", 8, 8 + header));
  const found = {};
  for (const [name, entry] of Object.entries(entries)) {
    if (name === "__metadata__") continue;
    const [start, end] = entry.data_offsets;
    const bytes = new Uint8Array(file.subarray(8 + header + start, 8 + header + end));
    const type = { F32: Float32Array, U32: Uint32Array, U8: Uint8Array, U16: Uint16Array }[entry.dtype];
    found[name] = { shape: entry.shape, values: type ? new type(bytes.buffer) : null };
  }
  return found;
}

export const bits = (values) => new Uint32Array(values.buffer, values.byteOffset, values.length);

/** NaN of any payload is the contract's own. */
export const canonical = (values) =>
  Uint32Array.from(bits(values), (b) => ((b & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : b));

/** Compares arrays bit for bit; how many values. */
export function same(got, expected, what) {
  assert.equal(got.length, expected.length, `${what}: length`);
  for (let i = 0; i < got.length; i++) {
    if (got[i] !== expected[i]) assert.fail(`${what}: ${got[i]} at ${i}, expected ${expected[i]}`);
  }
  return got.length;
}

/** Compares what JSON holds: all equal, but decibels, which take a logarithm of the system's library,
 * whose last bits differ between systems. */
export function alike(got, expected, path = "") {
  if (typeof got === "number" && typeof expected === "number" && /(_db|quantiles\.\w+)$/.test(path)) {
    assert.ok(Math.abs(got - expected) <= 1e-13 * Math.abs(expected), `${path}: ${got}, ${expected}`);
  } else if (got !== null && typeof got === "object" && expected !== null && typeof expected === "object") {
    assert.deepEqual(Object.keys(got).sort(), Object.keys(expected).sort(), path);
    for (const key of Object.keys(got)) alike(got[key], expected[key], `${path}.${key}`);
  } else {
    assert.equal(got, expected, path);
  }
}

/** An Error with a message of one line, and nothing worse. */
export function refused(call, says) {
  let error;
  try {
    call();
  } catch (thrown) {
    error = thrown;
  }
  assert.ok(error !== undefined, `nothing was thrown: ${call}`);
  assert.ok(error instanceof Error && !(error instanceof WebAssembly.RuntimeError), String(error));
  assert.ok(error.message.length > 10 && !error.message.includes("\n"), error.message);
  assert.ok(!/bug|out of memory|unreachable/.test(error.message), error.message);
  if (says) assert.match(error.message, says);
  return error.message;
}

/** Numbers that look drawn, and are the same each time. */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
