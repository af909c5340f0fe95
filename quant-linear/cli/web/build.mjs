// Makes dist/report.html from src: the page without its numbers, one file that asks the network for
// nothing. The same sources and the same lock file give the same bytes; CI compares them.
//
//     template   src/page.html, with places for what follows
//     script     src/main.ts and what it imports, uPlot included, bundled and minified
//     style      uPlot's and src/style.css, minified
//     policy     no source but the hashes of the two
//     licence    uPlot's, whole, at the head of the script

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { buildSync } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const read = (path) => readFileSync(here(path), "utf8");

const bundle = (entry, banner) => {
  const result = buildSync({
    entryPoints: [here(entry)],
    absWorkingDir: here("."),
    bundle: true,
    write: false,
    minify: true,
    format: "iife",
    target: ["es2022"],
    legalComments: "inline",
    banner,
  });
  return result.outputFiles[0].text;
};

const version = JSON.parse(read("node_modules/uplot/package.json")).version;
const licence = `/*! uPlot ${version}\n\n${read("node_modules/uplot/LICENSE").trim()}\n*/`;
const script = bundle("src/main.ts", { js: licence });
const style = bundle("src/style.css", {});

// Inside an element these would end it, or hide its end.
for (const [what, text] of [["script", script], ["style", style]]) {
  if (/<\/(script|style)|<!--|<script/i.test(text)) throw new Error(`the ${what} holds markup`);
}

const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
const policy =
  `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; ` +
  "base-uri 'none'; form-action 'none'";

const fill = (page, place, text) => {
  const parts = page.split(place);
  if (parts.length !== 2) throw new Error(`the template has ${parts.length - 1} of ${place}`);
  return parts.join(text);
};
let page = read("src/page.html");
page = fill(page, "@policy@", policy);
page = fill(page, "@style@", style);
page = fill(page, "@script@", script);
mkdirSync(here("dist"), { recursive: true });
writeFileSync(here("dist/report.html"), page);
console.log(`dist/report.html: ${page.length} characters, of which script ${script.length}`);
