// What is wrong is an Error of one line, never a trap; and the instance goes on.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { builds, checkpoints, inMemory, module, random, refused } from "./common.mjs";

const { bytesSource, load } = module;
const x = new Float32Array(64);

for (const [name, fp4] of Object.entries(builds)) {
  const q = fp4.quantize(x, 2, 32, { format: "mxfp4" });
  const open = () => fp4.open([inMemory(join(checkpoints, "h_fpquant_mxfp4.safetensors"))]);

  test(`${name}: wrong arguments`, () => {
    const checkpoint = open();
    const { layers, tensors } = checkpoint.inspect();
    const [layer] = layers;
    const dense = tensors.find(({ dtype, shape }) => dtype === "BF16" && shape.length === 2);
    const linear = checkpoint.linear(layer.name, { bias: false });
    const rules = { format: "mxfp4" };
    const calls = [
      [() => fp4.quantize(x, 2, 31, rules), /64 values, expected 2 x 31/],
      [() => fp4.quantize(x, 4, 16, rules), /16.*32|32.*16/],
      [() => fp4.quantize(x, -2, -32, rules), /rows is -2/],
      [() => fp4.quantize(x, 2.5, 32, rules), /rows is 2.5/],
      [() => fp4.quantize(x, "2", 32, rules), /rows is `2`/],
      [() => fp4.quantize(x, 2 ** 31, 2 ** 31, rules), /more than memory/],
      [() => fp4.quantize([1, 2], 1, 2, rules), /x is .*Float32Array/],
      [() => fp4.quantize(new Float64Array(64), 2, 32, rules), /Float32Array/],
      [() => fp4.quantize(undefined, 2, 32, rules), /Float32Array/],
      [() => fp4.quantize(x, 2, 32), /format/],
      [() => fp4.quantize(x, 2, 32, {}), /format/],
      [() => fp4.quantize(x, 2, 32, { format: "fp5" }), /fp5.*mxfp4/],
      [() => fp4.quantize(x, 2, 32, { format: "mxfp4", rule: "four-six-mse" }), /four-six-mse/],
      [() => fp4.quantize(x, 2, 32, { format: "mxfp4", globalscale: 1 }), /no `globalscale`/],
      [() => fp4.quantize(x, 2, 32, { format: "mxfp4", globalScale: NaN }), /NaN|finite/],
      [() => fp4.quantize(x, 2, 32, { format: "mxfp4", globalScale: "1" }), /number/],
      [() => fp4.quantize(x, 2, 32, { format: "mxfp4", transform: "hadamard-128" }), /128/],
      [() => fp4.quantize(x, 2, 32, { format: "mxfp4", transform: "dct" }), /hadamard-16/],
      [() => fp4.quantize(x, 2, 32, { format: "mxint8", rule: "search" }), /mxint8/],
      [() => fp4.quantize(x, 2, 32, 7), /options is 7/],
      [() => fp4.dequantize({ ...q, codes: q.codes.slice(1) }), /31/],
      [() => fp4.dequantize({ ...q, scales: new Uint8Array(99) }), /99/],
      [() => fp4.dequantize({ ...q, rows: 1e9, cols: 1e9 }), /./],
      [() => fp4.dequantize({ ...q, rows: undefined }), /rows/],
      [() => fp4.dequantize(null), /q is null/],
      [() => fp4.matmul(q, { ...q, format: "nvfp4", scales: new Uint8Array(4) }), /./],
      [() => fp4.matmul(q, q, { bias: new Float32Array(3) }), /3/],
      [() => fp4.matmul(q, q, { alpha: "x" }), /alpha/],
      [() => fp4.swizzle(new Uint8Array(5), 2, 3), /5/],
      [() => fp4.swizzle(new Uint8Array(5), 4294967295, 4294967295), /./],
      [() => fp4.unswizzle(new Uint8Array(511), 2, 3), /511/],
      [() => fp4.swizzleOffset(2, 3, 128, 0), /outside/],
      [() => fp4.swizzleCoordinate(2, 3, 512), /512/],
      [() => fp4.explain("1", "e2m1"), /number/],
      [() => fp4.explain(1, "fp8"), /e4m3/],
      [() => fp4.codes(1), /string/],
      [() => fp4.dotSteps(q, q, { row: 2 }), /./],
      [() => fp4.open(), /files is .*array/],
      [() => fp4.open([]), /no file is given/],
      [() => fp4.open([{}]), /name/],
      [() => fp4.open([{ name: "a", size: -1, read() {} }]), /size/],
      [() => fp4.open([{ name: "a", size: 10, read: 3 }]), /read/],
      [() => fp4.open([bytesSource("a", new Uint8Array(3))], { layout: "none" }), /layout/],
      [() => fp4.report(7), /not open/],
      [() => fp4.report(checkpoint, {}), /not open/],
      [() => checkpoint.layer("no such layer"), /no such layer/],
      [() => checkpoint.layer(3), /string/],
      [() => checkpoint.layer(layer.name, { against: 3 }), /against/],
      [() => checkpoint.inspect(3), /progress/],
      [() => checkpoint.trial(dense.name, [{ format: "fp3" }]), /fp3/],
      [() => checkpoint.trial(dense.name, [{ format: "mxfp4", rule: "four-six-mae" }]), /four-six/],
      [() => checkpoint.trial(dense.name, [{ format: "mxfp4" }], { matrix: 9 }), /matrix 9/],
      [() => checkpoint.trial(dense.name, "mxfp4"), /array/],
      [() => checkpoint.trial("nothing", [{ format: "mxfp4" }]), /nothing/],
      [() => checkpoint.values(dense.name, 0, 0, 1e6, 1e6), /memory|asked/],
      [() => checkpoint.values(dense.name, dense.shape[0], 0, 1, 1), /asked/],
      [() => checkpoint.linear("nothing"), /./],
      [() => checkpoint.linear(layer.name, { activations: "fp2" }), /fp2/],
      [() => linear.forward(new Float32Array(7)), /7 values/],
      [() => linear.forward("x"), /Float32Array/],
      [() => bytesSource("a", [1, 2]), /Uint8Array/],
      [() => module.blobSource("a", new Blob([])), /worker/],
    ];
    for (const [call, says] of calls) refused(call, says);
    checkpoint.free();
    checkpoint.free();
    refused(() => checkpoint.inspect(), /freed/);
    console.log(`${name}: ${calls.length} wrong calls refused`);
    assert.equal(fp4.dequantize(q).length, 64);
  });

  test(`${name}: files cut short and changed`, () => {
    let refusals = 0;
    let read = 0;
    for (const file of [
      "f_modelopt_nvfp4.safetensors", "h_fpquant_mxfp4.safetensors", "h_gguf_mxfp4.gguf",
      "h_gguf_nvfp4_edge.gguf",
    ]) {
      const whole = new Uint8Array(readFileSync(join(checkpoints, file)));
      const next = random(file.length);
      for (let trial = 0; trial < 150; trial++) {
        const bytes = whole.slice(0, trial % 3 === 0 ? Math.floor(next() * whole.length) : undefined);
        // Where headers are.
        for (let flips = trial % 4; flips > 0 && bytes.length > 0; flips--) {
          bytes[Math.floor(next() * next() * Math.min(bytes.length, 4000))] ^= 1 << Math.floor(next() * 8);
        }
        const verified = [];
        try {
          const checkpoint = fp4.open([bytesSource(file, bytes)]);
          const { layers } = checkpoint.inspect();
          checkpoint.verify();
          for (const layer of layers.slice(0, 2)) verified.push(checkpoint.layer(layer.name).name);
          checkpoint.free();
          read++;
        } catch (error) {
          refused(() => {
            throw error;
          });
          refusals++;
        }
      }
      // Not one byte: what a GGUF file ends in may be padding.
      const cut = bytesSource(file, whole.slice(0, 0.9 * whole.length));
      const [finding] = fp4.verify([cut]).findings;
      assert.deepEqual([finding.severity, finding.kind], ["error", "broken-file"]);
      refused(() => fp4.open([cut]), new RegExp(file));
    }
    console.log(`${name}: ${refusals} changed files refused, ${read} read`);
    assert.ok(refusals > 200 && read > 20, `${refusals} ${read}`);
  });

  test(`${name}: sources that misbehave`, () => {
    const good = inMemory(join(checkpoints, "h_fpquant_mxfp4.safetensors"));
    const with_ = (read) => ({ ...good, read });
    refused(() => fp4.open([with_(() => new Uint8Array(1))]), /gave 1 bytes/);
    refused(() => fp4.open([with_(() => "bytes")]), /no Uint8Array/);
    refused(() => fp4.open([with_(() => new Uint8Array(1 << 20))]), /gave 1048576 bytes/);
    const thrown = new TypeError("the disk is gone");
    assert.throws(() => fp4.open([with_(() => { throw thrown; })]), (error) => error === thrown);
    // After it was opened.
    let broken = false;
    const later = fp4.open([with_((at, length) => {
      if (broken) throw thrown;
      return good.read(at, length);
    })]);
    broken = true;
    assert.throws(() => later.verify(), (error) => error === thrown);
    broken = false;
    assert.ok(later.verify().layers > 0);
    later.free();
    refused(() => fp4.open([good, good]), /have this name/);
  });

  test(`${name}: progress stops a call, and the checkpoint goes on`, () => {
    const checkpoint = open();
    const { layers } = checkpoint.inspect();
    const seen = [];
    const stop = new Error("stop");
    const cancel = (...args) => {
      seen.push(args);
      throw stop;
    };
    for (const call of [
      () => checkpoint.inspect(cancel), () => checkpoint.verify(cancel),
      () => fp4.report(checkpoint, null, cancel), () => checkpoint.layer(layers[0].name, cancel),
    ]) {
      assert.throws(call, (error) => error === stop);
    }
    assert.ok(seen.length === 4 && seen.every(([done, total]) => done <= total));
    assert.equal(checkpoint.inspect().layers.length, layers.length);
    checkpoint.free();
  });

  test(`${name}: 10 GB take little memory, and only what is looked at is read`, () => {
    const [rows, cols] = [65536, 16384];
    const sizes = [2 * rows * cols, 2 * rows * cols, 2 * rows * cols, 2 * rows * cols, 2 * 512 * cols];
    let at = 0;
    const header = JSON.stringify(Object.fromEntries(sizes.map((bytes, i) => {
      const shape = [bytes / 2 / cols, cols];
      const offsets = [at, (at += bytes)];
      return [`layer.${i}.weight`, { dtype: "BF16", shape, data_offsets: offsets }];
    })));
    const start = 8 + header.length;
    const head = new Uint8Array(start);
    new DataView(head.buffer).setBigUint64(0, BigInt(header.length), true);
    head.set(new TextEncoder().encode(header), 8);
    const size = start + at;
    assert.ok(size > 8.5e9);
    let served = 0;
    let largest = 0;
    const source = {
      name: "large.safetensors",
      size,
      read(position, length) {
        served += length;
        largest = Math.max(largest, length);
        assert.ok(Number.isSafeInteger(position) && position + length <= size);
        if (position < start) return head.slice(position, position + length);
        // 1.0 in the last tensor, whose place is past what 32 bits say, and 0 elsewhere.
        const bytes = new Uint8Array(length);
        if (position >= start + 4 * sizes[0]) new Uint16Array(bytes.buffer, 0, length >> 1).fill(0x3f80);
        return bytes;
      },
    };
    const checkpoint = fp4.open([source]);
    assert.equal(checkpoint.inspect().tensors.length, 5);
    assert.ok(served < 10_000, String(served));
    const view = checkpoint.layer("layer.4.weight");
    assert.deepEqual([view.values.min, view.values.max, view.values.zero], [1, 1, 0]);
    assert.deepEqual([...checkpoint.values("layer.4.weight", 511, 16383, 1, 1)], [1]);
    assert.ok(served < 2.2 * sizes[4] && largest <= 8 << 20, `${served} ${largest}`);
    checkpoint.free();
    // One tensor that 32 bits do not address is refused by name.
    const huge = header.replace('"layer.4.weight"', '"too.large"').replace(/\[512,16384\]/, "[262144,16384]")
      .replace(`${at}]`, `${at - sizes[4] + 2 * 262144 * cols}]`);
    const file = new Uint8Array(8 + huge.length);
    new DataView(file.buffer).setBigUint64(0, BigInt(huge.length), true);
    file.set(new TextEncoder().encode(huge), 8);
    const end = 8 + huge.length + at - sizes[4] + 2 * 262144 * cols;
    refused(() => fp4.open([{ name: "huge.safetensors", size: end, read: (p, n) => file.slice(p, p + n) }]), /too\.large/);
  });
}

test("load refuses what is no build", async () => {
  await assert.rejects(load({ bits: 1 }), /no `bits`/);
  await assert.rejects(load({ simd: 3 }), /simd/);
});
