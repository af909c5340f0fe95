// Files for the page to be given: real ones, what `fp4` makes of them, and broken ones.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../../../", import.meta.url));
const vectors = join(root, "quant-linear/tests/vectors");
export const SAMPLE = join(root, "quant-linear/cli/fixtures/minilm-slice.safetensors");

/** Ten tensors of 1 GiB. */
const HUGE = { tensors: 10, shape: [16384, 16384] };

/** Checkpoints that other libraries wrote, of as many layouts, each with the files beside it. */
export const LAYOUTS = [
  ["compressed-tensors", "f_ct_nvfp4.safetensors", "f_ct_nvfp4.config.json"],
  ["compressed-tensors", "f_ct_mxfp4.safetensors", "f_ct_mxfp4.config.json"],
  ["modelopt", "f_modelopt_nvfp4.safetensors", "f_modelopt_nvfp4.config.json"],
  ["gpt-oss", "f_gptoss.safetensors"],
  ["torchao", "f_torchao.safetensors"],
  ["comfyui", "h_comfy_nvfp4.safetensors"],
  ["gguf", "h_gguf_mxfp4.gguf"],
  ["gguf", "h_gguf_nvfp4.gguf"],
  ["quark", "h_quark_mxfp4.safetensors", "h_quark_mxfp4.config.json"],
  ["deepseek", "h_deepseek_v4.safetensors", "h_deepseek_v4.config.json"],
].map(([layout, ...names]) => ({ layout, name: names[0], paths: names.map((name) => join(vectors, name)) }));

/** The header of a safetensors file: where it ends, and its tensors. */
export function header(bytes) {
  const end = 8 + Number(bytes.readBigUInt64LE(0));
  return { end, tensors: JSON.parse(bytes.subarray(8, end).toString()) };
}

/** A safetensors file of F32 tensors: name to shape and values. */
export function save(path, tensors) {
  const fields = {};
  let end = 0;
  for (const [name, { shape }] of Object.entries(tensors)) {
    const bytes = 4 * shape.reduce((a, b) => a * b);
    fields[name] = { dtype: "F32", shape, data_offsets: [end, end + bytes] };
    end += bytes;
  }
  let text = JSON.stringify(fields);
  while (Buffer.byteLength(text) % 8 !== 0) text += " ";
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(text)));
  const parts = Object.values(tensors).map(({ values }) => Buffer.from(values.buffer));
  writeFileSync(path, Buffer.concat([length, Buffer.from(text), ...parts]));
}

/** Values like those of a weight, with a few outliers; the same every time. */
export function weight(rows, cols) {
  let state = 12345;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  const values = Float32Array.from({ length: rows * cols }, () => (next() + next() + next() - 1.5) / 16);
  for (let i = 5; i < values.length; i += 4099) values[i] *= 20;
  return { shape: [rows, cols], values };
}

/** Makes the files that are made; gives where they are. */
export function make(fp4, folder) {
  mkdirSync(folder, { recursive: true });
  const at = (name) => join(folder, name);
  const quantize = (from, to, ...more) => {
    execFileSync(fp4, ["quantize", from, "-o", to, "--force", ...more], { stdio: "ignore" });
    return to;
  };
  const made = { model: at("model.safetensors"), sample: SAMPLE };
  execFileSync(process.execPath, [join(root, "quant-linear/cli/web/test/model.mjs"), made.model]);
  made.nvfp4 = quantize(made.model, at("nvfp4.safetensors"), "--format", "nvfp4");
  made.mxfp4 = quantize(made.model, at("mxfp4.safetensors"), "--format", "mxfp4");
  made.folder = at("folder");
  mkdirSync(made.folder, { recursive: true });
  copyFileSync(join(vectors, "f_ct_nvfp4.safetensors"), join(made.folder, "model.safetensors"));
  copyFileSync(join(vectors, "f_ct_nvfp4.config.json"), join(made.folder, "config.json"));
  // As some are published: in a folder inside the files are there once more.
  made.nested = at("nested");
  for (const each of [made.nested, join(made.nested, "original")]) {
    mkdirSync(each, { recursive: true });
    for (const name of ["model.safetensors", "config.json"]) copyFileSync(join(made.folder, name), join(each, name));
  }
  // Several matrices in a tensor, and one that is stored as (in, out); a value is its place.
  made.places = at("places.safetensors");
  const places = (...shape) => ({ shape, values: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => i) });
  save(made.places, { "experts.weight": places(3, 32, 64), "h.0.attn.c_attn.weight": places(64, 1536) });
  // 11 MB in one tensor.
  made.large = at("large.safetensors");
  save(made.large, { "blocks.0.proj.weight": weight(1440, 1920) });
  made.largeNvfp4 = quantize(made.large, at("large-nvfp4.safetensors"), "--format", "nvfp4");
  made.odd = at("odd.safetensors");
  save(made.odd, { "odd.weight": { shape: [3, 7], values: Float32Array.from({ length: 21 }, (_, i) => i % 7) } });
  // What takes a while.
  made.long = at("long.safetensors");
  save(made.long, { "blocks.0.proj.weight": weight(4096, 4096) });
  // More than any memory; its values are a hole in the file.
  made.huge = at("huge.safetensors");
  const hole = { shape: HUGE.shape, values: new Float32Array(0) };
  const names = Array.from({ length: HUGE.tensors }, (_, i) => `blocks.${i}.proj.weight`);
  save(made.huge, Object.fromEntries(names.map((name) => [name, hole])));
  truncateSync(made.huge, statSync(made.huge).size + HUGE.tensors * 2 ** 30);
  Object.assign(made, broken(at));
  return made;
}

/** Files that are wrong in one way each. */
function broken(at) {
  const good = readFileSync(join(vectors, "f_modelopt_nvfp4.safetensors"));
  const write = (name, bytes) => {
    writeFileSync(at(name), bytes);
    return at(name);
  };
  const { end, tensors } = header(good);
  const from = (name) => end + tensors[name].data_offsets[0];
  // NaN and negative scales, and a layer whose codes are all zero.
  const sick = Buffer.from(good);
  const scale = Object.keys(tensors).filter((name) => name.endsWith("weight_scale"));
  sick[from(scale[0])] = 0x7f;
  sick[from(scale[1]) + 3] |= 0x80;
  const codes = tensors[scale[2].replace("weight_scale", "weight")].data_offsets;
  sick.fill(0, end + codes[0], end + codes[1]);
  const length = Buffer.alloc(16);
  length.writeBigUInt64LE(2n ** 62n);
  const text = Buffer.from(`{"a":{"dtype":"F32","shape":[4294967295,4294967295,4294967295],"data_offsets":[0,4]}}`);
  const shapes = Buffer.alloc(8);
  shapes.writeBigUInt64LE(BigInt(text.length));
  const gguf = readFileSync(join(vectors, "h_gguf_mxfp4.gguf"));
  return {
    sick: write("sick.safetensors", sick),
    hostile: [
      write("cut.safetensors", good.subarray(0, Math.floor(good.length * 0.6))),
      write("cut-header.safetensors", good.subarray(0, 200)),
      write("empty.safetensors", Buffer.alloc(0)),
      write("length.safetensors", length),
      write("shapes.safetensors", Buffer.concat([shapes, text, Buffer.alloc(4)])),
      write("noise.safetensors", Buffer.from(weight(64, 64).values.buffer)),
      write("cut.gguf", gguf.subarray(0, 3000)),
      write("<img src=x onerror=alert(1)>.gguf", Buffer.from("GGUF<script>throw 1</script>")),
    ],
  };
}
