// Distributions: over all layers, and of the one looked at beside them.

import type { Choice } from "./choice";
import type { Layer, Report } from "./data";
import { CODES, type Distribution, DistributionChart, EXPONENTS, GROUPS, SPREADS } from "./distribution";
import { element, section } from "./dom";
import { printable } from "./text";

export function detail(report: Report, choice: Choice): HTMLElement {
  const title = element("p", { class: "readout" });
  const grid = element("div", { class: "grid" });
  const list = [CODES, EXPONENTS, SPREADS, ...(report.totals.groups === null ? [] : [GROUPS])];
  for (const distribution of list) grid.append(figure(distribution, report, choice));
  choice.follow((layer) => {
    title.textContent = layer === null ? "All layers together." : `All layers, and beside them ${printable(layer.name)}`;
  });
  return section("Codes, scales and groups", null, title, grid);
}

function figure(distribution: Distribution, report: Report, choice: Choice): HTMLElement {
  const { counts, groups } = report.totals;
  const chart = new DistributionChart(distribution);
  const all = { label: "all layers", colour: "--all", pairs: distribution.of(counts, groups) } as const;
  const of = (layer: Layer) =>
    ({ label: "this layer", colour: "--chosen", pairs: distribution.of(layer.counts, layer.groups) }) as const;
  choice.follow((layer) => chart.show(layer === null ? [all] : [all, of(layer)]));
  return chart.figure;
}
