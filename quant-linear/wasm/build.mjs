// Builds the package into dist: the crate with simd128 and without, what wasm-bindgen makes of
// each, wasm-opt, and the files of js. `node build.mjs`; the feature of the tests, which is no part
// of the package, goes into another folder: `node build.mjs --suite FOLDER`. So does what a page
// takes that multiplies nothing, `node build.mjs --page FOLDER`: one build, without kernels, whose
// reference is as fast at what is left.
//
//   cargo build            target/wasm/{simd,scalar}/wasm32-unknown-unknown/release/exact_fp4.wasm
//   wasm-bindgen           dist/{simd,scalar}/fp4.js and fp4_bg.wasm
//   wasm-opt               the same fp4_bg.wasm, smaller
//
// wasm-bindgen is that of the PATH, or of FP4_WASM_BINDGEN, in the version of Cargo.lock:
// cargo install --locked wasm-bindgen-cli --version $(node build.mjs --wasm-bindgen-version)
import { execFile, execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(process.env.CARGO_TARGET_DIR ?? join(here, "target"));
const bindgen = process.env.FP4_WASM_BINDGEN ?? "wasm-bindgen";

/** Messages name files of the sources, and not where they lie on this machine. */
const REMAP = [
  [resolve(here, "../.."), "exact-fp4"],
  [process.env.CARGO_HOME ?? join(homedir(), ".cargo"), "cargo"],
].map(([from, to]) => `--remap-path-prefix=${from}=${to}`).join(" ");

/** What both builds may use; all have been in browsers for years. */
const FEATURES = [
  "bulk-memory", "bulk-memory-opt", "call-indirect-overlong", "multivalue", "mutable-globals",
  "nontrapping-float-to-int", "reference-types", "sign-ext",
];

const BUILDS = [
  { name: "scalar", flags: "", features: FEATURES },
  { name: "simd", flags: "-C target-feature=+simd128", features: [...FEATURES, "simd"] },
];

/** Runs a program; what it says is printed if it fails. */
function run(program, args, env = {}) {
  return new Promise((done, failed) => {
    const options = { cwd: here, env: { ...process.env, ...env }, maxBuffer: 1 << 26 };
    execFile(program, args, options, (error, stdout, stderr) => {
      if (!error) return done(stdout);
      failed(new Error(`${program} ${args.join(" ")}: ${error.message}\n${stdout}\n${stderr}`));
    });
  });
}

function locked(name) {
  const lock = readFileSync(join(here, "Cargo.lock"), "utf8");
  const found = lock.match(new RegExp(`name = "${name}"\\nversion = "([^"]+)"`));
  if (!found) throw new Error(`Cargo.lock has no ${name}`);
  return found[1];
}

function checkBindgen() {
  const wanted = locked("wasm-bindgen");
  let found;
  try {
    found = execFileSync(bindgen, ["--version"], { encoding: "utf8" }).trim().split(" ")[1];
  } catch {
    found = "none";
  }
  if (found !== wanted) {
    throw new Error(`wasm-bindgen ${wanted} is needed, and ${bindgen} is ${found}; run: ` +
      `cargo install --locked wasm-bindgen-cli --version ${wanted}`);
  }
}

/** All builds at once: each is linked on one thread, and flags of their own share nothing. */
async function build(out, features, builds = BUILDS) {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  await Promise.all(builds.map(async ({ name, flags, features: wasm }) => {
    const own = join(target, "wasm", name);
    const rust = ["build", "--release", "--locked", "--target", "wasm32-unknown-unknown", ...features];
    await run("cargo", rust, { RUSTFLAGS: `${flags} ${REMAP}`.trim(), CARGO_TARGET_DIR: own });
    const folder = join(out, name);
    const built = join(own, "wasm32-unknown-unknown/release/exact_fp4.wasm");
    await run(bindgen, [built, "--target", "web", "--out-dir", folder, "--out-name", "fp4",
      "--no-typescript", "--omit-default-module-path"]);
    const file = join(folder, "fp4_bg.wasm");
    const enabled = wasm.map((feature) => `--enable-${feature}`);
    await run(join(here, "node_modules/.bin/wasm-opt"), [file, "-O2", "-o", file, ...enabled]);
  }));
  for (const name of readdirSync(join(here, "js"))) copyFileSync(join(here, "js", name), join(out, name));
}

/** Every file's length, and as gzip -9 packs it. */
function weigh(out) {
  const files = readdirSync(out, { recursive: true }).map(String).sort();
  for (const name of files) {
    const path = join(out, name);
    if (!statSync(path).isFile()) continue;
    const bytes = readFileSync(path);
    const packed = gzipSync(bytes, { level: 9 }).length;
    console.log(`${name}: ${bytes.length} bytes, ${packed} compressed`);
  }
}

const [option, value] = process.argv.slice(2);
if (option === "--wasm-bindgen-version") {
  console.log(locked("wasm-bindgen"));
} else {
  checkBindgen();
  const out = option === undefined ? join(here, "dist") : resolve(value);
  switch (option) {
    case undefined:
      await build(out, []);
      break;
    case "--suite":
      await build(out, ["--features", "suite"]);
      break;
    case "--page":
      await build(out, ["--no-default-features"], BUILDS.slice(0, 1));
      // In the place of the other build the same one.
      mkdirSync(join(out, "simd"));
      writeFileSync(join(out, "simd/fp4.js"),
        'export * from "../scalar/fp4.js";\nexport { default } from "../scalar/fp4.js";\n');
      break;
    default:
      throw new Error(`there is no ${option}; there are --suite FOLDER and --page FOLDER`);
  }
  weigh(out);
}
