// Writes a small transformer's weights, and inputs of its layers to calibrate with:
// node model.mjs MODEL.safetensors [INPUTS.safetensors]
//
// Twelve blocks, F32, Gaussian, with what a report has to show: outliers that grow with depth, a
// column of large values, a huge one that flushes its neighbours, an all-zero matrix, and a name
// that would end the page's data if it could.

import { closeSync, openSync, writeSync } from "node:fs";

export const HOSTILE = "</script><script>throw 1</script><!--<img src=x onerror=throw(1)>&amp;\u2028\u202e.weight";

const BLOCKS = 12;
const WIDTH = 128;

/** Numbers of the normal distribution; the same for the same seed. */
function gaussian(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

function matrix(rows, columns, seed, change = () => {}) {
  const next = gaussian(seed);
  const values = Float32Array.from({ length: rows * columns }, () => next() / Math.sqrt(columns));
  change(values, columns);
  return { shape: [rows, columns], values };
}

const tensors = new Map();
tensors.set("embed_tokens.weight", matrix(256, WIDTH, 1));
for (let block = 0; block < BLOCKS; block++) {
  const at = `model.layers.${block}`;
  const seed = 100 * (block + 1);
  for (const [i, name] of ["q_proj", "k_proj", "v_proj", "o_proj"].entries()) {
    tensors.set(`${at}.self_attn.${name}.weight`, matrix(WIDTH, WIDTH, seed + i));
  }
  // Outliers that grow with depth.
  tensors.set(`${at}.mlp.up_proj.weight`, matrix(4 * WIDTH, WIDTH, seed + 5, (v) => {
    for (let i = 7; i < v.length; i += 211) v[i] *= 2 ** (block / 2);
  }));
  tensors.set(`${at}.mlp.down_proj.weight`, matrix(WIDTH, 4 * WIDTH, seed + 6, (v, columns) => {
    if (block === 5) for (let i = 3; i < v.length; i += columns) v[i] *= 300;
    if (block === 9) v[1000] = 1e6;
    if (block === 11) v.fill(0, 0, v.length / 2);
  }));
  const norm = Float32Array.from({ length: WIDTH }, () => 1);
  tensors.set(`${at}.norm.weight`, { shape: [WIDTH], values: norm });
}
tensors.set(HOSTILE, matrix(WIDTH, WIDTH, 9));
tensors.set("lm_head.weight", matrix(256, WIDTH, 2));

/** Writes tensors as a safetensors file. */
function save(path, tensors) {
  const header = {};
  let end = 0;
  for (const [name, { shape, values }] of tensors) {
    header[name] = { dtype: "F32", shape, data_offsets: [end, end + values.byteLength] };
    end += values.byteLength;
  }
  let text = Buffer.from(JSON.stringify(header));
  text = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const file = openSync(path, "w");
  for (const part of [length, text]) writeSync(file, part);
  for (const { values } of tensors.values()) writeSync(file, Buffer.from(values.buffer));
  closeSync(file);
}

save(process.argv[2], tensors);
if (process.argv[3] !== undefined) {
  // Features that depend on each other, one of them large, the larger the deeper.
  const inputs = new Map();
  for (const [name, { shape }] of tensors) {
    if (shape.length < 2 || name.startsWith("embed")) continue;
    const depth = Number(/layers\.(\d+)/.exec(name)?.[1] ?? 0);
    const input = matrix(2 * shape[1], shape[1], 7 + depth, (v, columns) => {
      for (let i = 0; i < v.length; i++) if (i % columns > 0) v[i] = 0.8 * v[i - 1] + 0.4 * v[i];
      for (let i = 5; i < v.length; i += columns) v[i] *= 4 + 6 * depth;
    });
    inputs.set(name.replace(/weight$/, "input"), input);
  }
  save(process.argv[3], inputs);
}
