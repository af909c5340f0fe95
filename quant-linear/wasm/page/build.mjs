// Makes the page: node build.mjs [OUT]
//
//     OUT                  where to, `dist` beside this file if it is not given
//
//     index.html           src/page.html with its policy
//     page.js, page.css    the page, uPlot included, minified
//     worker.js            what computes, and reads files by slices
//     scalar/fp4_bg.wasm   the build for pages of the WASM package
//
// The bundler and the plotting library are those of the page that `fp4 report` writes, from its
// lock file: `npm ci` in quant-linear/cli/web comes first, and `node ../build.mjs --page wasm`,
// which builds the package for it.

import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const web = here("../../cli/web/");
const { buildSync } = createRequire(join(web, "package.json"))("esbuild");

const from = here("wasm");
const out = resolve(process.argv[2] ?? here("dist"));

const version = JSON.parse(readFileSync(join(web, "node_modules/uplot/package.json"), "utf8")).version;
const licence = readFileSync(join(web, "node_modules/uplot/LICENSE"), "utf8").trim();

// What was built before under another name does not stay.
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

const bundle = (entry, name, more = {}) =>
  buildSync({
    entryPoints: [here(entry)],
    absWorkingDir: here("."),
    outfile: join(out, name),
    bundle: true,
    minify: true,
    format: "iife",
    target: ["es2022"],
    legalComments: "inline",
    tsconfig: here("tsconfig.json"),
    logLevel: "warning",
    ...more,
  });
bundle("src/main.ts", "page.js", { banner: { js: `/*! uPlot ${version}\n\n${licence}\n*/` } });
bundle("src/style.css", "page.css");
bundle("src/worker.ts", "worker.js", { format: "esm", alias: { "exact-fp4": join(from, "index.js") } });

// No source but the files beside the page; nothing is written into it, and nothing is sent.
const policy =
  "default-src 'none'; script-src 'self'; style-src 'self'; worker-src 'self'; img-src data:; " +
  "base-uri 'none'; form-action 'none'";
const page = readFileSync(here("src/page.html"), "utf8").split("@policy@");
if (page.length !== 2) throw new Error(`the template has ${page.length - 1} of @policy@`);
writeFileSync(join(out, "index.html"), page.join(policy));

mkdirSync(join(out, "scalar"));
copyFileSync(join(from, "scalar/fp4_bg.wasm"), join(out, "scalar/fp4_bg.wasm"));
console.log(`${out}: ${readdirSync(out, { recursive: true }).join(", ")}`);
