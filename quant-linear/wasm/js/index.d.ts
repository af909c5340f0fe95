// The types of exact-fp4. Every function throws an Error with a message of one line where what it
// is given is wrong; none traps.

/** Bytes of a file by position. `read` answers at once, with exactly `length` bytes. */
export interface Source {
  /** Its name, with those of the folders that it lies in: `a.gguf`, `model/config.json`. */
  name: string;
  /** Its length in bytes. */
  size: number;
  read(position: number, length: number): Uint8Array;
}

/** A Blob or File, read by slices; in a worker only, where reading may wait. */
export function blobSource(name: string, blob: Blob): Source;

/** Bytes in memory. */
export function bytesSource(name: string, bytes: Uint8Array): Source;

/** A file of the system, held open until `close`; in node only. */
export function fileSource(path: string, name?: string): Source & { close(): void };

export interface LoadOptions {
  /** Where the package's folders `simd` and `scalar` are; beside the module unless given. */
  base?: URL | string;
  /** The .wasm file itself, or its compiled module. */
  bytes?: BufferSource | WebAssembly.Module;
  /** The SIMD build or the scalar one; what the engine can unless given. The bits are the same. */
  simd?: boolean;
}

/** Loads a build, once. */
export function load(options?: LoadOptions): Promise<Fp4>;

/** True if this engine runs the SIMD build. */
export function hasSimd(): boolean;

export type Format = "mxfp4" | "nvfp4";
export type Encoding = Format | "mxint8";
export type NumberType = "e2m1" | "e8m0" | "e4m3";
export type Tie = "even" | "zero" | "down" | "up";
export type Transform = "none" | "hadamard-16" | "hadamard-32" | "hadamard-64" | "hadamard-128";
export type Rule =
  | "nearest" | "floor" | "rceil" | "even" | "search" | "four-six-mse" | "four-six-mae"
  | "four-six-mse-448" | "four-six-mae-448" | "modelopt" | "compressed-tensors" | "ggml" | "mlx";

/** How far a call is: bytes done, bytes in all, the layer. What it throws stops the call. */
export type Progress = (done: number, total: number, name: string) => void;

export interface OpenOptions {
  /** The layout of the layers, where it cannot be told: one of `Fp4.layouts`. */
  layout?: string;
  /** What scale bytes stored as U8 are. */
  scaleType?: "e8m0" | "e4m3";
}

export interface QuantizeOptions {
  format: Encoding;
  /** A scale rule, with its global scale and ties; without one the usual settings. */
  rule?: Rule;
  globalScale?: number;
  scaleScale?: number;
  transform?: Transform;
  tie?: Tie;
}

/** A packed matrix: two codes in a byte (one of mxint8), a scale byte for each group of a row. */
export interface Packed {
  format: Encoding;
  rows: number;
  cols: number;
  codes: Uint8Array;
  scales: Uint8Array;
  /** 1 unless given. */
  globalScale?: number;
}

export interface Quantized extends Required<Packed> {
  scaleScale: number;
  rule: Rule;
  tie: Tie;
  transform: Transform;
  counts: {
    elements: number; groups: number; clipped: number; scaleMax: number; flushed: number;
    nanGroups: number;
  };
}

export interface RuleAbout {
  name: Rule;
  /** The formats that it writes scales of. */
  formats: Format[];
  about: string;
}

export interface TransformAbout {
  name: Transform;
  block: number | null;
  about: string;
}

export interface Code {
  code: number;
  /** The highest first. */
  bits: string;
  /** null for a NaN. */
  value: number | null;
}

/** What a value becomes in a type, and what lies beside that. */
export interface NumberAbout extends Code {
  /** The given value, as an f32. */
  x: number | null;
  below: number | null;
  above: number | null;
  tieBelow: number | null;
  tieAbove: number | null;
  isTie: boolean;
}

export interface DotStep {
  codes: [a: number, b: number];
  elements: [a: number, b: number];
  scales: [a: number | null, b: number | null];
  /** The product of elements and scales, exactly, in decimal; null under a NaN scale. */
  product: string | null;
  /** The exact sum so far. */
  sum: string | null;
  /** The sum so far in f32, every product and every sum rounded; null where it has no number. */
  sumInF32: number | null;
}

export interface DotSteps {
  steps: DotStep[];
  /** The exact sum in decimal, all of its digits. */
  exact: string;
  /** Rounded once to f32. */
  rounded: number | null;
  alpha: number;
  /** rounded * alpha, rounded: what matmul gives. */
  result: number | null;
  /** What f32 in order gives, before alpha and after. */
  inF32: number | null;
  resultInF32: number | null;
}

export interface Fp4 {
  readonly isa: "wasm-simd128" | "portable";
  readonly version: string;
  readonly rules: RuleAbout[];
  readonly transforms: TransformAbout[];
  readonly layouts: string[];
  readonly ties: Tie[];
  /** The rule that `fp4 quantize` takes. */
  readonly defaultRule: Rule;

