// The report as elements of a page: what a page of another kind would call.

import { Choice } from "./choice";
import { type Report, isLayer } from "./data";
import { detail } from "./detail";
import { element } from "./dom";
import { byLayer } from "./layers";
import { losses } from "./losses";
import { rows } from "./rows";
import { cards, formats, heading, missing, problems, sizes } from "./summary";
import { worst } from "./worst";

/** Shows a report in `place`, over what is there, with its heading. */
export function show(report: Report, place: HTMLElement): void {
  const written = element("footer", { class: "dim" }, `Written by fp4 ${report.fp4_version}.`);
  fill(report, place, new Choice(), heading(report));
  place.append(written);
}

/** Fills `place` with a report, below what else is to be in it; `choice` is which layer it shows. */
export function fill(report: Report, place: HTMLElement, choice: Choice, ...above: HTMLElement[]): void {
  const layers = report.rows.filter(isLayer);
  const compared = layers.some((layer) => layer.error !== null);
  const parts: (HTMLElement | null)[] = [...above, problems(report), cards(report)];
  // In the page first: charts ask for the width that they have.
  place.replaceChildren(...parts.filter((part) => part !== null));
  const add = (part: HTMLElement | null) => part && place.append(part);
  if (layers.length > 0) {
    add(element("section", { class: "wide" }, byLayer(layers, compared, choice)));
    add(losses(report, layers, choice));
    add(detail(report, choice));
  }
  if (report.rows.length > 0) add(rows(report, choice));
  if (compared) add(worst(report, layers, choice));
  add(formats(report));
  add(sizes(report));
  add(missing(report));
}

/** Shows in `place` why there is no report. */
export function complain(why: unknown, place: HTMLElement): void {
  const text = why instanceof Error ? why.message : String(why);
  place.replaceChildren(element("p", { role: "alert", class: "problems" }, `This report cannot be shown: ${text}`));
}
