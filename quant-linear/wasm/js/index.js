// exact-fp4 in a browser or a worker: chooses a build, loads it once, and gives what it has as
// functions of arrays. All rules and numbers are the library's; here are none.
import * as scalar from "./scalar/fp4.js";
import * as simd from "./simd/fp4.js";

export { blobSource, bytesSource } from "./sources.js";

/** A module that is valid only where there is simd128: i8x16.splat, i8x16.popcnt. */
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
]);

/** True if this engine runs the SIMD build. */
export const hasSimd = () => WebAssembly.validate(SIMD);

/** By build: what it is loaded from, and the promise of what it gives. */
const loaded = new Map();

/** Loads the SIMD or the scalar build, each once. */
export function load(options = {}) {
  try {
    const { simd } = only(options, ["base", "bytes", "simd"]);
    if (simd !== undefined && typeof simd !== "boolean") {
      throw new Error(`simd is ${simd}; give true or false, or leave it out`);
    }
  } catch (error) {
    return Promise.reject(error);
  }
  const useSimd = options.simd ?? hasSimd();
  const name = useSimd ? "simd" : "scalar";
  if (!loaded.has(name)) {
    const promise = start(useSimd ? simd : scalar, name, options);
    loaded.set(name, promise);
    // What failed may be tried again.
    promise.catch(() => loaded.delete(name));
  }
  return loaded.get(name);
}

/** Reads a file of the package; another platform has another way. */
let readWasm = async (url) => fetch(url);

export function setReader(reader) {
  readWasm = reader;
}

async function start(glue, name, { base, bytes }) {
  const file = `${name}/fp4_bg.wasm`;
  let source = bytes;
  if (source === undefined) {
    const url = base === undefined ? wasmUrl(name) : new URL(file, directory(base));
    source = await readWasm(url);
    if (source instanceof Response && !source.ok) {
      throw new Error(`${url} cannot be loaded (${source.status}); serve the package's ${file} there`);
    }
  }
  await glue.default({ module_or_path: source });
  return new Fp4(glue);
}

// Bundlers look for these very expressions.
function wasmUrl(name) {
  return name === "simd"
    ? new URL("./simd/fp4_bg.wasm", import.meta.url)
    : new URL("./scalar/fp4_bg.wasm", import.meta.url);
}

function directory(base) {
  const url = new URL(base, globalThis.location?.href ?? import.meta.url);
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

/** Runs a call; what is no error of the library's gets a message. */
function call(f) {
  try {
    return f();
  } catch (error) {
    if (error instanceof WebAssembly.RuntimeError || error instanceof RangeError) {
      throw new Error(`exact-fp4 stopped (${error.message}): it may be out of memory; load the page anew`);
    }
    throw error;
  }
}

class Fp4 {
  #glue;

  constructor(glue) {
    this.#glue = glue;
    const { rules, transforms, layouts, ties, defaultRule } = glue.settings();
    Object.assign(this, { rules, transforms, layouts, ties, defaultRule });
    this.isa = glue.isa();
    this.version = glue.version();
    Object.freeze(this);
  }

  explain(x, type) {
    return call(() => this.#glue.explain(x, type));
  }

  codes(type) {
    return call(() => this.#glue.codes(type));
  }

  dotSteps(a, b, options) {
    return call(() => this.#glue.dotSteps(a, b, options));
  }

  open(files, options) {
    return new Checkpoint(this.#glue, call(() => new this.#glue.Checkpoint(files, options)), KEY);
  }

  verify(files, options, progress) {
    return call(() => this.#glue.verifyFiles(files, options, progress));
  }

  report(a, b, progress) {
    return call(() => {
      const first = inner(a, "a", this.#glue);
      if (b === undefined || b === null) return first.report(progress);
      return first.reportAgainst(inner(b, "b", this.#glue), progress);
    });
  }

  quantize(x, rows, cols, options) {
    return call(() => this.#glue.quantize(x, rows, cols, options));
  }

  dequantize(q) {
    return call(() => this.#glue.dequantize(q));
  }

  matmul(a, b, options) {
    return call(() => this.#glue.matmul(a, b, options));
  }

  swizzle(scales, rows, cols) {
    return call(() => this.#glue.swizzle(scales, rows, cols));
  }

  unswizzle(swizzled, rows, cols) {
    return call(() => this.#glue.unswizzle(swizzled, rows, cols));
  }

  swizzleOffset(rows, cols, row, col) {
    return call(() => this.#glue.swizzleOffset(rows, cols, row, col));
  }

  swizzleCoordinate(rows, cols, offset) {
    return call(() => Array.from(this.#glue.swizzleCoordinate(rows, cols, offset)));
  }
}

/** Checkpoints and layers are made here, and by nobody else. */
const KEY = Symbol();

/** What each of them wraps, and where that is from. */
const wrapped = new WeakMap();

function wrap(object, glue, made, key) {
  if (key !== KEY) throw new Error("it is made by open() and linear(); call those");
  wrapped.set(object, { glue, made });
}

function inner(object, name, glue) {
  const found = wrapped.get(object);
  if (found === undefined) {
    throw new Error(`${name} is not open: it was freed, or is not what open() or linear() gave`);
  }
  if (glue !== undefined && found.glue !== glue) {
    throw new Error(`${name} is of another build; open both by one`);
  }
  return found.made;
}

function free(object) {
  const found = wrapped.get(object);
  if (found === undefined) return;
  wrapped.delete(object);
  found.made.free();
}

class Checkpoint {
  #glue;

  constructor(glue, made, key) {
    wrap(this, glue, made, key);
    this.#glue = glue;
  }

  contents() {
    return call(() => inner(this, "it").contents());
  }

  inspect(progress) {
    return call(() => inner(this, "the checkpoint").inspect(progress));
  }

  verify(progress) {
    return call(() => inner(this, "the checkpoint").verify(progress));
  }

  layer(name, options, progress) {
    if (typeof options === "function") return this.layer(name, undefined, options);
    return call(() => {
      const own = inner(this, "the checkpoint");
      const { against } = only(options, ["against"]);
      if (against === undefined) return own.layer(name, progress);
      return own.layerAgainst(name, inner(against, "against", this.#glue), progress);
    });
  }

  trial(name, choices, options, progress) {
    if (typeof options === "function") return this.trial(name, choices, undefined, options);
    return call(() => {
      const { matrix } = only(options, ["matrix"]);
      return inner(this, "the checkpoint").trial(name, choices, matrix ?? 0, progress);
    });
  }

  values(name, row, col, rows, cols) {
    return call(() => inner(this, "the checkpoint").values(name, row, col, rows, cols));
  }

  linear(name, options) {
    const own = inner(this, "the checkpoint");
    return new Linear(this.#glue, call(() => new this.#glue.Linear(own, name, options)), KEY);
  }

  free() {
    free(this);
  }
}

class Linear {
  constructor(glue, made, key) {
    wrap(this, glue, made, key);
    Object.assign(this, made.about());
    Object.freeze(this);
  }

  forward(x) {
    return call(() => inner(this, "the layer").forward(x));
  }

  free() {
    free(this);
  }
}

/** Options of these names. */
function only(options, known) {
  if (options === undefined || options === null) return {};
  if (typeof options !== "object") throw new Error(`options are ${options}; give an object`);
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) {
      throw new Error(`options has no \`${name}\`; it has ${known.join(", ")}`);
    }
  }
  return options;
}
