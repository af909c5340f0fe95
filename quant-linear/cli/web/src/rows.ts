// The table of layers: sorted by any column, filtered by name, with a button on each layer.

import type { Choice } from "./choice";
import { type Report, type Row, isLayer, largest, ratio, smallest } from "./data";
import { type Child, button, element, scrolled, section } from "./dom";
import { ABSENT, bytes, count, decibels, number, relative, share, sqnr } from "./text";

/** Rows drawn before one asks for all. */
const FIRST = 200;

interface Column {
  title: string;
  about?: string;
  /** What it is sorted by: numbers by size, text by letters; null goes last. */
  key: (row: Row) => number | string | null;
  text: (row: Row) => string;
  compares?: boolean;
  /** Does it need losses? */
  loses?: boolean;
  numeric?: boolean;
}

const loss = (title: string, about: string, of: (row: Row) => number | null): Column => ({
  title,
  about,
  key: of,
  text: (row) => number(of(row)),
  numeric: true,
  loses: true,
});

const part = (of: (counts: NonNullable<Row["counts"]>) => [number, number]) => ({
  key: (row: Row) => {
    if (row.counts === null) return null;
    const [n, all] = of(row.counts);
    return all === 0 ? null : n / all;
  },
  text: (row: Row) => (row.counts === null ? ABSENT : share(...of(row.counts))),
  numeric: true,
});

/** A key that puts what is exact above every number and what is undefined below. */
const byNoise = (row: Row): number | null => {
  switch (row.error?.error_kind) {
    case undefined:
      return null;
    case "exact":
      return Infinity;
    case "finite":
      return row.error?.sqnr_db ?? null;
    default:
      return -Infinity;
  }
};

const byError = (row: Row): number | null =>
  row.error === null ? null : (row.error.relative_error ?? Infinity);

const COLUMNS: Column[] = [
  {
    title: "Format",
    key: (row) => row.format,
    text: (row) => row.format + (row.transformed ? ", transformed" : ""),
  },
  { title: "Layout", key: (row) => row.layout, text: (row) => row.layout },
  {
    title: "Shape",
    key: (row) => row.shape.reduce((a, b) => a * b, 1),
    text: (row) => row.shape.join(" × "),
    numeric: true,
  },
  { title: "Size", key: (row) => row.bytes, text: (row) => bytes(row.bytes), numeric: true },
  {
    title: "Was",
    about: "Size of the reference",
    key: (row) => row.reference_bytes,
    text: (row) => (row.reference_bytes === null ? ABSENT : bytes(row.reference_bytes)),
    numeric: true,
    compares: true,
  },
  { title: "SQNR", about: "dB", key: byNoise, text: (row) => sqnr(row.error), numeric: true, compares: true },
  { title: "Rel. error", key: byError, text: (row) => relative(row.error), numeric: true, compares: true },
  {
    title: "Max error",
    about: "Largest absolute difference",
    key: (row) => row.error?.max_abs_error ?? null,
    text: (row) => number(row.error?.max_abs_error ?? null),
    numeric: true,
    compares: true,
  },
  {
    title: "Groups 1%",
    about: "SQNR in dB that one group in a hundred is below",
    key: (row) => row.groups?.quantiles?.p1 ?? null,
    text: (row) => decibels(row.groups?.quantiles?.p1),
    numeric: true,
    compares: true,
  },
  {
    title: "50%",
    about: "Median SQNR of groups in dB",
    key: (row) => row.groups?.quantiles?.p50 ?? null,
    text: (row) => decibels(row.groups?.quantiles?.p50),
    numeric: true,
    compares: true,
  },
  loss("Loss before", "On the sample rows of the calibration, rounded to nearest", (row) => row.loss?.before ?? null),
  loss("After", "The same loss as the layer is", (row) => row.loss?.layer ?? null),
  loss("Ratio", "Loss after over before", (row) => ratio(row.loss)),
  { title: "Zero groups", ...part((c) => [c.zero_groups, c.groups]) },
  { title: "Saturated", about: "Codes of magnitude 6", ...part((c) => [c.saturated, c.weights]) },
  {
    title: "NaN scales",
    key: (row) => row.counts?.nan_scales ?? null,
    text: (row) => (row.counts === null ? ABSENT : count(row.counts.nan_scales)),
    numeric: true,
  },
  {
    title: "Exponents",
    about: "Smallest and largest power of two of the scales",
    key: (row) => (row.counts === null ? null : smallest(row.counts.exponents)),
    text: (row) => {
      const list = row.counts?.exponents ?? [];
      return list.length === 0 ? ABSENT : `${smallest(list)} … ${largest(list)}`;
    },
    numeric: true,
  },
  {
    title: "Spread",
    about: "Largest spread of a row, in powers of two",
    key: (row) => (row.counts === null ? null : largest(row.counts.spreads)),
    text: (row) => String((row.counts && largest(row.counts.spreads)) ?? ABSENT),
    numeric: true,
  },
];

