// The top of the page: what is reported on, and the few numbers to see first.

import type { Names, Report, Source } from "./data";
import { type Child, type Column, element, section, table } from "./dom";
import { bytes, count, counted, decibels, relative, share, short, sqnr } from "./text";

export function heading(report: Report): HTMLElement {
  const { a, b } = report;
  const source = (label: string, source: Source) =>
    element(
      "p",
      { class: "source" },
      element("span", { class: "tag" }, label),
      element("code", {}, source.path),
      element("span", { class: "dim" }, ` ${bytes(source.bytes)}, ${counted(source.tensors, "tensor")}`),
    );
  return element(
    "header",
    {},
    element("h1", {}, "FP4 report"),
    source(b === null ? "checkpoint" : "A, reference", a),
    b === null ? null : source("B", b),
  );
}

/** A number with its name, and a line on it. */
function card(title: string, value: string, about: string): HTMLElement {
  return element(
    "div",
    { class: "card" },
    element("dt", {}, title),
    element("dd", {}, element("strong", {}, value), element("span", { class: "dim" }, about)),
  );
}

export function cards(report: Report): HTMLElement {
  const { totals, formats } = report;
  const { counts } = totals;
  const list = element("dl", { class: "cards" });
  const names = Object.keys(formats).map((name) => name.toUpperCase());
  list.append(card("Quantized layers", count(totals.layers), names.join(", ") || "no layer is quantized"));
  if (totals.layers > 0) {
    const bits = counts.weights > 0 ? ((8 * totals.bytes) / counts.weights).toFixed(2) : "–";
    list.append(card("Weights in them", short(counts.weights), `${bits} bits each, scales included`));
  }
  if (totals.error !== null) {
    list.append(card("SQNR", unit(sqnr(totals.error)), `relative error ${relative(totals.error)}`));
  }
  const quantiles = totals.groups?.quantiles;
  if (quantiles) {
    const worst = `lowest ${decibels(quantiles.min)} dB`;
    list.append(card("SQNR of groups", `${decibels(quantiles.p50)} dB`, `median; 1% below ${decibels(quantiles.p1)}, ${worst}`));
  }
  if (totals.compared_bytes !== null) {
    const [own, reference] = totals.compared_bytes;
    const ratio = own > 0 ? `${(reference / own).toFixed(2)}× smaller` : "";
    list.append(card("Their size", bytes(own), `of ${bytes(reference)}, ${ratio}`));
  } else if (totals.layers > 0) {
    list.append(card("Their size", bytes(totals.bytes), "codes and scales"));
  }
  if (totals.layers > 0) {
    list.append(card("Zero groups", share(counts.zero_groups, counts.groups), `${count(counts.zero_groups)} of ${short(counts.groups)}`));
    list.append(card("Saturated codes", share(counts.saturated, counts.weights), "of magnitude 6"));
    list.append(card("NaN scales", count(counts.nan_scales), counts.nan_scales > 0 ? "their groups are NaN" : "none"));
  }
  return list;
}

const unit = (text: string): string => (/\d/.test(text) ? `${text} dB` : text);

/** What the page could not report on; null where there is nothing. */
export function problems(report: Report): HTMLElement | null {
  if (report.problems.first.length === 0) return null;
  const made = section("Problems", "The report is on the rest.", names(report.problems));
  made.classList.add("problems");
  return made;
}

function names(list: Names): HTMLElement {
  const made = element("ul", { class: "names" });
  for (const name of list.first) made.append(element("li", {}, name));
  if (list.left_out > 0) made.append(element("li", { class: "dim" }, `and ${count(list.left_out)} more`));
  return made;
}

/** The formats, where there are several. */
export function formats(report: Report): HTMLElement | null {
  const all = Object.entries(report.formats);
  if (all.length < 2) return null;
  const columns: Column[] = [
    { title: "Format" },
    ...["Layers", "Weights", "Size", "SQNR (dB)", "Relative error", "Zero groups", "NaN scales"].map(
      (title) => ({ title, numeric: true }),
    ),
  ];
  const rows: Child[][] = all.map(([name, totals]) => [
    name,
    count(totals.layers),
    short(totals.counts.weights),
    bytes(totals.bytes),
    sqnr(totals.error),
    relative(totals.error),
    share(totals.counts.zero_groups, totals.counts.groups),
    count(totals.counts.nan_scales),
  ]);
  return section("Formats", null, table("Formats", columns, rows));
}

/** Bytes by kind of tensor, with bars on one scale. */
export function sizes(report: Report): HTMLElement {
  const sources = [report.a, report.b].filter((source) => source !== null);
  const kinds = [...new Set(sources.flatMap((source) => source.classes.map((c) => c.name)))];
  const of = (source: Source, kind: string) => source.classes.find((c) => c.name === kind);
  const most = Math.max(1, ...sources.flatMap((source) => source.classes.map((c) => c.bytes)));
  const columns: Column[] = [{ title: "Kind" }];
  for (const [i] of sources.entries()) {
    const of = sources.length === 1 ? "" : ` of ${"AB"[i]}`;
    columns.push({ title: `Tensors${of}`, numeric: true }, { title: `Size${of}`, numeric: true }, { title: "" });
  }
  const rows = kinds.map((kind) => [
    kind,
    ...sources.flatMap((source, i): Child[] => {
      const found = of(source, kind);
      return [
        count(found?.tensors ?? 0),
        bytes(found?.bytes ?? 0),
        bar((found?.bytes ?? 0) / most, i === 0 ? "--all" : "--chosen"),
      ];
    }),
  ]);
  const sum = (source: Source) => source.classes.reduce((n, c) => n + c.bytes, 0);
  rows.push(["all tensors", ...sources.flatMap((s): Child[] => [count(s.tensors), bytes(sum(s)), ""])]);
  const made = section("Sizes by kind of tensor", null, table("Sizes by kind of tensor", columns, rows));
  made.classList.add("sizes");
  return made;
}

/** A bar of a share of its cell. */
export function bar(share: number, colour: string): HTMLElement {
  const inside = element("span", { class: "fill" });
  inside.style.width = `${Math.max(share > 0 ? 0.5 : 0, 100 * share).toFixed(2)}%`;
  inside.style.background = `var(${colour})`;
  return element("span", { class: "bar", "aria-hidden": "true" }, inside);
}

/** What only one side has; null for a checkpoint alone, or where nothing is missing. */
export function missing(report: Report): HTMLElement | null {
  if (report.b === null) return null;
  const parts: Child[] = [];
  const only: [string, Names][] = [
    ["Only in A", report.only_in_a],
    ["Only in B", report.only_in_b],
  ];
  for (const [title, list] of only) {
    const n = list.first.length + list.left_out;
    if (n > 0) {
      const inside = element("details", {}, element("summary", {}, `${title}: ${counted(n, "tensor")}`));
      inside.append(names(list));
      parts.push(inside);
    }
  }
  const same = `${counted(report.identical, "tensor")} outside quantized layers ${report.identical === 1 ? "is" : "are"} the same in both.`;
  return section("Other tensors", same, ...parts);
}
