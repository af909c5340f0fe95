// Two checkpoints, layer by layer: the pictures of `fp4 report A B`.

import { Choice } from "report/choice";
import { isLayer } from "report/data";
import { button, element, section } from "report/dom";
import { fill } from "report/show";
import { inside } from "./checkpoint";
import type { App, View } from "./view";
import { reason } from "./work";

export function compare(app: App): View {
  const root = element("div");
  /** Which files are shown, and whether all of it is. */
  let shown = "";
  let complete = false;

  const ask = (text: string) => {
    shown = "";
    const wanted = ["a", "b"].map((key) => app.address.get(key)).filter((name) => name !== null);
    const hint = wanted.length === 0 ? null : element("p", { class: "wanted" }, `This address compares ${wanted.join(" with ")}.`);
    const made = section("Two checkpoints, layer by layer", text, hint);
    made.classList.add("welcome");
    root.replaceChildren(made);
  };

  const read = async (files: string, title: string) => {
    const place = element("div", { class: "report" }, element("p", { class: "dim" }, "Reading both."));
    root.replaceChildren(place);
    try {
      const report = await app.work.run(title, (progress) => app.files.call("report", { b: true }, progress));
      if (shown !== files) return;
      const choice = new Choice();
      const note = element("p", { class: "about" }, "A dense side is the reference; between two that are quantized it is A.");
      fill(report, place, choice, note, inside(app, choice));
      const name = app.address.get("name");
      choice.choose(report.rows.filter(isLayer).find((row) => row.name === name) ?? null);
      choice.follow((layer) => app.address.set({ name: layer?.name ?? null }));
      complete = true;
    } catch (error) {
      if (shown !== files) return;
      const again = button("Compare again", null, () => void read(files, title));
      place.replaceChildren(element("p", { role: "alert", class: "wrong" }, reason(error), " ", again));
    }
  };

  return {
    root,
    show() {
      const [a, b] = [app.slots.get("a"), app.slots.get("b")];
      if (a === undefined || b === undefined) {
        ask(a === undefined ? "Give the reference as A, above, and the other one as B." : "Give the other one as B, above.");
        return;
      }
      app.address.set({ view: "compare", a: a.name, b: b.name });
      const files = `${a.id} ${b.id}`;
      if (shown === files && (complete || app.files.busy)) return;
      [shown, complete] = [files, false];
      void read(files, `Comparing ${a.name} with ${b.name}`);
    },
  };
}
