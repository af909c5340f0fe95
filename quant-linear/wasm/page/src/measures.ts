// What maps show of their cells: the planes of the library's maps, with their names and texts.

import { decibels, number, share } from "report/text";
import type { Map, Plane } from "exact-fp4";
import type { Grid } from "./heat";

export interface Measure {
  plane: Plane;
  name: string;
  about: string;
  text: (value: number | null) => string;
  largeIsBad: boolean;
}

const percent = (value: number | null) => (value === null ? "none" : share(value, 1));
const shown = (value: number | null) => (value === null ? "no number" : number(value));

/** In the order in which they are offered. */
const MEASURES: Measure[] = [
  {
    plane: "sqnr_db",
    name: "SQNR",
    about: "Signal to quantization noise of each cell, in dB. What is exact, or all zero, has no number.",
    text: (value) => (value === null ? "no number" : `${decibels(value)} dB`),
    largeIsBad: false,
  },
  {
    plane: "max_abs_error",
    name: "largest error",
    about: "The largest absolute difference of a weight in each cell.",
    text: shown,
    largeIsBad: true,
  },
  {
    plane: "flushed",
    name: "flushed weights",
    about: "The share of weights that are not zero in the reference and became zero.",
    text: percent,
    largeIsBad: true,
  },
  {
    plane: "exponent",
    name: "scale exponents",
    about: "The mean power of two of the scales in each cell; zero scales and NaN left out.",
    text: (value) => (value === null ? "no scale that counts" : `2^${number(value)}`),
    largeIsBad: true,
  },
  {
    plane: "amax",
    name: "largest magnitude",
    about: "The largest finite magnitude in each cell.",
    text: shown,
    largeIsBad: true,
  },
  {
    plane: "zero",
    name: "zeros",
    about: "The share of elements that are zero, of either sign.",
    text: percent,
    largeIsBad: true,
  },
  {
    plane: "saturated",
    name: "saturated codes",
    about: "The share of codes of the largest magnitude, 6.",
    text: percent,
    largeIsBad: true,
  },
  {
    plane: "nan",
    name: "NaN scales",
    about: "How many groups of each cell have a NaN scale.",
    text: shown,
    largeIsBad: true,
  },
  {
    plane: "not_finite",
    name: "values that are not finite",
    about: "How many values of each cell are NaN or infinite.",
    text: shown,
    largeIsBad: true,
  },
];

/** Those that a map has. */
export const measures = (map: Map): Measure[] => MEASURES.filter(({ plane }) => map.planes[plane] !== undefined);

/** A plane of a map, as a grid: what is no finite number there has none here. */
export function grid({ rows, cols, planes }: Map, plane: Plane): Grid {
  const values = Array.from(planes[plane] ?? [], (value) => (Number.isFinite(value) ? value : null));
  return { rows, cols, values };
}

/** The smallest and the largest number of grids. */
export function ends(grids: Grid[]): [low: number, high: number] {
  let [low, high] = [Infinity, -Infinity];
  for (const value of grids.flatMap(({ values }) => values)) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low <= high ? [low, high] : [0, 0];
}
