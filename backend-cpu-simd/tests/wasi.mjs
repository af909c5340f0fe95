// Runs a wasm32-wasip1 program in node, without files: node wasi.mjs PROGRAM [ARGUMENT...]
import { readFile } from "node:fs/promises";
import process from "node:process";
import { WASI } from "node:wasi";

const [program, ...args] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program, ...args], env: process.env });
const module = await WebAssembly.compile(await readFile(program));
const instance = await WebAssembly.instantiate(module, wasi.getImportObject());
// Not process.exit: compilation in the background would be torn down in the middle.
process.exitCode = wasi.start(instance);
