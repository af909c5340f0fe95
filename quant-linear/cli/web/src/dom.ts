// Elements. What they hold is set as text, never as markup, and what is hidden in it is told: names
// come from files.

import { printable } from "./text";

export type Child = Node | string | null;

type Attributes = Record<string, string | boolean>;

/** An element with attributes and children; strings become text. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false) made.setAttribute(name, value);
  }
  for (const child of children) {
    if (child !== null) made.append(typeof child === "string" ? printable(child) : child);
  }
  return made;
}

export function button(text: string, label: string | null, pressed: () => void): HTMLButtonElement {
  const made = element("button", { type: "button" }, text);
  if (label !== null) made.setAttribute("aria-label", printable(label));
  made.addEventListener("click", pressed);
  return made;
}

/** A choice of one; `chosen` is told of every change. */
export function select(
  label: string,
  options: [value: string, text: string][],
  chosen: (value: string) => void,
): HTMLLabelElement {
  const list = element("select");
  for (const [value, text] of options) list.append(element("option", { value }, text));
  list.addEventListener("change", () => chosen(list.value));
  return element("label", { class: "choice" }, element("span", {}, label), list);
}

export interface Column {
  title: string;
  numeric?: boolean;
}

/** A plain table. */
export function table(caption: string, columns: Column[], rows: Child[][]): HTMLElement {
  const align = (column: Column | undefined) => (column?.numeric ? "number" : "text");
  const head = element("tr");
  for (const column of columns) {
    head.append(element("th", { scope: "col", class: align(column) }, column.title));
  }
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr");
    row.forEach((cell, i) => line.append(element("td", { class: align(columns[i]) }, cell)));
    body.append(line);
  }
  const made = element("table", {}, element("caption", { class: "hidden" }, caption));
  made.append(element("thead", {}, head), body);
  return scrolled(caption, made);
}

/** Something wide, which scrolls by itself and by keyboard. */
export function scrolled(label: string, inside: HTMLElement): HTMLElement {
  return element("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, inside);
}

export function section(title: string, about: string | null, ...children: Child[]): HTMLElement {
  const made = element("section", {}, element("h2", {}, title));
  if (about !== null) made.append(element("p", { class: "about" }, about));
  for (const child of children) {
    if (child !== null) made.append(child);
  }
  return made;
}
