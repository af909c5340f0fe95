// Terms and what they are, in columns.

import { type Child, element } from "report/dom";

export function facts(list: [term: string, value: Child][]): HTMLElement {
  const made = element("dl", { class: "facts" });
  for (const [term, value] of list) {
    made.append(element("div", {}, element("dt", {}, term), element("dd", {}, value)));
  }
  return made;
}
