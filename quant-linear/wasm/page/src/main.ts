// The page: its views, and which of them the address asks for.

import { element } from "report/dom";
import { Address } from "./address";
import { checkpoint } from "./checkpoint";
import { Client } from "./client";
import { compare } from "./compare";
import { numbers } from "./numbers";
import { product } from "./product";
import { Slots } from "./slots";
import { swizzle } from "./swizzle";
import { tensor } from "./tensor";
import type { App, View } from "./view";
import { Work } from "./work";

const VIEWS: [name: string, title: string, make: (app: App) => View, files: boolean][] = [
  ["checkpoint", "Checkpoint", checkpoint, true],
  ["tensor", "Tensor", tensor, true],
  ["compare", "Compare", compare, true],
  ["numbers", "Numbers", numbers, false],
  ["product", "Product", product, false],
  ["swizzle", "Scale layout", swizzle, false],
];

function start(place: HTMLElement): void {
  const files = new Client();
  const work = new Work(files);
  const app: App = { address: new Address(), files, numbers: new Client(), work, slots: new Slots(files, work) };
  const made = new Map<string, View>();
  let shown: HTMLElement | null = null;
  /** Goes into a view by keyboard: what had the focus is not in the page any more. */
  const enter = (root: HTMLElement) => {
    const heading = root.querySelector("h2");
    if (heading === null) return;
    heading.tabIndex = -1;
    heading.focus();
  };
  const links = VIEWS.map(([name, title]) => {
    const link = element("a", { href: `#view=${name}` }, title);
    link.addEventListener("click", (event) => {
      // What is looked at is kept by the views that show it.
      event.preventDefault();
      const looked = ["tensor", "compare"].includes(name) ? app.address.get("name") : null;
      app.address.go(name, looked === null ? {} : { name: looked });
    });
    return link;
  });
  const show = () => {
    const wanted = app.address.get("view");
    const at = Math.max(0, VIEWS.findIndex(([name]) => name === wanted));
    const found = VIEWS[at];
    if (found === undefined) return;
    const [name, title, make, needsFiles] = found;
    links.forEach((link, i) => {
      if (i === at) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    document.title = `${title} – FP4 in the browser`;
    app.slots.root.hidden = !needsFiles;
    let view = made.get(name);
    if (view === undefined) {
      view = make(app);
      made.set(name, view);
    }
    const focused = shown !== view.root && (shown?.contains(document.activeElement) ?? false);
    // In the page first: charts ask for the width that they have.
    if (shown !== view.root) {
      if (shown === null) place.append(view.root);
      else shown.replaceWith(view.root);
      shown = view.root;
    }
    view.show();
    if (focused) enter(view.root);
  };
  const head = element(
    "header",
    { class: "top" },
    element("h1", {}, "FP4 in the browser"),
    element("nav", { "aria-label": "Views" }, ...links),
  );
  place.replaceChildren(head, app.slots.root);
  document.body.append(work.strip);
  app.address.follow(show);
  app.slots.follow(() => show());
  show();
}

start(document.getElementById("page") ?? document.body);