type Keys = Map<Row, number | string | null>;

/** Orders rows; what has no key goes last either way. */
function compare(keys: Keys, down: boolean): (a: Row, b: Row) => number {
  return (a, b) => {
    const x = keys.get(a) ?? null;
    const y = keys.get(b) ?? null;
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    const order = x < y ? -1 : x > y ? 1 : 0;
    return down ? -order : order;
  };
}

export function rows(report: Report, choice: Choice): HTMLElement {
  const compared = report.b !== null;
  const has = (column: Column) =>
    (compared || !column.compares) && (report.losses !== null || !column.loses);
  const columns = COLUMNS.filter(has);
  const lines = new Map(report.rows.map((row) => [row, line(row, columns, choice)]));
  const found = element("p", { class: "readout dim", "aria-live": "polite" });
  const body = element("tbody");
  const more = button("", null, () => {
    everything = true;
    draw();
  });
  let sorted = report.rows;
  let wanted = "";
  let everything = false;

  const draw = () => {
    const matching = sorted.filter((row) => row.name.toLowerCase().includes(wanted));
    const shown = everything ? matching : matching.slice(0, FIRST);
    body.replaceChildren(...shown.flatMap((row) => lines.get(row) ?? []));
    more.hidden = shown.length === matching.length;
    more.textContent = `Show all ${count(matching.length)}`;
    const left = report.rows_left_out;
    found.textContent =
      `${count(matching.length)} of ${count(report.rows.length)}` +
      (left > 0 ? `, and ${count(left)} more that are not in this page: these have the largest errors, or are the largest` : "");
  };
  const head = element("tr");
  const sort = sorting(report.rows, head, (rows) => {
    sorted = rows;
    draw();
  });
  sort("Layer", "Name, in the order of the model", null, false);
  for (const column of columns) {
    sort(column.title, column.about ?? null, column.key, column.numeric ?? false);
  }
  const filter = element("input", { type: "search", placeholder: "part of a name", autocomplete: "off" });
  filter.addEventListener("input", () => {
    wanted = filter.value.toLowerCase();
    draw();
  });
  const table = element("table", { class: "rows" }, element("caption", { class: "hidden" }, "Layers"));
  table.append(element("thead", {}, head), body);
  choice.follow((layer) => {
    for (const [row, line] of lines) line.classList.toggle("chosen", row === layer);
  });
  draw();
  const label = element("label", { class: "choice" }, element("span", {}, "Filter"), filter);
  const controls = element("div", { class: "controls" }, label, found);
  const title = compared ? "Layers, and tensors that differ" : "Layers";
  return section(title, null, controls, scrolled(title, table), more);
}

/** Makes heads of columns that sort: a first press puts the largest on top, a second turns it. */
function sorting(all: Row[], head: HTMLElement, done: (rows: Row[]) => void) {
  return (title: string, about: string | null, key: Column["key"] | null, numeric: boolean) => {
    const press = button(title, null, () => {
      const before = cell.getAttribute("aria-sort");
      // Text begins at A, numbers at the largest.
      const down = before === null ? numeric : before === "ascending";
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keys: Keys = new Map(all.map((row, i) => [row, key === null ? i : key(row)]));
      done([...all].sort(compare(keys, down)));
    });
    const cell = element("th", { scope: "col", class: numeric ? "number" : key === null ? "text name" : "text" }, press);
    if (about !== null) cell.title = about;
    if (key === null) cell.setAttribute("aria-sort", "ascending");
    head.append(cell);
  };
}

function line(row: Row, columns: Column[], choice: Choice): HTMLElement {
  const pick = (row: Row): Child =>
    isLayer(row)
      ? button(row.name, null, () => choice.choose(choice.layer === row ? null : row))
      : row.name;
  const made = element("tr", {}, element("th", { scope: "row", class: "text name" }, pick(row)));
  for (const column of columns) {
    made.append(element("td", { class: column.numeric ? "number" : "text" }, column.text(row)));
  }
  return made;
}