  /** One file, or the files of a folder, index and configs included. Reads headers only. */
  open(files: Source[], options?: OpenOptions): Checkpoint;
  /** As `fp4 verify --json`, of files that may not open: those that are broken are a finding. */
  verify(files: Source[], options?: OpenOptions, progress?: Progress): Verification;
  /** As `fp4 report A [B] --json`. */
  report(a: Checkpoint, b?: Checkpoint | null, progress?: Progress): Report;

  /** x is rows * cols, cols a multiple of the group (mxfp4, mxint8 32; nvfp4 16). */
  quantize(x: Float32Array, rows: number, cols: number, options: QuantizeOptions): Quantized;
  dequantize(q: Packed): Float32Array;
  /** (M, K) by the transpose of (N, K): each sum exact, rounded once, times alpha. `alpha` is the
   * product of the global scales unless given. */
  matmul(a: Packed, b: Packed, options?: { alpha?: number; bias?: Float32Array }): Float32Array;

  /** The 128x4 layout of rows * cols scale bytes. */
  swizzle(scales: Uint8Array, rows: number, cols: number): Uint8Array;
  unswizzle(swizzled: Uint8Array, rows: number, cols: number): Uint8Array;
  /** Where the byte of (row, col) sits; padding included. */
  swizzleOffset(rows: number, cols: number, row: number, col: number): number;
  /** The (row, col) whose byte sits at an offset. */
  swizzleCoordinate(rows: number, cols: number, offset: number): [row: number, col: number];

  explain(x: number, type: NumberType): NumberAbout;
  codes(type: NumberType): Code[];
  /** The dot product of a row of A and one of B, their first unless given, term by term. */
  dotSteps(a: Packed, b: Packed, options?: { alpha?: number; row?: number; col?: number }): DotSteps;
}

export interface Choice {
  format: Format;
  rule?: Rule;
  transform?: Transform;
}

/** An open checkpoint. Its files must stay readable until it is freed. */
export interface Checkpoint {
  /** What the headers say; no code and no scale is read, whatever the size. */
  contents(): Contents;
  /** As `fp4 inspect --json`. */
  inspect(progress?: Progress): Inspection;
  /** As `fp4 verify --json`. */
  verify(progress?: Progress): Verification;
  /** A layer, or a tensor that is part of none, in depth; `against` is what its error is to. */
  layer(name: string, options?: { against?: Checkpoint }, progress?: Progress): View;
  layer(name: string, progress?: Progress): View;
  /** A matrix of a dense tensor, the first unless given, quantized in several ways. */
  trial(name: string, choices: Choice[], options?: { matrix?: number }, progress?: Progress): Trial[];
  trial(name: string, choices: Choice[], progress?: Progress): Trial[];
  /** Some values, row-major: of a layer what its codes are worth. */
  values(name: string, row: number, col: number, rows: number, cols: number): Float32Array;
  /** A layer that runs. */
  linear(name: string, options?: LinearOptions): Linear;
  free(): void;
}

export interface LinearOptions {
  /** Whether a bias is added; without this one that is not zero is an error. */
  bias?: boolean;
  activations?: "fp4" | "mxint8" | "fp4-rows";
}

export interface Linear {
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly format: Format | "none";
  readonly activations: "fp4" | "mxint8" | "fp4-rows";
  readonly weightGlobalScale: number;
  readonly hasBias: boolean;
  /** Rows of inFeatures in, rows of outFeatures out. A row's bits do not depend on the others. */
  forward(x: Float32Array): Float32Array;
  free(): void;
}

/** A value and how often it occurs. */
export type Pair = [value: number, count: number];

export interface Histogram {
  total: number;
  exponents: { exponent: number; count: number }[];
  nan: number;
  zero: number;
  subnormal: number;
  negative: number;
}

export interface Contents {
  files: { name: string; bytes: number }[];
  /** `dense`: has it dense values of two or more dimensions, as `trial` takes? */
  tensors: { name: string; dtype: string; shape: number[]; bytes: number; dense: boolean }[];
  /** Those that are whole; `shape` is that of the dense weight. */
  layers: {
    name: string; layout: string; format: Format | "none"; shape: number[]; bytes: number;
  }[];
  /** What is wrong with the others. */
  problems: string[];
}

export interface InspectedLayer {
  name: string;
  prefix: string;
  layout: string;
  tensor: string;
  format: Format | "none";
  shape: [outFeatures: number, inFeatures: number];
  experts: number | null;
  weight_global_scales: number[];
  out_features: number;
  in_features: number;
  group_size: number;
  scale_type: "e8m0" | "e4m3";
  weight_global_scale: number;
  activation_global_scale: number | null;
  activation_scale_scale: number | null;
  activations: string;
  activations_note: string | null;
  transform: { shape: number[]; dtype: string } | null;
  zero_groups: number;
  nan_scales: number;
  scales: Histogram;
}

export interface Inspection {
  command: "inspect";
  path: string;
  files: { name: string; bytes: number; metadata: Record<string, string> }[];
  tensors: { name: string; dtype: string; shape: number[]; bytes: number; file: string }[];
  layers: InspectedLayer[];
  notes: string[];
  problems: { prefix: string; problem: string }[];
}

