// Compiled against the installed package, and not run: what the types promise and what they refuse.
import { bytesSource, load } from "exact-fp4";
import type { Checkpoint, DotSteps, Fp4, Linear, Quantized, Source, Trial, View } from "exact-fp4";

const fp4: Fp4 = await load({ simd: true, base: new URL("https://localhost/") });
const q: Quantized = fp4.quantize(new Float32Array(32), 1, 32, { format: "mxfp4", rule: "even" });
const y: Float32Array = fp4.matmul(q, { format: "mxint8", rows: 1, cols: 32, codes: q.codes, scales: q.scales });
const steps: DotSteps = fp4.dotSteps(q, q, { alpha: 1 });
const exact: string = steps.exact;

const source: Source = bytesSource("a", new Uint8Array(8));
const checkpoint: Checkpoint = fp4.open([source], { layout: "modelopt" });
const view: View = checkpoint.layer("a", { against: checkpoint }, (done, total, name) => {
  const percent: number = (100 * done) / total;
  console.log(percent, name.length);
});
const plane: Float32Array | undefined = view.map.planes.sqnr_db;
const trials: Trial[] = checkpoint.trial("a", [{ format: "nvfp4", transform: "hadamard-16" }]);
const linear: Linear = checkpoint.linear("a", { activations: "mxint8" });
const share: number | null = fp4.report(checkpoint).totals.error?.sqnr_db ?? null;
console.log(y, exact, plane, trials[0]?.error.sqnr_db, linear.forward(y), share);

// @ts-expect-error another format
fp4.quantize(y, 1, 32, { format: "fp4" });
// @ts-expect-error a rule that there is not
fp4.quantize(y, 1, 32, { format: "mxfp4", rule: "best" });
// @ts-expect-error no Float32Array
fp4.quantize([1, 2], 1, 2, { format: "mxfp4" });
// @ts-expect-error a plane that there is not
console.log(view.map.planes.nothing);
// @ts-expect-error files are a list
fp4.open(source);
