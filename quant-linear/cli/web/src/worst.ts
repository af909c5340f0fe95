// The worst groups: of all layers, or of the one looked at.

import type { Choice } from "./choice";
import type { Group, Layer, Report, Worst } from "./data";
import { type Child, type Column, button, element, section, select, table } from "./dom";
import { bar } from "./summary";
import { count, decibels, number, printable } from "./text";

type Order = keyof Worst;

const ORDERS: [Order, string][] = [
  ["by_sqnr", "lowest SQNR first"],
  ["by_error", "largest error first"],
];

export function worst(report: Report, layers: Layer[], choice: Choice): HTMLElement {
  const named = new Map(layers.map((layer) => [layer.name, layer]));
  const place = element("div");
  const title = element("p", { class: "readout" });
  let order: Order = "by_sqnr";

  const draw = () => {
    const { layer } = choice;
    const list = (layer?.worst_groups ?? report.worst_groups)[order];
    title.textContent = layer === null ? "Of all layers." : `Of ${printable(layer.name)}`;
    if (list.length === 0) {
      place.replaceChildren(element("p", { class: "dim" }, "No group differs from its reference."));
      return;
    }
    const most = Math.max(...list.map((group) => group.error));
    const columns: Column[] = [
      ...(layer === null ? [{ title: "Layer" }] : []),
      ...["Row", "Columns", "SQNR (dB)", "Norm of error", "Norm of reference", "Max error"].map(
        (title) => ({ title, numeric: true }),
      ),
      { title: "Error" },
    ];
    const rows = list.map((group): Child[] => {
      const of = layer ?? named.get(group.layer ?? "");
      return [
        ...(layer === null ? [name(group, of, choice)] : []),
        rowOf(group, of),
        columnsOf(group, of),
        group.not_finite > 0 ? "not finite" : decibels(group.sqnr_db),
        number(group.error),
        number(group.reference),
        number(group.max_abs_error),
        bar(most > 0 ? group.error / most : 0, "--chosen"),
      ];
    });
    place.replaceChildren(table("Worst groups", columns, rows));
  };
  const pick = select("Order", ORDERS, (value) => {
    order = value as Order;
    draw();
  });
  choice.follow(draw);
  return section(
    "Worst groups",
    "A group near 0 dB lost its values: they are small beside what else its scale, or its layer's global scale, had to hold.",
    element("div", { class: "controls" }, pick, title),
    place,
  );
}

function name(group: Group, layer: Layer | undefined, choice: Choice): Child {
  const text = group.layer ?? "";
  return layer === undefined ? text : button(text, null, () => choice.choose(layer));
}

/** The row of a group; of several experts, the expert and its row. */
function rowOf(group: Group, layer: Layer | undefined): string {
  const [experts, rows] = layer?.shape ?? [];
  if (layer?.shape.length !== 3 || !experts || !rows) return count(group.row);
  return `${Math.floor(group.row / rows)}: ${count(group.row % rows)}`;
}

/** The columns of a group, `32–47`; its number where its layer is not in the page. */
function columnsOf(group: Group, layer: Layer | undefined): string {
  if (layer === undefined) return `group ${count(group.group)}`;
  const size = layer.counts.weights / layer.counts.groups;
  return `${group.group * size}–${(group.group + 1) * size - 1}`;
}
