// The numbers of a report, as `quant_linear::model::report` writes them. What has no number there
// (NaN, an infinity) is null here, and `error_kind` says which.

export const VERSION = 1;

/** A value and how often it occurs. */
export type Pair = [value: number, count: number];

export interface Class {
  name: string;
  tensors: number;
  bytes: number;
}

export interface Source {
  path: string;
  files: number;
  bytes: number;
  tensors: number;
  layers: number;
  classes: Class[];
}

export interface Counts {
  weights: number;
  groups: number;
  zero_groups: number;
  saturated: number;
  codes: number[];
  nan_scales: number;
  zero_scales: number;
  subnormal_scales: number;
  negative_scales: number;
  exponents: Pair[];
  spreads: Pair[];
}

export interface Figures {
  relative_error: number | null;
  sqnr_db: number | null;
  max_abs_error: number;
  error_kind: "exact" | "finite" | "infinite" | "not_finite";
  values_differ: number;
  not_finite: number;
}

export interface Quantiles {
  min: number;
  p1: number;
  p10: number;
  p50: number;
  p90: number;
}

export interface Groups {
  exact: number;
  infinite: number;
  not_finite: number;
  finite: number;
  histogram: Pair[];
  quantiles: Quantiles | null;
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

/** What a layer lost on the sample rows of a calibration, as a share of the squares of its outputs. */
export interface Loss {
  weight: number | null;
  layer: number | null;
  before: number | null;
}

/** The run that it lost it in. */
export interface Run {
  path: string;
  tensors: number;
  layers_without: number;
  mean: Loss;
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
  loss: Loss | null;
}

/** A row that is a quantized layer. */
export type Layer = Row & { counts: Counts };

export interface Names {
  first: string[];
  left_out: number;
}

export interface Report {
  version: number;
  fp4_version: string;
  a: Source;
  b: Source | null;
  totals: Totals;
  formats: Record<string, Totals>;
  rows: Row[];
  rows_left_out: number;
  worst_groups: Worst;
  losses: Run | null;
  identical: number;
  only_in_a: Names;
  only_in_b: Names;
  problems: Names;
}

/** The report of a JSON text; an error says what is wrong with it. */
export function parse(text: string): Report {
  const report = JSON.parse(text) as Report;
  if (report.version !== VERSION) {
    throw new Error(`the numbers are of version ${report.version}, this page reads ${VERSION}`);
  }
  return report;
}

export const isLayer = (row: Row): row is Layer => row.counts !== null;

/** After over before; null where there is no such number. */
export function ratio(loss: Loss | null): number | null {
  if (loss === null || loss.layer === null || !loss.before) return null;
  return loss.layer / loss.before;
}

/** The largest value of a histogram; null where it is empty. */
export const largest = (pairs: Pair[]): number | null => pairs.at(-1)?.[0] ?? null;

/** The smallest. */
export const smallest = (pairs: Pair[]): number | null => pairs[0]?.[0] ?? null;

export const total = (pairs: Pair[]): number => pairs.reduce((sum, [, n]) => sum + n, 0);

/** The magnitudes of the codes 0 to 7; those of 8 to 15 are the same with a minus. */
export const MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** All codes in the order of their values, -6 to 6. */
export const CODES_IN_ORDER = [15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];

/** A code's value as text; the zeros keep their signs. */
export const codeText = (code: number): string => (code >= 8 ? "−" : "") + MAGNITUDES[code % 8];
