// Checkpoints of all layouts, on both builds: as the command has them, where FP4 is its path, and
// the same on both.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, test } from "node:test";

import { alike, bits, builds, checkpoints, fixtures, inMemory, module, same, tensors } from "./common.mjs";

const command = process.env.FP4;

/** The command's JSON; its exit code says whether there are findings. */
function native(...args) {
  const run = spawnSync(command, [...args, "--json"], { encoding: "utf8", maxBuffer: 1 << 28 });
  assert.ok(run.stdout.startsWith("{"), `${args}: ${run.stderr}`);
  return JSON.parse(run.stdout);
}

/** A checkpoint's file with the configs that lie beside it. */
function files(path) {
  const stem = path.replace(/\.(safetensors|gguf)$/, "");
  const configs = ["config.json", "hf_quant_config.json", "quantization_config.json"]
    .map((name) => `${stem}.${name}`)
    .filter(existsSync);
  return [module.fileSource(path), ...configs.map((config) => inMemory(config))];
}

const withoutPath = ({ path, ...rest }) => rest;
const all = readdirSync(checkpoints)
  .filter((name) => /^[fh]_.*\.(safetensors|gguf)$/.test(name) && !name.includes("_ref."))
  .map((name) => join(checkpoints, name));
const layouts = new Set();

for (const path of all) {
  test(`${basename(path)} is the same on both builds${command ? " and as the command has it" : ""}`, () => {
    const numbers = Object.values(builds).map((fp4) => {
      const given = files(path);
      const checkpoint = fp4.open(given);
      const inspected = checkpoint.inspect();
      const report = fp4.report(checkpoint);
      const layers = inspected.layers.map(({ name }) => checkpoint.layer(name));
      for (const view of layers) {
        layouts.add(view.layout);
        const row = report.rows.find((row) => row.name === (view.name || "(no prefix)"));
        assert.deepEqual(view.counts, row.counts, view.name);
        const cells = view.map.rows * view.map.cols;
        assert.ok(Object.values(view.map.planes).every((plane) => plane.length === cells));
        const { cols } = view;
        const values = checkpoint.values(view.name, view.rows - 1, 0, 1, cols);
        const part = checkpoint.values(view.name, view.rows - 1, cols - 2, 1, 2);
        same(bits(part), bits(values.slice(-2)), view.name);
      }
      const verified = checkpoint.verify();
      assert.deepEqual(fp4.verify(files(path)), verified);
      checkpoint.free();
      given[0].close();
      return { inspected, report, layers, verified };
    });
    assert.deepEqual(numbers[0], numbers[1]);
    if (!command) return;
    const { inspected, report, verified } = numbers[0];
    assert.deepEqual(withoutPath(inspected), withoutPath(native("inspect", path)));
    assert.deepEqual(withoutPath(verified), withoutPath(native("verify", path)));
    const expected = native("report", path);
    expected.a.path = report.a.path;
    expected.problems = report.problems.first.length ? report.problems : expected.problems;
    assert.deepEqual(report, expected);
  });
}

test("all layouts were seen", () => {
  console.log(`checkpoints: ${all.length} files, layouts ${[...layouts].sort().join(", ")}`);
  assert.ok(layouts.size >= 11, [...layouts].join());
});

const scratch = mkdtempSync(join(tmpdir(), "fp4-wasm-"));
after(() => rmSync(scratch, { recursive: true }));

test("a trial is what quantizing gives", { skip: command ? false : "FP4 is not set" }, () => {
  const path = join(fixtures, "minilm-slice.safetensors");
  for (const [format, rule, transform] of [
    ["nvfp4", "search", "none"], ["mxfp4", "even", "hadamard-32"], ["nvfp4", "modelopt", "none"],
  ]) {
    const out = join(scratch, `${format}-${rule}.safetensors`);
    const block = transform === "none" ? [] : ["--transform", "hadamard", "--transform-block", "32"];
    execFileSync(command, ["quantize", path, "-o", out, "--format", format, "--scale-rule", rule, ...block]);
    const expected = native("report", path, out);
    assert.ok(expected.rows.length > 0);
    for (const fp4 of Object.values(builds)) {
      const dense = fp4.open(files(path));
      const packed = fp4.open(files(out));
      for (const row of expected.rows) {
        const name = row.name === "(no prefix)" ? "" : row.name;
        const tensor = name === "" ? "weight" : `${name}.weight`;
        const [trial] = dense.trial(tensor, [{ format, rule, transform }]);
        alike(
          [trial.counts, trial.error, trial.groups, trial.global_scale, trial.bytes],
          [row.counts, row.error, row.groups, row.global_scale, row.bytes], row.name);
        const view = packed.layer(name, { against: dense });
        alike([view.counts, view.error, view.groups], [row.counts, row.error, row.groups]);
        assert.deepEqual(view.map, trial.map);
      }
      const both = fp4.report(dense, packed);
      expected.a.path = both.a.path;
      expected.b.path = both.b.path;
      alike(both, expected);
    }
  }
});

test("a layer runs, and gives what its parts give", () => {
  const path = join(checkpoints, "f_modelopt_nvfp4.safetensors");
  const outputs = Object.values(builds).map((fp4) => {
    const checkpoint = fp4.open(files(path));
    const { layers } = checkpoint.inspect();
    const about = layers.find((layer) => layer.activations === "fp4") ?? layers[0];
    const layer = checkpoint.linear(about.name, { activations: "mxint8", bias: false });
    const { inFeatures, outFeatures } = layer;
    const x = Float32Array.from({ length: 3 * inFeatures }, (_, i) => Math.sin(i));
    const y = layer.forward(x);
    assert.equal(y.length, 3 * outFeatures);
    const alone = layer.forward(x.slice(inFeatures, 2 * inFeatures));
    same(bits(alone), bits(y.slice(outFeatures, 2 * outFeatures)), "a row alone");
    // By hand: MXINT8 activations by the stored codes and scales.
    const stored = tensors(path);
    const b = {
      format: "nvfp4", rows: outFeatures, cols: inFeatures,
      codes: stored[`${about.name}.weight`].values,
      scales: new Uint8Array(stored[`${about.name}.weight_scale`].values ?? raw(path, `${about.name}.weight_scale`)),
    };
    const a = fp4.quantize(x, 3, inFeatures, { format: "mxint8" });
    same(bits(fp4.matmul(a, b, { alpha: layer.weightGlobalScale })), bits(y), "by hand");
    layer.free();
    return y;
  });
  same(bits(outputs[0]), bits(outputs[1]), "both builds");
});

/** Bytes of a tensor of a type that has no array. */
function raw(path, name) {
  const source = inMemory(path);
  const header = Number(new DataView(source.read(0, 8).slice().buffer).getBigUint64(0, true));
  const entry = JSON.parse(new TextDecoder().decode(source.read(8, header)))[name];
  return source.read(8 + header + entry.data_offsets[0], entry.data_offsets[1] - entry.data_offsets[0]);
}
