// The golden vectors, which independent software made: every bit of both builds.
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { bits, builds, canonical, same, tensors, vectors } from "./common.mjs";

let compared = 0;

for (const [name, fp4] of Object.entries(builds)) {
  test(`${name}: tables of the formats`, () => {
    const tables = tensors(join(vectors, "a_decode_tables.safetensors"));
    for (const type of ["e2m1", "e8m0", "e4m3"]) {
      const { values } = tables[`${type}.f32bits.ml_dtypes`];
      const codes = fp4.codes(type);
      const got = canonical(Float32Array.from(codes, (code) => code.value ?? NaN));
      const expected = Uint32Array.from(values, (b) => ((b & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : b));
      compared += same(got, expected, type);
      assert.ok(codes.every((code) => parseInt(code.bits, 2) === code.code));
    }
  });

  for (const [file, format, gs, ss] of [
    ["b_rtn_nvfp4_gs_0p1_ss6", "nvfp4", 0.1, 6],
    ["b_rtn_mxfp4_gs_third_ss4", "mxfp4", 1 / 3, 4],
    ["b_rtn_mxfp4_gs1_ss6_subset", "mxfp4", 1, 6],
  ]) {
    test(`${name}: ${file}`, () => {
      const all = tensors(join(vectors, `${file}.safetensors`));
      const families = Object.keys(all).filter((key) => /^f32\..*\.x$/.test(key));
      assert.ok(families.length >= 2);
      for (const key of families) {
        const family = key.slice(0, -2);
        const { shape: [rows, cols], values: x } = all[key];
        for (const tie of ["even", "zero", "down", "up"]) {
          const q = fp4.quantize(x, rows, cols, { format, globalScale: gs, scaleScale: ss, tie });
          compared += same(q.scales, all[`${family}.scales`].values, `${key} scales`);
          compared += same(q.codes, all[`${family}.codes_${tie}`].values, `${key} ${tie}`);
        }
        const q = fp4.quantize(x, rows, cols, { format, globalScale: gs, scaleScale: ss });
        const dq = all[`${family}.dq`];
        compared += same(canonical(fp4.dequantize(q)), canonical(dq.values), `${key} values`);
      }
    });
  }

  for (const file of [
    "e_matmul_nvfp4_subset", "e_matmul_nvfp4_crafted", "e_matmul_mxfp4_subset",
    "e_matmul_mxfp4_crafted", "i_mxint8_matmul_mxfp4_subset", "i_mxint8_matmul_nvfp4_subset",
    "j_epilogue_mxfp4", "j_epilogue_nvfp4",
  ]) {
    test(`${name}: ${file}`, () => {
      const all = tensors(join(vectors, `${file}.safetensors`));
      const format = file.includes("nvfp4") ? "nvfp4" : "mxfp4";
      const int8 = file.startsWith("i_");
      const cases = Object.keys(all).filter((key) => key.endsWith(".b")).map((key) => key.slice(0, -2));
      let checked = 0;
      for (const id of cases) {
        const get = (suffix) => all[`${id}.${suffix}`];
        if (get("row_scales")) continue;
        const packed = (codes, scales, encoding) => {
          const cols = codes.shape[1] * (encoding === "mxint8" ? 1 : 2);
          return { format: encoding, rows: codes.shape[0], cols, codes: codes.values, scales: scales.values };
        };
        const a = packed(get(int8 ? "a_codes" : "a"), get("a_scales"), int8 ? "mxint8" : format);
        const b = packed(get("b"), get("b_scales"), format);
        const y = get("y32_bits").values;
        const each = a.rows * b.rows;
        get("alpha").values.forEach((alpha, at) => {
          const got = fp4.matmul(a, b, { alpha, bias: get("bias")?.values });
          compared += same(bits(got), y.subarray(at * each, (at + 1) * each), `${id} ${alpha}`);
          checked++;
        });
      }
      assert.ok(checked > 0);
    });
  }

  test(`${name}: d_swizzle`, () => {
    const all = tensors(join(vectors, "d_swizzle.safetensors"));
    for (const key of Object.keys(all).filter((key) => key.endsWith(".in"))) {
      const { shape: [rows, cols], values } = all[key];
      const swizzled = all[key.replace(".in", ".out")].values;
      compared += same(fp4.swizzle(values, rows, cols), swizzled, key);
      compared += same(fp4.unswizzle(swizzled, rows, cols), values, key);
      const [row, col] = [rows - 1, cols - 1];
      const offset = fp4.swizzleOffset(rows, cols, row, col);
      assert.equal(swizzled[offset], values[row * cols + col]);
      assert.deepEqual(fp4.swizzleCoordinate(rows, cols, offset), [row, col]);
    }
  });
}

test("values were compared", () => {
  console.log(`vectors: ${compared} values compared`);
  assert.ok(compared > 500_000, String(compared));
});
