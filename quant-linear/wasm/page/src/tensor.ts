// One tensor: what is inside a quantized layer, or what formats would make of a dense one.

import { element, section } from "report/dom";
import { printable } from "report/text";
import { welcome } from "./checkpoint";
import { LayerView } from "./layer";
import type { Contents } from "exact-fp4";
import type { Held } from "./slots";
import { TrialView } from "./trial";
import type { App, View } from "./view";

/** More names than these are typed, not picked. */
const NAMES = 5000;

const dense = ({ tensors }: Contents): string[] => tensors.filter((each) => each.dense).map(({ name }) => name);

export function tensor(app: App): View {
  const root = element("div");
  const list = element("datalist", { id: "names" });
  const field = element("input", { list: "names", autocomplete: "off", spellcheck: "false" });
  const label = element("label", { class: "choice name" }, element("span", {}, "Tensor or layer"), field);
  const said = element("p", { class: "readout", role: "alert" });
  const pick = section("One tensor", null, element("div", { class: "controls" }, label), said);
  const place = element("div");
  const layer = new LayerView(app);
  const trial = new TrialView(app);
  let held: Held | undefined;

  // What is tried stays for the next one.
  field.addEventListener("change", () => app.address.go("tensor", { name: field.value, matrix: null }));

  const names = ({ opened }: Held) => {
    const all = [...opened.layers.map(({ name }) => name), ...dense(opened)];
    list.replaceChildren(...all.slice(0, NAMES).map((value) => element("option", { value })));
  };
  const show = ({ opened }: Held) => {
    const wanted = app.address.get("name");
    // Of a checkpoint that is one layer, that has no name.
    const name = wanted ?? opened.layers[0]?.name ?? dense(opened)[0] ?? opened.tensors[0]?.name ?? "";
    field.value = name;
    said.textContent = "";
    if (opened.layers.some((each) => each.name === name)) {
      place.replaceChildren(layer.root);
      layer.show(name);
    } else if (opened.tensors.some((each) => each.name === name)) {
      place.replaceChildren(trial.root);
      trial.show(name);
    } else {
      place.replaceChildren();
      said.textContent = wanted === null ? "It has no tensor." : printable(`There is no “${name}” in this checkpoint.`);
    }
  };
  return {
    root,
    show() {
      const now = app.slots.get("a");
      if (now === undefined) {
        held = undefined;
        root.replaceChildren(welcome(app.address.get("a")));
        return;
      }
      if (now !== held) {
        held = now;
        names(now);
        root.replaceChildren(pick, list, place);
      }
      app.address.set({ view: "tensor", a: now.name });
      show(now);
    },
  };
}