export interface Finding {
  severity: "error" | "warning" | "note";
  kind: string;
  module: string | null;
  message: string;
}

export interface Verification {
  command: "verify";
  path: string;
  layouts: Record<string, number>;
  layers: number;
  findings: Finding[];
  errors: number;
  warnings: number;
}

export interface Counts {
  weights: number;
  groups: number;
  zero_groups: number;
  saturated: number;
  /** How often each of the 16 codes occurs. */
  codes: number[];
  nan_scales: number;
  zero_scales: number;
  subnormal_scales: number;
  negative_scales: number;
  /** Powers of two of the scales of groups that are not zero. */
  exponents: Pair[];
  /** How many powers of two lie between the largest and the smallest scale of a row. */
  spreads: Pair[];
}

/** What has no number is null, and `error_kind` says which. */
export interface Figures {
  relative_error: number | null;
  sqnr_db: number | null;
  max_abs_error: number;
  error_kind: "exact" | "finite" | "infinite" | "not_finite";
  values_differ: number;
  not_finite: number;
}

export interface Groups {
  exact: number;
  infinite: number;
  not_finite: number;
  finite: number;
  /** By whole dB. */
  histogram: Pair[];
  quantiles: { min: number; p1: number; p10: number; p50: number; p90: number } | null;
}

export interface Group {
  layer?: string;
  row: number;
  group: number;
  sqnr_db: number | null;
  error: number;
  reference: number;
  max_abs_error: number;
  not_finite: number;
}

export interface Worst {
  by_sqnr: Group[];
  by_error: Group[];
}

export interface ScaleCount {
  byte: number;
  /** null for a NaN. */
  value: number | null;
  count: number;
}

export type Plane =
  | "zero" | "saturated" | "exponent" | "nan" | "amax" | "not_finite" | "sqnr_db" | "max_abs_error"
  | "flushed";

/** A tensor from far away, in at most 256 x 256 cells. */
export interface Map {
  rows: number;
  cols: number;
  /** Rows and columns of the tensor in a cell; the last ones are smaller. */
  row_step: number;
  col_step: number;
  /** rows * cols numbers each, row-major; NaN where there is none. */
  planes: Partial<Record<Plane, Float32Array>>;
}

export interface DenseValues {
  count: number;
  min: number | null;
  max: number | null;
  mean_square: number;
  zero: number;
  not_finite: number;
  exponents: Pair[];
}

export interface View {
  name: string;
  kind: "layer" | "dense";
  layout: string | null;
  format: string;
  shape: number[];
  rows: number;
  cols: number;
  bytes: number;
  group_size: number | null;
  scale_type: "e8m0" | "e4m3" | null;
  global_scales: number[];
  transformed: boolean;
  note: string | null;
  /** Of a layer. */
  counts: Counts | null;
  scales: ScaleCount[];
  /** Of a dense tensor. */
  values: DenseValues | null;
  error: Figures | null;
  groups: Groups | null;
  worst_groups: Worst | null;
  /** Why there is no error though `against` was given. */
  incomparable: string | null;
  map: Map;
}

export interface Trial {
  choice: { format: Format; rule: Rule; transform: number | null };
  name: string;
  matrix: [index: number, of: number];
  /** Stored as (in, out)? */
  transposed: boolean;
  rows: number;
  cols: number;
  group_size: number;
  scale_type: "e8m0" | "e4m3";
  global_scale: number;
  bytes: number;
  warning: string | null;
  quantizer: string;
  counts: Counts;
  scales: ScaleCount[];
  error: Figures;
  groups: Groups;
  worst_groups: Worst;
  became: {
    groups: number; zero: number; lost: number; nan: number; weights: number; flushed: number;
    saturated: number;
  };
  map: Map;
}

export interface Totals {
  layers: number;
  bytes: number;
  compared_bytes: [own: number, reference: number] | null;
  counts: Counts;
  error: Figures | null;
  groups: Groups | null;
}

export interface Row {
  name: string;
  layout: string;
  format: string;
  shape: number[];
  transformed: boolean;
  bytes: number;
  reference_bytes: number | null;
  global_scale: number | null;
  counts: Counts | null;
  error: Figures | null;
  groups: Groups | null;
  worst_groups: Worst | null;
  loss: null;
}

export interface ReportSource {
  path: string;
  files: number;
  bytes: number;
  tensors: number;
  layers: number;
  classes: { name: string; tensors: number; bytes: number }[];
}

export interface Names {
  first: string[];
  left_out: number;
}

export interface Report {
  command: "report";
  version: number;
  fp4_version: string;
  a: ReportSource;
  b: ReportSource | null;
  totals: Totals;
  formats: Record<string, Totals>;
  rows: Row[];
  rows_left_out: number;
  worst_groups: Worst;
  losses: null;
  identical: number;
  only_in_a: Names;
  only_in_b: Names;
  problems: Names;
}
