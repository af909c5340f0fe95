// Numbers for people.

import type { Figures } from "./data";

export const ABSENT = "–";

/** A name from a file or an address as text: what is not seen, or turns the order of what is, is
 * told by its number, `\u{202e}`. For people alone: a tensor is found by its name as it is. */
export const printable = (name: string): string =>
  name.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (c) => `\\u{${(c.codePointAt(0) ?? 0).toString(16)}}`);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (n: number): string => whole.format(n);

/** `1 layer`, `2 layers`. */
export const counted = (n: number, what: string): string =>
  `${count(n)} ${what}${n === 1 ? "" : "s"}`;

/** A count in few characters: 1.23 million. */
export function short(n: number): string {
  const units: [number, string][] = [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]];
  for (const [size, unit] of units) {
    if (n >= size) return `${(n / size).toPrecision(3)}${unit}`;
  }
  return count(n);
}

export function bytes(n: number): string {
  const units = ["KiB", "MiB", "GiB", "TiB"];
  if (n < 1024) return `${n} B`;
  let value = n;
  let unit = "B";
  for (const next of units) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  return `${value.toFixed(value < 100 ? 2 : 1)} ${unit}`;
}

/** A share in per cent; one that is not 0 never reads as 0. */
export function share(part: number, of: number): string {
  if (of === 0) return ABSENT;
  const percent = (100 * part) / of;
  if (part > 0 && percent < 0.01) return "< 0.01%";
  return `${percent.toFixed(2)}%`;
}

/** A number of any size in about four digits. */
export function number(value: number | null): string {
  if (value === null) return ABSENT;
  const magnitude = Math.abs(value);
  if (magnitude !== 0 && (magnitude < 1e-4 || magnitude >= 1e6)) return value.toExponential(3);
  return String(Number(value.toPrecision(4)));
}

export const decibels = (value: number | null | undefined): string =>
  value === null || value === undefined ? ABSENT : value.toFixed(2);

/** The SQNR of figures: a number of dB, or what it is instead. */
export function sqnr(figures: Figures | null): string {
  switch (figures?.error_kind) {
    case undefined:
      return ABSENT;
    case "exact":
      return "exact";
    case "infinite":
      return "−∞";
    case "not_finite":
      return "undefined";
    case "finite":
      return decibels(figures?.sqnr_db);
  }
}

/** The relative error of figures, likewise. */
export function relative(figures: Figures | null): string {
  if (figures === null) return ABSENT;
  if (figures.relative_error !== null) return number(figures.relative_error);
  return figures.error_kind === "infinite" ? "∞" : "undefined";
}

export const power = (exponent: number): string => {
  const digits = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const text = String(Math.abs(exponent)).replace(/\d/g, (d) => digits[Number(d)] ?? d);
  return `2${exponent < 0 ? "⁻" : ""}${text}`;
};
